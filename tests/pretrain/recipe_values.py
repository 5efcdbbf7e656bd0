"""The protocol's numbers a second time: the values that each pre-training recipe and each ablation must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDER = CONFIGS / "pretrain"
Values = dict[str, Any]

SHARED: Values = {
    "TOY": False,
    "DATA.SIZE": 224,
    "AUGMENT.SOLARIZE_PROB": 0.0,
    "AUGMENT.FLIP_PROB": 0.5,
    "MODEL.ARCH": "resnet50",
    "SOLVER.GRAD_ACCUM_STEPS": 1,
    "SOLVER.MOMENTUM": 0.9,
}
SELF_SUPERVISED: Values = {
    **SHARED,
    "AUGMENT.JITTER_PROB": 0.8,
    "AUGMENT.GRAY_PROB": 0.2,
    "AUGMENT.BLUR_SIGMA": (0.1, 2.0),
}
MOCO_AUGMENT: Values = {
    "AUGMENT.CROP_SCALE": (0.2, 1.0),
    "AUGMENT.JITTER": (0.4, 0.4, 0.4, 0.1),
    "AUGMENT.BLUR_PROB": 0.5,
}
SAME_VIEWS: Values = {"AUGMENT.SECOND.BLUR_PROB": -1.0, "AUGMENT.SECOND.SOLARIZE_PROB": -1.0}

SIMSIAM: Values = {
    **SELF_SUPERVISED,
    **MOCO_AUGMENT,
    "METHOD": "simsiam",
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
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WARMUP_EPOCHS": 0,
    "SOLVER.FIX_PRED_LR": True,
}
MOMENTUM: Values = {
    **SELF_SUPERVISED,
    "MODEL.PROJ_LAYERS": 2,
    "MODEL.PROJ_BN_AFFINE": False,
    "SOLVER.FIX_PRED_LR": False,
    "SOLVER.FINAL_LR": 0.0,
    "SOLVER.WARMUP_START_LR": 0.0,
}
MOCO: Values = {
    **MOMENTUM,
    **MOCO_AUGMENT,
    **SAME_VIEWS,
    "METHOD": "moco",
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
}
BYOL: Values = {
    **MOMENTUM,
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
}
BYOL_BY_EPOCHS: dict[int, Values] = {
    100: {"SOLVER.BASE_LR": 0.45, "SOLVER.WEIGHT_DECAY": 1e-6, "BYOL.TARGET_MOMENTUM": 0.99},
    200: {"SOLVER.BASE_LR": 0.3, "SOLVER.WEIGHT_DECAY": 1e-6, "BYOL.TARGET_MOMENTUM": 0.99},
    400: {"SOLVER.BASE_LR": 0.3, "SOLVER.WEIGHT_DECAY": 1e-6, "BYOL.TARGET_MOMENTUM": 0.99},
    800: {"SOLVER.BASE_LR": 0.2, "SOLVER.WEIGHT_DECAY": 1.5e-6, "BYOL.TARGET_MOMENTUM": 0.996},
}
CONTRAST: Values = {
    **SELF_SUPERVISED,
    **SAME_VIEWS,
    "AUGMENT.CROP_SCALE": (0.08, 1.0),
    "AUGMENT.JITTER": (0.8, 0.8, 0.8, 0.2),
    "AUGMENT.BLUR_PROB": 0.5,
    "MODEL.PROJ_LAYERS": 3,
    "MODEL.PROJ_HIDDEN": 2048,
    "MODEL.DIM": 128,
    "MODEL.PREDICTOR": "none",
    "MODEL.SYNC_BN": True,
    "SOLVER.BATCH_SIZE": 4096,
    "SOLVER.LARS_ETA": 1e-3,
    "SOLVER.BASE_LR": 0.3,
    "SOLVER.WEIGHT_DECAY": 1e-6,
    "SOLVER.SCHEDULE": "cosine_by_step",
    "SOLVER.WARMUP_EPOCHS": 10,
    "SOLVER.FIX_PRED_LR": False,
}
SIMCLR: Values = {
    **CONTRAST,
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
}
SWAV: Values = {
    **CONTRAST,
    "METHOD": "swav",
    "MODEL.ZERO_INIT_RESIDUAL": False,
    "MODEL.HEAD_BN": "hidden",
    "SWAV.PROTOTYPES": 3000,
    "SWAV.PROTOTYPE_NORM": "weight_norm",
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
}
SUPERVISED: Values = {
    **SHARED,
    "METHOD": "supervised",
    "AUGMENT.CROP_SCALE": (0.08, 1.0),
    "AUGMENT.JITTER_PROB": 0.0,
    "AUGMENT.GRAY_PROB": 0.0,
    "AUGMENT.BLUR_PROB": 0.0,
    "MODEL.ZERO_INIT_RESIDUAL": True,
    "MODEL.SYNC_BN": False,
    "MODEL.BN_GROUP_SIZE": 32,
    "SOLVER.OPTIMIZER": "sgd",
    "SOLVER.BATCH_SIZE": 256,
    "SOLVER.BASE_LR": 0.1,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.EPOCHS": 90,
    "SOLVER.SCHEDULE": "steps",
    "SOLVER.STEPS": (30, 60, 80),
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_EPOCHS": 0,
    "MONITOR.VALIDATION.PERIOD": 1,
    "MONITOR.VALIDATION.RESIZE": 256,
}

EPOCHS = (100, 200, 400, 800)
OPTIMAL: Values = {"SOLVER.EPOCHS": 200, "SOLVER.BASE_LR": 0.5, "SOLVER.WEIGHT_DECAY": 1e-5}
CIFAR: Values = {
    "SOLVER.EPOCHS": 800,
    "SOLVER.BATCH_SIZE": 512,
    "SOLVER.BASE_LR": 0.03,
    "SOLVER.WEIGHT_DECAY": 5e-4,
    "MODEL.ARCH": "resnet18_cifar",
    "MODEL.PROJ_LAYERS": 2,
    "DATA.SIZE": 32,
    "AUGMENT.BLUR_PROB": 0.0,
}


def _simsiam_at(batch: int) -> Values:
    return {"SOLVER.EPOCHS": 100, "SOLVER.BATCH_SIZE": batch, "SOLVER.WARMUP_EPOCHS": 10 if batch >= 1024 else 0}


RECIPES: dict[str, Values] = {
    **{f"simsiam_r50_b256_{e}ep_base": {**SIMSIAM, "SOLVER.EPOCHS": e} for e in EPOCHS},
    **{f"simsiam_r50_b{b}_100ep_base": {**SIMSIAM, **_simsiam_at(b)} for b in (64, 128, 512, 1024, 2048, 4096)},
    "simsiam_r50_b256_200ep_optimal": {**SIMSIAM, **OPTIMAL},
    "simsiam_r18cifar_b512_800ep": {**SIMSIAM, **CIFAR},
    **{f"moco_v2_r50_b256_{e}ep": {**MOCO, "SOLVER.EPOCHS": e} for e in EPOCHS},
    **{f"byol_r50_b4096_{e}ep": {**BYOL, **BYOL_BY_EPOCHS[e], "SOLVER.EPOCHS": e} for e in EPOCHS},
    **{f"simclr_r50_b4096_{e}ep": {**SIMCLR, "SOLVER.EPOCHS": e} for e in EPOCHS},
    **{f"swav_r50_b4096_{e}ep": {**SWAV, "SOLVER.EPOCHS": e} for e in EPOCHS},
    "base_supervised_r50": SUPERVISED,
    "supervised_r50_b256_90ep": SUPERVISED,
}
"""Every recipe of the folder, and what it must set (sections 3 and 4 of PROTOCOL)."""

SIMSIAM_100 = "simsiam_r50_b512_100ep_"
PREDICTOR: Values = {"MODEL.PREDICTOR": "mlp", "MODEL.PRED_DIM": 32}
SIMSIAM_ABLATIONS: dict[str, tuple[str, Values]] = {
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
    "dim256": ("dim_256", {"MODEL.DIM": 256, "MODEL.PRED_DIM": 64}),
    "dim512": ("dim_512", {"MODEL.DIM": 512, "MODEL.PRED_DIM": 128}),
    "dim1024": ("dim_1024", {"MODEL.DIM": 1024, "MODEL.PRED_DIM": 256}),
    "dim2048": ("dim_2048", {}),
}
ABLATIONS: dict[str, tuple[str, str, Values]] = {
    **{
        row: (f"{SIMSIAM_100}base", f"{SIMSIAM_100}{name}", changes)
        for name, (row, changes) in SIMSIAM_ABLATIONS.items()
    },
    "simclr_predictor": ("simclr_r50_b4096_100ep", "simclr_r50_b4096_100ep_predictor", PREDICTOR),
    "simclr_predictor_stopgrad": (
        "simclr_r50_b4096_100ep",
        "simclr_r50_b4096_100ep_predictor_stopgrad",
        {**PREDICTOR, "SIMCLR.STOP_GRADIENT": True},
    ),
    "swav_predictor": ("swav_r50_b4096_100ep", "swav_r50_b4096_100ep_predictor", PREDICTOR),
    "swav_no_stopgrad": ("swav_r50_b4096_100ep", "swav_r50_b4096_100ep_nostopgrad", {"SWAV.STOP_GRADIENT": False}),
}
"""A row of configs/expected/ablations.yaml: the base recipe, the ablation's recipe, and the values that it changes
(none, if the row is the paper's baseline)."""

ROW_FILES: dict[str, Path] = {
    **{row: FOLDER / "ablations" / f"{stem}.yaml" for row, (_, stem, _) in ABLATIONS.items()},
    **{f"batch_{b}": FOLDER / f"simsiam_r50_b{b}_100ep_base.yaml" for b in (64, 128, 256, 512, 1024, 2048, 4096)},
    **{method: FOLDER / f"{method}_r50_b4096_100ep.yaml" for method in ("simclr", "swav")},
}
"""The recipe of each row of configs/expected/ablations.yaml."""
