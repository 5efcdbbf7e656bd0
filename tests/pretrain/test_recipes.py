"""Every pre-training recipe against the protocol's numbers, written down here a second time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fvcore.common.config import CfgNode

from common.config import dotted_keys
from pretrain import config
from pretrain.optim.schedule import build_schedule, peak_lr

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDER = CONFIGS / "pretrain"
STEPS = 10
"""Steps an epoch, for reading the learning rate."""

SIMSIAM: dict[str, Any] = {
    "METHOD": "simsiam",
    "TOY": False,
    "DATA.SIZE": 224,
    "AUGMENT.CROP_SCALE": (0.2, 1.0),
    "AUGMENT.JITTER": (0.4, 0.4, 0.4, 0.1),
    "AUGMENT.JITTER_PROB": 0.8,
    "AUGMENT.GRAY_PROB": 0.2,
    "AUGMENT.BLUR_PROB": 0.5,
    "AUGMENT.BLUR_SIGMA": (0.1, 2.0),
    "AUGMENT.SOLARIZE_PROB": 0.0,
    "AUGMENT.FLIP_PROB": 0.5,
    "MODEL.ARCH": "resnet50",
    "MODEL.ZERO_INIT_RESIDUAL": True,
    "MODEL.PROJ_LAYERS": 3,
    "MODEL.PROJ_HIDDEN": 2048,
    "MODEL.DIM": 2048,
    "MODEL.PRED_DIM": 512,
    "MODEL.PREDICTOR": "mlp",
    "MODEL.HEAD_BN": "default",
    "MODEL.PROJ_BN_AFFINE": False,
    "MODEL.SYNC_BN": True,
    "SIMSIAM.STOP_GRADIENT": True,
    "SIMSIAM.SIMILARITY": "cosine",
    "SIMSIAM.SYMMETRY": "symmetric",
    "SOLVER.BATCH_SIZE": 256,
    "SOLVER.BASE_LR": 0.05,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WARMUP_EPOCHS": 0,
    "SOLVER.FIX_PRED_LR": True,
}
"""PROTOCOL's section 3, what all recipes have unless the table below says otherwise."""

