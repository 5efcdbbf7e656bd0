"""A pre-training run from its config to its result: what every process executes."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.engine.hooks import IterationTimer, PeriodicWriter
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from common.errors import UserError
from common.profiling import require_steps
from common.training.collectives import run_on_main_process
from pretrain.data.index import ImageIndex, find_images
from pretrain.engine.build import build_trainer, check_sizes, images_normalised
from pretrain.engine.checkpoint import Checkpoints, load_latest, restore
from pretrain.engine.device import training_device
from pretrain.engine.folder import RunFolder
from pretrain.engine.images import ImageReport
from pretrain.engine.knn import Bank, KnnMonitor, monitored_sets
from pretrain.engine.logs import logging_to
from pretrain.engine.profile import Profiling
from pretrain.engine.result import write_result
from pretrain.engine.schedule import LearningRates
from pretrain.engine.signals import StopOnSignal
from pretrain.engine.std_alarm import StdAlarm, lowest_share
from pretrain.engine.trainer import Diverged, Trainer
from pretrain.engine.validation import ValidationMonitor, check_labels, validation_set
from pretrain.engine.writers import build_writers
from pretrain.evaluation.data import LabelledSet
from pretrain.methods import needs_labels
from pretrain.optim.schedule import build_schedule, peak_lr

_log = logging.getLogger(__name__)


def run(cfg: CfgNode, recipe: str, output: str, resume: bool, profile: int = 0) -> None:
    """Pre-train to the end, or on from the newest checkpoint; then write the backbone file and the result.

    A run that diverges is recorded in the folder (`RunFolder.diverged`) and is not an exception.

    Args:
        cfg: frozen config.
        recipe: the config file's stem, for the record.
        output: the run's folder.
        resume: go on with what the folder holds, where it holds something.
        profile: how many steps to profile (common/profiling.py); 0 = none.

    Raises:
        UserError: the data, the folder or the machine does not fit the config.
        Preempted: a signal asked for a stop; the state is saved.
    """
    folder = RunFolder(output)
    device = training_device(cfg)
    index = find_images(cfg.DATA.ROOT, cfg.DATA.INDEX_CACHE, cfg.DATA.LIST_ROOT)
    check_sizes(cfg, index)
    check_labels(cfg, index)
    require_steps(profile, len(index) // cfg.SOLVER.BATCH_SIZE * cfg.SOLVER.EPOCHS)
    bank, validation = monitored_sets(cfg), validation_set(cfg, index)
    run_on_main_process(lambda: folder.claim(cfg, resume))
    with logging_to(folder.log, comm.is_main_process()):
        try:
            trainer, facts = _train(cfg, folder, index, bank, validation, device, profile)
        except Diverged as error:
            _log.error("stopped: %s; the last good checkpoint is kept", error)
            what = str(error)
            run_on_main_process(lambda: folder.record_divergence(what))
            return
        if comm.is_main_process():
            write_result(cfg, recipe, folder, trainer, facts, index.classes or () if needs_labels(cfg.METHOD) else ())


def _train(
    cfg: CfgNode,
    folder: RunFolder,
    index: ImageIndex,
    bank: Bank | None,
    validation: LabelledSet | None,
    device: torch.device,
    profile: int,
) -> tuple[Trainer, dict[str, Any]]:
    """Build everything, take up the newest checkpoint, train to the last iteration.

    Returns:
        The trainer, and what the result says of the run: the seconds it took over all its resumptions, its alarm, and
        its classes and their accuracy at the end.
    """
    state = _newest_state(folder, index)
    start = state["iteration"] if state else 0
    steps = len(index) // cfg.SOLVER.BATCH_SIZE
    total = steps * cfg.SOLVER.EPOCHS
    require_steps(profile, total - start)
    trainer = build_trainer(cfg, index, device, start, total)
    alarm = StdAlarm(trainer.method.dim, cfg.MONITOR, lowest_share(trainer.method, images_normalised(cfg)))
    extra, seconds = {"images": index.fingerprint}, state["seconds"] if state else 0.0
    checkpoints = Checkpoints(folder.path, steps, cfg.CHECKPOINT, extra, seconds)
    schedule = LearningRates(build_schedule(cfg, steps))
    writers = [_writer_hook(cfg, folder, trainer.method.dim, start, total)] if comm.is_main_process() else []
    accuracy = [ValidationMonitor(cfg, validation, folder.path, steps)] if validation else []
    knn = [KnnMonitor(cfg, bank, folder.path, steps)] if bank else []
    images = ImageReport(steps)
    profiling = [Profiling(folder.path, profile)] if profile and comm.is_main_process() else []
    early = [*profiling, IterationTimer(), schedule, alarm, images, *writers]
    trainer.register_hooks([*early, checkpoints, *accuracy, *knn, StopOnSignal()])
    if state:
        restore(trainer, state)
    _log_start(cfg, index, start, total)
    if start < total:
        trainer.train(start, total)
        seconds = checkpoints.seconds
    else:
        for measurement in (*accuracy, *knn):
            measurement.catch_up(trainer, total)
    facts = {"std_alarm": alarm.record, "seconds": round(seconds, 3)}
    return trainer, facts | _classes(cfg, index, accuracy[0].recorded(total) if accuracy else None)


def _classes(cfg: CfgNode, index: ImageIndex, measured: dict[str, float] | None) -> dict[str, Any]:
    """What the result says of a run that was trained on classes: how many, and the validation set's accuracies."""
    if not needs_labels(cfg.METHOD):
        return {}
    shares = {name: value for name, value in (measured or {}).items() if name.startswith("val_")}
    return {"classes": len(index.classes or ()), "validation": shares or None}


def _newest_state(folder: RunFolder, index: ImageIndex) -> dict[str, Any] | None:
    state = load_latest(folder.path)
    if state and state["images"] != index.fingerprint:
        raise UserError(f"{index.folder} does not hold the images this run began with; --resume needs the same ones")
    return state


def _writer_hook(cfg: CfgNode, folder: RunFolder, dim: int, start: int, total: int) -> PeriodicWriter:
    writers = build_writers(
        folder.path,
        start,
        cfg.SOLVER.EPOCHS,
        total,
        cfg.SOLVER.BATCH_SIZE,
        dim,
        cfg.LOG.TENSORBOARD,
    )
    return PeriodicWriter(writers, cfg.LOG.PERIOD)


def _log_start(cfg: CfgNode, index: ImageIndex, start: int, total: int) -> None:
    parts = f" in {cfg.SOLVER.ACCUMULATE} parts" if cfg.SOLVER.ACCUMULATE > 1 else ""
    _log.info(
        f"{cfg.METHOD} on {cfg.MODEL.ARCH}: {len(index)} images in {index.folder}, {cfg.SOLVER.EPOCHS} epochs, "
        f"{total} iterations of {cfg.SOLVER.BATCH_SIZE} images{parts} on {comm.get_world_size()} process(es), "
        f"peak learning rate {peak_lr(cfg):.6g}{f', from iteration {start} on' if start else ''}"
    )
    if cfg.SOLVER.BATCH_SIZE >= 1024 and not cfg.SOLVER.WARMUP_EPOCHS:
        _log.warning("a batch of 1024 or more without warm-up: the paper has SOLVER.WARMUP_EPOCHS 10 there")
