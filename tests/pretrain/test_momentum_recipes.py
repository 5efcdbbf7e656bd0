"""The recipes of MoCo v2 and BYOL against the protocol's numbers, written down here a second time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from pretrain import config
from pretrain.data.augment import augmentation_config, second_augmentation_config
from pretrain.data.dataset import Batch
from pretrain.engine.step_hooks import LearningRates
from pretrain.engine.trainer import Trainer
from pretrain.methods import build_method
from pretrain.methods.base import TrainingInfo
from pretrain.models import heads
from pretrain.optim.optimizer import build_optimizer
from pretrain.optim.schedule import build_schedule, peak_lr
from tests.pretrain.golden import narrow

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDER = CONFIGS / "pretrain"
EPOCHS = (100, 200, 400, 800)
STEPS = 10
"""Steps an epoch, for reading the learning rate."""

SHARED: dict[str, Any] = {
    "TOY": False,
    "DATA.SIZE": 224,
    "AUGMENT.JITTER_PROB": 0.8,
    "AUGMENT.GRAY_PROB": 0.2,
    "AUGMENT.BLUR_SIGMA": (0.1, 2.0),
    "AUGMENT.SOLARIZE_PROB": 0.0,
    "AUGMENT.FLIP_PROB": 0.5,
    "MODEL.ARCH": "resnet50",
    "MODEL.PROJ_LAYERS": 2,
    "MODEL.PROJ_BN_AFFINE": False,
    "SOLVER.GRAD_ACCUM_STEPS": 1,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.FIX_PRED_LR": False,
    "SOLVER.FINAL_LR": 0.0,
    "SOLVER.WARMUP_START_LR": 0.0,
}
"""PROTOCOL's section 4, what both rows have."""

RIVALS: dict[str, dict[str, Any]] = {
    "moco_v2_r50_b256": {
        **SHARED,
        "METHOD": "moco",
        "AUGMENT.CROP_SCALE": (0.2, 1.0),
        "AUGMENT.JITTER": (0.4, 0.4, 0.4, 0.1),
        "AUGMENT.BLUR_PROB": 0.5,
        "AUGMENT.SECOND.BLUR_PROB": -1.0,
        "AUGMENT.SECOND.SOLARIZE_PROB": -1.0,
        "MODEL.ZERO_INIT_RESIDUAL": False,
        "MODEL.PROJ_HIDDEN": 2048,
        "MODEL.DIM": 128,
        "MODEL.PREDICTOR": "none",
        "MODEL.HEAD_BN": "none",
        "MODEL.SYNC_BN": False,
        "MODEL.BN_GROUP_SIZE": 32,
        "MOCO.QUEUE_SIZE": 65536,
        "MOCO.MOMENTUM": 0.999,
        "MOCO.TEMPERATURE": 0.2,
        "MOCO.SYMMETRY": "symmetric",
        "MOCO.SHUFFLE": True,
        "SOLVER.BATCH_SIZE": 256,
        "SOLVER.OPTIMIZER": "sgd",
        "SOLVER.BASE_LR": 0.03,
        "SOLVER.WEIGHT_DECAY": 1e-4,
        "SOLVER.SCHEDULE": "cosine_by_epoch",
        "SOLVER.WARMUP_EPOCHS": 0,
    },
    "byol_r50_b4096": {
        **SHARED,
        "METHOD": "byol",
        "AUGMENT.CROP_SCALE": (0.08, 1.0),
        "AUGMENT.JITTER": (0.4, 0.4, 0.2, 0.1),
        "AUGMENT.BLUR_PROB": 1.0,
        "AUGMENT.SECOND.BLUR_PROB": 0.1,
        "AUGMENT.SECOND.SOLARIZE_PROB": 0.2,
        "MODEL.ZERO_INIT_RESIDUAL": True,
        "MODEL.PROJ_HIDDEN": 4096,
        "MODEL.DIM": 256,
        "MODEL.PRED_DIM": 4096,
        "MODEL.PREDICTOR": "mlp",
        "MODEL.HEAD_BN": "hidden",
        "MODEL.SYNC_BN": True,
        "BYOL.TARGET_START": "random",
        "SOLVER.BATCH_SIZE": 4096,
        "SOLVER.OPTIMIZER": "lars",
        "SOLVER.LARS_ETA": 1e-3,
        "SOLVER.SCHEDULE": "cosine_by_step",
        "SOLVER.WARMUP_EPOCHS": 10,
        "SOLVER.WARMUP_ENDS": "first",
    },
}

BY_BUDGET: dict[tuple[str, int], dict[str, Any]] = {
    ("byol_r50_b4096", 100): {"SOLVER.BASE_LR": 0.45, "SOLVER.WEIGHT_DECAY": 1e-6, "BYOL.TARGET_MOMENTUM": 0.99},
    ("byol_r50_b4096", 200): {"SOLVER.BASE_LR": 0.3, "SOLVER.WEIGHT_DECAY": 1e-6, "BYOL.TARGET_MOMENTUM": 0.99},
    ("byol_r50_b4096", 400): {"SOLVER.BASE_LR": 0.3, "SOLVER.WEIGHT_DECAY": 1e-6, "BYOL.TARGET_MOMENTUM": 0.99},
    ("byol_r50_b4096", 800): {"SOLVER.BASE_LR": 0.2, "SOLVER.WEIGHT_DECAY": 1.5e-6, "BYOL.TARGET_MOMENTUM": 0.996},
}
"""What differs between the epoch budgets of a method."""