RECIPES: dict[str, dict[str, Any]] = {
    **{f"simsiam_r50_b256_{e}ep_base": {"SOLVER.EPOCHS": e} for e in (100, 200, 400, 800)},
    "simsiam_r50_b256_200ep_optimal": {"SOLVER.EPOCHS": 200, "SOLVER.BASE_LR": 0.5, "SOLVER.WEIGHT_DECAY": 1e-5},
    **{f"simsiam_r50_b{b}_100ep_base": {"SOLVER.EPOCHS": 100, "SOLVER.BATCH_SIZE": b} for b in (64, 128, 512)},
    **{
        f"simsiam_r50_b{b}_100ep_base": {
            "SOLVER.EPOCHS": 100,
            "SOLVER.BATCH_SIZE": b,
            "SOLVER.WARMUP_EPOCHS": 10,
        }
        for b in (1024, 2048, 4096)
    },
    "simsiam_r18cifar_b512_800ep": {
        "SOLVER.EPOCHS": 800,
        "SOLVER.BATCH_SIZE": 512,
        "SOLVER.BASE_LR": 0.03,
        "SOLVER.WEIGHT_DECAY": 5e-4,
        "MODEL.ARCH": "resnet18_cifar",
        "MODEL.PROJ_LAYERS": 2,
        "DATA.SIZE": 32,
        "AUGMENT.BLUR_PROB": 0.0,
    },
}

ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "stopgrad": ("stopgrad", {"SOLVER.FIX_PRED_LR": False}),
    "nostopgrad": ("no_stopgrad", {"SOLVER.FIX_PRED_LR": False, "SIMSIAM.STOP_GRADIENT": False}),
    "predictor_none": ("predictor_none", {"MODEL.PREDICTOR": "none"}),
    "predictor_fixed": ("predictor_fixed", {"MODEL.PREDICTOR": "fixed"}),
    "predictor_decayed_lr": ("predictor_decayed_lr", {"SOLVER.FIX_PRED_LR": False}),
    "predictor_constant_lr": ("predictor_constant_lr", {}),
    "bn_none": ("bn_none", {"MODEL.HEAD_BN": "none", "SOLVER.WARMUP_EPOCHS": 10}),
    "bn_hidden": ("bn_hidden", {"MODEL.HEAD_BN": "hidden"}),
    "bn_default": ("bn_default", {"MODEL.PROJ_BN_AFFINE": True}),
    "bn_all": ("bn_all", {"MODEL.HEAD_BN": "all", "MODEL.PROJ_BN_AFFINE": True}),
    "bn_output_no_affine": ("bn_output_no_affine", {}),
    "similarity_cosine": ("similarity_cosine", {}),
    "similarity_cross_entropy": ("similarity_cross_entropy", {"SIMSIAM.SIMILARITY": "cross_entropy"}),
    "symmetric": ("symmetric", {}),
    "asymmetric": ("asymmetric", {"SIMSIAM.SYMMETRY": "asymmetric"}),
    "asymmetric_2x": ("asymmetric_2x", {"SIMSIAM.SYMMETRY": "asymmetric_2x"}),
    "alternation_1step": ("alternation_1", {"METHOD": "alternation"}),
    "alternation_10steps": ("alternation_10", {"METHOD": "alternation", "SIMSIAM.ALTERNATION_STEPS": 10}),
    "alternation_100steps": ("alternation_100", {"METHOD": "alternation", "SIMSIAM.ALTERNATION_STEPS": 100}),
    "alternation_1epoch": ("alternation_epoch", {"METHOD": "alternation", "SIMSIAM.ALTERNATION_STEPS": 0}),
    "moving_average": ("moving_average", {"METHOD": "moving_average", "MODEL.PREDICTOR": "none"}),
    **{f"dim{d}": (f"dim_{d}", {"MODEL.DIM": d, "MODEL.PRED_DIM": d // 4}) for d in (256, 512, 1024, 2048)},
}
"""What an ablation's name ends with: its row in configs/expected/ablations.yaml, and what sets it apart from
simsiam_r50_b512_100ep_base (nothing, where the row is the paper's baseline)."""

ABLATION_PREFIX = "simsiam_r50_b512_100ep_"
BATCHES = {f"batch_{b}": f"simsiam_r50_b{b}_100ep_base" for b in (64, 128, 256, 512, 1024, 2048, 4096)}
"""Rows of the batch sizes' ablation: their recipes stand among the others."""


def _ablation(name: str) -> Path:
    return FOLDER / "ablations" / f"{ABLATION_PREFIX}{name}.yaml"


def _changes(cfg: CfgNode, base: CfgNode) -> dict[str, Any]:
    keys = dotted_keys(base)
    return {key: config.value_of(cfg, key) for key in keys if config.value_of(cfg, key) != config.value_of(base, key)}


def test_no_recipe_of_simsiam_is_left_out() -> None:
    assert {path.stem for path in FOLDER.glob("simsiam_*.yaml")} == RECIPES.keys()
    assert {path.stem for path in (FOLDER / "ablations").glob(f"{ABLATION_PREFIX}*.yaml")} == {
        f"{ABLATION_PREFIX}{name}" for name in ABLATIONS
    }


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_protocols_numbers(name: str) -> None:
    cfg = config.load_config(FOLDER / f"{name}.yaml")
    expected = {**SIMSIAM, **RECIPES[name]}
    assert {key: config.value_of(cfg, key) for key in expected} == expected


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_changes_its_keys_alone(name: str) -> None:
    base = config.load_config(FOLDER / f"{ABLATION_PREFIX}base.yaml")
    changed = _changes(config.load_config(_ablation(name)), base)
    if name == "alternation_1step":  # one step is the key's default
        assert config.load_config(_ablation(name)).SIMSIAM.ALTERNATION_STEPS == 1
    if name == "moving_average":
        assert config.load_config(_ablation(name)).SIMSIAM.AVERAGE_MOMENTUM == 0.8
    assert changed == ABLATIONS[name][1] or (name == "dim2048" and changed == {})


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_names_its_key_and_its_published_number(name: str) -> None:
    """A baseline sets its key too, though to the default; the number in the comment is the published table's."""
    text = _ablation(name).read_text()
    row = {row["key"]: row for row in _rows()}[ABLATIONS[name][0]]
    value = row["values"]["ep100"][0]
    if value is None:
        assert row["words"]["ep100"][0] in text
    else:
        assert re.search(
            rf": {value}( ± {row['stds']['ep100'][0]})? linear" if "stds" in row else f": {value} linear", text
        )
    stated = yaml.safe_load(text)
    assert stated.pop("_BASE_") == f"../{ABLATION_PREFIX}base.yaml" and stated


@pytest.mark.parametrize("row", BATCHES)
def test_batch_size_names_its_published_number(row: str) -> None:
    value = {entry["key"]: entry for entry in _rows()}[row]["values"]["ep100"][0]
    if row != "batch_256":  # the recipe of Table 4 as well
        assert f"{value} linear" in (FOLDER / f"{BATCHES[row]}.yaml").read_text()


def _rows() -> list[dict[str, Any]]:
    content = yaml.safe_load((CONFIGS / "expected" / "ablations.yaml").read_text())
    rows: list[dict[str, Any]] = content["rows"]
    return rows


def test_every_published_ablation_of_simsiam_is_a_row_of_the_experiment() -> None:
    experiment = yaml.safe_load((CONFIGS / "experiments" / "ablations.yaml").read_text())
    ours = {row["expected"]: row["pretrain"]["config"] for row in experiment["rows"].values()}
    assert len(ours) == len(experiment["rows"])
    assert sorted(ours) == sorted(row["key"] for row in _rows())  # test_rival_recipes.py has SimCLR's and SwAV's
    for name, (row, _) in ABLATIONS.items():
        assert ours[row] == f"configs/pretrain/ablations/{ABLATION_PREFIX}{name}.yaml"
    for row, stem in BATCHES.items():
        assert ours[row] == f"configs/pretrain/{stem}.yaml"


def test_learning_rates_at_the_ends() -> None:
    """Linear scaling; no warm-up below batch 1024; the cosine's end; and `optimal` keeps its predictor at 0.5."""
    for name, (peak, first) in {
        "simsiam_r50_b64_100ep_base": (0.0125, 0.0125),
        "simsiam_r50_b256_200ep_base": (0.05, 0.05),
        "simsiam_r50_b256_200ep_optimal": (0.5, 0.5),
        "simsiam_r50_b512_100ep_base": (0.1, 0.1),
        "simsiam_r50_b1024_100ep_base": (0.2, 0.002),
        "simsiam_r50_b4096_100ep_base": (0.8, 0.008),
        "simsiam_r18cifar_b512_800ep": (0.06, 0.06),
        "ablations/simsiam_r50_b512_100ep_bn_none": (0.1, 0.001),
    }.items():
        cfg = config.load_config(FOLDER / f"{name}.yaml")
        schedule = build_schedule(cfg, STEPS)
        assert peak_lr(cfg) == pytest.approx(peak)
        assert schedule.at(0) == pytest.approx(first)
        assert schedule.at(cfg.SOLVER.WARMUP_EPOCHS * STEPS) == pytest.approx(peak)
        assert 0 < schedule.at(cfg.SOLVER.EPOCHS * STEPS - 1) < 1e-3 * peak


def test_the_page_of_knobs_has_the_published_numbers_and_the_recipes_keys() -> None:
    page = (CONFIGS.parent / "docs/guides/pretraining.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| (`[^|]*`) \| ([^|]*) \| \[paper\]", page, re.MULTILINE)
    published = {row["key"]: row for row in _rows() if not row["key"].startswith(("simclr", "swav"))}
    assert [key for key, _, _ in table] == sorted(published, key=[key for key, _, _ in table].index)
    files = {row: FOLDER / f"{stem}.yaml" for row, stem in BATCHES.items()}
    files |= {row: _ablation(name) for name, (row, _) in ABLATIONS.items()}
    for key, words, number in table:
        value = published[key]["values"]["ep100"][0]
        assert number == str(value if value is not None else published[key]["words"]["ep100"][0])
        cfg = config.load_config(files[key])
        for name, text in re.findall(r"`([A-Z_.]+) ([^`]*)`", words):
            assert str(config.value_of(cfg, name)) == text, (key, name)
