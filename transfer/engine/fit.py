"""What each process of a trial does: build, load, prove, train, evaluate; rank 0 writes the result."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.multiprocessing as mp
from detectron2.config import CfgNode
from detectron2.engine import default_writers, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from common import processes
from common.errors import Preempted, UserError
from common.files import write_json, write_text
from common.profiling import require_steps
from transfer.engine.config import SEPARABLE
from transfer.engine.data import catalogue, test_batches, training_batches, training_dicts
from transfer.engine.guards import check_model
from transfer.engine.hooks import Checkpointing, StopOnSignal, Stopwatch
from transfer.engine.logs import logging_to, trim_metrics
from transfer.engine.precise_bn import PreciseBN
from transfer.engine.predictions import draw_predictions
from transfer.engine.prepare import Prepared, load_task_of
from transfer.engine.profile import Profiling
from transfer.engine.randomness import PRECISE_BN, sampler_seeds, seed_torch
from transfer.engine.result import FILE, Facts, result
from transfer.engine.trainer import Trainer
from transfer.engine.weights import load_weights
from transfer.evaluation.build import build_evaluator, metrics_of
from transfer.modeling import register
from transfer.modeling.memory_format import channels_last
from transfer.modeling.roi_align import make_separable
from transfer.tasks.task import Task

logger = logging.getLogger(__name__)

EVALUATION = "evaluation.json"
"""Where `--eval-only` writes."""


def spawned_fit(prepared: Prepared) -> bool:
    """`fit` in processes of its own on this machine.

    Raises:
        UserError: what a process found wrong.
    """
    errors = mp.get_context("spawn").SimpleQueue()
    try:
        processes.start(_fit_and_tell, (prepared, errors), prepared.processes)
    except ProcessRaisedException:
        if not errors.empty():
            raise UserError(errors.get()) from None
        raise
    return (prepared.output / (EVALUATION if prepared.eval_only else FILE)).is_file()


def _fit_and_tell(prepared: Prepared, errors: Any) -> None:
    try:
        fit(prepared)
    except UserError as error:
        errors.put(str(error))
        raise


def fit(prepared: Prepared, task: Task | None = None) -> bool:
    """Train and evaluate, or evaluate alone.

    Args:
        prepared: the trial.
        task: its annotations, where this process has read them already.

    Returns:
        True when the trial ended; False when it stopped after a checkpoint.
    """
    with logging_to(prepared.output, comm.get_rank()):
        task = task or load_task_of(prepared.cfg)
        try:
            _evaluate_alone(prepared, task) if prepared.eval_only else _train(prepared, task)
        except Preempted:
            return False
        comm.synchronize()
    return True


def _train(prepared: Prepared, task: Task) -> None:
    cfg, facts = prepared.cfg, Facts()
    if comm.is_main_process():
        write_text(prepared.output / "config.yaml", cfg.dump())
    prepared.checkpoints.remove_torn()
    model = build(prepared)
    facts.guards = {"weights_loaded": load_weights(model, prepared.weights), **check_model(model, cfg)}
    logger.info("guards: %s", facts.guards)
    trainer = Trainer(cfg, model)
    found: dict[str, Any] = {}
    stopwatch = Stopwatch()
    dicts = training_dicts(task, cfg)
    before = _newest(prepared)
    start = before["iteration"] + 1 if before else 0
    require_steps(prepared.profile, cfg.SOLVER.MAX_ITER - start)
    if comm.is_main_process():
        trim_metrics(prepared.output, start)  # before the writers open the file
    trainer.register_hooks(_hooks(trainer, prepared, task, dicts, stopwatch, found))
    if before:
        _take_up(trainer, before)
    seed = sampler_seeds(cfg.SEED, 1)[0]
    trainer.run(training_batches(dicts, cfg, seed, start=start, stop=cfg.SOLVER.MAX_ITER), start)
    facts.divergence = trainer.divergence
    if comm.is_main_process():
        facts.metrics = None if trainer.divergence else metrics_of(found["metrics"], task.test)
        facts.timing = _timing(stopwatch, found)
        if not trainer.divergence:
            draw_predictions(trainer.detector, task.test, cfg, prepared.output)
        write_json(prepared.output / FILE, _result(prepared, facts))


def build(prepared: Prepared) -> nn.Module:
    """The detector with the initial weights Detectron2 would give it for the same SEED."""
    torch.manual_seed(prepared.cfg.SEED)
    return build_detector(prepared.cfg)


def build_detector(cfg: CfgNode) -> nn.Module:
    """The detector of a settled config, on its device, in its layout; sets the process's arithmetic for it."""
    register()
    torch.backends.cudnn.allow_tf32 = cfg.TRANSFER.TF32
    torch.set_float32_matmul_precision("high" if cfg.TRANSFER.TF32 else "highest")
    model: nn.Module = build_model(cfg)
    if cfg.TRANSFER.ROI_ALIGN == SEPARABLE:
        make_separable(model)
    return channels_last(model) if cfg.TRANSFER.CHANNELS_LAST else model


