"""Fetch public sets from a local server that drops connections, sends wrong sizes or bytes, or has no file."""

from __future__ import annotations

import hashlib
import http.server
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ssl_transfer.console import call_main
from ssl_transfer.errors import UserError
from tests.archives import files_below, tar, zipped
from tools.data import main
from transfer.tasks import fetch as fetching
from transfer.tasks.classes import BENCHMARK
from transfer.tasks.datasets import PUBLISHED
from transfer.tasks.fetch import PUBLIC, Archive, SetFolder
from transfer.toy.build import Size, build_toy_sets

TRAINVAL, TEST = "VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"


@dataclass
class Site:
    """What the server does.

    Attributes:
        files: name → bytes.
        cut: answers still to be broken off, after how many bytes each.
        length: announce so many bytes instead of the true number.
        requested: (name, Range header) of each request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    length: int | None = None
    requested: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    found = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, wanted = self.path.lstrip("/"), self.headers.get("Range")
            found.requested.append((name, wanted))
            if name not in found.files:
                self.send_error(404)
                return
            body, start = found.files[name], 0
            total = found.length or len(body)
            if wanted:
                start = int(re.match(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(total - start))
            self.send_header("ETag", '"one"')
            self.end_headers()
            rest = body[start:]
            self.wfile.write(rest[: found.cut.pop(0)] if found.cut else rest)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr("transfer.weights.download.time.sleep", lambda _: None)
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "toy"
    build_toy_sets(out, size=Size(photos=8, voc2007=(6, 3), voc2012=(3, 3), coco=(5, 5)))
    return out / "detection"


def pinned(folder: SetFolder, files: dict[str, bytes]) -> SetFolder:
    """The published folder with the sizes and digests of these files."""
    return replace(
        folder,
        archives=tuple(
            replace(archive, bytes=len(files[archive.name]), md5=hashlib.md5(files[archive.name]).hexdigest())
            for archive in folder.archives
        ),
    )


@pytest.fixture
def small(site: Site, toy: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The toy sets as the publishers' archives, and the counts that belong to them."""
    test = set((toy / "VOC2007/ImageSets/Main/test.txt").read_text().split())

    def is_test(file: Path) -> bool:
        return file.stem in test or file.stem == "test"

    site.files = {
        TRAINVAL: tar(toy / "VOC2007", "VOCdevkit/VOC2007", lambda file: not is_test(file)),
        TEST: tar(toy / "VOC2007", "VOCdevkit/VOC2007", is_test),
        "VOCtrainval_11-May-2012.tar": tar(toy / "VOC2012", "VOCdevkit/VOC2012"),
        "annotations_trainval2017.zip": zipped(toy / "coco/annotations", "annotations"),
        "train2017.zip": zipped(toy / "coco/train2017", "train2017"),
        "val2017.zip": zipped(toy / "coco/val2017", "val2017"),
    }
    for name in ("voc2007", "voc2012", "coco"):
        monkeypatch.setitem(PUBLIC, name, tuple(pinned(folder, site.files) for folder in PUBLIC[name]))
    monkeypatch.setitem(BENCHMARK, "coco", ("bus", "cat", "sheep"))
    listed = {"train": 3, "val": 3, "trainval": 6, "test": 3}
    for name, split in list(PUBLISHED.items()):
        count = 5 if split.layout == "coco" else listed[split.image_set]
        monkeypatch.setitem(PUBLISHED, name, replace(split, count=count))
    return site


@pytest.mark.parametrize(("name", "folder", "splits"), [("voc2007", "VOC2007", 4), ("voc2012", "VOC2012", 3)])
def test_voc_is_fetched_verified_unpacked_and_checked(
    small: Site, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, folder: str, splits: int
) -> None:
    assert call_main(main, ["download", name, str(tmp_path / "root"), "--mirror", small.url]) == 0
    out = capsys.readouterr().out
    assert "as published" in out and f"{splits} splits, nothing wrong" in out
    assert files_below(tmp_path / "root" / folder) == files_below(toy / folder)
    assert sorted(file.name for file in (tmp_path / "root").iterdir()) == sorted([".archives", folder])


