"""A toy set and a detector narrow enough to train in a second."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

# two_processes is imported by the processes it starts, parity_world by it
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

from transfer.engine.prepare import TrialRequest
from transfer.toy.build import Size, build

NARROW = {
    "TRANSFER": {"TOY": True, "CLASSES": ["bus", "cat", "sheep"], "CHECK_COUNTS": False},
    "MODEL": {
        "DEVICE": "cpu",
        "RESNETS": {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4},
        "ANCHOR_GENERATOR": {"SIZES": [[16, 32, 64]]},
        "RPN": {"PRE_NMS_TOPK_TRAIN": 60, "POST_NMS_TOPK_TRAIN": 20, "PRE_NMS_TOPK_TEST": 60, "POST_NMS_TOPK_TEST": 10},
        "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 8},
        "ROI_BOX_HEAD": {"POOLER_RESOLUTION": 6},
        "ROI_MASK_HEAD": {"CONV_DIM": 16},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [48, 64], "MIN_SIZE_TEST": 64, "MAX_SIZE_TRAIN": 128, "MAX_SIZE_TEST": 128},
    "DATALOADER": {"NUM_WORKERS": 0},
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 4, "STEPS": [3], "WARMUP_ITERS": 1},
    "TEST": {"PRECISE_BN": {"NUM_ITER": 2}},
}


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with VOC2007, VOC2012 and COCO of a few drawn images."""
    out = tmp_path_factory.mktemp("sets") / "toy"
    build(out, size=Size(photos=8, voc2007=(16, 8), voc2012=(8, 8), coco=(12, 8)))
    return out / "detection"


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The overlay of a narrow detector."""
    file = tmp_path_factory.mktemp("overlay") / "narrow.yaml"
    file.write_text(yaml.safe_dump({"transfer": NARROW}))
    return file


Ask = Callable[..., TrialRequest]


@pytest.fixture
def ask(root: Path, toy: Path, narrow: Path, tmp_path: Path) -> Ask:
    """A request for a small trial: `ask(*overrides, task="voc07", weights="scratch", seed=1, output=…, …)`."""

    def make(
        *overrides: str,
        task: str = "voc07",
        weights: str = "scratch",
        seed: int = 1,
        output: Path | None = None,
        **more: object,
    ) -> TrialRequest:
        words = ("TRANSFER.DATA_ROOT", str(toy), *overrides)
        return TrialRequest(
            config_file=root / f"configs/transfer/{task}.yaml",
            overlay=narrow,
            overrides=words,
            weights=weights,
            seed=seed,
            output=output or tmp_path / "trial",
            **more,  # type: ignore[arg-type]
        )

    return make
