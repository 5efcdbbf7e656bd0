"""The weights a row starts from: MSRA's (BGR, stride on the 1×1), torchvision's, none; and what contradicts them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK, EXIT_USAGE
from tests.transfer.weights import recorded
from tests.transfer.weights.made_checkpoints import resnet
from tools.convert import main as convert
from tools.transfer import main

WIDE = (
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "64", "MODEL.RESNETS.RES2_OUT_CHANNELS", "256"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "64", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"),
    *(
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
        "4",
        "MODEL.RPN.POST_NMS_TOPK_TEST",
        "3",
        "TEST.PRECISE_BN.NUM_ITER",
        "1",
    ),
)
"""The width of the weights, and as little else as possible."""
BLOCKS: dict[str, dict[str, Any]] = {
    "msra": {
        "INPUT.FORMAT": "BGR",
        "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
    },
    "torchvision": {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    },
}
BLOCKS["scratch"] = BLOCKS["torchvision"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both supervised files: as published, and converted."""
    folder = tmp_path_factory.mktemp("world")
    blobs, _ = recorded.checkpoint("caffe2_msra")
    arrays = {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in blobs.items()}
    (folder / "R-50.pkl").write_bytes(pickle.dumps(arrays, protocol=2))
    torch.save({**resnet(), "fc.weight": torch.zeros(1000, 2048)}, folder / "resnet50-19c8e357.pth")
    for source, name in (("R-50.pkl", "msra"), ("resnet50-19c8e357.pth", "torchvision")):
        assert call_main(convert, [str(folder / source), str(folder / f"{name}.pkl"), "--no-verify"]) == EXIT_OK
    return folder


Words = Callable[..., list[str]]


@pytest.fixture
def words(root: Path, world: Path, narrow_overlay: Path, toy_detection: Path, tmp_path: Path) -> Words:
    """The command line of a small trial from these weights in `tmp_path / "trial"`."""

    def make(weights: str, *more: str) -> list[str]:
        found = ["--config-file", str(root / "configs/transfer/voc07.yaml"), "--overlay", str(narrow_overlay)]
        file = weights if weights == "scratch" or "/" in weights else str(world / f"{weights}.pkl")
        found += ["--weights", file, "--seed", "1", "--output", str(tmp_path / "trial")]
        return [*found, *WIDE, *more, "TRANSFER.DATA_ROOT", str(toy_detection)]

    return make


def get(config: dict[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node[part]
    return node


@pytest.mark.slow
@pytest.mark.parametrize("row", BLOCKS)
def test_a_trial_uses_the_preprocessing_of_its_weights(words: Words, tmp_path: Path, row: str) -> None:
    assert call_main(main, words(row)) == EXIT_OK
    config = yaml.safe_load((tmp_path / "trial/config.yaml").read_text())
    assert {key: get(config, key) for key in BLOCKS[row]} == BLOCKS[row]
    result = json.loads((tmp_path / "trial/result.json").read_text())
    assert result["guards"]["weights_loaded"] == ("scratch" if row == "scratch" else "265/265 exact")
    if row == "scratch":
        assert result["weights"] == {"name": "scratch", "path": None, "sha256": None, "manifest": None}
    else:
        block = result["weights"]["manifest"]["preprocessing"]
        assert (block["channel_order"], block["stride_in_1x1"]) == (
            BLOCKS[row]["INPUT.FORMAT"],
            BLOCKS[row]["MODEL.RESNETS.STRIDE_IN_1X1"],
        )


@pytest.mark.parametrize(
    ("row", "key", "value", "needed"),
    [
        ("msra", "INPUT.FORMAT", "RGB", "BGR"),
        ("msra", "MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]", r"[103.53, 116.28, 123.675]"),
        ("msra", "MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]", "[1.0, 1.0, 1.0]"),
        ("msra", "MODEL.RESNETS.STRIDE_IN_1X1", "False", "True"),
        ("torchvision", "INPUT.FORMAT", "BGR", "RGB"),
        ("torchvision", "MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]", "[123.675, 116.28, 103.53]"),
        ("torchvision", "MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]", "[58.395, 57.12, 57.375]"),
        ("torchvision", "MODEL.RESNETS.STRIDE_IN_1X1", "True", "False"),
        ("scratch", "INPUT.FORMAT", "BGR", "RGB"),
    ],
)
def test_a_part_of_the_preprocessing_cannot_be_changed(
    words: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    row: str,
    key: str,
    value: str,
    needed: str,
) -> None:
    assert call_main(main, words(row, key, value)) == EXIT_USAGE
    error = capsys.readouterr().err
    assert f"command line: {key} is {value}, but the weights need {needed}; remove the key" in error
    assert error.count("\n") == 1 and not (tmp_path / "trial").exists()


@pytest.mark.parametrize(
    ("weights", "more", "named"),
    [
        ("torchvision", ("MODEL.RESNETS.DEPTH", "101"), ("torchvision.pkl is a resnet50", "DEPTH is 101")),
        ("msra", ("MODEL.RESNETS.DEPTH", "152"), ("msra.pkl is a resnet50", "DEPTH is 152")),
        ("{world}/R-50.pkl", (), ("R-50.pkl", "tools/convert.py")),
        ("{world}/resnet50-19c8e357.pth", (), ("resnet50-19c8e357.pth", "tools/convert.py")),
        ("{world}/cut.pkl", (), ("cut.pkl",)),
        ("{world}/nowhere.pkl", (), ("nowhere.pkl",)),
    ],
)
def test_weights_that_do_not_fit_are_named(
    words: Words,
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    weights: str,
    more: tuple[str, ...],
    named: tuple[str, ...],
) -> None:
    whole = (world / "msra.pkl").read_bytes()
    (world / "cut.pkl").write_bytes(whole[: len(whole) // 2])
    asked = words(weights.format(world=world), *more)
    assert call_main(main, asked) == EXIT_USAGE
    error = capsys.readouterr().err
    assert all(word in error for word in named) and error.count("\n") == 1, error
    assert not (tmp_path / "trial").exists()
