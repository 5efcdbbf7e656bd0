"""Drawing the world: the same bytes each time, all or nothing, and never over something else."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from transfer.toy import build as building
from transfer.toy.build import Size, build_toy_sets

TINY = Size(photos=8, voc2007=(6, 3), voc2012=(3, 3), coco=(5, 5))
DRAW = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from transfer.toy.build import Size, build_toy_sets
build_toy_sets(Path(sys.argv[2]), 0, Size(photos=8, voc2007=(6, 3), voc2012=(3, 3), coco=(5, 5)))
"""


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "a"
    assert build_toy_sets(out, 0, TINY) is True
    return out


def test_the_same_seed_gives_the_same_bytes_in_another_process(root: Path, tiny: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONHASHSEED": "1234"}
    subprocess.run([sys.executable, "-c", DRAW, str(root), str(tmp_path / "b")], env=env, check=True)
    assert contents(tmp_path / "b") == contents(tiny)


def test_another_seed_gives_other_images(tiny: Path, tmp_path: Path) -> None:
    build_toy_sets(tmp_path / "b", 1, TINY)
    first, second = contents(tiny), contents(tmp_path / "b")
    images = [name for name in first if name.endswith(".jpg") and name in second]
    assert len(images) >= 20
    assert all(first[name] != second[name] for name in images)


def test_more_images_change_none_of_the_others(tiny: Path, tmp_path: Path) -> None:
    build_toy_sets(tmp_path / "b", 0, Size(photos=16, voc2007=(6, 3), voc2012=(3, 3), coco=(7, 5)))
    first, second = contents(tiny), contents(tmp_path / "b")
    assert {name: second.get(name) for name in first if name.endswith(".jpg")} == {
        name: digest for name, digest in first.items() if name.endswith(".jpg")
    }


def test_a_second_build_draws_nothing(tiny: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in tiny.rglob("*")}
    assert build_toy_sets(tiny, 0, TINY) is False
    assert {file: file.stat().st_mtime_ns for file in tiny.rglob("*")} == before


@pytest.mark.parametrize(("seed", "photos", "what"), [(5, 8, "seed"), (0, 9, "photos")])
def test_another_world_in_its_place_is_refused(tiny: Path, seed: int, photos: int, what: str) -> None:
    before = contents(tiny)
    with pytest.raises(UserError, match=f"another {what}; give another folder"):
        build_toy_sets(tiny, seed, Size(photos=photos, voc2007=(6, 3), voc2012=(3, 3), coco=(5, 5)))
    assert contents(tiny) == before


def test_somebody_elses_folder_or_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("y")
    for name in ("mine", "file"):
        with pytest.raises(UserError, match="exists and is no toy set"):
            build_toy_sets(tmp_path / name, 0, TINY)
    assert contents(tmp_path) == {
        "mine/thesis.tex": hashlib.sha256(b"x").hexdigest(),
        "file": hashlib.sha256(b"y").hexdigest(),
    }


def test_an_empty_folder_is_filled(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert build_toy_sets(tmp_path / "empty", 0, TINY) is True
    assert contents(tmp_path / "empty") == contents(tiny)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building.coco_files, "write", fail)
    with pytest.raises(UserError, match="No space left"):
        build_toy_sets(tmp_path / "a", 0, TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_half_and_the_next_one_finishes(root: Path, tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "a"
    slow = DRAW.replace(
        "from pathlib", "import time, transfer.toy.coco_files as c; c.write = lambda *_: time.sleep(60)\nfrom pathlib"
    )
    with subprocess.Popen([sys.executable, "-c", slow, str(root), str(out)]) as child:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".a.*/detection/VOC2012/ImageSets/Main/trainval.txt")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert build_toy_sets(out, 0, TINY) is True
    assert contents(out) == contents(tiny)
    assert list(tmp_path.iterdir()) == [out]


def test_two_at_once_make_one_world(root: Path, tmp_path: Path, tiny: Path) -> None:
    command = [sys.executable, "-c", DRAW, str(root), str(tmp_path / "a")]
    children = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    assert contents(tmp_path / "a") == contents(tiny)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (Size(photos=7), "--photos: 7 is too few; give at least 8"),
        (Size(voc2007=(60, 0)), "--voc2007: 60 0 is too few; give at least 6 3"),
        (Size(voc2012=(2, 5)), "--voc2012: 2 5 is too few; give at least 3 3"),
        (Size(coco=(60, 4)), "--coco: 60 4 is too few; give at least 5 5"),
    ],
)
def test_too_few_images_are_refused(tmp_path: Path, size: Size, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_toy_sets(tmp_path / "a", 0, size)
    assert list(tmp_path.iterdir()) == []


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seed"):
        build_toy_sets(tmp_path / "a", -1, TINY)
