"""Metadata of backbone files, manifests and the zoo: exact text, round trips, and errors with file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssl_transfer.errors import UserError
from ssl_transfer.formats.backbone import MSRA, TORCHVISION, BackboneMetadata, Preprocessing
from ssl_transfer.formats.manifest import Manifest
from ssl_transfer.formats.zoo import Zoo, ZooRecord

BLOCK = '{"channel_order": "RGB", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]'


def test_the_metadata_of_a_backbone_file_are_strings() -> None:
    origin = {"method": "simsiam", "epochs": 2}
    metadata = BackboneMetadata(arch="resnet50", branch="online", preprocessing=TORCHVISION, origin=origin)
    strings = metadata.encode()
    assert strings == {
        "format": "backbone/1",
        "arch": "resnet50",
        "branch": "online",
        "preprocessing": BLOCK + ', "stride_in_1x1": false}',
        "origin": '{"epochs": 2, "method": "simsiam"}',
    }
    assert BackboneMetadata.parse(strings, "file") == metadata
    assert BackboneMetadata.parse({**strings, "origin": "null"}, "file").origin is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mean": [1, 2]}, "mean.2: is missing"),
        ({"std": [1, 0, 1]}, "std.1: must be greater than 0, not 0"),
        ({"std": [1, "1", 1]}, "std.1: must be a number, not '1'"),
        ({"stride_in_1x1": 0}, "stride_in_1x1: must be a boolean, not 0"),
        ({"channel_order": "GRB"}, "channel_order: must be 'RGB' or 'BGR', not 'GRB'"),
        ({"sdt": [1, 1, 1]}, "sdt: unknown key; did you mean std?"),
    ],
)
def test_invalid_preprocessing(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        Preprocessing.parse({**MSRA.as_dict(), **change}, "weights.pkl")
    assert str(caught.value) == f"weights.pkl: {reason}"


def test_a_manifest_is_written_as_it_was_read(tmp_path: Path) -> None:
    source = {"path": "a.pth", "sha256": "0" * 64, "bytes": 3, "layout": "moco", "rule": "r", "branch": "target"}
    content = {
        "format": "manifest/1",
        "arch": "resnet50",
        "source": source,
        "preprocessing": MSRA.as_dict(),
        "origin": None,
        "tensors": {"conv1.weight": {"shape": [64, 3, 7, 7], "sha256": "1" * 64}},
        "count": 1,
        "left_out": [{"name": "fc.*", "why": "classifier"}],
        "converted_up": [],
        "warnings": ["w"],
        "proof": {"tensors": "1/1", "forward_max_abs_diff": 0.0, "detectron2_load": "exact"},
        "tool": {"version": "1", "commit": None},
        "toy": False,
    }
    manifest = Manifest.parse(content, "a.manifest.json")
    assert manifest.as_dict() == content and list(manifest.as_dict()) == list(content)
    assert manifest.proof is not None and manifest.proof.summary().endswith("detectron2 load exact")
    with pytest.raises(UserError, match=r"a\.manifest\.json: source\.branch: .*'online' or 'target'"):
        Manifest.parse({**content, "source": {**source, "branch": "both"}}, "a.manifest.json")


def test_the_zoo_names_line_and_key_of_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "zoo.yaml"
    file.write_text("one:\n  title: t\n  url: u\n  layout: l\n  branch: online\n  licence: x\n  source: s\n")
    entry = Zoo.read(file).entries["one"]
    assert (entry.sha256, entry.published, entry.md5_prefix) == ("unknown", {}, "")
    file.write_text(file.read_text() + "  sha265: y\n")
    with pytest.raises(UserError, match=r"zoo\.yaml, line 8: one\.sha265: unknown key; did you mean sha256"):
        Zoo.read(file)
    with pytest.raises(UserError, match="sha256: is missing"):
        ZooRecord.parse({"name": "one", "url": "u", "bytes": 1, "first_used": "now"}, "one.json")
