"""Build a trainer from its config: device, method, data and optimizer, each for this process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from pretrain.data.augment import augmentation_config, second_augmentation_config
from pretrain.data.dataset import Batch, MultiViewDataset
from pretrain.data.index import ImageIndex
from pretrain.data.loader import BatchLoader
from pretrain.data.sampler import ResumableBatchSampler
from pretrain.engine.trainer import Trainer
from pretrain.methods import build_method, needs_labels
from pretrain.methods.base import TrainingInfo
from pretrain.models.batch_norm import convert_grouped_batch_norm, convert_sync_batch_norm
from pretrain.optim.optimizer import build_optimizer
from ssl_transfer.errors import UserError
from ssl_transfer.training.collectives import is_distributed


def training_device(cfg: CfgNode) -> torch.device:
    """This process's GPU, set up as the config says, or the CPU.

    cuDNN tries its algorithms and takes the fastest, as in the released code: every batch has the same shape. It then
    sums a convolution's gradient in no fixed order, so two runs on a GPU are not equal bit for bit. TF32 is off unless
    ENGINE.TF32 turns it on (docs/reference/engine.md explains why).

    Raises:
        UserError: ENGINE.PRECISION needs a GPU and there is none.
    """
    if not torch.cuda.is_available():
        if cfg.ENGINE.PRECISION == "fp16":
            raise UserError("ENGINE.PRECISION is fp16, which needs a GPU, and there is none here; use bf16 or fp32")
        return torch.device("cpu")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = cfg.ENGINE.TF32
    torch.set_float32_matmul_precision("high" if cfg.ENGINE.TF32 else "highest")
    return torch.device("cuda", torch.cuda.current_device())


def check_sizes(cfg: CfgNode, index: ImageIndex) -> None:
    """Raise UserError if the numbers of images, batch, its parts and processes do not fit together."""
    batch, parts, processes = cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.GRAD_ACCUM_STEPS, comm.get_world_size()
    if len(index) < batch:
        images = f"{index.folder} holds {len(index)} image(s)"
        raise UserError(f"{images}, too few for a batch of SOLVER.BATCH_SIZE {batch}; lower it or add images")
    if batch % (processes * parts):
        parted = f" in SOLVER.GRAD_ACCUM_STEPS {parts} parts" if parts > 1 else ""
        raise UserError(f"SOLVER.BATCH_SIZE {batch} cannot be divided equally among {processes} processes{parted}")
    share, group = batch // (processes * parts), cfg.MODEL.BN_GROUP_SIZE
    if group and share > group and share % group:
        raise UserError(
            f"MODEL.BN_GROUP_SIZE is {group}; {share} images do not make whole groups of it "
            f"(SOLVER.BATCH_SIZE {batch}, {processes} process(es), SOLVER.GRAD_ACCUM_STEPS {parts})"
        )
    if batch_norm_size(cfg) < 2:
        raise UserError(
            f"SOLVER.BATCH_SIZE {batch} leaves batch normalization one image at a time "
            f"(SOLVER.GRAD_ACCUM_STEPS {parts}, {processes} process(es), MODEL.SYNC_BN {cfg.MODEL.SYNC_BN}); "
            "it needs two"
        )


def batch_norm_size(cfg: CfgNode) -> int:
    """The number of images that batch normalization computes its statistics from."""
    processes = 1 if cfg.MODEL.SYNC_BN else comm.get_world_size()
    images = int(cfg.SOLVER.BATCH_SIZE // (cfg.SOLVER.GRAD_ACCUM_STEPS * processes))
    return min(images, cfg.MODEL.BN_GROUP_SIZE or images)


def build_trainer(cfg: CfgNode, index: ImageIndex, device: torch.device, *, start: int, total: int) -> Trainer:
    """The trainer of iterations `start` to `total`, without hooks, with its initial weights."""
    torch.manual_seed(cfg.SEED)
    layout = torch.channels_last if cfg.ENGINE.CHANNELS_LAST else torch.contiguous_format
    method = build_method(cfg).to(device).to(memory_format=layout)
    if is_distributed() and cfg.MODEL.SYNC_BN:
        method = convert_sync_batch_norm(method, device)
    if cfg.MODEL.BN_GROUP_SIZE:
        method = convert_grouped_batch_norm(method, cfg.MODEL.BN_GROUP_SIZE)
    labelled = needs_labels(cfg.METHOD)
    dataset = MultiViewDataset(
        index,
        augmentation_config(cfg),
        cfg.SEED,
        views=method.views,
        pipeline=cfg.DATA.PIPELINE,
        unreadable=cfg.DATA.UNREADABLE,
        second_augmentation=second_augmentation_config(cfg),
        labels=index.labels if labelled else None,
    )
    open_loaders = contextlib.ExitStack()

    def batches(first: int) -> Iterator[Batch]:
        rank, processes = comm.get_rank(), comm.get_world_size()
        sampler = ResumableBatchSampler(
            len(index), cfg.SOLVER.BATCH_SIZE, cfg.SEED, start=first, stop=total, rank=rank, world_size=processes
        )
        loaded = BatchLoader(dataset, sampler, cfg.DATA.WORKERS, device, cfg.ENGINE.CHANNELS_LAST)
        return open_loaders.enter_context(contextlib.closing(loaded))

    steps, classes = len(index) // cfg.SOLVER.BATCH_SIZE, len(index.classes or ()) if labelled else 0
    method.prepare(TrainingInfo(len(index), steps, total, batches, classes))
    return Trainer(
        method,
        build_optimizer(method, cfg),
        batches(start),
        precision=cfg.ENGINE.PRECISION,
        accumulate=cfg.SOLVER.GRAD_ACCUM_STEPS,
        grad_norm_limit=cfg.MONITOR.GRAD_NORM_LIMIT,
        compile_model=cfg.ENGINE.COMPILE,
        close=open_loaders.close,
        sync_at=sync_iterations(cfg, steps, total),
    )


def sync_iterations(cfg: CfgNode, steps_per_epoch: int, total: int) -> Callable[[int], bool]:
    """Whether an iteration's metrics are read before the next one begins: when they are logged or saved."""
    periods = [period for period in (cfg.LOG.PERIOD, cfg.CHECKPOINT.PERIOD, steps_per_epoch) if period]
    return lambda iteration: iteration + 1 == total or any((iteration + 1) % period == 0 for period in periods)