def test_coco_s_three_folders_are_fetched_and_a_second_run_fetches_nothing(
    small: Site, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["download", "coco", str(tmp_path), "--mirror", small.url, "--remove-archives"]
    assert call_main(main, words) == 0
    assert files_below(tmp_path / "coco") == files_below(toy / "coco")
    assert [file.name for file in (tmp_path / ".archives").iterdir() if file.suffix == ".zip"] == []
    requested = len(small.requested)
    capsys.readouterr()
    assert call_main(main, words) == 0
    out = capsys.readouterr().out
    assert len(small.requested) == requested and out.count("exists already") == 3 and "2 splits, nothing wrong" in out


def test_only_a_missing_folder_is_fetched(small: Site, toy: Path, tmp_path: Path) -> None:
    words = ["download", "coco", str(tmp_path), "--mirror", small.url]
    assert call_main(main, words) == 0
    (tmp_path / "coco/val2017").rename(tmp_path / "moved")
    (tmp_path / ".archives/val2017.zip").unlink()
    small.requested.clear()
    assert call_main(main, words) == 0
    assert [name for name, _ in small.requested] == ["val2017.zip"]


def test_it_goes_on_where_the_server_broke_off(small: Site, toy: Path, tmp_path: Path) -> None:
    small.cut = [1000, 2000]
    assert call_main(main, ["download", "voc2007", str(tmp_path), "--mirror", small.url]) == 0
    assert small.requested[:3] == [(TRAINVAL, None), (TRAINVAL, "bytes=1000-"), (TRAINVAL, "bytes=3000-")]
    assert files_below(tmp_path / "VOC2007") == files_below(toy / "VOC2007")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert call_main(main, words) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1
    return error[0]


def test_a_wrong_length_leaves_nothing_and_a_second_run_succeeds(
    small: Site, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["download", "voc2007", str(tmp_path), "--mirror", small.url]
    small.length = 10**9
    assert "6 times in a row" in refused(words, capsys)
    assert not (tmp_path / "VOC2007").exists()
    small.length = None
    assert call_main(main, words) == 0
    assert files_below(tmp_path / "VOC2007") == files_below(toy / "VOC2007")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body[:-1] + b"x", "has the MD5"),
        (lambda body: body[:-512], "bytes, published are"),
        (lambda body: body + b"more", "bytes, published are"),
    ],
)
def test_other_bytes_are_not_unpacked_and_not_kept(
    small: Site,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[bytes], bytes],
    message: str,
) -> None:
    words = ["download", "voc2007", str(tmp_path), "--mirror", small.url]
    right = small.files[TEST]
    small.files[TEST] = change(right)
    error = refused(words, capsys)
    assert message in error and TEST in error and "--mirror" in error
    assert not (tmp_path / "VOC2007").exists() and not (tmp_path / ".archives" / TEST).exists()
    small.files[TEST] = right
    assert call_main(main, words) == 0
    assert [name for name, _ in small.requested].count(TRAINVAL) == 1


def test_a_server_without_the_file_is_named(small: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del small.files[TEST]
    error = refused(["download", "voc2007", str(tmp_path), "--mirror", small.url], capsys)
    assert f"{small.url}{TEST}: HTTP 404" in error


def test_archives_brought_by_hand_need_no_server(
    small: Site, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".archives").mkdir()
    for name in (TRAINVAL, TEST):
        (tmp_path / ".archives" / name).write_bytes(small.files[name])
    assert call_main(main, ["download", "voc2007", str(tmp_path)]) == 0
    assert small.requested == [] and files_below(tmp_path / "VOC2007") == files_below(toy / "VOC2007")
    # One that is not as published is the user's: it is named and left alone.
    theirs = tmp_path / "other/.archives" / TRAINVAL
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"mine")
    error = refused(["download", "voc2007", str(tmp_path / "other")], capsys)
    assert "has 4 bytes" in error and "remove it" in error and theirs.read_bytes() == b"mine"


