"""Keys, recipes and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from pretrain import config
from pretrain.config import differences, load_config
from pretrain.keys import KEY_CHANGES
from pretrain.methods import build_method
from pretrain.models.encoder import backbone_tensors
from ssl_transfer.config import dotted_keys, value_of
from ssl_transfer.errors import UserError

RECIPES = sorted((Path(__file__).resolve().parents[2] / "configs" / "pretrain").rglob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_builds(recipe: Path) -> None:
    cfg = config.load_config(recipe)
    with torch.device("meta"):
        method = build_method(cfg)
    assert method.dim == cfg.MODEL.DIM
    if cfg.MODEL.ARCH == "resnet50":
        assert sum(name.endswith("num_batches_tracked") is False for name in method.encoder.state_dict()) == 265


def test_base_recipe_has_the_numbers_of_the_paper() -> None:
    cfg = config.load_config(next(path for path in RECIPES if path.stem == "simsiam_r50_b256_200ep_base"))
    solver = cfg.SOLVER
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.BATCH_SIZE, solver.EPOCHS) == (0.05, 1e-4, 256, 200)
    assert (solver.MOMENTUM, solver.FIX_PRED_LR, solver.WARMUP_EPOCHS) == (0.9, True, 0)
    assert (cfg.MODEL.DIM, cfg.MODEL.PROJ_HIDDEN, cfg.MODEL.PRED_DIM, cfg.MODEL.PROJ_LAYERS) == (2048, 2048, 512, 3)
    augment = cfg.AUGMENT
    assert (augment.CROP_SCALE, augment.JITTER, augment.BLUR_SIGMA) == ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1), (0.1, 2.0))
    assert (augment.JITTER_PROB, augment.GRAY_PROB, augment.BLUR_PROB, augment.FLIP_PROB) == (0.8, 0.2, 0.5, 0.5)
    assert augment.SOLARIZE_PROB == 0 and cfg.DATA.SIZE == 224 and not cfg.TOY


def test_optimal_recipe_differs_in_rate_and_decay_only() -> None:
    stems = {path.stem: path for path in RECIPES}
    base, optimal = (config.load_config(stems[f"simsiam_r50_b256_200ep_{name}"]) for name in ("base", "optimal"))
    assert (optimal.SOLVER.BASE_LR, optimal.SOLVER.WEIGHT_DECAY) == (0.5, 1e-5)
    changed = [key for key in dotted_keys(base) if config.value_of(base, key) != config.value_of(optimal, key)]
    assert changed == ["SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY"]


def test_layers_are_merged_in_order_base_file_overlay_overrides(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SOLVER: {EPOCHS: 1, BASE_LR: 0.1, BATCH_SIZE: 8}\nSEED: 1")
    (tmp_path / "file.yaml").write_text("_BASE_: base.yaml\nSOLVER: {EPOCHS: 2, BASE_LR: 0.2}\nSEED: 2")
    (tmp_path / "overlay.yaml").write_text("pretrain: {SOLVER: {BASE_LR: 0.3}, TOY: True}\ntransfer: {A: 1}")
    cfg = config.load_config(tmp_path / "file.yaml", str(tmp_path / "overlay.yaml"), ["SEED", "4"])
    assert (cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.EPOCHS, cfg.SOLVER.BASE_LR, cfg.SEED, cfg.TOY) == (8, 2, 0.3, 4, True)
    with pytest.raises(AttributeError):
        cfg.SEED = 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["SOLVER.BASE_LT", "1"], "SOLVER.BASE_LR"),
        (["SOLVER.EPOCHS", "0"], "SOLVER.EPOCHS is 0"),
        (["SOLVER.EPOCHS", "1.5"], "must be of type int"),
        (["SOLVER.BATCH_SIZE", "1"], "SOLVER.BATCH_SIZE"),
        (["SOLVER.WARMUP_EPOCHS", "100"], "less than SOLVER.EPOCHS"),
        (["SOLVER.MOMENTUM", "1.0"], "SOLVER.MOMENTUM"),
        (["AUGMENT.GRAY_PROB", "1.2"], "AUGMENT.GRAY_PROB"),
        (["AUGMENT.CROP_SCALE", "(0.5, 0.2)"], "AUGMENT.CROP_SCALE"),
        (["AUGMENT.SECOND.BLUR_PROB", "-0.5"], "AUGMENT.SECOND.BLUR_PROB"),
        (["AUGMENT.JITTER", "(0.4, 0.4)"], "AUGMENT.JITTER"),
        (["ENGINE.PRECISION", "fp8"], "valid: bf16, fp16, fp32"),
        (["METHOD", "simsam"], "did you mean simsiam?"),
        (["MODEL.ARCH", "resnet5"], "resnet50"),
        (["SEED", "-1"], "SEED is -1"),
        (["SOLVER.GRAD_ACCUM_STEPS", "0"], "SOLVER.GRAD_ACCUM_STEPS is 0"),
        (["SOLVER.GRAD_ACCUM_STEPS", "3"], "SOLVER.BATCH_SIZE, 4, must be a multiple of it"),
        (["SOLVER.OPTIMIZER_IMPL", "apex"], "for-loop"),
        (["CHECKPOINT.KEEP_EVERY", "-1"], "CHECKPOINT.KEEP_EVERY is -1"),
        (["MONITOR.COLLAPSE.THRESHOLD", "1.0"], "MONITOR.COLLAPSE.THRESHOLD is 1.0"),
        (["MONITOR.COLLAPSE.STEPS", "0"], "MONITOR.COLLAPSE.STEPS is 0"),
        (["MONITOR.COLLAPSE.STOP", "1"], "must be of type bool"),
        (["MONITOR.GRAD_NORM_LIMIT", "-1"], "MONITOR.GRAD_NORM_LIMIT is -1"),
        (["ENGINE.COMPILE", "maybe"], "must be of type bool"),
        (["ENGINE.TF32", "1"], "must be of type bool"),
        (["MODEL.SYNC_BN", "auto"], "must be of type bool"),
    ],
)
def test_invalid_value_is_refused_with_key_and_remedy(config: Path, words: list[str], said: str) -> None:
    from pretrain.config import load_config

    with pytest.raises(UserError, match=said.replace("(", r"\(").replace("?", r"\?")):
        load_config(config, overrides=words)


def test_dumped_config_has_no_differences(config: Path) -> None:
    cfg = load_config(config)
    stored = yaml.safe_load(cfg.dump())
    assert differences(stored, cfg) == []
    assert differences(stored, load_config(config, overrides=["DATA.WORKERS", "3", "CHECKPOINT.PERIOD", "7"])) == []
    free = ["CHECKPOINT.KEEP_EVERY", "5", "MONITOR.COLLAPSE.STOP", "True", "MONITOR.GRAD_NORM_LIMIT", "9"]
    assert differences(stored, load_config(config, overrides=free)) == []
    changed = "SOLVER.GRAD_ACCUM_STEPS 2 MODEL.SYNC_BN False SOLVER.OPTIMIZER_IMPL fused ENGINE.TF32 True"
    changed += " ENGINE.COMPILE True"
    assert len(differences(stored, load_config(config, overrides=changed.split()))) == 5
    assert differences(stored, load_config(config, overrides=["SOLVER.BASE_LR", "0.1"])) == [
        "SOLVER.BASE_LR is 3.2 there and 0.1 here"
    ]
    del stored["ENGINE"]["PRECISION"]  # written before the key existed
    assert differences(stored, cfg) == []


def test_backbone_has_265_float32_tensors_with_torchvisions_names() -> None:
    import torchvision

    with torch.device("meta"):
        method = build_method(config.load_config(RECIPES[0], overrides=["MODEL.ARCH", "resnet50"]))
        theirs = torchvision.models.resnet50().state_dict()
    expected = {n: t.shape for n, t in theirs.items() if not n.startswith("fc.") and not n.endswith("tracked")}
    encoder = method.encoder.to_empty(device="cpu").half()
    ours = backbone_tensors(encoder)
    assert len(ours) == 265
    assert {name: tensor.shape for name, tensor in ours.items()} == expected
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}


@pytest.mark.parametrize(("old", "new"), KEY_CHANGES.renamed.items())
def test_old_key_is_read_with_a_warning_that_names_the_new_one(
    config: Path, old: str, new: str, caplog: pytest.LogCaptureFixture
) -> None:
    value = {"MODEL.BN_IMAGES": "4", "SOLVER.TRUST": "0.002", "SOLVER.IMPLEMENTATION": "foreach"}.get(old, "2")
    value = {"MONITOR.STD_ALARM": "0.5", "MONITOR.STD_ALARM_STOP": "True"}.get(old, value)
    words = ["MODEL.SYNC_BN", "False", "SOLVER.OPTIMIZER", "lars"]
    cfg = load_config(config, overrides=[*words, old, value])
    assert str(value_of(cfg, new)) == value
    assert [new in record.getMessage() for record in caplog.records] == [True]


def test_stored_config_with_old_keys_is_compared_under_the_new_ones(config: Path) -> None:
    cfg = load_config(config, overrides=["MODEL.SYNC_BN", "False", "MODEL.BN_GROUP_SIZE", "4"])
    stored = {"MODEL": {"SYNC_BN": False, "BN_IMAGES": 2}, "ENGINE": {"READ_LATE": True}}
    said = [line for line in differences({**stored}, cfg) if line.startswith("MODEL.BN")]
    assert said == ["MODEL.BN_GROUP_SIZE is 2 there and 4 here"]
