"""`data.py download cifar10`: Python 2's pickles become an ImageFolder; nothing in them is run."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_transfer.console import call_main
from tests.tools.test_data_download import Site, refused, site
from tools.data import main
from transfer.tasks.fetch import PUBLIC

__all__ = ["site"]
ARCHIVE = "cifar-10-python.tar.gz"
CLASSES = ["cat", "ship"]


def python2(value: Any) -> bytes:
    """A value as Python 2's cPickle writes it with protocol 2: text as bytes, arrays of numpy 1."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(item) for pair in value.items() for item in pair) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return b"T" + struct.pack("<I", len(value)) + value.encode("latin-1")
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(map(_python2, value.shape)) + b"\x86"
    text = b"T" + struct.pack("<I", value.nbytes) + value.tobytes()
    return made + b"(K\x01" + shape + dtype + b"\x89" + text + b"tb"


def batches(dump: Callable[[Any], bytes] = python2, each: int = 4) -> dict[str, bytes]:
    """CIFAR-10's six batches and its list of classes, each batch of `each` photographs."""
    rng = np.random.default_rng(0)
    files = {"batches.meta": dump({"num_cases_per_batch": each, "label_names": CLASSES, "num_vis": 3072})}
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        data = rng.integers(0, 256, (each, 3072), dtype=np.uint8)
        labels = [index % 2 for index in range(each)]
        files[name] = dump({"batch_label": name, "labels": labels, "data": data, "filenames": ["a_000.png"] * each})
    return {**files, "readme.html": b"<html>"}


def serve(site: Site, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> list[str]:
    """Put the archive of these files on the server, as published; returns the command's first words."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, body in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    body = site.files[ARCHIVE] = stream.getvalue()
    (folder,) = PUBLIC["cifar10"]
    pinned = replace(folder.archives[0], bytes=len(body), md5=hashlib.md5(body).hexdigest())
    monkeypatch.setitem(PUBLIC, "cifar10", (replace(folder, archives=(pinned,)),))
    return ["download", "cifar10", "--mirror", site.url]


@pytest.mark.parametrize("dump", [python2, lambda value: pickle.dumps(value, 4)])
def test_every_photograph_is_a_file_of_its_class(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dump: Callable[[Any], bytes],
) -> None:
    words = serve(site, monkeypatch, batches(dump))
    site.cut = [1000]  # the download is continued
    assert call_main(main, [*words, str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "20 images in" in out and "4 images in" in out and out.count("nothing wrong") == 2
    files = {str(file.relative_to(tmp_path / "cifar10")) for file in (tmp_path / "cifar10").rglob("*.*")}
    assert len(files) == 24
    assert {"train/cat/00000.png", "train/ship/00019.png", "test/cat/00002.png"} <= files
    rng = np.random.default_rng(0)
    expected = np.concatenate([rng.integers(0, 256, (4, 3072), dtype=np.uint8) for _ in range(6)])
    for number, file in ((5, "train/ship/00005.png"), (22, "test/cat/00002.png")):
        found = np.asarray(Image.open(tmp_path / "cifar10" / file))
        assert np.array_equal(found.transpose(2, 0, 1).ravel(), expected[number])  # red, green, blue plane by plane
    requested = len(site.requested)
    assert call_main(main, [*words, str(tmp_path)]) == 0
    assert len(site.requested) == requested


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("executed"), "x"))


def test_nothing_in_a_batch_is_executed(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = serve(site, monkeypatch, {**batches(), "data_batch_3": pickle.dumps({"data": Harmful(), "labels": []})})
    assert "data_batch_3" in refused([*words, "root"], capsys)
    assert not (tmp_path / "executed").exists() and not (tmp_path / "root/cifar10").exists()


NO_DATA = python2({"labels": [0]})
WRONG_SIDE = python2({"data": np.zeros((1, 100), np.uint8), "labels": [0]})
WRONG_LABEL = python2({"data": np.zeros((1, 3072), np.uint8), "labels": [2]})
FEW_LABELS = python2({"data": np.zeros((2, 3072), np.uint8), "labels": [0]})


@pytest.mark.parametrize("content", [None, b"", b"\x80\x02]", NO_DATA, WRONG_SIDE, WRONG_LABEL, FEW_LABELS])
def test_another_archive_is_named_in_one_line(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
) -> None:
    files = batches()
    files = {name: body for name, body in files.items() if name != "test_batch"} | (
        {} if content is None else {"test_batch": content}
    )
    words = serve(site, monkeypatch, files)
    assert "test_batch" in refused([*words, str(tmp_path)], capsys)
    assert not (tmp_path / "cifar10").exists()


@pytest.mark.parametrize("names", [["cat", "../ship"], ["cat", "cat"], [], "cat"])
def test_class_names_are_no_paths(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], names: Any
) -> None:
    words = serve(site, monkeypatch, {**batches(), "batches.meta": python2({"label_names": names})})
    assert "batches.meta" in refused([*words, str(tmp_path / "root")], capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["root"]


def test_the_digest_is_torchvision_s() -> None:
    from torchvision.datasets import CIFAR10

    (archive,) = PUBLIC["cifar10"][0].archives
    assert (archive.url, archive.md5) == (CIFAR10.url, CIFAR10.tgz_md5)
