"""The recipes of SimCLR and SwAV against the protocol's numbers, written down here a second time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from common.config import dotted_keys
from pretrain import config
from pretrain.data.dataset import Batch
from pretrain.engine.step_hooks import LearningRates
from pretrain.engine.trainer import Trainer
from pretrain.methods import build_method
from pretrain.methods.base import TrainingInfo
from pretrain.models import heads
from pretrain.optim.optimizer import build_optimizer
from pretrain.optim.schedule import build_schedule
from tests.pretrain.golden import narrow

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDER = CONFIGS / "pretrain"
STEPS = 10
"""Steps an epoch, for reading the learning rate."""

SHARED: dict[str, Any] = {
    "TOY": False,
    "DATA.SIZE": 224,
    "AUGMENT.CROP_SCALE": (0.08, 1.0),
    "AUGMENT.JITTER": (0.8, 0.8, 0.8, 0.2),
    "AUGMENT.JITTER_PROB": 0.8,
    "AUGMENT.GRAY_PROB": 0.2,
    "AUGMENT.BLUR_PROB": 0.5,
    "AUGMENT.BLUR_SIGMA": (0.1, 2.0),
    "AUGMENT.SOLARIZE_PROB": 0.0,
    "AUGMENT.FLIP_PROB": 0.5,
    "AUGMENT.SECOND.BLUR_PROB": -1.0,
    "AUGMENT.SECOND.SOLARIZE_PROB": -1.0,
    "MODEL.ARCH": "resnet50",
    "MODEL.PROJ_LAYERS": 3,
    "MODEL.PROJ_HIDDEN": 2048,
    "MODEL.DIM": 128,
    "MODEL.PREDICTOR": "none",
    "MODEL.SYNC_BN": True,
    "SOLVER.BATCH_SIZE": 4096,
    "SOLVER.GRAD_ACCUM_STEPS": 1,
    "SOLVER.LARS_ETA": 1e-3,
    "SOLVER.BASE_LR": 0.3,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-6,
    "SOLVER.SCHEDULE": "cosine_by_step",
    "SOLVER.WARMUP_EPOCHS": 10,
    "SOLVER.FIX_PRED_LR": False,
}
"""PROTOCOL's section 4, what both rows have."""

RIVALS: dict[str, dict[str, Any]] = {
    "simclr": {
        **SHARED,
        "METHOD": "simclr",
        "MODEL.ZERO_INIT_RESIDUAL": True,
        "MODEL.HEAD_BN": "default",
        "MODEL.PROJ_BN_AFFINE": True,
        "SIMCLR.TEMPERATURE": 0.1,
        "SIMCLR.STOP_GRADIENT": False,
        "SIMCLR.REDUCTION": "mean",
        "SOLVER.OPTIMIZER": "lars",
        "SOLVER.FINAL_LR": 0.0,
        "SOLVER.WARMUP_START_LR": 0.0,
        "SOLVER.WARMUP_ENDS": "first",
    },
    "swav": {
        **SHARED,
        "METHOD": "swav",
        "MODEL.ZERO_INIT_RESIDUAL": False,
        "MODEL.HEAD_BN": "hidden",
        "SWAV.PROTOTYPES": 3000,
        "SWAV.FREEZE_STEPS": 313,
        "SWAV.TEMPERATURE": 0.1,
        "SWAV.EPSILON": 0.05,
        "SWAV.SINKHORN_STEPS": 3,
        "SWAV.QUEUE": 0,
        "SWAV.STOP_GRADIENT": True,
        "SOLVER.OPTIMIZER": "larc",
        "SOLVER.FINAL_LR": 0.0048,
        "SOLVER.WARMUP_START_LR": 0.3,
        "SOLVER.WARMUP_ENDS": "both",
    },
}

