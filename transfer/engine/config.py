"""The configuration of one trial: Detectron2's keys, the TRANSFER section, and what the command line resolves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer

from ssl_transfer.config import (
    KeyChanges,
    ValueSources,
    dotted_keys,
    load_with_base,
    load_with_sources,
    merge_overrides,
    merge_strict,
    overlay_section,
    transfer_sections,
)
from ssl_transfer.environment import ROOT
from ssl_transfer.errors import UserError, nearest
from transfer.search.choice import RecordedChoice, read_choice

PRECISE_BN = ("synchronised", "fvcore")
TRIAL, LR_SEARCH = "trial", "lr_search"
ROLES = (TRIAL, LR_SEARCH)
SELECT_ON = ("test", "heldout")
ROI_ALIGN = TORCHVISION, SEPARABLE = ("torchvision", "separable")
EVALUATORS = {"voc": ("exact", "detectron2"), "coco": ("hotcoco", "pycocotools")}
LR = "SOLVER.BASE_LR"
COMMAND_LINE = "command line"
BASIC_DEPTHS = (18, 34)
"""Depths of the ResNets of basic blocks."""
RES2_OUT_CHANNELS = 256
"""Detectron2's default, that of bottleneck blocks; with basic blocks it requires 64."""
NO_BASIC_C4 = (
    "Detectron2's C4 head builds bottleneck blocks only; use an FPN task, as configs/transfer/coco_fpn.yaml, "
    "or a ResNet-50"
)

ORDER_OF_WORKERS = 4
"""Images are grouped into batches in the order in which four worker processes of Detectron2's loader return them: its
default, which MoCo's configs leave as it is. Part of the protocol, whatever DATALOADER.NUM_WORKERS is."""
ORDER_KEY = "TRANSFER.ORDER_OF_WORKERS"
"""Was a config key; `trial.json` still records it."""
KEY_CHANGES = KeyChanges(removed={ORDER_KEY: f"it is {ORDER_OF_WORKERS}, as in Detectron2 and MoCo; remove it"})


def defaults() -> CfgNode:
    """Detectron2's defaults with the TRANSFER section: every key that may be set."""
    cfg = get_cfg()
    node = cfg.TRANSFER = CfgNode()
    node.TASK = ""  # the task's name, as results and tables show it
    node.TOY = False  # marks every result made with this config as toy
    node.DATA_ROOT = ""  # the folder that holds the splits; empty: $DETECTRON2_DATASETS, else datasets
    node.CLASSES = []  # the class names; empty: a toy set's own, VOC's 20 or COCO's 80
    node.SPLITS = CfgNode()  # user-defined splits: NAME: {LAYOUT, FOLDER, IMAGE_SET or ANNOTATIONS, YEAR, COUNT}
    node.CHECK_COUNTS = True  # require that published splits have their published number of images
    node.STRICT = False  # refuse in own splits what is adjusted by default: published splits are always read strictly
    node.CHECK_IMAGES = True  # read each image's header before the first step: readable, of its annotation's size
    node.PRECISE_BN = "synchronised"  # or fvcore: as in Detectron2, each rank with its own statistics
    node.CHANNELS_LAST = False  # memory format of the detector: the same numbers up to rounding, in less time
    # separable: the same numbers up to rounding. On a CPU a C4 step takes 1.30 to 1.32 times less time than with
    # Detectron2's own, together with CHANNELS_LAST (docs/notes/performance.md). On a GPU it is torchvision's kernel.
    node.ROI_ALIGN = TORCHVISION
    node.TF32 = False  # whether a GPU may round the inputs of float32 products to TF32, which V100 GPUs could not
    node.EVALUATOR = ""  # VOC: exact or detectron2; COCO: hotcoco or pycocotools; empty: the first
    node.PREDICTIONS = 4  # number of test images on which the trial's detections are drawn at its end
    node.KEEP_MASKS = False  # store the detections' masks, too, in detections.safetensors; boxes always are
    node.KEEP_CHECKPOINTS = 2  # number of checkpoints to resume from that are kept
    # A process without a sign of life for so long, or for 10 steps, writes all stacks and exits with 75; 0 = never.
    node.HANG_SECONDS = 300.0
    node.COLLECTIVE_SECONDS = 600.0  # how long a collective operation waits for the other processes
    node.ROLE = TRIAL  # lr_search: a candidate of the lr search, in no cell of a table; set by --role only
    node.SELECT_ON = ""  # what a candidate is measured on: test or heldout; set by --select-on only
    node.HELDOUT = CfgNode()  # --select-on heldout: which part of the first training split's images
    node.HELDOUT.FRACTION = 0.2
    node.HELDOUT.SEED = 0  # by the images' ids; the trial's own seed does not affect it
    return cfg