def test_missing_space_is_reported_before_the_download(
    small: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = fetching.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    error = refused(["download", "coco", str(tmp_path), "--mirror", small.url], capsys)
    assert "downloading and unpacking coco needs 0.0 GB" in error and small.requested == []


def test_the_real_coco_asks_for_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = fetching.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=30 * 10**9))
    with pytest.raises(UserError, match=r"needs 40\.8 GB below .*, 30\.0 GB are free"):
        fetching.fetch("coco", tmp_path)


def test_what_a_killed_run_left_is_unpacked_anew(small: Site, toy: Path, tmp_path: Path) -> None:
    left = tmp_path / fetching.STAGING / "VOC2007"
    left.mkdir(parents=True)
    (left / "half.jpg").write_bytes(b"half")
    assert call_main(main, ["download", "voc2007", str(tmp_path), "--mirror", small.url]) == 0
    assert files_below(tmp_path / "VOC2007") == files_below(toy / "VOC2007")
    assert not (tmp_path / fetching.STAGING).exists()


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from transfer.tasks import fetch
folder, file, md5 = fetch.PUBLIC["voc2012"][0], Path(sys.argv[1]), sys.argv[2]
archive = replace(folder.archives[0], bytes=file.stat().st_size, md5=md5)
fetch.PUBLIC["voc2012"] = (replace(folder, archives=(archive,)),)
copy = fetch.shutil.copyfileobj
def slowly(*words):
    copy(*words)
    print("one", flush=True)
    import time; time.sleep(0.05)
if len(sys.argv) > 4:
    fetch.shutil.copyfileobj = slowly
fetch.fetch("voc2012", Path(sys.argv[3]))
"""


@pytest.mark.parametrize("files", [1, 7])
def test_after_a_kill_while_unpacking_a_second_run_completes_the_folder(
    root: Path, toy: Path, tmp_path: Path, files: int
) -> None:
    body = tar(toy / "VOC2012", "VOCdevkit/VOC2012")
    file = tmp_path / "root/.archives/VOCtrainval_11-May-2012.tar"
    file.parent.mkdir(parents=True)
    file.write_bytes(body)
    words = [sys.executable, "-c", KILLED, str(file), hashlib.md5(body).hexdigest(), str(tmp_path / "root")]
    process = subprocess.Popen([*words, "slowly"], cwd=root, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    for _ in range(files):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "root/VOC2012").exists()
    subprocess.run(words, cwd=root, check=True, timeout=60)
    assert files_below(tmp_path / "root/VOC2012") == files_below(toy / "VOC2012")


def test_the_check_after_it_holds_the_published_counts(
    small: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PUBLISHED, "voc_2007_test", replace(PUBLISHED["voc_2007_test"], count=4952))
    assert call_main(main, ["download", "voc2007", str(tmp_path), "--mirror", small.url]) == 1
    assert "voc_2007_test has 3 images, published with 4952" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["download", "voc2008", "x"], "did you mean voc2007, voc2012?"),
        (["download", "voc2007"], "ROOT"),
        (["download", "voc2007", "/dev/null/x"], "cannot write below /dev/null/x"),
    ],
)
def test_wrong_use_is_one_line(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, argv) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_the_digests_of_voc_are_torchvision_s() -> None:
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    theirs = {
        entry["filename"]: entry for key, entry in DATASET_YEAR_DICT.items() if key in ("2007", "2007-test", "2012")
    }
    ours = {archive.name: archive for name in ("voc2007", "voc2012") for archive in PUBLIC[name][0].archives}
    assert {name: entry["md5"] for name, entry in theirs.items()} == {name: a.md5 for name, a in ours.items()}
    assert len(ours) == 3


def test_every_archive_has_an_address_a_size_and_a_digest() -> None:
    archives: list[Archive] = [a for folders in PUBLIC.values() for folder in folders for a in folder.archives]
    assert len({archive.name for archive in archives}) == len(archives) == 7
    for archive in archives:
        assert re.fullmatch(r"https?://\S+\.(tar|zip|tar\.gz)", archive.url) and archive.bytes > 10**8
        assert re.fullmatch(r"[0-9a-f]{32}", archive.md5)