def test_no_recipe_is_left_out() -> None:
    for name in RIVALS:
        method = name.partition("_r50")[0]
        assert {path.stem for path in FOLDER.glob(f"{method}_*.yaml")} == {f"{name}_{epochs}ep" for epochs in EPOCHS}


@pytest.mark.parametrize("epochs", EPOCHS)
@pytest.mark.parametrize("name", RIVALS)
def test_recipe_has_the_protocols_numbers_and_its_published_one(name: str, epochs: int) -> None:
    file = FOLDER / f"{name}_{epochs}ep.yaml"
    expected = {**RIVALS[name], **BY_BUDGET.get((name, epochs), {}), "SOLVER.EPOCHS": epochs}
    cfg = config.load_config(file)
    assert {key: config.value_of(cfg, key) for key in expected} == expected
    rows = yaml.safe_load((CONFIGS / "expected" / "table4.yaml").read_text())["rows"]
    published = {row["key"]: row["values"] for row in rows}[name.partition("_r50")[0]][f"ep{epochs}"][0]
    assert f"Table 4 of the SimSiam paper: {published} linear" in file.read_text()


@pytest.mark.parametrize(
    ("stem", "peak", "first"),
    [
        ("moco_v2_r50_b256_200ep", 0.03, 0.03),
        ("byol_r50_b4096_100ep", 7.2, 0.0),
        ("byol_r50_b4096_400ep", 4.8, 0.0),
        ("byol_r50_b4096_800ep", 3.2, 0.0),
    ],
)
def test_learning_rates_at_the_ends(stem: str, peak: float, first: float) -> None:
    cfg = config.load_config(FOLDER / f"{stem}.yaml")
    schedule, epochs = build_schedule(cfg, STEPS), cfg.SOLVER.EPOCHS
    assert peak_lr(cfg) == pytest.approx(peak) and schedule.at(0) == pytest.approx(first)
    assert schedule.at(cfg.SOLVER.WARMUP_EPOCHS * STEPS) == pytest.approx(peak)
    middle = (epochs + cfg.SOLVER.WARMUP_EPOCHS) * STEPS // 2
    assert schedule.at(middle) == pytest.approx(peak / 2)
    assert 0 < schedule.at(epochs * STEPS - 1) < 1e-3 * peak


def test_byols_views_are_drawn_by_two_recipes() -> None:
    cfg = config.load_config(FOLDER / "byol_r50_b4096_100ep.yaml")
    first, second = augmentation_config(cfg), second_augmentation_config(cfg)
    assert (first.blur_prob, first.solarize_prob) == (1.0, 0.0)
    assert (second.blur_prob, second.solarize_prob) == (0.1, 0.2)
    assert replace(second, blur_prob=1.0, solarize_prob=0.0) == first
    cfg = config.load_config(FOLDER / "moco_v2_r50_b256_100ep.yaml")
    assert augmentation_config(cfg) == second_augmentation_config(cfg)


def test_byols_heads_end_without_a_bias() -> None:
    cfg = config.load_config(FOLDER / "byol_r50_b4096_100ep.yaml", overrides=["MODEL.ARCH", "resnet18"])
    with torch.device("meta"):
        method = build_method(cfg)
    for name, width in (("projector", 512), ("target_projector", 512), ("predictor", 256)):
        shapes = [(key, tuple(p.shape)) for key, p in method.get_submodule(name).named_parameters()]
        assert shapes == _head(width), name


def _head(width: int) -> list[tuple[str, tuple[int, ...]]]:
    return [("0.weight", (4096, width)), ("1.weight", (4096,)), ("1.bias", (4096,)), ("3.weight", (256, 4096))]


def _narrow_encoder(_arch: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
    encoder = narrow.NarrowResNet(1, zero_init_residual)
    encoder.fc = nn.Identity()
    return encoder, narrow.WIDTH


@pytest.mark.parametrize("stem", ["moco_v2_r50_b256_100ep", "byol_r50_b4096_100ep"])
def test_two_steps_of(stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrunk, with the recipe's own optimiser and schedule: everything learns, and the targets follow."""
    words = ["MODEL.PROJ_HIDDEN", "16", "MODEL.DIM", "8", "MODEL.PRED_DIM", "4", "SOLVER.BATCH_SIZE", "8"]
    words += ["MOCO.QUEUE_SIZE", "32"] if stem.startswith("moco") else []
    cfg = config.load_config(FOLDER / f"{stem}.yaml", overrides=words)
    monkeypatch.setattr(heads, "build_encoder", _narrow_encoder)
    torch.manual_seed(0)
    method = build_method(cfg).double()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    views = [torch.randn(8, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    batches = iter([Batch(tuple(views), torch.arange(8)) for _ in range(3)])
    method.prepare(TrainingInfo(8, 1, 100, lambda _first: iter(())))
    trainer = Trainer(method, build_optimizer(method, cfg), batches)
    trainer.register_hooks([LearningRates(build_schedule(cfg, 1))])
    trainer.train(0, 3)
    assert not [name for name, tensor in method.state_dict().items() if torch.equal(tensor, before[name])]
