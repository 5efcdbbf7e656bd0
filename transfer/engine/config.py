"""The configuration of one trial: Detectron2's keys, ours under TRANSFER, and which of them the user set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from common.config import dotted_keys, load_with_base, merge_overrides, merge_strict, overlay_section
from common.environment import ROOT
from common.errors import UserError, nearest

PRECISE_BN = ("synchronised", "fvcore")
TRIAL, LR_SEARCH = "trial", "lr_search"
ROLES = (TRIAL, LR_SEARCH)
SELECT_ON = ("test", "heldout")
ROI_ALIGN = TORCHVISION, SEPARABLE = ("torchvision", "separable")
EVALUATORS = {"voc": ("exact", "detectron2"), "coco": ("hotcoco", "pycocotools")}


def defaults() -> CfgNode:
    """Detectron2's defaults with the TRANSFER section: every key that may be set."""
    cfg = get_cfg()
    node = cfg.TRANSFER = CfgNode()
    node.TASK = ""  # the task's name, as results and tables show it
    node.TOY = False  # marks every result made with this config as toy
    node.DATA_ROOT = ""  # the folder the splits lie under; empty: $DETECTRON2_DATASETS, else datasets
    node.CLASSES = []  # the class names; empty: VOC's 20 or COCO's 80
    node.SPLITS = CfgNode()  # own splits: NAME: {LAYOUT, FOLDER, IMAGE_SET or ANNOTATIONS, YEAR, COUNT}
    node.CHECK_COUNTS = True  # hold published splits against their published number of images
    node.CHECK_IMAGES = True  # open each image's header before the first step: readable, of its annotation's size
    node.PRECISE_BN = "synchronised"  # or fvcore: as Detectron2 does it, each rank with its own statistics
    node.ORDER_OF_WORKERS = 4  # batches as Detectron2's loader makes them with so many workers, however many there are
    node.CHANNELS_LAST = False  # memory layout of the detector: the same numbers but for rounding, in less time
    node.ROI_ALIGN = TORCHVISION  # or separable: the same numbers but for rounding, on a CPU in less time
    node.TF32 = False  # whether a GPU may round the inputs of float32 products to TF32, which V100 GPUs could not
    node.EVALUATOR = ""  # VOC: exact or detectron2; COCO: hotcoco or pycocotools; empty: the first
    node.PREDICTIONS = 4  # on how many test images the trial's detections are drawn at its end; 0: on none
    node.KEEP_CHECKPOINTS = 1  # how many checkpoints to resume from are kept
    node.ROLE = TRIAL  # lr_search: a point of the lr search, in no cell of a table; set by --role alone
    node.SELECT_ON = ""  # what a point is measured on: test or heldout; set by --select-on alone
    node.HELDOUT = CfgNode()  # --select-on heldout: which part of the first training split's images
    node.HELDOUT.FRACTION = 0.2
    node.HELDOUT.SEED = 0  # by the images' ids; the trial's own seed has no say in it
    return cfg


@dataclass(frozen=True)
class Source:
    """Where a configuration came from.

    Attributes:
        file: the config file.
        overlay: an overlay merged after it, or None.
        overrides: `KEY VALUE …`, merged last.
    """

    file: Path
    overlay: Path | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """A resolved configuration.

    Attributes:
        cfg: the resolved Detectron2 config, not frozen.
        task_cfg: what the task's protocol is: the shipped config of that name, else what the file alone says.
        set_keys: every dotted key that file, overlay or overrides set, with the place that set it.
    """

    cfg: CfgNode
    task_cfg: CfgNode
    set_keys: dict[str, str] = field(default_factory=dict)


def load(source: Source) -> Loaded:
    """Resolve a configuration.

    Raises:
        UserError: a file is missing or broken, a key unknown, a value of another type or not one of the valid ones.
    """
    cfg = defaults()
    values = load_with_base(source.file)
    set_keys = dict.fromkeys(dotted_keys(values), str(source.file))
    merge_strict(cfg, values, str(source.file))
    task_cfg = _protocol(cfg, source.file)
    if source.overlay is not None:
        values = overlay_section(source.overlay, "transfer")
        set_keys |= dict.fromkeys(dotted_keys(values), str(source.overlay))
        merge_strict(cfg, values, str(source.overlay))
    merge_overrides(cfg, source.overrides)
    set_keys |= dict.fromkeys(source.overrides[::2], "command line")
    check_values(cfg, str(source.file))
    return Loaded(cfg, task_cfg, set_keys)


