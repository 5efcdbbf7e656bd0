"""Pre-training's configuration: every key with its default and what it means, and how a config file becomes one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from fvcore.common.config import CfgNode

from common.config import dotted_keys, merge_layers, merge_strict, value_of
from common.errors import UserError, nearest
from pretrain.data.pipelines import PIPELINES
from pretrain.methods import names as method_names
from pretrain.models import ARCHITECTURES, HEAD_BNS, PREDICTORS

FREE_ON_RESUME = (
    *("DATA.ROOT", "DATA.LIST_ROOT", "DATA.INDEX_CACHE", "DATA.WORKERS", "LOG.PERIOD", "LOG.TENSORBOARD"),
    *("CHECKPOINT.PERIOD", "CHECKPOINT.KEEP", "CHECKPOINT.KEEP_EVERY"),
    *("MONITOR.STD_ALARM", "MONITOR.STD_ALARM_STEPS", "MONITOR.STD_ALARM_STOP", "MONITOR.GRAD_NORM_LIMIT"),
    *("MONITOR.KNN.PERIOD", "MONITOR.KNN.ROOT"),
)
"""Keys that a resumed run may change: they do not change what it computes (the images themselves are compared)."""


def defaults() -> CfgNode:
    """Every key with its default: SimSiam's `base` recipe at 100 epochs.

    Returns:
        A fresh, unfrozen node.
    """
    cfg = CfgNode()
    # The method: a file of pretrain/methods/.
    cfg.METHOD = "simsiam"
    # True marks everything made by this run as made for show, not for comparison (set by configs/overlays/cpu.yaml).
    cfg.TOY = False
    # Initial weights, order of the images and their augmentation are functions of it.
    cfg.SEED = 0
    cfg.DATA = _data()
    cfg.AUGMENT = _augment()
    cfg.MODEL = _model()
    cfg.SIMSIAM = _simsiam()
    cfg.SOLVER = _solver()
    cfg.ENGINE = _engine()
    cfg.CHECKPOINT = CfgNode()
    # Iterations between checkpoints; 0 = at the end of each epoch only.
    cfg.CHECKPOINT.PERIOD = 0
    # How many of the newest checkpoints stay on disk.
    cfg.CHECKPOINT.KEEP = 2
    # Epochs between two checkpoints that stay for good; 0 = none does.
    cfg.CHECKPOINT.KEEP_EVERY = 0
    cfg.MONITOR = _monitor()
    cfg.LOG = CfgNode()
    # Iterations between two lines of the console, metrics.json and TensorBoard.
    cfg.LOG.PERIOD = 20
    # Whether TensorBoard event files are written beside metrics.json.
    cfg.LOG.TENSORBOARD = True
    return cfg


def _data() -> CfgNode:
    node = CfgNode()
    # The images: a folder with train/ below it (ImageNet's layout), with class folders, or with the images themselves;
    # or a text file that lists them (docs/data.md).
    node.ROOT = ""
    # The folder that a list file's paths are relative to; empty = the one that the list file lies in.
    node.LIST_ROOT = ""
    # Where the list of a folder's images is kept: user ($XDG_CACHE_HOME or ~/.cache, from 10,000 images on), none, or a
    # folder of your own.
    node.INDEX_CACHE = "user"
    # What happens at a file that holds no whole image: error (the run stops and names it), or replace (the next image
    # of the list takes its place, and is counted).
    node.UNREADABLE = "error"
    # How views are made: pil (the released code's way), opencv (the same within rounding, several times faster), or
    # crops (opencv for the crops; the rest on the training device). docs/data.md has each one's differences and speed.
    node.PIPELINE = "pil"
    # Height and width of a view in pixels.
    node.SIZE = 224
    # Loader processes for each training process; 0 = decode in the training process. Any number gives the same run.
    node.WORKERS = 8
    return node


def _augment() -> CfgNode:
    """MoCo v2's augmentation, as in the released SimSiam."""
    node = CfgNode()
    # Share of the image's area that a random crop covers; its aspect ratio is log-uniform in 3/4 … 4/3.
    node.CROP_SCALE = (0.2, 1.0)
    # Strength of the colour jitter: brightness, contrast, saturation, hue; and how often it is applied.
    node.JITTER = (0.4, 0.4, 0.4, 0.1)
    node.JITTER_PROB = 0.8
    # How often a view is turned to grey.
    node.GRAY_PROB = 0.2
    # How often a view is blurred, and the range of the blur's radius (PIL's GaussianBlur, in pixels).
    node.BLUR_PROB = 0.5
    node.BLUR_SIGMA = (0.1, 2.0)
    # How often values of 128 and above are inverted. Neither the paper's recipe nor the released code does it: off.
    node.SOLARIZE_PROB = 0.0
    # How often a view is mirrored.
    node.FLIP_PROB = 0.5
    return node