@dataclass(frozen=True)
class LoadedConfig:
    """A resolved configuration.

    Attributes:
        cfg: the resolved Detectron2 config, not frozen.
        protocol: the task's protocol: the shipped config of that name, else what the file alone says.
        set_keys: every dotted key that file, overlay or overrides set, with the place that set it.
        sources: where each value came from.
    """

    cfg: CfgNode
    protocol: CfgNode
    set_keys: dict[str, str] = field(default_factory=dict)
    sources: ValueSources = field(default_factory=lambda: ValueSources("default"))


def load_config(
    file: Path, overlay: Path | None = None, overrides: Sequence[str] = (), *, runs_here: bool = True
) -> LoadedConfig:
    """Resolve a configuration.

    Args:
        file: the config file.
        overlay: merged after it, or None.
        overrides: `KEY VALUE …`, merged last.
        runs_here: refuse a device that this machine lacks.

    Raises:
        UserError: a file is missing or broken, a key unknown, a value of another type or not one of the valid ones.
    """
    cfg = defaults()
    values, sources = load_with_sources(file)
    values = _without_removed_keys(values, sources)
    keys = dotted_keys(values)
    merge_strict(cfg, values, sources)
    protocol = _protocol(cfg, file)
    if overlay is not None:
        for section in transfer_sections(cfg):
            values = _without_removed_keys(overlay_section(overlay, section, sources), sources)
            keys += dotted_keys(values)
            merge_strict(cfg, values, sources)
    merge_overrides(cfg, overrides, COMMAND_LINE, KEY_CHANGES)
    sources.places |= dict.fromkeys(overrides[::2], COMMAND_LINE)
    try:
        _resolve_depth(cfg)
        check_values(cfg)
        if runs_here:
            _check_device(cfg)
    except UserError as error:
        raise sources.locate(error) from error
    return LoadedConfig(cfg, protocol, {key: sources.place(key) for key in (*keys, *overrides[::2])}, sources)


def _without_removed_keys(values: dict[str, Any], where: ValueSources) -> dict[str, Any]:
    """The values with today's keys; a config that an earlier run stored may hold the constant's own value."""
    section = values.get("TRANSFER")
    stored = isinstance(section, dict) and section.get(ORDER_KEY.rpartition(".")[2]) == ORDER_OF_WORKERS
    return KEY_CHANGES.apply(values, where, recorded=stored)


def _protocol(cfg: CfgNode, file: Path) -> CfgNode:
    """The protocol that results are compared with: a config that names a shipped task must do what that task does."""
    shipped = ROOT / "configs" / "transfer" / f"{cfg.TRANSFER.TASK}.yaml"
    if shipped.parent == file.resolve().parent or not shipped.is_file():
        return cfg.clone()
    protocol = defaults()
    merge_strict(protocol, load_with_base(shipped), str(shipped))
    return protocol


def is_fpn(cfg: CfgNode) -> bool:
    """Whether the config's detector has a feature pyramid; else it is C4."""
    return "fpn" in cfg.MODEL.BACKBONE.NAME


def _resolve_depth(cfg: CfgNode) -> None:
    """Set what Detectron2 requires of a ResNet of basic blocks: res2 puts out as many channels as it computes."""
    depth, resnet = cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS
    if depth not in BASIC_DEPTHS:
        return
    if not is_fpn(cfg):
        raise UserError(f"MODEL.RESNETS.DEPTH {depth}: {NO_BASIC_C4}")
    if resnet.RES2_OUT_CHANNELS == RES2_OUT_CHANNELS:
        resnet.RES2_OUT_CHANNELS = resnet.NUM_GROUPS * resnet.WIDTH_PER_GROUP


def check_values(cfg: CfgNode) -> None:
    """Check the values that types alone do not restrict.

    Raises:
        UserError: names the key.
    """
    own = cfg.TRANSFER
    if not own.TASK:
        raise UserError("TRANSFER.TASK is empty; name the task, as in configs/transfer/voc07.yaml")
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN must list at least one split")
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError("DATASETS.TEST must list exactly one split")
    for key, valid in (("PRECISE_BN", PRECISE_BN), ("ROI_ALIGN", ROI_ALIGN)):
        if own[key] not in valid:
            raise UserError(f"TRANSFER.{key}: {own[key]!r}; {nearest(own[key], valid)}")
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN: only TrainingSampler is replayed exactly, not {cfg.DATALOADER.SAMPLER_TRAIN}"
        )
    for key in ("MAX_ITER", "IMS_PER_BATCH"):
        if cfg.SOLVER[key] < 1:
            raise UserError(f"SOLVER.{key} must be at least 1")
    for key, least in (("KEEP_CHECKPOINTS", 1), ("PREDICTIONS", 0)):
        if own[key] < least:
            raise UserError(f"TRANSFER.{key} must be at least {least}")
    if not 0 < own.HELDOUT.FRACTION < 1:
        raise UserError("TRANSFER.HELDOUT.FRACTION must lie between 0 and 1")