def _protocol(cfg: CfgNode, file: Path) -> CfgNode:
    """What a task's results are held against: who names a task as a shipped one must do what that one does."""
    shipped = ROOT / "configs" / "transfer" / f"{cfg.TRANSFER.TASK}.yaml"
    if shipped.parent == file.resolve().parent or not shipped.is_file():
        return cfg.clone()
    task_cfg = defaults()
    merge_strict(task_cfg, load_with_base(shipped), str(shipped))
    return task_cfg


def check_values(cfg: CfgNode, where: str) -> None:
    """Hold the values that types alone do not bind.

    Raises:
        UserError: names the key.
    """
    if not cfg.TRANSFER.TASK:
        raise UserError(f"{where}: TRANSFER.TASK is empty; name the task, as in configs/transfer/voc07.yaml")
    if not cfg.DATASETS.TRAIN or len(cfg.DATASETS.TEST) != 1:
        raise UserError(f"{where}: DATASETS.TRAIN must list at least one split and DATASETS.TEST exactly one")
    if cfg.TRANSFER.PRECISE_BN not in PRECISE_BN:
        raise UserError(
            f"{where}: TRANSFER.PRECISE_BN: {cfg.TRANSFER.PRECISE_BN!r}; {nearest(cfg.TRANSFER.PRECISE_BN, PRECISE_BN)}"
        )
    if cfg.TRANSFER.ROI_ALIGN not in ROI_ALIGN:
        raise UserError(
            f"{where}: TRANSFER.ROI_ALIGN: {cfg.TRANSFER.ROI_ALIGN!r}; {nearest(cfg.TRANSFER.ROI_ALIGN, ROI_ALIGN)}"
        )
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise UserError(
            f"{where}: DATALOADER.SAMPLER_TRAIN: only TrainingSampler is replayed exactly, not "
            f"{cfg.DATALOADER.SAMPLER_TRAIN}"
        )
    if cfg.SOLVER.MAX_ITER < 1 or cfg.SOLVER.IMS_PER_BATCH < 1:
        raise UserError(f"{where}: SOLVER.MAX_ITER and SOLVER.IMS_PER_BATCH must be at least 1")
    if cfg.TRANSFER.ORDER_OF_WORKERS < 0:
        raise UserError(f"{where}: TRANSFER.ORDER_OF_WORKERS must be at least 0")
    if cfg.TRANSFER.KEEP_CHECKPOINTS < 1:
        raise UserError(f"{where}: TRANSFER.KEEP_CHECKPOINTS must be at least 1")
    if cfg.TRANSFER.PREDICTIONS < 0:
        raise UserError(f"{where}: TRANSFER.PREDICTIONS must be at least 0")
    if not 0 < cfg.TRANSFER.HELDOUT.FRACTION < 1:
        raise UserError(f"{where}: TRANSFER.HELDOUT.FRACTION must lie between 0 and 1")
    _check_device(cfg, where)


def _check_device(cfg: CfgNode, where: str) -> None:
    import torch

    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"{where}: MODEL.DEVICE is {cfg.MODEL.DEVICE}, but torch finds no GPU; "
            "a CPU needs --overlay configs/overlays/cpu.yaml"
        )
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise UserError(f"{where}: SOLVER.AMP.ENABLED needs a GPU; turn it off")


def evaluator_name(cfg: CfgNode, layout: str) -> str:
    """The evaluator a layout is measured with.

    Raises:
        UserError: TRANSFER.EVALUATOR names none of this layout.
    """
    valid = EVALUATORS[layout]
    name = str(cfg.TRANSFER.EVALUATOR or valid[0])
    if name not in valid:
        raise UserError(f"TRANSFER.EVALUATOR: {name!r} does not measure the layout {layout}; {nearest(name, valid)}")
    return name
