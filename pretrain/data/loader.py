"""Batches on the training device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from pretrain.data.dataset import Batch, MultiViewDataset
from pretrain.data.decode import CONDITIONS
from pretrain.data.pipelines.base import CollatedBatch
from pretrain.data.sampler import ResumableBatchSampler
from ssl_transfer.errors import UserError
from ssl_transfer.training.distributed import ignore_stop_signals, start_workers


class BatchLoader(Iterator[Batch]):
    """Load the sampler's batches in worker processes, finish and normalize them on `device`.

    One loader serves the whole run: workers start once, and there is no pause between epochs.

    Args:
        dataset: makes batches of views.
        sampler: selects the samples of each batch.
        workers: loader workers; 0 loads in this process.
        device: the training device.
        channels_last: whether to return views in channels-last memory format.

    Attributes:
        condition_counts: (len(CONDITIONS),) int64, number of images returned so far that meet each condition.
    """

    def __init__(
        self,
        dataset: MultiViewDataset,
        sampler: ResumableBatchSampler,
        workers: int,
        device: torch.device,
        channels_last: bool = False,
    ) -> None:
        self.dataset, self.device = dataset, device
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.condition_counts = torch.zeros(len(CONDITIONS), dtype=torch.int64)
        self.loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_identity,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_stop_signals,
            # DataLoader draws a seed for its workers; with its own generator it does not change the global state.
            generator=torch.Generator(),
        )
        self._side_stream = SideStream(device)
        self._batches = self._load()

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            UserError: an image file cannot be read; the message names it.
        """
        return next(self._batches)

    def close(self) -> None:
        """Stop the workers; no batch can be loaded afterwards.

        Workers ignore signals, so a training process that exits without this call would wait for them indefinitely.
        """
        self._batches.close()

    def _load(self) -> Generator[Batch, None, None]:
        """A generator, so that workers start with the first batch and stop on an error."""
        for batch in start_workers(self.loader):
            if isinstance(batch, str):
                raise UserError(batch)
            assert batch.condition_counts is not None
            views = self._side_stream.run(functools.partial(self._finish, batch))
            self.condition_counts += batch.condition_counts
            labels = None if batch.labels is None else batch.labels.to(self.device, non_blocking=True)
            yield Batch(tuple(views), batch.indices, labels)

    def _finish(self, batch: Batch) -> list[torch.Tensor]:
        finished = self.dataset.pipeline.finish(CollatedBatch(batch.views, batch.view_params), self.device)
        return [view.contiguous(memory_format=self.memory_format) for view in finished]


class SideStream:
    """Prepare a batch on a CUDA stream of its own; on other devices `run` just calls its argument.

    On the default stream, a copy issued between two steps would wait for the whole first step.

    Args:
        device: the training device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(self, work: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        """Call `work` on the side stream; its tensors are ready for later work on the current stream.

        Args:
            work: makes device tensors from host memory alone.
        """
        if self.stream is None:
            return work()
        with torch.cuda.stream(self.stream):
            tensors = work()
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for tensor in tensors:
            tensor.record_stream(current)  # the side stream must not reuse the memory before the step is done
        return tensors


def _identity(batch: Any) -> Any:
    """Collate function: the data set returns whole batches."""
    return batch
