"""The supervised recipe against the protocol's numbers, written down here a second time."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain import config
from pretrain.optim.schedule import build_schedule, peak_lr

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
PROTOCOL = {
    "METHOD": "supervised",
    "TOY": False,
    "DATA.SIZE": 224,
    "AUGMENT.CROP_SCALE": (0.08, 1.0),
    "AUGMENT.JITTER_PROB": 0.0,
    "AUGMENT.GRAY_PROB": 0.0,
    "AUGMENT.BLUR_PROB": 0.0,
    "AUGMENT.SOLARIZE_PROB": 0.0,
    "AUGMENT.FLIP_PROB": 0.5,
    "MODEL.ARCH": "resnet50",
    "MODEL.ZERO_INIT_RESIDUAL": True,
    "MODEL.SYNC_BN": False,
    "MODEL.BN_GROUP_SIZE": 32,
    "SOLVER.OPTIMIZER": "sgd",
    "SOLVER.BATCH_SIZE": 256,
    "SOLVER.GRAD_ACCUM_STEPS": 1,
    "SOLVER.BASE_LR": 0.1,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.EPOCHS": 90,
    "SOLVER.SCHEDULE": "steps",
    "SOLVER.STEPS": (30, 60, 80),
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_EPOCHS": 0,
    "MONITOR.VALIDATION.PERIOD": 1,
    "MONITOR.VALIDATION.RESIZE": 256,
}


@pytest.mark.parametrize("name", ["base_supervised_r50", "supervised_r50_b256_90ep"])
def test_recipe_has_the_protocols_numbers(name: str) -> None:
    cfg = config.load_config(FOLDER / f"{name}.yaml")
    assert {key: config.value_of(cfg, key) for key in PROTOCOL} == PROTOCOL


def test_no_recipe_is_left_out() -> None:
    found = {path.stem for path in FOLDER.rglob("*supervised*.yaml")}
    assert found == {"base_supervised_r50", "supervised_r50_b256_90ep"}


def test_the_rates_of_the_90_epochs() -> None:
    cfg = config.load_config(FOLDER / "supervised_r50_b256_90ep.yaml")
    schedule = build_schedule(cfg, 5)
    assert peak_lr(cfg) == 0.1
    for epoch, rate in ((0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 1e-3), (79, 1e-3), (80, 1e-4), (89, 1e-4)):
        assert schedule.at(5 * epoch) == schedule.at(5 * epoch + 4) == pytest.approx(rate, rel=1e-12)
