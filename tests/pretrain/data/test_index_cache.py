"""The kept list of a folder: believed only while it is true, whole, and wanted."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from pretrain.data import index_cache
from pretrain.data.index import find_images
from pretrain.data.index_cache import FolderScan, IndexCache, PackedStringArray, scan_folder


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders may be believed at once; `_pause` between two changes keeps their times apart."""
    monkeypatch.setattr(index_cache, "SETTLE_NS", 0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b/2.jpg", "b/10.jpg", "a/x/1.png", "a/notes.txt", "ü\udcff/3.jpg"):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    _pause()
    return tmp_path / "tree"


def _pause() -> None:
    time.sleep(0.02)  # longer than a tick of the file system's clock


class Counted:
    """A scan that counts its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.times = folder, 0

    def __call__(self) -> FolderScan:
        self.times += 1
        return scan_folder(self.folder)


def _asked(tree: Path, cache: Path) -> tuple[list[str], int]:
    """The names, and how often the folder was walked through for them."""
    counted = Counted(tree)
    names = IndexCache(cache, tree, 0).files(counted)
    assert list(names) == list(scan_folder(tree).files)
    return list(names), counted.times


def test_packed_string_array_is_a_sequence_of_strings() -> None:
    words = ["a/1.jpg", "", "ü/\udcff.png", "b\nc.jpg"]
    names = PackedStringArray.from_strings(words)
    assert list(names) == words and names[-1] == words[-1] and names[1:3] == words[1:3] and names == words
    assert len(PackedStringArray.from_strings([])) == 0 and list(PackedStringArray.from_strings([])) == []
    with pytest.raises(IndexError):
        names[4]


@pytest.mark.usefixtures("settled")
def test_folder_is_scanned_once(tree: Path, tmp_path: Path) -> None:
    first, walks = _asked(tree, tmp_path / "cache")
    assert walks == 1 and first == ["a/x/1.png", "b/10.jpg", "b/2.jpg", "ü\udcff/3.jpg"]
    assert _asked(tree, tmp_path / "cache") == (first, 0)
    (tree / "b" / "2.jpg").write_bytes(b"another content, the same name")
    assert _asked(tree, tmp_path / "cache") == (first, 0)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("what", ["add", "remove", "rename", "folder", "deep", "remove folder", "times set back"])
def test_change_of_a_folder_is_detected(tree: Path, tmp_path: Path, what: str) -> None:
    before, _ = _asked(tree, tmp_path / "cache")
    facts = (tree / "b").stat()
    changes = {
        "add": lambda: (tree / "b" / "3.jpg").touch(),
        "remove": lambda: (tree / "b" / "2.jpg").unlink(),
        "rename": lambda: (tree / "b" / "2.jpg").rename(tree / "b" / "4.jpg"),
        "folder": lambda: ((tree / "c").mkdir(), (tree / "c" / "1.jpg").touch()),
        "deep": lambda: (tree / "a" / "x" / "0.jpg").touch(),
        "remove folder": lambda: shutil.rmtree(tree / "b"),
        "times set back": lambda: (
            (tree / "b" / "3.jpg").touch(),
            os.utime(tree / "b", ns=(facts.st_atime_ns, facts.st_mtime_ns)),
        ),
    }
    changes[what]()
    _pause()
    after, walks = _asked(tree, tmp_path / "cache")
    assert walks == 1 and after != before
    assert _asked(tree, tmp_path / "cache") == (after, 0)


def test_recently_changed_folder_is_scanned_again(tree: Path, tmp_path: Path) -> None:
    assert _asked(tree, tmp_path / "cache")[1] == 1
    assert _asked(tree, tmp_path / "cache")[1] == 1


@pytest.mark.usefixtures("settled")
def test_damaged_cache_file_is_rebuilt(tree: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    _asked(tree, cache)
    file = IndexCache(cache, tree, 0).file
    whole = file.read_bytes()
    rng = random.Random(0)
    for _ in range(20):
        place = rng.randrange(len(whole))
        flipped = whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
        for damaged in (whole[:place], flipped):
            file.write_bytes(damaged)
            assert _asked(tree, cache)[1] == 1
            assert _asked(tree, cache)[1] == 0 and file.read_bytes() == whole


@pytest.mark.usefixtures("settled")
def test_cache_file_of_another_folder_is_not_used(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    _asked(tree, tmp_path / "cache")
    theirs, ours = (IndexCache(tmp_path / "cache", folder, 0).file for folder in (tree, tmp_path / "other"))
    shutil.copy(theirs, ours)
    assert _asked(tmp_path / "other", tmp_path / "cache") == ([], 1)


def _ask_slowly(tree: Path, cache: Path, walks: Path, wait: float) -> None:
    def slow() -> FolderScan:
        with walks.open("a") as stream:
            stream.write("x")
        time.sleep(wait)
        return scan_folder(tree)

    assert list(IndexCache(cache, tree, 0).files(slow)) == list(scan_folder(tree).files)


@pytest.mark.usefixtures("settled")
def test_one_of_several_processes_scans_and_the_others_wait(tree: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    words = (tree, tmp_path / "cache", tmp_path / "walks", 0.3)
    children = [context.Process(target=_ask_slowly, args=words) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    assert (tmp_path / "walks").read_text() == "x"


@pytest.mark.usefixtures("settled")
def test_killed_scan_does_not_block_others(tree: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_ask_slowly, args=(tree, tmp_path / "cache", tmp_path / "walks", 60))
    child.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "walks").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.join(30)
    assert _asked(tree, tmp_path / "cache")[1] == 1


@pytest.mark.usefixtures("settled")
def test_folder_is_scanned_where_no_cache_can_be_written(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert _asked(tree, tmp_path / "file" / "cache")[1] == 1
    assert "is not cached" in caplog.text


def test_location_of_the_cache(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    find_images(str(tree), "user")
    assert not list((tmp_path / "home").rglob("*.npz"))  # few images: not worth a file
    monkeypatch.setattr(index_cache, "MIN_CACHED", 3)
    find_images(str(tree), "user")
    assert len(list((tmp_path / "home" / "ssl-detection-transfer" / "index").glob("*.npz"))) == 1
    find_images(str(tree), "none")
    find_images(str(tree), str(tree / ".index"))
    assert len(list((tree / ".index").glob("*.npz"))) == 1
    assert find_images(str(tree), str(tree / ".index")).files == find_images(str(tree)).files
