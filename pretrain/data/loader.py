"""Batches on the training device."""

from __future__ import annotations

import functools
import sys
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from common.errors import UserError
from common.training.distributed import ignore_stop_signals, start_workers
from pretrain.data.dataset import Batch, TwoViews
from pretrain.data.decode import CONDITIONS
from pretrain.data.pipelines.base import Content
from pretrain.data.sampler import EpochBatches
from pretrain.data.side_stream import SideStream


class Batches(Iterator[Batch]):
    """The sampler's batches, decoded by `workers` processes, finished and normalised on `device`.

    One loader serves the whole run, so that its processes start once and an epoch's end is no pause.

    Args:
        dataset, sampler: which views, and which of them when.
        workers: loader processes; 0 decodes here.
        device: where the views go.
        channels_last: whether they lie in channels-last order there.

    Attributes:
        met: (len(CONDITIONS),) int64, how many of the images yielded so far meet each condition.
    """

    def __init__(
        self,
        dataset: TwoViews,
        sampler: EpochBatches,
        workers: int,
        device: torch.device,
        channels_last: bool = False,
    ) -> None:
        self.dataset, self.device = dataset, device
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.met = torch.zeros(len(CONDITIONS), dtype=torch.int64)
        self.loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            # A loader draws a seed for its processes: from a generator of its own, so that the run's stays untouched.
            generator=torch.Generator(),
        )
        self._beside = SideStream(device)
        self._received = self._receive()

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            UserError: an image file cannot be read; names it.
        """
        return next(self._received)

    def close(self) -> None:
        """End the loader's processes; no batch comes any more.

        They ignore signals, so a training process that left without this would wait for them for good.
        """
        self._received.close()

    def _receive(self) -> Generator[Batch, None, None]:
        """A generator, so that the processes start with the first batch and end with an error."""
        for batch in start_workers(self.loader):
            batch, views = self._finished(batch)
            assert batch.met is not None
            self.met += batch.met
            labels = None if batch.labels is None else batch.labels.to(self.device, non_blocking=True)
            yield Batch(tuple(views), batch.indices, labels)

    def _finished(self, batch: Batch | str) -> tuple[Batch, list[torch.Tensor]]:
        """A batch, or the line that says why there is none, and its views on the device."""
        if isinstance(batch, str):
            raise UserError(batch)
        content = Content(batch.views, batch.draws)
        return batch, self._beside.run(functools.partial(self._views, content))

    def _views(self, content: Content) -> list[torch.Tensor]:
        finished = self.dataset.pipeline.finish(content, self.device)
        return [view.contiguous(memory_format=self.memory_format) for view in finished]


def load_batches(
    dataset: TwoViews, sampler: EpochBatches, workers: int, device: torch.device, channels_last: bool = False
) -> Batches:
    """`Batches` of these arguments."""
    return Batches(dataset, sampler, workers, device, channels_last)


def _as_it_is(batch: Any) -> Any:
    """The data set makes whole batches."""
    return batch


def _start_worker(_worker: int) -> None:
    """A worker is one thread, and signals to the whole process group are the trainer's.

    It must be able to finish its step, for which its workers are still needed.
    """
    ignore_stop_signals(_worker)
    if "cv2" in sys.modules:  # torch sees to its own threads
        sys.modules["cv2"].setNumThreads(1)