PREDICTOR = {"MODEL.PREDICTOR": "mlp", "MODEL.PRED_DIM": 32}
CROSSED: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr_predictor": ("simclr_r50_b4096_100ep_predictor", PREDICTOR),
    "simclr_predictor_stopgrad": (
        "simclr_r50_b4096_100ep_predictor_stopgrad",
        {**PREDICTOR, "SIMCLR.STOP_GRADIENT": True},
    ),
    "swav_predictor": ("swav_r50_b4096_100ep_predictor", PREDICTOR),
    "swav_no_stopgrad": ("swav_r50_b4096_100ep_nostopgrad", {"SWAV.STOP_GRADIENT": False}),
}
"""A row of configs/expected/ablations.yaml: its recipe, and what sets it apart from its method's 100 epochs."""


def test_no_recipe_is_left_out() -> None:
    for method in RIVALS:
        stems = {f"{method}_r50_b4096_{epochs}ep" for epochs in (100, 200, 400, 800)}
        assert {path.stem for path in FOLDER.glob(f"{method}_*.yaml")} == stems
        crossed = {stem for row, (stem, _) in CROSSED.items() if row.startswith(method)}
        assert {path.stem for path in (FOLDER / "ablations").glob(f"{method}_*.yaml")} == crossed


@pytest.mark.parametrize("epochs", [100, 200, 400, 800])
@pytest.mark.parametrize("method", RIVALS)
def test_recipe_has_the_protocols_numbers_and_its_published_one(method: str, epochs: int) -> None:
    file = FOLDER / f"{method}_r50_b4096_{epochs}ep.yaml"
    cfg, expected = config.load_config(file), {**RIVALS[method], "SOLVER.EPOCHS": epochs}
    assert {key: config.value_of(cfg, key) for key in expected} == expected
    rows = yaml.safe_load((CONFIGS / "expected" / "table4.yaml").read_text())["rows"]
    published = {row["key"]: row["values"] for row in rows}[method][f"ep{epochs}"][0]
    assert f"Table 4 of the SimSiam paper: {published} linear" in file.read_text()


@pytest.mark.parametrize("method", RIVALS)
def test_learning_rates_at_the_ends(method: str) -> None:
    """SimCLR climbs from 0 to 4.8 and falls to 0, SwAV from 0.3 and to 0.0048, both with every step."""
    cfg = config.load_config(FOLDER / f"{method}_r50_b4096_100ep.yaml")
    at = build_schedule(cfg, STEPS).at
    first, last = {"simclr": (0.0, 0.0), "swav": (0.3, 0.0048)}[method]
    assert at(0) == pytest.approx(first) and at(100) == pytest.approx(4.8)
    assert at(99) == pytest.approx({"simclr": 4.8 * 99 / 100, "swav": 4.8}[method])
    assert at(550) == pytest.approx((4.8 + last) / 2)
    assert last < at(999) < last + 1e-4


@pytest.mark.parametrize("row", CROSSED)
def test_crossed_recipe_changes_its_keys_alone_and_names_its_number(row: str) -> None:
    stem, changes = CROSSED[row]
    file = FOLDER / "ablations" / f"{stem}.yaml"
    base, cfg = config.load_config(FOLDER / f"{stem.partition('_')[0]}_r50_b4096_100ep.yaml"), config.load_config(file)
    keys = dotted_keys(base)
    assert {
        key: config.value_of(cfg, key) for key in keys if config.value_of(cfg, key) != config.value_of(base, key)
    } == changes
    published = {entry["key"]: entry for entry in _ablations()}[row]
    value = published["values"]["ep100"][0]
    said = f": {value} linear" if value is not None else f": {published['words']['ep100'][0]} "
    assert said in file.read_text()


def _ablations() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = yaml.safe_load((CONFIGS / "expected" / "ablations.yaml").read_text())["rows"]
    return rows


def test_every_published_cross_experiment_is_a_row_of_the_experiment() -> None:
    experiment = yaml.safe_load((CONFIGS / "experiments" / "ablations.yaml").read_text())
    ours = {row["expected"]: row["pretrain"]["config"] for row in experiment["rows"].values()}
    published = {row["key"] for row in _ablations() if row["key"].startswith(("simclr", "swav"))}
    files = {row: f"configs/pretrain/ablations/{stem}.yaml" for row, (stem, _) in CROSSED.items()}
    files |= {method: f"configs/pretrain/{method}_r50_b4096_100ep.yaml" for method in RIVALS}
    assert {row: file for row, file in ours.items() if row in published} == files and files.keys() == published


