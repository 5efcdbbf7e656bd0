"""Atomic files: a reader sees the old content or the new, whatever happens to the writer."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from ssl_transfer.files import atomic_write, read_json, sha256_of, write_json, write_text

WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from ssl_transfer.files import atomic_write
with atomic_write(sys.argv[2]) as stream:
    stream.write(b"new" * 1000)
    stream.flush()
    print("half", flush=True)
    sys.stdin.read()
"""


def test_content_arrives_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "folder" / "a.txt", "Σ")
    assert (tmp_path / "new" / "folder" / "a.txt").read_bytes() == "Σ".encode()
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["a.txt"]


def test_the_old_file_is_kept_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with atomic_write(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_block_changes_nothing_and_leaves_no_trace(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as stream:
        stream.write(b"new")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_whole(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    command = [sys.executable, "-c", WRITER, str(root), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"
    write_text(path, "after")
    assert path.read_text() == "after"


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, [0] * 5000)
    stop = threading.Event()

    def rewrite() -> None:
        value = 0
        while not stop.is_set():
            value += 1
            write_json(path, [value] * 5000)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(50):
            content = read_json(path)
            assert len(content) == 5000 and len(set(content)) == 1
    finally:
        stop.set()
        writer.join()


def test_the_mode_is_what_the_umask_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/a.*choose a"):
        write_text(tmp_path / "file" / "a", "x")
    with pytest.raises(UserError, match="it is a folder"):
        write_text(tmp_path, "x")


def test_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="free "), atomic_write(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_json_comes_back_as_it_went(tmp_path: Path) -> None:
    value = {"Σ": [1, 2.5, None, True, "ü"]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_nan_is_not_json_and_the_old_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert read_json(path) == 1


def test_json_is_utf8_whatever_the_locale(root: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", "±")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from ssl_transfer.files import read_json; assert read_json(sys.argv[2]) == '\\xb1'"
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", code, str(root), str(tmp_path / "a.json")], env=env, check=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b": ', "bad.json, line 2"),
        (b"\xff\xff", "cannot read .*bad.json, line 1"),
        (b"", "bad.json, line 1"),
    ],
)
def test_bad_json_names_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(path)


def test_missing_files_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no.json does not exist"):
        read_json(tmp_path / "no.json")
    with pytest.raises(UserError, match=r"cannot read .*no.bin"):
        sha256_of(tmp_path / "no.bin")


def test_sha256_of_more_than_one_piece(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20000  # 5 MB: two pieces
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_written_json_is_plain_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"b": 1} and text.endswith("\n")
