"""A flipped bit or an edit is seen by who reads the file; what has no digest is read as before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ssl_transfer.errors import UserError
from ssl_transfer.files import read_json
from ssl_transfer.formats.backbone import check_backbone_file, float32_safetensors
from ssl_transfer.formats.results import TransferResult
from tests.transfer.report import made_results
from transfer.report.reading import read_result


def test_every_bit_of_a_backbone_file_is_covered(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    metadata = {"arch": "resnet50", "branch": "online", "format": "backbone/1", "preprocessing": "{}"}
    parts = float32_safetensors({"a": np.arange(3, dtype=np.float32)}, metadata)
    content = b"".join(parts)
    file.write_bytes(content)
    check_backbone_file(file)
    header = int.from_bytes(content[:8], "little")
    for bit in range(8 * len(content)):
        if 10 <= bit // 8 < 22:
            continue  # the name of the metadata: what stands there then is no tensor, safetensors itself refuses it
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        if content[bit // 8 : bit // 8 + 1] == b" " and bit // 8 < 8 + header and changed[bit // 8] in b"\t\n\r":
            continue  # padding
        file.write_bytes(changed)
        with pytest.raises(UserError, match=r"w\.safetensors"):
            check_backbone_file(file)


def test_an_altered_result_is_marked_and_an_older_one_is_read(tmp_path: Path) -> None:
    file = made_results.put(tmp_path, made_results.result("simsiam", "voc07", 1, [75.0, 47.0, 50.0]))
    assert read_result(file)[1] == ""  # of a release without digests
    TransferResult.parse(read_json(file), file).write(file)
    assert read_result(file)[1] == ""
    content = read_json(file)
    content["metrics"]["bbox"]["AP50"] = 76.0
    file.write_text(json.dumps(content))
    assert "digest" in read_result(file)[1]
    with pytest.raises(UserError, match=r"result\.json"):
        TransferResult.read(file)
    old = made_results.result("simsiam", "voc07", 1, [75.0, 47.0, 50.0], metrics__bbox__AP=48.0)
    assert "metrics.bbox.AP" in read_result(made_results.put(tmp_path, old))[1]