def test_the_page_has_the_published_cross_experiments_and_the_recipes_keys() -> None:
    page = (CONFIGS.parent / "docs/guides/methods.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| (`[^|]*`) \| ([^|]*) \|$", page, re.MULTILINE)
    published = {row["key"]: row for row in _ablations()}
    assert [key for key, _, _ in table] == [key for key in published if key.startswith(("simclr", "swav"))]
    files = {row: FOLDER / "ablations" / f"{stem}.yaml" for row, (stem, _) in CROSSED.items()}
    files |= {method: FOLDER / f"{method}_r50_b4096_100ep.yaml" for method in RIVALS}
    for key, words, number in table:
        value = published[key]["values"]["ep100"][0]
        assert number == str(value if value is not None else published[key]["words"]["ep100"][0])
        for name, text in re.findall(r"`([A-Z_.]+) ([^`]*)`", words):
            assert str(config.value_of(config.load_config(files[key]), name)) == text, (key, name)


def _narrow_encoder(_arch: str, zero_init_residual: bool) -> tuple[torch.nn.Module, int]:
    encoder = narrow.NarrowResNet(1, zero_init_residual)
    encoder.fc = torch.nn.Identity()
    return encoder, narrow.WIDTH


SHRUNK = ["MODEL.PROJ_HIDDEN", "16", "MODEL.DIM", "8", "MODEL.PRED_DIM", "4"]


@pytest.mark.parametrize("stem", ["simclr_r50_b4096_100ep", "swav_r50_b4096_100ep", *(s for s, _ in CROSSED.values())])
def test_three_steps_of(stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrunk, with the recipe's own optimiser and schedule: what learns, and what SwAV leaves at first."""
    folder = FOLDER if stem.endswith("100ep") else FOLDER / "ablations"
    words = [*SHRUNK, "SOLVER.BATCH_SIZE", "8", "SOLVER.WARMUP_START_LR", "0.0", "SOLVER.FINAL_LR", "0.0"]
    words += ["SWAV.FREEZE_STEPS", "2", "SWAV.PROTOTYPES", "6"] if stem.startswith("swav") else []
    cfg = config.load_config(folder / f"{stem}.yaml", overrides=words)
    monkeypatch.setattr(heads, "build_encoder", _narrow_encoder)
    torch.manual_seed(0)
    method = build_method(cfg).double()  # where the first small steps of a warm-up show
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    views = [torch.randn(8, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    batches = iter([Batch(tuple(views), torch.arange(8)) for _ in range(3)])
    method.prepare(TrainingInfo(8, 1, 100, lambda _first: iter(())))
    trainer = Trainer(method, build_optimizer(method, cfg), batches)
    trainer.register_hooks([LearningRates(build_schedule(cfg, 1))])
    trainer.train(0, 2)
    if stem.startswith("swav"):
        unit = torch.nn.functional.normalize(before["prototypes.weight"], dim=1)
        torch.testing.assert_close(method.get_parameter("prototypes.weight").detach(), unit)
        before["prototypes.weight"] = method.get_parameter("prototypes.weight").detach().clone()
    trainer.train(2, 3)
    frozen = {"projector.6.bias", "projector.7.bias"} if stem.startswith("simclr") else set()
    assert {name for name, p in method.named_parameters() if torch.equal(p, before[name])} == frozen


IN_SMALL = yaml.safe_load((CONFIGS / "experiments" / "rivals_cifar10.yaml").read_text())


@pytest.mark.parametrize("row", IN_SMALL["rows"])
def test_row_in_small_is_loaded_and_built_as_toy(row: str) -> None:
    pretrain = IN_SMALL["rows"][row]["pretrain"]
    words = [str(word) for pair in pretrain.get("overrides", {}).items() for word in pair]
    cfg = config.load_config(CONFIGS.parent / pretrain["config"], str(CONFIGS.parent / IN_SMALL["overlay"]), words)
    with torch.device("meta"):
        build_method(cfg)
    assert cfg.TOY and (cfg.DATA.SIZE, cfg.MODEL.ARCH, cfg.MONITOR.KNN.PERIOD) == (32, "resnet18", 2)