def _model() -> CfgNode:
    node = CfgNode()
    # The encoder: resnet18|34|50|101|152, or resnet18_cifar (3×3 stem, no max-pool).
    node.ARCH = "resnet50"
    # Whether the last BN of each residual block starts with weight 0.
    node.ZERO_INIT_RESIDUAL = True
    # Layers and hidden width of the projection MLP, and the dimension d of its output.
    node.PROJ_LAYERS = 3
    node.PROJ_HIDDEN = 2048
    node.DIM = 2048
    # Hidden width of the prediction MLP (d → this → d).
    node.PRED_DIM = 512
    # The predictor: mlp (trained), none (the identity), or fixed (left at its random initialisation).
    node.PREDICTOR = "mlp"
    # BN in the two heads: none, hidden (layers only), default (and the projector's output), all (the predictor's too).
    node.HEAD_BN = "default"
    # Whether the projector's output BN has trained scale and offset; the released code's has not.
    node.PROJ_BN_AFFINE = False
    # Whether batch normalisation covers the images of all processes (as the released code has it) or each its own.
    node.SYNC_BN = True
    return node


def _simsiam() -> CfgNode:
    """SimSiam's ablations (docs/pretraining.md has each with its published number)."""
    node = CfgNode()
    # Whether the targets are constants.
    node.STOP_GRADIENT = True
    # D(p, z): cosine (negative cosine similarity) or cross_entropy (of the softmax over channels).
    node.SIMILARITY = "cosine"
    # Which view is predicted from which: symmetric, asymmetric (the first view from the second), or asymmetric_2x (two
    # pairs of views an image).
    node.SYMMETRY = "symmetric"
    # METHOD alternation: steps between two assignments of the targets; 1 is SimSiam, 0 is an epoch.
    node.ALTERNATION_STEPS = 1
    # METHOD moving_average: the momentum of each image's target, and what it is before the image is first seen: random
    # (normal numbers) or first (nothing: the first output takes its place).
    node.AVERAGE_MOMENTUM = 0.8
    node.AVERAGE_START = "random"
    return node


def _solver() -> CfgNode:
    node = CfgNode()
    # Images a step over all processes. The last incomplete batch of an epoch is dropped.
    node.BATCH_SIZE = 256
    # Parts a step's batch is computed in, one after the other, to need less memory. Batch normalisation then sees one
    # part at a time, which is not what the whole batch would give (docs/engine.md).
    node.ACCUMULATE = 1
    # The learning rate is this × BATCH_SIZE / 256.
    node.BASE_LR = 0.05
    node.MOMENTUM = 0.9
    # On every trained parameter, those of BN and the biases included.
    node.WEIGHT_DECAY = 1e-4
    # Length of the run; the cosine ends here, so another budget is another run.
    node.EPOCHS = 100
    # Epochs of linear warm-up before the cosine (the paper: 10 from batch 1024 on, none below).
    node.WARMUP_EPOCHS = 0
    # Whether the predictor keeps the full learning rate from the first step to the last (neither warm-up nor cosine).
    node.FIX_PRED_LR = True
    # How torch goes through the parameters: for-loop (what torch did in 2020), foreach or fused. Same numbers but for
    # rounding, in fewer kernels.
    node.IMPLEMENTATION = "for-loop"
    return node


def _engine() -> CfgNode:
    node = CfgNode()
    # fp32, or autocast to bf16 or fp16 (fp16 with a gradient scaler, on a GPU).
    node.PRECISION = "fp32"
    # Whether model and images lie in channels-last order (same numbers but for rounding; `make bench` times both).
    node.CHANNELS_LAST = False
    # Whether torch.compile generates the kernels of the forward and backward pass (same numbers but for rounding).
    node.COMPILE = False
    # Whether a GPU may round the inputs of float32 products to TF32, which the published runs' GPUs (V100) could not.
    node.TF32 = False
    return node


