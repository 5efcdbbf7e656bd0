"""Preparing a trial: everything that can be wrong about it is found here, before a process is started."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ssl_transfer.config import value_of
from ssl_transfer.console import as_typed
from ssl_transfer.errors import UserError
from ssl_transfer.formats.backbone import Preprocessing
from ssl_transfer.profiling import require_steps
from ssl_transfer.training import distributed
from ssl_transfer.training.checkpoint import LAST
from transfer.engine.config import (
    TRIAL,
    LoadedConfig,
    evaluator_name,
    is_fpn,
    load_config,
    resolve_lr,
    resolve_role,
    scale_to_processes,
)
from transfer.engine.detection_data import training_dicts
from transfer.engine.guards import check_model, resolve_norm
from transfer.engine.trial_folder import TrialCheckpoints, check_folder, has_ended, trial_identity
from transfer.engine.weights import InitialWeights, find_weights
from transfer.modeling import register
from transfer.tasks.classes import toy_classes
from transfer.tasks.datasets import data_root
from transfer.tasks.heldout import HeldOut, hold_out
from transfer.tasks.task import Task, load_task, require_images
from transfer.weights.converted import apply_preprocessing, detectron2_values


@dataclass(frozen=True, kw_only=True)
class TrialRequest:
    """What a user requests.

    Attributes:
        config_file: the task's config.
        weights: `scratch` or the path of a converted file.
        seed: of the trial; 0 or more.
        output: the trial's folder.
        overlay: an overlay merged after the config file, or None.
        overrides: `KEY VALUE …`, merged last.
        num_gpus: processes to start, unless torchrun or Slurm did.
        reference_gpus: GPUs the recipe was made for; None: nothing is scaled.
        resume: continue from the newest checkpoint in `output`, if there is one.
        eval_only: evaluate the newest checkpoint in `output`, train nothing.
        role: `trial`, or `lr_search` for a candidate of the lr search.
        select_on: what a candidate is measured on: `test` or `heldout`; None for a trial.
        lr_from: `lr_search.json`, whose chosen lr the trial takes.
        profile: number of steps to profile (ssl_transfer/profiling.py); 0: none.
    """

    config_file: Path
    weights: str
    seed: int
    output: Path
    overlay: Path | None = None
    overrides: tuple[str, ...] = ()
    num_gpus: int = 1
    reference_gpus: int | None = None
    resume: bool = False
    eval_only: bool = False
    role: str = TRIAL
    select_on: str | None = None
    lr_from: Path | None = None
    profile: int = 0


@dataclass(frozen=True, kw_only=True)
class PreparedTrial:
    """A trial whose settings are resolved and checked; it is sent to every process.

    Attributes:
        request: what was requested.
        cfg: the resolved config, with seed, norm, preprocessing block and number of classes.
        protocol: the task's protocol, which the result is compared with.
        weights: the initial weights.
        processes: number of processes that train.
        evaluator: name of the evaluator.
        search: what the result says of the lr search: `role`, `select_on`, `heldout`, or `lr_search`; empty where the
            lr was not searched.
    """

    request: TrialRequest
    cfg: CfgNode
    protocol: CfgNode
    weights: InitialWeights
    processes: int
    evaluator: str
    search: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """The trial's folder."""
        return self.request.output

    @property
    def checkpoints(self) -> TrialCheckpoints:
        """The trial's checkpoints."""
        return TrialCheckpoints(self.output, self.cfg.TRANSFER.KEEP_CHECKPOINTS)


def prepare(request: TrialRequest) -> tuple[PreparedTrial, Task]:
    """Resolve everything about a trial and check it: settings, data, weights, the detector's build, the folder.

    Raises:
        UserError: one line that names what is wrong.
    """
    place = distributed.read_distributed_environment()
    prepared, task, part = resolve_trial(request)
    _check_images_and_folder(prepared, task, is_first=place is None or place.rank == 0)
    if part is not None and (place is None or place.local_rank == 0):
        part.write()
    return prepared, task


def resolve_trial(request: TrialRequest) -> tuple[PreparedTrial, Task, HeldOut | None]:
    """What `prepare` does without a look at the images or the folder.

    Raises:
        UserError: one line that names what is wrong.
    """
    loaded = load_config(request.config_file, request.overlay, request.overrides)
    recorded = resolve_role(loaded, request.role, request.select_on, request.lr_from)
    place = distributed.read_distributed_environment()
    count = number_of_processes(request.num_gpus)
    cfg = _resolve(loaded, request, count)
    if request.profile and request.eval_only:
        raise UserError("--profile is for training; remove it with --eval-only")
    require_steps(request.profile, cfg.SOLVER.MAX_ITER)
    options = {"fpn": is_fpn(cfg), "single_process": place is None}
    weights = find_weights(request.weights, cfg.MODEL.RESNETS.DEPTH, request.output, **options)
    search = resolve_lr(cfg, recorded, weights.sha256)
    resolve_preprocessing(cfg, weights.block, loaded.set_keys)
    task, part = _load(cfg)
    if part is not None:
        search["heldout"] = part.as_dict()
    _resolve_classes(cfg, task, loaded)
    training_dicts(task, cfg)
    _check_build(cfg)
    prepared = PreparedTrial(
        request=request,
        cfg=cfg,
        protocol=loaded.protocol,
        weights=weights,
        processes=count,
        evaluator=evaluator_name(cfg, task.layout),
        search=search,
    )
    return prepared, task, part


