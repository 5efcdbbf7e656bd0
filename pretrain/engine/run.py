"""A pre-training run from its config to its result: what every process executes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine.hooks import IterationTimer, PeriodicWriter
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from common import environment
from common.errors import UserError
from common.files import sha256_of, write_json
from pretrain.data.augment import recipe as augmentation
from pretrain.data.dataset import TwoViews
from pretrain.data.index import ImageIndex, find_images
from pretrain.data.loader import load_batches
from pretrain.data.preprocessing import block
from pretrain.data.sampler import EpochBatches
from pretrain.engine.checkpoint import Checkpoints, load_latest, restore
from pretrain.engine.export import write_backbone
from pretrain.engine.folder import RESULT_FORMAT, RunFolder
from pretrain.engine.logs import logging_to
from pretrain.engine.schedule import LearningRates
from pretrain.engine.signals import StopOnSignal
from pretrain.engine.trainer import Diverged, Trainer
from pretrain.engine.writers import build_writers
from pretrain.methods import build_method
from pretrain.models.encoder import backbone_tensors
from pretrain.models.sync_bn import synchronise_batch_norm
from pretrain.optim.schedule import build_schedule, peak_lr
from pretrain.optim.sgd import build_sgd

_log = logging.getLogger(__name__)


def run(cfg: CfgNode, recipe: str, output: str, resume: bool) -> None:
    """Pre-train to the end, or on from the newest checkpoint; then write the backbone file and the result.

    A run that diverges is recorded in the folder (`RunFolder.diverged`) and is not an exception.

    Args:
        cfg: frozen config.
        recipe: the config file's stem, for the record.
        output: the run's folder.
        resume: go on with what the folder holds, where it holds something.

    Raises:
        UserError: the data, the folder or the machine does not fit the config.
        Again: a signal asked for a stop; the state is saved.
    """
    folder = RunFolder(output)
    device = _device(cfg)
    index = find_images(cfg.DATA.ROOT)
    _check_sizes(cfg, index)
    _on_main_process(lambda: folder.claim(cfg, resume))
    with logging_to(folder.log, comm.is_main_process()):
        try:
            trainer, seconds = _train(cfg, folder, index, device)
        except Diverged as error:
            _log.error("stopped: %s; the last good checkpoint is kept", error)
            what = str(error)
            _on_main_process(lambda: folder.record_divergence(what))
            return
        if comm.is_main_process():
            _finish(cfg, recipe, folder, trainer, seconds)


def _device(cfg: CfgNode) -> torch.device:
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True  # every batch has the same shape
        return torch.device("cuda", torch.cuda.current_device())
    if cfg.ENGINE.PRECISION == "fp16":
        raise UserError("ENGINE.PRECISION is fp16, which needs a GPU, and there is none here; use bf16 or fp32")
    return torch.device("cpu")


def _check_sizes(cfg: CfgNode, index: ImageIndex) -> None:
    batch, processes = cfg.SOLVER.BATCH_SIZE, comm.get_world_size()
    if len(index) < batch:
        images = f"{index.folder} holds {len(index)} image(s)"
        raise UserError(f"{images}, too few for a batch of SOLVER.BATCH_SIZE {batch}; lower it or add images")
    if batch % processes:
        raise UserError(f"SOLVER.BATCH_SIZE is {batch}, which {processes} processes cannot share equally")


def _on_main_process(action: Callable[[], None]) -> None:
    """Run `action` on the main process while the others wait; a UserError there is raised on all."""
    said = None
    if comm.is_main_process():
        try:
            action()
        except UserError as error:
            said = str(error)
    first = comm.all_gather(said)[0]
    if first is not None:
        raise UserError(first)


def _train(cfg: CfgNode, folder: RunFolder, index: ImageIndex, device: torch.device) -> tuple[Trainer, float]:
    """Build everything, take up the newest checkpoint, train to the last iteration.

    Returns:
        The trainer, and the seconds that the run took over all its resumptions.
    """
    state = load_latest(folder.path)
    start, seconds = (state["iteration"], state["seconds"]) if state else (0, 0.0)
    steps = len(index) // cfg.SOLVER.BATCH_SIZE
    total = steps * cfg.SOLVER.EPOCHS
    trainer = _trainer(cfg, index, device, start, total)
    if state:
        if state["images"] != index.fingerprint:
            raise UserError(
                f"{index.folder} does not hold the images this run began with; --resume needs the same ones"
            )
        restore(trainer, state)
    _log_start(cfg, index, start, total)
    if start == total:
        return trainer, seconds
    extra = {"images": index.fingerprint}
    checkpoints = Checkpoints(folder.path, steps, cfg.CHECKPOINT.PERIOD, cfg.CHECKPOINT.KEEP, extra, seconds)
    writers = [_writer_hook(cfg, folder, start, total)] if comm.is_main_process() else []
    schedule = LearningRates(build_schedule(cfg, steps))
    trainer.register_hooks([IterationTimer(), schedule, *writers, checkpoints, StopOnSignal()])
    trainer.train(start, total)
    return trainer, checkpoints.seconds


def _trainer(cfg: CfgNode, index: ImageIndex, device: torch.device, start: int, total: int) -> Trainer:
    torch.manual_seed(cfg.SEED)
    layout = torch.channels_last if cfg.ENGINE.CHANNELS_LAST else torch.contiguous_format
    method = build_method(cfg).to(device).to(memory_format=layout)
    if comm.get_world_size() > 1:
        method = synchronise_batch_norm(method, device)
    sampler = EpochBatches(
        len(index), cfg.SOLVER.BATCH_SIZE, cfg.SEED, start, total, comm.get_rank(), comm.get_world_size()
    )
    dataset = TwoViews(index, augmentation(cfg), cfg.SEED)
    batches = load_batches(dataset, sampler, cfg.DATA.WORKERS, device, cfg.ENGINE.CHANNELS_LAST)
    return Trainer(method, build_sgd(method, cfg), batches, cfg.ENGINE.PRECISION)


def _writer_hook(cfg: CfgNode, folder: RunFolder, start: int, total: int) -> PeriodicWriter:
    writers = build_writers(
        folder.path,
        start,
        cfg.SOLVER.EPOCHS,
        total,
        cfg.SOLVER.BATCH_SIZE,
        cfg.MODEL.DIM,
        cfg.LOG.TENSORBOARD,
    )
    return PeriodicWriter(writers, cfg.LOG.PERIOD)


def _log_start(cfg: CfgNode, index: ImageIndex, start: int, total: int) -> None:
    _log.info(
        f"{cfg.METHOD} on {cfg.MODEL.ARCH}: {len(index)} images in {index.folder}, {cfg.SOLVER.EPOCHS} epochs, "
        f"{total} iterations of {cfg.SOLVER.BATCH_SIZE} images on {comm.get_world_size()} process(es), "
        f"peak learning rate {peak_lr(cfg):.6g}{f', from iteration {start} on' if start else ''}"
    )
    if cfg.SOLVER.BATCH_SIZE >= 1024 and not cfg.SOLVER.WARMUP_EPOCHS:
        _log.warning("a batch of 1024 or more without warm-up: the paper has SOLVER.WARMUP_EPOCHS 10 there")


def _finish(cfg: CfgNode, recipe: str, folder: RunFolder, trainer: Trainer, seconds: float) -> None:
    """Write the backbone file, then the result that says the run is done."""
    facts = environment.describe()
    origin = _origin(cfg, recipe, trainer.iter, facts)
    write_backbone(folder.backbone, backbone_tensors(trainer.method.encoder), cfg.MODEL.ARCH, block(), origin)
    result = {
        "format": RESULT_FORMAT,
        "status": "done",
        "method": cfg.METHOD,
        "arch": cfg.MODEL.ARCH,
        "epochs": cfg.SOLVER.EPOCHS,
        "iterations": trainer.iter,
        "dim": trainer.method.dim,
        "final": trainer.latest,
        "backbone": folder.backbone.name,
        "backbone_sha256": sha256_of(folder.backbone),
        "toy": cfg.TOY,
        "seconds": round(seconds, 3),
        "num_processes": comm.get_world_size(),
        "environment": facts,
    }
    write_json(folder.result, result)


def _origin(cfg: CfgNode, recipe: str, iterations: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Where the weights come from, as the backbone file tells it."""
    return {
        "method": cfg.METHOD,
        "recipe": recipe,
        "epochs": cfg.SOLVER.EPOCHS,
        "epoch": cfg.SOLVER.EPOCHS,
        "iteration": iterations,
        "config": cfg.dump(),
        "toy": cfg.TOY,
        "commit": facts["commit"],
        "versions": {name: facts[name] for name in ("python", "torch", "torchvision")},
    }
