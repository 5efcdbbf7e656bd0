"""Unpacking: what leads out is refused, links are left out, a damaged archive is named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from tests.archives import files_below, tar, zipped
from transfer.tasks.fetch import unpack, unpacked_bytes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with something to pack: more than an archive's block."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_bytes(bytes(range(256)) * 100)
    return folder


def member(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0 if kind == tarfile.SYMTYPE else 4
        archive.addfile(info, io.BytesIO(b"evil"))
        good = tarfile.TarInfo("VOC/good")
        good.size = 4
        archive.addfile(good, io.BytesIO(b"good"))
    return stream.getvalue()


@pytest.mark.parametrize("name", ["../evil", "/evil", "VOC/../../evil"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.tar").write_bytes(member(name))
    with pytest.raises(UserError, match="leads out of the archive"):
        unpack(tmp_path / "a.tar", "VOC", tmp_path / "out/in")
    assert not (tmp_path / "out").exists()


def test_links_and_files_elsewhere_are_left_out(tmp_path: Path) -> None:
    for name, kind in (("VOC/link", tarfile.SYMTYPE), ("OTHER/file", tarfile.REGTYPE)):
        (tmp_path / "a.tar").write_bytes(member(name, kind))
        assert unpacked_bytes(tmp_path / "a.tar", "VOC") == 4
        assert unpack(tmp_path / "a.tar", "VOC", tmp_path / "out") == 1
        assert files_below(tmp_path / "out") == {"good": b"good"}


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_a_damaged_archive_is_named(tmp_path: Path, source: Path, suffix: str) -> None:
    body = tar(source, "VOC") if suffix == "tar" else zipped(source, "VOC")
    for content in (body[: len(body) // 2 + 100], b"", b"x" * 3000):
        (tmp_path / f"a.{suffix}").write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.{suffix}"):
            unpack(tmp_path / f"a.{suffix}", "VOC", tmp_path / "out")
    (tmp_path / f"a.{suffix}").write_bytes(body)
    with pytest.raises(UserError, match="holds no files below ELSE/"):
        unpack(tmp_path / f"a.{suffix}", "ELSE", tmp_path / "out")
