"""One trial from request to result: build, load, verify, train, evaluate; rank 0 writes the result."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_writers, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from ssl_transfer.errors import Preempted, UserError
from ssl_transfer.files import damaged_record, read_json_object, remove_partial_files, write_json, write_text
from ssl_transfer.formats.detections import DETECTIONS_FILE, EVALUATED_FILE
from ssl_transfer.formats.results import FINAL_CHECKPOINT, RESULT_FILE, TransferResult
from ssl_transfer.profiling import require_steps
from ssl_transfer.training import distributed
from ssl_transfer.training.hooks import ProfileSteps, ShowProgress, StopOnSignal
from ssl_transfer.training.logs import METRICS, count_progress, log_to_folder, truncate_metrics
from ssl_transfer.training.watch import CHECKPOINT, EVALUATION, EnterPhase, HangWatch, WatchSteps
from ssl_transfer.writer_lock import WriterLock, remove_dead_lock
from transfer.engine.config import SEPARABLE
from transfer.engine.detection_data import register_metadata, test_batches, training_batches, training_dicts
from transfer.engine.detection_trainer import DetectionTrainer
from transfer.engine.guards import check_frozen, check_model, describe_guards, frozen_tensors
from transfer.engine.precise_bn import PreciseBN
from transfer.engine.predictions import draw_predictions
from transfer.engine.prepare import PreparedTrial, TrialRequest, command_of, load_task_of, prepare
from transfer.engine.result import trial_result
from transfer.engine.seeding import PRECISE_BN, sampler_seeds, seed_torch
from transfer.engine.trial_folder import CONFIG_FILE, EVALUATION_FILE, IDENTITY_FILE, has_ended
from transfer.engine.trial_hooks import MetricHistory, Stopwatch, TrainingLine, WriteCheckpoints, first_line
from transfer.engine.weights import load_weights
from transfer.evaluation.evaluators import build_evaluator, metrics_of, rehearse_evaluation
from transfer.evaluation.matching import DetectedObjects, describe_detections
from transfer.modeling import register
from transfer.modeling.memory_format import channels_last
from transfer.modeling.roi_align import make_separable
from transfer.tasks.task import Task

logger = logging.getLogger(__name__)
LOG_LEVELS = dict.fromkeys(("detectron2", "fvcore", "ssl_transfer", "transfer"), logging.INFO)
LOG_FORMAT = logging.Formatter("%(asctime)s %(message)s", datefmt="%m-%d %H:%M:%S")


@dataclass(frozen=True)
class TrialOutcome:
    """How a request ended.

    Attributes:
        status: `done`, `diverged`, `already` (it had ended before) or `evaluated`.
        content: of `result.json`, or of `evaluation.json`.
        file: its path.
    """

    status: str
    content: dict[str, Any]
    file: Path


def run_trial(request: TrialRequest) -> TrialOutcome:
    """Run a trial, unless it has ended already.

    Raises:
        UserError: anything about the request is wrong; nothing has been trained.
        Preempted: stopped on a signal, after a checkpoint.
    """
    with contextlib.ExitStack() as stack:
        place = distributed.read_distributed_environment()
        writes = place is None or place.rank == 0
        if writes and not request.eval_only and not has_ended(request.output):
            stack.enter_context(WriterLock(request.output))
        prepared, task = prepare(request)
        file = prepared.output / (EVALUATION_FILE if request.eval_only else RESULT_FILE)
        if writes and request.eval_only:  # beside a training that goes on
            stack.enter_context(WriterLock(file, file=True))
        elif not request.eval_only and file.is_file():
            remove_dead_lock(prepared.output)
            return TrialOutcome("already", TransferResult.read(file).as_dict(), file)
        spawned = prepared.processes if place is None else 1
        words = (prepared, task if spawned == 1 else None)
        distributed.launch(run_process, words, spawned, prepared.cfg.TRANSFER.COLLECTIVE_SECONDS)
        content = read_json_object(file)
        return TrialOutcome("evaluated" if request.eval_only else str(content["status"]), content, file)


def run_process(prepared: PreparedTrial, task: Task | None = None) -> None:
    """What each process of a trial does: train and evaluate, or evaluate only.

    Args:
        prepared: the trial.
        task: its annotations, where this process has read them already.

    Raises:
        Preempted: stopped on a signal, after a checkpoint.
    """
    prepared.output.mkdir(parents=True, exist_ok=True)
    log = log_to_folder(prepared.output, LOG_LEVELS, rank=comm.get_rank(), rank_files=True, formatter=LOG_FORMAT)
    with log, HangWatch(prepared.output, prepared.cfg.TRANSFER.HANG_SECONDS) as watch:
        task = task or load_task_of(prepared.cfg)
        if prepared.request.eval_only:
            _evaluate_only(prepared, task)
        else:
            _Training(prepared, task, watch).run()
        comm.synchronize()


def build_seeded_detector(cfg: CfgNode) -> nn.Module:
    """The detector with the initial weights Detectron2 would give it for the same SEED."""
    torch.manual_seed(cfg.SEED)
    return build_detector(cfg)


def build_detector(cfg: CfgNode) -> nn.Module:
    """The detector of a resolved config, on its device, in its memory format; sets the process's float32 precision."""
    register()
    torch.backends.cudnn.allow_tf32 = cfg.TRANSFER.TF32
    torch.set_float32_matmul_precision("high" if cfg.TRANSFER.TF32 else "highest")
    model: nn.Module = build_model(cfg)
    if cfg.TRANSFER.ROI_ALIGN == SEPARABLE:
        make_separable(model)
    return channels_last(model) if cfg.TRANSFER.CHANNELS_LAST else model


