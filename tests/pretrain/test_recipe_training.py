"""Recipes, reduced in size, are built and trained for a few steps with their own optimizer and schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from pretrain.config import load_config
from pretrain.data.augment import augmentation_config, second_augmentation_config
from pretrain.data.dataset import Batch
from pretrain.engine.step_hooks import LearningRates
from pretrain.engine.trainer import Trainer
from pretrain.methods import build_method
from pretrain.methods.base import TrainingInfo
from pretrain.optim.optimizer import build_optimizer
from pretrain.optim.schedule import build_schedule
from tests.pretrain.methods.stops import narrow_encoders

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDER = CONFIGS / "pretrain"
REDUCED = ["MODEL.PROJ_HIDDEN", "16", "MODEL.DIM", "8", "MODEL.PRED_DIM", "4", "SOLVER.BATCH_SIZE", "8"]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "stem" in request.fixturenames:
        narrow_encoders(monkeypatch)


def _trainer(file: Path, words: Sequence[str], seed: int = 0) -> Trainer:
    """In float64, in which the first small steps of a warm-up are visible."""
    cfg = load_config(file, overrides=[*REDUCED, *words])
    torch.manual_seed(seed)
    method = build_method(cfg).double()
    views = [torch.randn(8, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    batches = iter([Batch(tuple(views), torch.arange(8)) for _ in range(3)])
    method.prepare(TrainingInfo(8, 1, 100, lambda _first: iter(())))
    trainer = Trainer(method, build_optimizer(method, cfg), batches)
    trainer.register_hooks([LearningRates(build_schedule(cfg, 1))])
    return trainer


@pytest.mark.parametrize("stem", ["moco_v2_r50_b256_100ep", "byol_r50_b4096_100ep"])
def test_every_tensor_changes_within_three_steps(stem: str) -> None:
    trainer = _trainer(FOLDER / f"{stem}.yaml", ["MOCO.QUEUE_SIZE", "32"] if stem.startswith("moco") else [])
    before = {name: tensor.clone() for name, tensor in trainer.method.state_dict().items()}
    trainer.train(0, 3)
    assert not [name for name, tensor in trainer.method.state_dict().items() if torch.equal(tensor, before[name])]


@pytest.mark.parametrize(
    "stem",
    [
        "simclr_r50_b4096_100ep",
        "swav_r50_b4096_100ep",
        "ablations/simclr_r50_b4096_100ep_predictor",
        "ablations/simclr_r50_b4096_100ep_predictor_stopgrad",
        "ablations/swav_r50_b4096_100ep_predictor",
        "ablations/swav_r50_b4096_100ep_nostopgrad",
    ],
)
def test_every_parameter_changes_within_three_steps_except_the_frozen_ones(stem: str) -> None:
    """SimCLR's output BN has a fixed bias; SwAV's prototypes are fixed in the first steps."""
    is_swav = "swav" in stem
    words = ["SOLVER.WARMUP_START_LR", "0.0", "SOLVER.FINAL_LR", "0.0"]
    words += ["SWAV.FREEZE_STEPS", "2", "SWAV.PROTOTYPES", "6"] if is_swav else []
    trainer = _trainer(FOLDER / f"{stem}.yaml", words)
    method = trainer.method
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    trainer.train(0, 2)
    if is_swav:
        assert torch.equal(method.get_parameter("prototypes.weight"), before["prototypes.weight"])
    trainer.train(2, 3)
    frozen = set() if is_swav else {"projector.6.bias", "projector.7.bias"}
    assert {name for name, p in method.named_parameters() if torch.equal(p, before[name])} == frozen


def test_byols_views_have_two_augmentations() -> None:
    cfg = load_config(FOLDER / "byol_r50_b4096_100ep.yaml")
    first, second = augmentation_config(cfg), second_augmentation_config(cfg)
    assert (first.blur_prob, first.solarize_prob) == (1.0, 0.0)
    assert (second.blur_prob, second.solarize_prob) == (0.1, 0.2)
    assert replace(second, blur_prob=1.0, solarize_prob=0.0) == first
    cfg = load_config(FOLDER / "moco_v2_r50_b256_100ep.yaml")
    assert augmentation_config(cfg) == second_augmentation_config(cfg)


def test_output_layers_of_byols_heads_have_no_bias() -> None:
    cfg = load_config(FOLDER / "byol_r50_b4096_100ep.yaml", overrides=["MODEL.ARCH", "resnet18"])
    with torch.device("meta"):
        method = build_method(cfg)
    for name, width in (("projector", 512), ("target_projector", 512), ("predictor", 256)):
        shapes = [(key, tuple(p.shape)) for key, p in method.get_submodule(name).named_parameters()]
        hidden = [("0.weight", (4096, width)), ("1.weight", (4096,)), ("1.bias", (4096,))]
        assert shapes == [*hidden, ("3.weight", (256, 4096))], name


SMALL = yaml.safe_load((CONFIGS / "experiments" / "rivals_cifar10.yaml").read_text())


@pytest.mark.parametrize("row", SMALL["rows"])
def test_row_of_the_small_experiment_is_built_and_marked_as_toy(row: str) -> None:
    pretrain = SMALL["rows"][row]["pretrain"]
    words = [str(word) for pair in pretrain.get("overrides", {}).items() for word in pair]
    cfg = load_config(CONFIGS.parent / pretrain["config"], str(CONFIGS.parent / SMALL["overlay"]), words)
    with torch.device("meta"):
        build_method(cfg)
    assert cfg.TOY and (cfg.DATA.SIZE, cfg.MODEL.ARCH, cfg.MONITOR.KNN.PERIOD) == (32, "resnet18", 2)