def _check_device(cfg: CfgNode) -> None:
    import torch

    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but torch finds no GPU; "
            "a CPU needs --overlay configs/overlays/cpu.yaml"
        )
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise UserError("SOLVER.AMP.ENABLED needs a GPU; turn it off")


def evaluator_name(cfg: CfgNode, layout: str) -> str:
    """The evaluator that a layout is measured with.

    Raises:
        UserError: TRANSFER.EVALUATOR names none of this layout.
    """
    valid = EVALUATORS[layout]
    name = str(cfg.TRANSFER.EVALUATOR or valid[0])
    if name not in valid:
        raise UserError(f"TRANSFER.EVALUATOR: {name!r} does not measure the layout {layout}; {nearest(name, valid)}")
    return name


def scale_to_processes(cfg: CfgNode, reference_gpus: int, processes: int) -> CfgNode:
    """The recipe of `reference_gpus` GPUs on `processes` of them, each with as many images as before.

    Detectron2's rule [detectron2: DefaultTrainer.auto_scale_workers]: total batch and learning rate scale by the ratio;
    iterations, steps, warm-up and periods by its inverse. 8 GPUs to 4 is batch 8, lr 0.01, twice the iterations
    [moco issue 11].

    Args:
        cfg: the recipe; not changed.
        reference_gpus: the number of GPUs that its total batch is meant for.
        processes: the number there is.

    Raises:
        UserError: the total batch does not divide.
    """
    total = cfg.SOLVER.IMS_PER_BATCH
    if reference_gpus < 1 or total % reference_gpus:
        raise UserError(
            f"--reference-gpus {reference_gpus}: a total batch of {total} does not divide among as many GPUs; "
            "use a divisor of it"
        )
    scaled = cfg.clone()
    scaled.SOLVER.REFERENCE_WORLD_SIZE = reference_gpus
    scaled = DefaultTrainer.auto_scale_workers(scaled, processes)
    # Detectron2 leaves the number that is used now; a result must say for how many the recipe was made.
    scaled.SOLVER.REFERENCE_WORLD_SIZE = reference_gpus
    return scaled


def resolve_role(loaded: LoadedConfig, role: str, select_on: str | None, lr_from: Path | None) -> RecordedChoice | None:
    """Write role and selection into the config; read the recorded lr where one is requested.

    Args:
        loaded: the config, changed in place.
        role: `trial` or `lr_search`.
        select_on: `test` or `heldout` for a candidate of a search; None for a trial.
        lr_from: the record whose lr a trial takes.

    Raises:
        UserError: the options contradict one another or the config, or the record cannot be used.
    """
    _check_role(loaded.set_keys, role, select_on)
    loaded.cfg.TRANSFER.ROLE, loaded.cfg.TRANSFER.SELECT_ON = role, select_on or ""
    if lr_from is None:
        return None
    if role == LR_SEARCH:
        raise UserError("--lr-from: a candidate of a search has the lr of its grid; remove it, or --role lr_search")
    if loaded.set_keys.get(LR) == COMMAND_LINE:
        raise UserError(f"--lr-from and {LR} on the command line both give the lr; remove one")
    return read_choice(lr_from)


def _check_role(set_keys: Mapping[str, str], role: str, select_on: str | None) -> None:
    for key, option in (("TRANSFER.ROLE", "--role"), ("TRANSFER.SELECT_ON", "--select-on")):
        if key in set_keys:
            raise UserError(f"{set_keys[key]}: {key}: use {option} on the command line instead")
    if role not in ROLES:
        raise UserError(f"--role {role}: {nearest(role, ROLES)}")
    if role == TRIAL and select_on is not None:
        raise UserError(
            f"--select-on {select_on}: a reported trial is measured on its test split; add --role lr_search"
        )
    if role == LR_SEARCH and select_on not in SELECT_ON:
        problem = "is missing" if select_on is None else f"{select_on}: {nearest(select_on, SELECT_ON)}"
        raise UserError(f"--select-on {problem}; choose the lr on test, as the paper did, or on heldout")


def resolve_lr(cfg: CfgNode, recorded: RecordedChoice | None, weights_sha256: str | None) -> dict[str, Any]:
    """Set the recorded lr, after batch and schedule are resolved.

    Returns:
        What the result says of it: `{"role": …, "select_on": …}` for a candidate, `{"lr_search": …}` for a trial at a
        searched lr, else nothing.

    Raises:
        UserError: the search was made for another kind of trial.
    """
    own = cfg.TRANSFER
    if own.ROLE == LR_SEARCH:
        return {"role": LR_SEARCH, "select_on": own.SELECT_ON}
    if recorded is None:
        return {}
    recorded.check_trial(
        task=own.TASK,
        seed=cfg.SEED,
        total_batch=cfg.SOLVER.IMS_PER_BATCH,
        weights_sha256=weights_sha256,
        toy=bool(own.TOY),
    )
    cfg.SOLVER.BASE_LR = recorded.lr
    return {"lr_search": recorded.as_dict()}
