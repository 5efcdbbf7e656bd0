"""A trainer from its config: method, data, optimiser, each for this process among all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from common.errors import UserError
from pretrain.data.augment import recipe, second_recipe
from pretrain.data.dataset import Batch, TwoViews
from pretrain.data.index import ImageIndex
from pretrain.data.loader import load_batches
from pretrain.data.sampler import EpochBatches
from pretrain.engine.trainer import Trainer
from pretrain.methods import build_method, needs_labels
from pretrain.methods.base import Course
from pretrain.models.grouped_bn import group_batch_norm
from pretrain.models.sync_bn import synchronise_batch_norm
from pretrain.optim.optimizer import build_optimizer


def check_sizes(cfg: CfgNode, index: ImageIndex) -> None:
    """Raise UserError where images, batch, its parts and the processes do not go together."""
    batch, parts, processes = cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.ACCUMULATE, comm.get_world_size()
    if len(index) < batch:
        images = f"{index.folder} holds {len(index)} image(s)"
        raise UserError(f"{images}, too few for a batch of SOLVER.BATCH_SIZE {batch}; lower it or add images")
    if batch % (processes * parts):
        parted = f" in SOLVER.ACCUMULATE {parts} parts" if parts > 1 else ""
        raise UserError(f"SOLVER.BATCH_SIZE is {batch}, which {processes} processes cannot share equally{parted}")
    share, group = batch // (processes * parts), cfg.MODEL.BN_IMAGES
    if group and share > group and share % group:
        raise UserError(
            f"MODEL.BN_IMAGES is {group}; {share} images do not make whole groups of it (SOLVER.BATCH_SIZE {batch}, "
            f"{processes} process(es), SOLVER.ACCUMULATE {parts})"
        )
    if images_normalised(cfg) < 2:
        raise UserError(
            f"SOLVER.BATCH_SIZE {batch} leaves batch normalisation one image at a time (SOLVER.ACCUMULATE {parts}, "
            f"{processes} process(es), MODEL.SYNC_BN {cfg.MODEL.SYNC_BN}); it needs two"
        )


def images_normalised(cfg: CfgNode) -> int:
    """How many images batch normalisation takes its statistics from."""
    processes = 1 if cfg.MODEL.SYNC_BN else comm.get_world_size()
    images = int(cfg.SOLVER.BATCH_SIZE // (cfg.SOLVER.ACCUMULATE * processes))
    return min(images, cfg.MODEL.BN_IMAGES or images)


def build_trainer(cfg: CfgNode, index: ImageIndex, device: torch.device, start: int, total: int) -> Trainer:
    """The trainer of iterations `start` to `total`, without hooks, with its initial weights."""
    torch.manual_seed(cfg.SEED)
    layout = torch.channels_last if cfg.ENGINE.CHANNELS_LAST else torch.contiguous_format
    method = build_method(cfg).to(device).to(memory_format=layout)
    if comm.get_world_size() > 1 and cfg.MODEL.SYNC_BN:
        method = synchronise_batch_norm(method, device)
    if cfg.MODEL.BN_IMAGES:
        method = group_batch_norm(method, cfg.MODEL.BN_IMAGES)
    labelled = needs_labels(cfg.METHOD)
    dataset = TwoViews(
        index,
        recipe(cfg),
        cfg.SEED,
        method.views,
        way=cfg.DATA.PIPELINE,
        unreadable=cfg.DATA.UNREADABLE,
        second=second_recipe(cfg),
        labels=index.labels if labelled else None,
    )

    open_loaders = contextlib.ExitStack()

    def batches(first: int) -> Iterator[Batch]:
        rank, processes = comm.get_rank(), comm.get_world_size()
        sampler = EpochBatches(len(index), cfg.SOLVER.BATCH_SIZE, cfg.SEED, first, total, rank, processes)
        loaded = load_batches(dataset, sampler, cfg.DATA.WORKERS, device, cfg.ENGINE.CHANNELS_LAST)
        return open_loaders.enter_context(contextlib.closing(loaded))

    classes = len(index.classes or ()) if labelled else 0
    method.prepare(Course(len(index), len(index) // cfg.SOLVER.BATCH_SIZE, total, batches, classes))
    return Trainer(
        method,
        build_optimizer(method, cfg),
        batches(start),
        cfg.ENGINE.PRECISION,
        cfg.SOLVER.ACCUMULATE,
        cfg.MONITOR.GRAD_NORM_LIMIT,
        cfg.ENGINE.COMPILE,
        open_loaders.close,
        reading(cfg, len(index) // cfg.SOLVER.BATCH_SIZE, total),
    )


def reading(cfg: CfgNode, steps_per_epoch: int, total: int) -> Callable[[int], bool]:
    """After which iterations a result is read at once: with ENGINE.READ_LATE, those that are logged or saved."""
    periods = [period for period in (cfg.LOG.PERIOD, cfg.CHECKPOINT.PERIOD, steps_per_epoch) if period]

    def at(iteration: int) -> bool:
        done = iteration + 1
        return not cfg.ENGINE.READ_LATE or done == total or any(done % period == 0 for period in periods)

    return at