def command_of(request: TrialRequest) -> str:
    """The command line of a request."""
    words = ["python", "tools/transfer.py"]
    for field_ in fields(request):
        value, option = getattr(request, field_.name), f"--{field_.name.replace('_', '-')}"
        if field_.name == "overrides" or value in (field_.default, False):
            continue
        words += [option] if value is True else [option, str(value)]
    return as_typed(shlex.join([*words, *request.overrides]))


def number_of_processes(num_gpus: int) -> int:
    """How many processes train: torchrun's or Slurm's, else `num_gpus`."""
    place = distributed.read_distributed_environment()
    if num_gpus < 1:
        raise UserError(f"--num-gpus {num_gpus}: must be at least 1 (a CPU counts as one)")
    return num_gpus if place is None else place.world_size


def _resolve(loaded: LoadedConfig, request: TrialRequest, count: int) -> CfgNode:
    """The config with what the command line adds: seed, folder, scaling, the norm that fits the number of processes."""
    if not 0 <= request.seed < 2**32:
        raise UserError(f"--seed {request.seed}: must be a whole number from 0 to {2**32 - 1}")
    cfg = loaded.cfg
    if request.reference_gpus is not None:
        cfg = scale_to_processes(cfg, request.reference_gpus, count)
    elif cfg.SOLVER.REFERENCE_WORLD_SIZE:
        raise UserError("SOLVER.REFERENCE_WORLD_SIZE: use --reference-gpus N instead; nothing is scaled silently")
    if cfg.SOLVER.IMS_PER_BATCH % count:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide among {count} processes; "
            "use a divisor of it"
        )
    cfg.SEED, cfg.OUTPUT_DIR = request.seed, str(request.output)
    cfg.TRANSFER.CLASSES = [*(cfg.TRANSFER.CLASSES or toy_classes(data_root(cfg.TRANSFER.DATA_ROOT)))]
    resolve_norm(cfg, count)
    return cfg


def resolve_preprocessing(cfg: CfgNode, block: Preprocessing, set_keys: Mapping[str, str]) -> None:
    """Set the preprocessing block in `cfg` as a whole: it belongs to the weights.

    Args:
        cfg: the config, changed in place.
        block: what the weights were trained with; `TORCHVISION` for a detector from scratch.
        set_keys: keys the user set, with the place: such a key must agree with the weights.

    Raises:
        UserError: the config sets a part of the block to something else than the weights need.
    """
    for key, needed in detectron2_values(block).items():
        found = value_of(cfg, key)
        if key in set_keys and found != needed:
            raise UserError(
                f"{set_keys[key]}: {key} is {found}, but the weights need {needed}; remove the key: "
                "it belongs to the weights"
            )
    apply_preprocessing(cfg, block)


def load_task_of(cfg: CfgNode) -> Task:
    """Read and check the annotations a config names; a candidate may be measured on a held-out part.

    Raises:
        UserError: as `load_task`.
    """
    return _load(cfg)[0]


def _load(cfg: CfgNode) -> tuple[Task, HeldOut | None]:
    own = cfg.TRANSFER
    root = data_root(own.DATA_ROOT)
    task = load_task(
        own.TASK,
        cfg.DATASETS.TRAIN,
        cfg.DATASETS.TEST[0],
        root,
        classes=own.CLASSES,
        own_splits=own.SPLITS,
        check_counts=own.CHECK_COUNTS,
        strict=own.STRICT,
    )
    if own.SELECT_ON != "heldout":
        return task, None
    part = hold_out(task, own.HELDOUT.FRACTION, own.HELDOUT.SEED, Path(cfg.OUTPUT_DIR))
    return part.task, part


def _resolve_classes(cfg: CfgNode, task: Task, loaded: LoadedConfig) -> None:
    key, count = "MODEL.ROI_HEADS.NUM_CLASSES", len(task.classes)
    if key in loaded.set_keys and count != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        found = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        raise UserError(
            f"{loaded.set_keys[key]}: {key} is {found}, but the task has {count} classes; remove the key: "
            "it follows from them"
        )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = count


def _check_build(cfg: CfgNode) -> None:
    """Build the detector without memory (on torch's meta device) and check it."""
    import torch
    from detectron2.modeling import build_model

    register()
    on_meta = cfg.clone()
    on_meta.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            model = build_model(on_meta)
    except (AssertionError, KeyError, ValueError) as error:  # how Detectron2 refuses a config
        raise UserError(f"Detectron2 cannot build a detector from this config: {error}") from error
    check_model(model, cfg)


def _check_images_and_folder(prepared: PreparedTrial, task: Task, is_first: bool) -> None:
    """`is_first`: rank 0, which alone reads the images' headers, and only where the trial begins, and writes."""
    cfg, request, output = prepared.cfg, prepared.request, prepared.output
    begins = not has_ended(output) and not (output / LAST).exists()
    if cfg.TRANSFER.CHECK_IMAGES and begins and is_first:
        require_images(task)
    check_folder(
        prepared.checkpoints,
        trial_identity(cfg, prepared.weights.sha256, prepared.processes),
        resume=request.resume,
        eval_only=request.eval_only,
        writes=is_first and not request.eval_only,
    )