@dataclass
class _Training:
    """The training of one trial in one process.

    Attributes:
        prepared: the trial.
        task: its annotations.
        watch: of this process.
        stopwatch: time of all steps.
        evaluation: the evaluator's answer and its seconds, once the detector has been evaluated.
        found: rank 0: the detections behind it.
    """

    prepared: PreparedTrial
    task: Task
    watch: HangWatch
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    evaluation: tuple[dict[str, Any], float] | None = None
    found: DetectedObjects | None = None

    def run(self) -> None:
        """Train from the newest checkpoint or from the initial weights, evaluate, write the result."""
        prepared, cfg = self.prepared, self.prepared.cfg
        if comm.is_main_process():
            write_text(prepared.output / "config.yaml", cfg.dump())
            prepared.checkpoints.remove_partial()
            remove_partial_files(prepared.output, [CONFIG_FILE, IDENTITY_FILE, METRICS, DETECTIONS_FILE, RESULT_FILE])
        model = build_seeded_detector(cfg)
        guards = {"weights_loaded": load_weights(model, prepared.weights), **check_model(model, cfg)}
        logger.info("%s", describe_guards(guards))
        before = frozen_tensors(model, cfg)
        for dataset in (*self.task.train, self.task.test):
            logger.info("%s: %s", dataset.split.name, dataset.summary)
        name = register_metadata(self.task.test)
        rehearse_evaluation(prepared.evaluator, self.task.test, name, cfg.MODEL.MASK_ON)
        self.trainer = DetectionTrainer(cfg, model)
        self.dicts = training_dicts(self.task, cfg)
        checkpoint = self._newest_checkpoint()
        start = checkpoint["iteration"] + 1 if checkpoint else 0
        require_steps(prepared.request.profile, cfg.SOLVER.MAX_ITER - start)
        if comm.is_main_process():
            truncate_metrics(prepared.output / METRICS, first_line(checkpoint))  # before the writers open the file
        self.trainer.register_hooks(self._hooks())
        if checkpoint:
            self._restore(checkpoint)
        seed = sampler_seeds(cfg.SEED, 1)[0]
        batches = training_batches(self.dicts, cfg, seed, start=start, stop=cfg.SOLVER.MAX_ITER)
        self.trainer.run(batches, start)
        if comm.is_main_process():
            self._write_result(guards | check_frozen(before, frozen_tensors(self.trainer.detector, cfg)))

    def _newest_checkpoint(self) -> dict[str, Any] | None:
        """The content of the newest checkpoint that is whole; None at the trial's beginning."""
        newest = self.prepared.checkpoints.newest()
        if newest is None:
            return None
        logger.info("resuming from %s", newest)
        return self.prepared.checkpoints.load(newest)

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """The final checkpoint holds only the detector: only evaluation remains."""
        self.trainer.detector.load_state_dict(checkpoint["model"])
        if "trainer" in checkpoint:
            self.trainer.load_state_dict(checkpoint["trainer"])

    def _hooks(self) -> list[Any]:
        """Detectron2's hooks with the trial's own, and checkpoints last: what they hold is written already."""
        prepared, cfg, trainer = self.prepared, self.prepared.cfg, self.trainer
        main, profile = comm.is_main_process(), prepared.request.profile
        line = TrainingLine(cfg.SOLVER.MAX_ITER)
        writers = [line, *default_writers(str(prepared.output))[1:]] if main else []
        checkpointing = WriteCheckpoints(prepared.checkpoints, cfg.SOLVER.CHECKPOINT_PERIOD)
        return [
            ProfileSteps(prepared.output, profile, self._batch_iterator) if profile and main else None,
            self.stopwatch,
            WatchSteps(self.watch),
            hooks.IterationTimer(),
            hooks.LRScheduler(trainer.optimizer, trainer.scheduler),
            EnterPhase(self.watch, EVALUATION),
            self._precise_bn() if cfg.TEST.PRECISE_BN.ENABLED else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate),
            MetricHistory(writers),
            ShowProgress(line) if main else None,
            hooks.PeriodicWriter(writers) if main else None,
            EnterPhase(self.watch, CHECKPOINT),
            checkpointing,  # after the writer: a trial killed between the two writes the lines of its last steps again
            StopOnSignal(checkpointing.save),
        ]

    def _batch_iterator(self) -> tuple[Any, str]:
        stepper = self.trainer.stepper
        assert stepper._data_loader_iter is not None  # this property creates the iterator in _data_loader_iter_obj
        return stepper, "_data_loader_iter_obj"

    def _evaluate(self) -> dict[str, Any]:
        trainer = self.trainer
        if trainer.iter == trainer.max_iter - 1:  # neither the end of a period nor of the run: the run was interrupted
            return {}
        timer = hooks.Timer()
        try:
            answer, self.found = evaluate(trainer.detector, self.prepared, self.task, self.watch.report)
        except Preempted:
            raise
        except Exception as error:  # of the evaluator, of the images, of the device
            if not (self.prepared.output / FINAL_CHECKPOINT).is_file():
                raise
            if not isinstance(error, UserError):
                logger.exception("the evaluation failed")
            why = f"{type(error).__name__}: {str(error).strip().rpartition(chr(10))[2]}"  # a worker's has its traceback
            command = command_of(replace(self.prepared.request, resume=True))
            raise UserError(f"the evaluation failed ({why}), the trained weights are kept; again: {command}") from error
        self.evaluation = (answer, timer.seconds())
        return dict(answer)

    def _precise_bn(self) -> PreciseBN:
        cfg = self.prepared.cfg
        sampler_seed = sampler_seeds(cfg.SEED, 2)[1]

        def batches(start: int, stop: int) -> Iterator[list[dict[str, Any]]]:
            source = training_batches(self.dicts, cfg, sampler_seed, stream=PRECISE_BN, start=start, stop=stop)
            count = count_progress(stop - start, "precise BN", "batches", self.watch.report)
            for number, batch in enumerate(source, start=start):
                count()
                seed_torch(cfg.SEED, PRECISE_BN, comm.get_rank(), number)
                yield batch

        return PreciseBN(
            cfg.TRANSFER.PRECISE_BN,
            period=cfg.TEST.EVAL_PERIOD,
            model=self.trainer.detector,
            batches=batches,
            count=cfg.TEST.PRECISE_BN.NUM_ITER,
        )

    def _write_result(self, guards: dict[str, Any]) -> None:
        prepared, trainer, watch = self.prepared, self.trainer, self.stopwatch
        metrics = detections = None
        if not trainer.divergence:
            assert self.evaluation is not None
            metrics = metrics_of(self.evaluation[0], self.task.test)
            self.watch.report("matching the detections")
            detections = write_detections(self.found, prepared, self.task, DETECTIONS_FILE)
            draw_predictions(trainer.detector, self.task.test, prepared.cfg, prepared.output)
        timing = {
            "train_seconds": watch.seconds,
            "eval_seconds": self.evaluation[1] if self.evaluation else None,
            "seconds_per_iteration": watch.seconds / watch.iterations if watch.iterations else None,
        }
        about = {"metrics": metrics, "divergence": trainer.divergence, "detections": detections}
        trial_result(prepared, guards=guards, timing=timing, **about).write(prepared.output / RESULT_FILE)


