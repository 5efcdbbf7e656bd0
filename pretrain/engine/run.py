"""A pre-training run from its config to its result: what every process executes."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import IterationTimer, PeriodicWriter
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from pretrain.data.index import ImageIndex, find_images
from pretrain.engine.build_trainer import batch_norm_size, build_trainer, check_sizes, training_device
from pretrain.engine.monitors import KnnMonitor, Monitor, ValidationMonitor, check_labels, knn_sets, validation_set
from pretrain.engine.result import write_result
from pretrain.engine.resume import PeriodicCheckpoint, load_latest, restore
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.step_hooks import (
    CollapseDetector,
    ImageReport,
    LearningRates,
    PretrainingLine,
    StopWithCheckpoint,
    lowest_std_share,
)
from pretrain.engine.trainer import Trainer
from pretrain.methods import needs_labels
from pretrain.optim.schedule import build_schedule, peak_lr
from ssl_transfer.errors import UserError
from ssl_transfer.profiling import require_steps
from ssl_transfer.training.collectives import lock_on_main_process, run_on_main_process
from ssl_transfer.training.divergence import Diverged
from ssl_transfer.training.hooks import ProfileSteps, ShowProgress
from ssl_transfer.training.logs import build_writers, log_to_folder
from ssl_transfer.training.watch import CHECKPOINT, EVALUATION, EnterPhase, HangWatch, WatchSteps
from ssl_transfer.writer_lock import WriterLock

_log = logging.getLogger(__name__)


def run_pretraining(cfg: CfgNode, recipe: str, output: str, resume: bool, profile: int = 0) -> None:
    """Pre-train to the end, or from the newest checkpoint on; then write the backbone file and the result.

    A run that diverges is recorded in the folder (`RunFolder.diverged`) and raises nothing.

    Args:
        cfg: frozen config.
        recipe: the config file's stem, for the record.
        output: the run's folder.
        resume: continue the run in the folder, if there is one.
        profile: number of steps to profile (ssl_transfer/profiling.py); 0: none.

    Raises:
        UserError: the data, the folder or the machine does not fit the config.
        Preempted: stopped on a signal; the state is saved.
    """
    folder = RunFolder(output)
    device = training_device(cfg)
    index = find_images(cfg.DATA.ROOT, cfg.DATA.INDEX_CACHE, cfg.DATA.LIST_ROOT)
    check_sizes(cfg, index)
    check_labels(cfg, index)
    require_steps(profile, len(index) // cfg.SOLVER.BATCH_SIZE * cfg.SOLVER.EPOCHS)
    monitors = _build_monitors(cfg, folder, index)
    with lock_on_main_process(WriterLock(folder.path)):
        run_on_main_process(lambda: folder.claim(cfg, resume))
        with _logging(folder), HangWatch(folder.path, cfg.MONITOR.HANG_SECONDS, cfg.ENGINE.COMPILE) as watch:
            try:
                trainer, measured = _train(
                    cfg, folder, index, device=device, monitors=monitors, watch=watch, profile=profile
                )
            except Diverged as error:
                _log.error("stopped: %s; the last good checkpoint is kept", error)
                what = str(error)
                run_on_main_process(lambda: folder.record_divergence(what))
                return
            if comm.is_main_process():
                classes = (index.classes or ()) if needs_labels(cfg.METHOD) else ()
                write_result(cfg, recipe, folder, trainer, measured=measured, classes=classes)


def _logging(folder: RunFolder) -> contextlib.AbstractContextManager[None]:
    levels = {"pretrain": logging.INFO, "ssl_transfer": logging.INFO, "detectron2": logging.WARNING}
    formatter = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    return log_to_folder(folder.path, levels, rank=comm.get_rank(), formatter=formatter)


def _build_monitors(cfg: CfgNode, folder: RunFolder, index: ImageIndex) -> list[Monitor]:
    steps = len(index) // cfg.SOLVER.BATCH_SIZE
    sets, validation = knn_sets(cfg), validation_set(cfg, index)
    monitors: list[Monitor] = [ValidationMonitor(cfg, validation, folder.path, steps)] if validation else []
    return [*monitors, KnnMonitor(cfg, sets, folder.path, steps)] if sets else monitors


def _train(
    cfg: CfgNode,
    folder: RunFolder,
    index: ImageIndex,
    *,
    device: torch.device,
    monitors: list[Monitor],
    watch: HangWatch,
    profile: int,
) -> tuple[Trainer, dict[str, Any]]:
    """Build the trainer, restore the newest checkpoint, train to the last iteration.

    Returns:
        The trainer, and further keys of the result: the run's duration over all resumed parts, its collapse alarm, its
        classes and their accuracy at the end.
    """
    state = _newest_state(folder, index)
    start = state["iteration"] if state else 0
    steps = len(index) // cfg.SOLVER.BATCH_SIZE
    total = steps * cfg.SOLVER.EPOCHS
    require_steps(profile, total - start)
    trainer = build_trainer(cfg, index, device, start=start, total=total)
    trainer.report = watch.report
    lowest = lowest_std_share(trainer.method, batch_norm_size(cfg))
    detector = CollapseDetector(trainer.method.dim, cfg.MONITOR.COLLAPSE, lowest)
    extra, seconds = {"images": index.fingerprint}, state["seconds"] if state else 0.0
    checkpoints = PeriodicCheckpoint(folder.path, steps, cfg.CHECKPOINT, extra=extra, seconds=seconds)
    main = comm.is_main_process()
    trainer.register_hooks(
        [
            ProfileSteps(folder.path, profile, lambda: (trainer, "batches")) if profile and main else None,
            WatchSteps(watch),
            IterationTimer(),
            LearningRates(build_schedule(cfg, steps)),
            detector,
            ImageReport(steps),
            *(_build_writers(cfg, folder, trainer.method.dim, start, total) if main else ()),
            EnterPhase(watch, CHECKPOINT),
            checkpoints,
            EnterPhase(watch, EVALUATION),
            *monitors,
            StopWithCheckpoint(),
        ]
    )
    if state:
        restore(trainer, state)
    _log_start(cfg, index, start, total)
    if start < total:
        trainer.train(start, total)
        seconds = checkpoints.seconds
    else:
        for monitor in monitors:
            monitor.catch_up(trainer, total)
    measured = {"std_alarm": detector.record, "seconds": round(seconds, 3)}
    return trainer, measured | _describe_classes(cfg, index, monitors, total)


def _describe_classes(cfg: CfgNode, index: ImageIndex, monitors: list[Monitor], total: int) -> dict[str, Any]:
    """For a method trained on classes: how many there are, and the accuracies on the validation set."""
    if not needs_labels(cfg.METHOD):
        return {}
    lines = [monitor.recorded(total) for monitor in monitors if isinstance(monitor, ValidationMonitor)]
    shares = {name: value for line in lines for name, value in (line or {}).items() if name.startswith("val_")}
    return {"classes": len(index.classes or ()), "validation": shares or None}


def _newest_state(folder: RunFolder, index: ImageIndex) -> dict[str, Any] | None:
    state = load_latest(folder.path)
    if state and state["images"] != index.fingerprint:
        raise UserError(f"{index.folder} does not hold the images this run began with; --resume needs the same ones")
    return state


def _build_writers(cfg: CfgNode, folder: RunFolder, dim: int, start: int, total: int) -> tuple[HookBase, HookBase]:
    line = PretrainingLine(cfg.SOLVER.EPOCHS, total, cfg.SOLVER.BATCH_SIZE, dim)
    writers = build_writers(folder.path, start, line, cfg.LOG.TENSORBOARD)
    return ShowProgress(line), PeriodicWriter(writers, cfg.LOG.PERIOD)


def _log_start(cfg: CfgNode, index: ImageIndex, start: int, total: int) -> None:
    parts = f" in {cfg.SOLVER.GRAD_ACCUM_STEPS} parts" if cfg.SOLVER.GRAD_ACCUM_STEPS > 1 else ""
    _log.info(
        f"{cfg.METHOD} on {cfg.MODEL.ARCH}: {len(index)} images in {index.folder}, {cfg.SOLVER.EPOCHS} epochs, "
        f"{total} iterations of {cfg.SOLVER.BATCH_SIZE} images{parts} on {comm.get_world_size()} process(es), "
        f"peak learning rate {peak_lr(cfg):.6g}{f', from iteration {start} on' if start else ''}"
    )
    if cfg.SOLVER.BATCH_SIZE >= 1024 and not cfg.SOLVER.WARMUP_EPOCHS:
        _log.warning("a batch of 1024 or more without warm-up: the paper has SOLVER.WARMUP_EPOCHS 10 there")