def _newest(prepared: Prepared) -> dict[str, Any] | None:
    """The newest checkpoint's content; None at the trial's beginning."""
    newest = prepared.checkpoints.newest()
    if newest is None:
        return None
    logger.info("resuming from %s", newest)
    return prepared.checkpoints.load(newest)


def _take_up(trainer: Trainer, content: dict[str, Any]) -> None:
    """Put the trainer where a checkpoint was taken; the final one has the detector alone: only evaluation is left."""
    trainer.detector.load_state_dict(content["model"])
    if "trainer" in content:
        trainer.load_state_dict(content["trainer"])


def _hooks(
    trainer: Trainer,
    prepared: Prepared,
    task: Task,
    dicts: list[dict[str, Any]],
    stopwatch: Stopwatch,
    found: dict[str, Any],
) -> list[Any]:
    """Detectron2's hooks, with the trial's own among them, and checkpoints last: what they hold is written down."""
    cfg = prepared.cfg
    checkpointing = Checkpointing(prepared.checkpoints, cfg.SOLVER.CHECKPOINT_PERIOD)

    def measure() -> dict[str, Any]:
        if trainer.iter == trainer.max_iter - 1:  # neither a period's end nor the run's: the run broke off
            return {}
        timer = hooks.Timer()
        found["metrics"] = evaluate(trainer.detector, prepared, task)
        found["seconds"] = timer.seconds()
        return dict(found["metrics"] or {})

    profiled = prepared.profile and comm.is_main_process()
    return [
        Profiling(prepared.output, prepared.profile) if profiled else None,  # first, so that no other's time is in it
        stopwatch,
        hooks.IterationTimer(),
        hooks.LRScheduler(trainer.optimizer, trainer.scheduler),
        _precise_bn(trainer, prepared, dicts) if cfg.TEST.PRECISE_BN.ENABLED else None,
        hooks.EvalHook(cfg.TEST.EVAL_PERIOD, measure),
        hooks.PeriodicWriter(default_writers(str(prepared.output), cfg.SOLVER.MAX_ITER))
        if comm.is_main_process()
        else None,
        checkpointing,  # after the writer: a trial killed between the two writes the lines of its last steps again
        StopOnSignal(checkpointing),
    ]


def _precise_bn(trainer: Trainer, prepared: Prepared, dicts: list[dict[str, Any]]) -> PreciseBN:
    cfg = prepared.cfg
    sampler_seed = sampler_seeds(cfg.SEED, 2)[1]

    def batches(start: int, stop: int) -> Iterator[list[dict[str, Any]]]:
        source = training_batches(dicts, cfg, sampler_seed, PRECISE_BN, start, stop)
        for number, batch in enumerate(source, start=start):
            seed_torch(cfg.SEED, PRECISE_BN, comm.get_rank(), number)
            yield batch

    method, period, count = cfg.TRANSFER.PRECISE_BN, cfg.TEST.EVAL_PERIOD, cfg.TEST.PRECISE_BN.NUM_ITER
    return PreciseBN(method, period, trainer.detector, batches, count)


def evaluate(model: nn.Module, prepared: Prepared, task: Task) -> dict[str, Any] | None:
    """Measure a detector on the task's test split, each image once over all ranks; the answer is rank 0's."""
    printed = io.StringIO()  # pycocotools prints
    with contextlib.redirect_stdout(printed):
        evaluator = build_evaluator(prepared.evaluator, task.test, catalogue(task.test), prepared.cfg.MODEL.MASK_ON)
        answer = inference_on_dataset(model, test_batches(task.test, prepared.cfg), evaluator)
    for line in printed.getvalue().splitlines():
        logger.info("%s", line)
    return answer


def _evaluate_alone(prepared: Prepared, task: Task) -> None:
    newest = prepared.checkpoints.newest()
    assert newest is not None
    content = prepared.checkpoints.load(newest)
    model = build(prepared)
    model.load_state_dict(content["model"])
    answer = evaluate(model, prepared, task)
    if comm.is_main_process():
        metrics = metrics_of(answer or {}, task.test)
        about = {"checkpoint": newest.name, "iteration": content["iteration"], "evaluator": prepared.evaluator}
        write_json(prepared.output / EVALUATION, {"format": "transfer-evaluation/1", **about, "metrics": metrics})


def _timing(stopwatch: Stopwatch, found: dict[str, Any]) -> dict[str, Any]:
    each = stopwatch.seconds / stopwatch.iterations if stopwatch.iterations else None
    return {"train_seconds": stopwatch.seconds, "eval_seconds": found.get("seconds"), "seconds_per_iteration": each}


def _result(prepared: Prepared, facts: Facts) -> dict[str, Any]:
    p = prepared
    return {**result(p.cfg, p.task_cfg, p.source, p.weights, p.processes, p.evaluator, facts), **p.search}