def _monitor() -> CfgNode:
    node = CfgNode()
    # The alarm: std below this share of its healthy 1/√d (above the floor that an output BN sets, see docs/engine.md),
    # that many steps in a row; 0 = no alarm. And whether the run stops there, as if it had diverged.
    node.STD_ALARM = 0.1
    node.STD_ALARM_STEPS = 50
    node.STD_ALARM_STOP = False
    # The run stops where the norm of all gradients is above this; 0 = only where it is not finite. Nothing is clipped.
    node.GRAD_NORM_LIMIT = 0.0
    node.KNN = CfgNode()
    # Epochs between two kNN measurements on a labelled set, from the start to the end of the run; 0 = none.
    node.KNN.PERIOD = 0
    # The labelled set, and its folders with one folder a class: the bank and the test images; "" = DATA.ROOT.
    node.KNN.ROOT = ""
    node.KNN.TRAIN = "train"
    node.KNN.VAL = "val"
    # Neighbours, and the temperature of their weights exp(similarity / T): 200 and 0.2 on ImageNet, 0.1 on CIFAR-10.
    node.KNN.K = 200
    node.KNN.T = 0.2
    # The centre DATA.SIZE pixels of the image whose shorter side is scaled to this; 0 = images as they are, that large.
    node.KNN.RESIZE = 256
    return node


