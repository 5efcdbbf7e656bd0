"""`data.py check --images`: the files that a pre-training would stop at, and the way past them when it has stopped."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pretrain.data.decode import decode_rgb
from pretrain.data.index import find_images
from pretrain.data.sampler import ResumableBatchSampler
from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK, EXIT_USAGE, UserError
from tools.data import main

Command = Callable[..., int]


def bad_files(folder: Path, photo: bytes, seed: int) -> dict[Path, bool]:
    """Bad files of each kind in random places below a folder, and whether their header shows it."""
    rng = random.Random(seed)
    float_values = folder / "depth.tif"
    Image.new("F", (8, 8)).save(float_values)
    bitmap = io.BytesIO()
    Image.new("RGB", (40, 30)).save(bitmap, "BMP")
    cut = rng.randrange(len(photo) // 2, len(photo) - 20)
    kinds = [
        (b"", "jpg", True),
        (rng.randbytes(200), "PNG", True),
        (b"<html>404 Not Found</html>", "jpeg", True),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "jpg", True),
        (float_values.read_bytes(), "tif", True),
        (photo[:cut], "jpg", True),
        (bitmap.getvalue()[: rng.randrange(500, 3000)], "bmp", False),
    ]
    float_values.unlink()
    files = {}
    for number, (content, ending, in_header) in enumerate(kinds):
        file = folder / rng.choice(["", "a", "b/c d"]) / f"{number} {rng.randrange(99)}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        files[file] = in_header
    link = folder / "gone.jpg"
    link.symlink_to(folder / "nowhere.jpg")
    return {**files, link: True}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for number in range(70):  # two chunks
        Image.effect_noise((40, 30), 60).convert("RGB").save(folder / "b" / f"{number:03d}.jpg")
    return folder


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("words", [[], ["--decode", "--workers", "2"], ["--decode", "--workers", "1"]])
def test_every_bad_image_is_listed_and_no_other(
    photos: Path, seed: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = bad_files(photos, (photos / "b/000.jpg").read_bytes(), seed)
    expected = sorted(str(file) for file, in_header in bad.items() if in_header or words)
    assert call_main(main, ["check", "--images", str(photos), *words]) == EXIT_USAGE
    captured = capsys.readouterr()
    *lines, last = captured.out.splitlines()
    assert sorted(re.match(r"(.*) cannot be read as an image \(", line)[1] for line in lines) == expected
    assert f"{70 + len(bad)} images" in last and f"{len(expected)} cannot be read" in last
    assert "DATA.UNREADABLE replace" in last and "Traceback" not in captured.err


def test_a_good_folder_passes_and_what_check_lists_is_what_training_refuses(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_main(main, ["check", "--images", str(photos)]) == EXIT_OK
    assert "70 images" in capsys.readouterr().out
    for file in bad_files(photos, (photos / "b/000.jpg").read_bytes(), 5):
        with pytest.raises(UserError, match=re.escape(str(file))):
            decode_rgb(file)


@pytest.mark.parametrize("words", [["ROOT"], ["--config-file", "voc07"], ["--published"]])
def test_images_are_checked_alone(photos: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, ["check", "--images", str(photos), *words]) == EXIT_USAGE
    assert "--images" in capsys.readouterr().err
    assert call_main(main, ["check", "--images", str(photos / "nowhere")]) == EXIT_USAGE
    assert "nowhere" in capsys.readouterr().err


def test_a_run_that_a_bad_image_ended_continues_as_its_message_says(
    pretrain: Command, draw: Callable[[Path, int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The continued run ends with the weights of one that replaced the image from the start."""
    root = draw(tmp_path / "images", 14)
    index = find_images(str(root))
    third = list(ResumableBatchSampler(len(index), 4, 0, start=0, stop=3))[2]
    broken = index.path(third[0][1])
    broken.write_bytes(broken.read_bytes()[:100])
    words = ["DATA.ROOT", str(root), "CHECKPOINT.PERIOD", "1", "SOLVER.EPOCHS", "1"]
    assert pretrain(tmp_path / "run", *words) == EXIT_USAGE
    error = capsys.readouterr().err
    remedy = re.search(r"DATA\.UNREADABLE replace", error)
    assert str(broken) in error and remedy is not None
    assert (tmp_path / "run/last_checkpoint").is_file()
    assert pretrain(tmp_path / "run", *words, *remedy[0].split(), "--resume") == EXIT_OK
    assert pretrain(tmp_path / "whole", *words, *remedy[0].split()) == EXIT_OK
    one, other = (load_file(tmp_path / name / "backbone.safetensors") for name in ("run", "whole"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