def evaluate(
    model: nn.Module, prepared: PreparedTrial, task: Task, report: Callable[[str], None] = lambda _doing: None
) -> tuple[dict[str, Any], DetectedObjects | None]:
    """Evaluate a detector on the task's test split, each image once over all ranks.

    Args:
        model, prepared, task: what is evaluated.
        report: called after each image with how far it is.

    Returns:
        Rank 0: the evaluator's answer, and the detections; empty and None elsewhere.
    """
    printed = io.StringIO()  # pycocotools prints
    with contextlib.redirect_stdout(printed):
        name = register_metadata(task.test)
        evaluator = build_evaluator(prepared.evaluator, task.test, name, prepared.cfg.MODEL.MASK_ON)
        batches = test_batches(task.test, prepared.cfg)
        count = count_progress(len(batches), "evaluating", "images", report)  # one image a batch
        answer = inference_on_dataset(model, batches, evaluator, callbacks={"after_inference": count})
    for line in printed.getvalue().splitlines():
        logger.info("%s", line)
    return answer or {}, evaluator.collector.gather()


def write_detections(found: DetectedObjects | None, prepared: PreparedTrial, task: Task, name: str) -> dict[str, Any]:
    """Match the detections and write them to the trial's folder; returns the file's `name` and SHA-256."""
    assert found is not None
    own = prepared.cfg.TRANSFER
    detections = describe_detections(task.test, found, toy=bool(own.TOY), keep_masks=own.KEEP_MASKS)
    return {"file": name, "sha256": detections.write(prepared.output / name)}


def _evaluate_only(prepared: PreparedTrial, task: Task) -> None:
    newest = prepared.checkpoints.last()
    assert newest is not None
    damage = damaged_record(newest)
    if damage:
        raise UserError(f"checkpoint {newest} is damaged ({damage}); --resume continues from the one before it")
    content = prepared.checkpoints.load(newest)
    model = build_seeded_detector(prepared.cfg)
    model.load_state_dict(content["model"])
    answer, found = evaluate(model, prepared, task)
    if comm.is_main_process():
        measured = {
            "metrics": metrics_of(answer, task.test),
            "detections": write_detections(found, prepared, task, EVALUATED_FILE),
        }
        about = {"checkpoint": newest.name, "iteration": content["iteration"], "evaluator": prepared.evaluator}
        write_json(prepared.output / EVALUATION_FILE, {"format": "transfer-evaluation/1", **about, **measured})
