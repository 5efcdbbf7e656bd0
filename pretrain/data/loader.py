"""Batches on the training device."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from common.errors import UserError
from pretrain.data.dataset import Batch, TwoViews, collate
from pretrain.data.preprocessing import normalise
from pretrain.data.sampler import EpochBatches


def load_batches(
    dataset: TwoViews, sampler: EpochBatches, workers: int, device: torch.device, channels_last: bool = False
) -> Iterator[Batch]:
    """The sampler's batches, decoded by `workers` processes, normalised on `device`.

    One loader serves the whole run, so that its processes start once and an epoch's end is no pause.

    Raises:
        UserError: while iterating, for an image file that cannot be read; names it.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_trainer,
        # A loader draws a seed for its processes: from a generator of its own, so that the run's stays untouched.
        generator=torch.Generator(),
    )
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for batch in loader:
        if isinstance(batch, str):
            raise UserError(batch)
        views = [
            normalise(view.to(device, non_blocking=True)).contiguous(memory_format=memory_format)
            for view in batch.views
        ]
        yield Batch(tuple(views), batch.indices)


def _leave_signals_to_the_trainer(_worker: int) -> None:
    """A signal to the whole process group must let the trainer finish its step: its workers are still needed for it."""
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