def load(file: str | os.PathLike[str], overlay: str | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """A config file with its `_BASE_` chain, then the overlay's `pretrain` section, then `KEY VALUE …`.

    Returns:
        The frozen config.

    Raises:
        UserError: a missing file, an unknown key (with the nearest valid ones), or a value that cannot be.
    """
    cfg = defaults()
    merge_layers(cfg, file, "pretrain", overlay, overrides)
    check(cfg)
    cfg.freeze()
    return cfg


def check(cfg: CfgNode) -> None:
    """Raise UserError for the first value that cannot be, naming its key and what it may be."""
    for key, valid in (("METHOD", method_names()), *_NAMES.items()):
        if value_of(cfg, key) not in valid:
            raise UserError(
                f"{key} is {value_of(cfg, key)!r}, which there is not; {nearest(value_of(cfg, key), valid)}"
            )
    for keys, test, what in _RULES:
        for key in keys.split():
            value = value_of(cfg, key)
            if not test(value):
                raise UserError(f"{key} is {value!r}; it must be {what}")
    if cfg.SOLVER.BATCH_SIZE % cfg.SOLVER.ACCUMULATE:
        batch, parts = cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.ACCUMULATE
        raise UserError(f"SOLVER.ACCUMULATE is {parts}; SOLVER.BATCH_SIZE, {batch}, must be a multiple of it")
    if cfg.SOLVER.WARMUP_EPOCHS >= cfg.SOLVER.EPOCHS:
        epochs, warmup = cfg.SOLVER.EPOCHS, cfg.SOLVER.WARMUP_EPOCHS
        raise UserError(f"SOLVER.WARMUP_EPOCHS is {warmup}; it must be less than SOLVER.EPOCHS, which is {epochs}")
    _check_combination(cfg)


def _check_combination(cfg: CfgNode) -> None:
    """Raise UserError for values that contradict one another or that nothing would read."""
    for method, keys in _READ_BY_ONE_METHOD.items():
        for key in keys:
            if method != cfg.METHOD and value_of(cfg, key) != value_of(defaults(), key):
                raise UserError(
                    f"{key} is {value_of(cfg, key)!r}, but METHOD {cfg.METHOD} does not read it; {method} does"
                )
    for key in _DEFAULT_WITH.get(cfg.METHOD, ()):
        if value_of(cfg, key) != value_of(defaults(), key):
            allowed = value_of(defaults(), key)
            raise UserError(f"{key} is {value_of(cfg, key)!r}; with METHOD {cfg.METHOD} it must be {allowed!r}")
    if cfg.METHOD == "moving_average" and cfg.MODEL.PREDICTOR != "none":
        raise UserError(f"MODEL.PREDICTOR is {cfg.MODEL.PREDICTOR!r}; METHOD moving_average has none: set it to none")
    if cfg.MODEL.PROJ_BN_AFFINE and cfg.MODEL.HEAD_BN in ("none", "hidden"):
        raise UserError(
            f"MODEL.PROJ_BN_AFFINE is True, but with MODEL.HEAD_BN {cfg.MODEL.HEAD_BN} the projector's output has no BN"
        )


_NAMES = {
    "DATA.PIPELINE": PIPELINES,
    "DATA.UNREADABLE": ("error", "replace"),
    "MODEL.ARCH": ARCHITECTURES,
    "MODEL.PREDICTOR": PREDICTORS,
    "MODEL.HEAD_BN": HEAD_BNS,
    "SIMSIAM.SIMILARITY": ("cosine", "cross_entropy"),
    "SIMSIAM.SYMMETRY": ("symmetric", "asymmetric", "asymmetric_2x"),
    "SIMSIAM.AVERAGE_START": ("random", "first"),
}
"""Keys whose values are names."""

_READ_BY_ONE_METHOD = {
    "alternation": ("SIMSIAM.ALTERNATION_STEPS",),
    "moving_average": ("SIMSIAM.AVERAGE_MOMENTUM", "SIMSIAM.AVERAGE_START"),
}
"""Keys that mean something to one METHOD alone."""

_DEFAULT_WITH = {
    "alternation": ("SIMSIAM.STOP_GRADIENT", "SOLVER.ACCUMULATE", "ENGINE.COMPILE"),
    "moving_average": ("SIMSIAM.STOP_GRADIENT", "ENGINE.COMPILE"),
}
"""Keys that must keep their default with a METHOD: its targets are constants, of whole batches, kept between steps."""


def _range_within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda pair: len(pair) == 2 and low < pair[0] <= pair[1] <= high


_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("SEED DATA.WORKERS SOLVER.WARMUP_EPOCHS CHECKPOINT.PERIOD CHECKPOINT.KEEP_EVERY", lambda v: v >= 0, "0 or more"),
    ("DATA.SIZE MODEL.PROJ_HIDDEN MODEL.DIM MODEL.PRED_DIM SOLVER.EPOCHS", lambda v: v >= 1, "1 or more"),
    ("CHECKPOINT.KEEP LOG.PERIOD MODEL.PROJ_LAYERS", lambda v: v >= 1, "1 or more"),
    ("SOLVER.ACCUMULATE MONITOR.STD_ALARM_STEPS", lambda v: v >= 1, "1 or more"),
    ("SIMSIAM.ALTERNATION_STEPS", lambda v: v >= 0, "a number of steps, or 0 for an epoch"),
    ("SIMSIAM.AVERAGE_MOMENTUM", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    ("MONITOR.GRAD_NORM_LIMIT MONITOR.KNN.PERIOD MONITOR.KNN.RESIZE", lambda v: v >= 0, "0 or more"),
    ("MONITOR.KNN.K", lambda v: v >= 1, "1 or more"),
    ("MONITOR.KNN.T", lambda v: v > 0, "above 0"),
    ("MONITOR.KNN.TRAIN MONITOR.KNN.VAL", lambda v: bool(v), "the name of a folder below MONITOR.KNN.ROOT"),
    ("MONITOR.STD_ALARM", lambda v: 0 <= v < 1, "a share of 1/√d, at least 0 and below 1"),
    ("SOLVER.BATCH_SIZE", lambda v: v >= 2, "2 or more (batch normalisation needs two samples)"),
    ("SOLVER.BASE_LR", lambda v: v > 0, "above 0"),
    ("SOLVER.WEIGHT_DECAY", lambda v: v >= 0, "0 or more"),
    ("SOLVER.MOMENTUM", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    ("AUGMENT.JITTER_PROB AUGMENT.GRAY_PROB AUGMENT.BLUR_PROB", lambda v: 0 <= v <= 1, "a probability (0 … 1)"),
    ("AUGMENT.SOLARIZE_PROB AUGMENT.FLIP_PROB", lambda v: 0 <= v <= 1, "a probability (0 … 1)"),
    ("AUGMENT.CROP_SCALE", _range_within(0, 1), "two shares of the area (low, high], 0 < low ≤ high ≤ 1"),
    ("AUGMENT.BLUR_SIGMA", _range_within(0, 1000), "two radii (low, high), 0 < low ≤ high"),
    ("AUGMENT.JITTER", lambda v: len(v) == 4 and min(v) >= 0 and v[3] <= 0.5, "four strengths ≥ 0, the last ≤ 0.5"),
    ("DATA.INDEX_CACHE", bool, "user, none, or a folder"),
    ("SOLVER.IMPLEMENTATION", lambda v: v in ("for-loop", "foreach", "fused"), "for-loop, foreach or fused"),
    ("ENGINE.PRECISION", lambda v: v in ("fp32", "bf16", "fp16"), "fp32, bf16 or fp16"),
)


def differences(stored: dict[str, Any], cfg: CfgNode) -> list[str]:
    """Keys whose values differ between a run's stored config and this one, as `KEY is A there and B here`.

    Keys of `FREE_ON_RESUME` are not compared; a key that the stored config lacks had its default.
    """
    before = defaults()
    merge_strict(before, stored, "the stored config")
    keys = [key for key in dotted_keys(cfg) if key not in FREE_ON_RESUME]
    pairs = [(key, value_of(before, key), value_of(cfg, key)) for key in keys]
    return [f"{key} is {old!r} there and {new!r} here" for key, old, new in pairs if old != new]
