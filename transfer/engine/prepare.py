"""Settling a trial: everything that can be wrong about it is found here, before a process is started."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from common import processes
from common.errors import UserError
from common.profiling import require_steps
from transfer.engine import config, identity, result
from transfer.engine.checkpoint import LAST, Checkpoints
from transfer.engine.config import Loaded, Source
from transfer.engine.data import training_dicts
from transfer.engine.guards import check_model, settle_norm
from transfer.engine.preprocessing import settle_preprocessing
from transfer.engine.role import settle_lr, settle_role
from transfer.engine.scaling import scale
from transfer.engine.weights import Weights, find_weights
from transfer.modeling import register
from transfer.tasks.heldout import HeldOut, hold_out
from transfer.tasks.images import require_images
from transfer.tasks.splits import data_root
from transfer.tasks.task import Task, load_task


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        source: the configuration.
        weights: `scratch` or the path of a converted file.
        seed: of the trial; 0 or more.
        output: the trial's folder.
        num_gpus: processes to start, unless torchrun or Slurm did.
        reference_gpus: GPUs the recipe was made for; None: nothing is scaled.
        resume: go on from the newest checkpoint in `output`, if there is one.
        eval_only: evaluate the newest checkpoint in `output`, train nothing.
        role: `trial`, or `lr_search` for a point of the lr search.
        select_on: what a point is measured on: `test` or `heldout`; None for a trial.
        lr_from: `lr_search.json`, whose chosen lr the trial takes.
        profile: how many steps to profile (common/profiling.py); 0: none.
    """

    source: Source
    weights: str
    seed: int
    output: Path
    num_gpus: int = 1
    reference_gpus: int | None = None
    resume: bool = False
    eval_only: bool = False
    role: str = config.TRIAL
    select_on: str | None = None
    lr_from: Path | None = None
    profile: int = 0


@dataclass(frozen=True)
class Prepared:
    """A trial whose settings are settled; goes to every process.

    Attributes:
        cfg: the resolved config, with seed, norm, preprocessing block and number of classes.
        task_cfg: what the config file alone says.
        source, output, resume, eval_only: as requested.
        weights: what it starts from.
        processes: how many train.
        evaluator: the name of what measures.
        search: what the result says of the lr search: `role`, `select_on`, `heldout`, or `lr_search`; empty where the
            lr was not searched.
        profile: as requested.
    """

    cfg: CfgNode
    task_cfg: CfgNode
    source: Source
    output: Path
    weights: Weights
    processes: int
    evaluator: str
    resume: bool
    eval_only: bool
    search: dict[str, Any] = field(default_factory=dict)
    profile: int = 0

    @property
    def checkpoints(self) -> Checkpoints:
        """The trial's checkpoints."""
        return Checkpoints(self.output, self.cfg.TRANSFER.KEEP_CHECKPOINTS)


def prepare(request: Request) -> tuple[Prepared, Task]:
    """Settle everything about a trial and check it: settings, data, weights, the detector's build, the folder.

    Raises:
        UserError: one line that names what is wrong.
    """
    loaded = config.load(request.source)
    recorded = settle_role(loaded, request.role, request.select_on, request.lr_from)
    count = number_of_processes(request.num_gpus)
    cfg = _settle(loaded, request, count)
    if request.profile and request.eval_only:
        raise UserError("--profile looks at training; leave it out with --eval-only")
    require_steps(request.profile, cfg.SOLVER.MAX_ITER)
    alone = processes.place_from_environment() is None
    weights = find_weights(request.weights, cfg.MODEL.RESNETS.DEPTH, request.output, alone)
    search = settle_lr(cfg, recorded, weights.sha256)
    settle_preprocessing(cfg, weights.block, loaded.set_keys)
    task, part = _load(cfg)
    if part is not None:
        search["heldout"] = part.as_dict()
    _settle_classes(cfg, task, loaded)
    training_dicts(task, cfg)
    _check_build(cfg)
    evaluator = config.evaluator_name(cfg, task.layout)
    source, output = request.source, request.output
    how = (request.resume, request.eval_only, search, request.profile)
    prepared = Prepared(cfg, loaded.task_cfg, source, output, weights, count, evaluator, *how)
    if cfg.TRANSFER.CHECK_IMAGES and _begins(prepared):
        require_images(task)
    _check_folder(prepared)
    place = processes.place_from_environment()
    if part is not None and (place is None or place.local_rank == 0):
        part.write()
    return prepared, task


def number_of_processes(num_gpus: int) -> int:
    """How many processes train: torchrun's or Slurm's, else `num_gpus`."""
    place = processes.place_from_environment()
    if num_gpus < 1:
        raise UserError(f"--num-gpus {num_gpus}: must be at least 1 (a CPU counts as one)")
    return num_gpus if place is None else place.world_size


def _settle(loaded: Loaded, request: Request, count: int) -> CfgNode:
    """The config with what the command line adds: seed, folder, scaling, the norm that fits the number of processes."""
    if not 0 <= request.seed < 2**32:
        raise UserError(f"--seed {request.seed}: must be a whole number from 0 to {2**32 - 1}")
    cfg = loaded.cfg
    if request.reference_gpus is not None:
        cfg = scale(cfg, request.reference_gpus, count)
    elif cfg.SOLVER.REFERENCE_WORLD_SIZE:
        raise UserError("SOLVER.REFERENCE_WORLD_SIZE: say --reference-gpus N instead; nothing is scaled silently")
    if cfg.SOLVER.IMS_PER_BATCH % count:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide among {count} processes; "
            "use a divisor of it"
        )
    cfg.SEED, cfg.OUTPUT_DIR = request.seed, str(request.output)
    settle_norm(cfg, count)
    return cfg


def load_task_of(cfg: CfgNode) -> Task:
    """Read and check the annotations a config names; a point of an lr search may be measured on a held-out part.

    Raises:
        UserError: as `load_task`.
    """
    return _load(cfg)[0]


def _load(cfg: CfgNode) -> tuple[Task, HeldOut | None]:
    own = cfg.TRANSFER
    root = data_root(own.DATA_ROOT)
    task = load_task(
        own.TASK, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST[0], root, own.CLASSES, own.SPLITS, own.CHECK_COUNTS
    )
    if own.SELECT_ON != "heldout":
        return task, None
    part = hold_out(task, own.HELDOUT.FRACTION, own.HELDOUT.SEED, Path(cfg.OUTPUT_DIR))
    return part.task, part


def _settle_classes(cfg: CfgNode, task: Task, loaded: Loaded) -> None:
    key, count = "MODEL.ROI_HEADS.NUM_CLASSES", len(task.classes)
    if key in loaded.set_keys and count != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        found = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        raise UserError(
            f"{loaded.set_keys[key]}: {key} is {found}, but the task has {count} classes; remove the key: "
            "it follows from them"
        )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = count


def _check_build(cfg: CfgNode) -> None:
    """Build the detector without memory (on torch's meta device) and walk over it."""
    import torch
    from detectron2.modeling import build_model

    register()
    imagined = cfg.clone()
    imagined.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            model = build_model(imagined)
    except (AssertionError, KeyError, ValueError) as error:  # how Detectron2 refuses a config
        raise UserError(f"Detectron2 cannot build a detector from this config: {error}") from error
    check_model(model, cfg)


def _begins(prepared: Prepared) -> bool:
    """Whether the trial is at its beginning, and this process the one that looks at the images."""
    place = processes.place_from_environment()
    begun = result.exists(prepared.output) or (prepared.output / LAST).exists()
    return not begun and (place is None or place.rank == 0)


def _check_folder(prepared: Prepared) -> None:
    """See that the folder is this trial's, or nobody's, and that nothing in it would be lost."""
    output = prepared.output
    mine = identity.identity(prepared.cfg, prepared.weights.sha256, prepared.processes)
    place = processes.place_from_environment()
    writes = (place is None or place.rank == 0) and not prepared.eval_only
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    if prepared.eval_only and not (output / identity.FILE).is_file():
        raise UserError(f"--eval-only: {output} holds no trial; give the --output of one")
    identity.claim(output, mine, writes, trains=not prepared.eval_only)
    newest = prepared.checkpoints.newest()
    if prepared.eval_only and newest is None:
        raise UserError(f"--eval-only: {output} has no checkpoint yet; train first")
    if newest is not None and not (prepared.resume or prepared.eval_only or result.exists(output)):
        raise UserError(
            f"{output} holds an unfinished trial ({newest.name}); "
            "add --resume to go on with it, or give another --output"
        )
    if writes and not os.access(output, os.W_OK):
        raise UserError(f"--output {output} cannot be written; choose a folder you may write to")
