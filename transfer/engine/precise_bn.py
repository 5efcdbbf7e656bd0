"""Precise BN: after training, the running statistics become those of the whole population, the same on every rank.

Source: Wu and Johnson, Rethinking "Batch" in BatchNorm (arXiv 2105.07576), section 3. Mean and variance are those of
every activation that entered the layer, over all batches and all ranks. fvcore's own averages over
each rank's batches only, so every rank keeps statistics of its own (detectron2 issue 5398, fvcore issue 152).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import Tensor, nn

from ssl_transfer.training.collectives import sum_over_processes

logger = logging.getLogger(__name__)


class Moments:
    """Sums over everything that entered a norm layer, per channel, in float64.

    Attributes:
        count: number of values of a channel.
        first: sum of values, shape (C,).
        second: sum of squares, shape (C,).
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        # Apple's GPUs lack float64; nothing else of this project runs on them either.
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.first = torch.zeros(channels, dtype=torch.float64, device=device)
        self.second = torch.zeros(channels, dtype=torch.float64, device=device)

    def add(self, values: Tensor) -> None:
        """Add a batch of activations (N, C, H, W); an empty one changes nothing."""
        if values.numel() == 0:
            return
        number = values.numel() // values.shape[1]
        var, mean = torch.var_mean(values.float(), dim=[0, 2, 3], correction=0)
        mean, var = mean.double(), var.double()
        self.count += number
        self.first += number * mean
        self.second += number * (var + mean.square())

    def packed(self) -> Tensor:
        """Count, first and second as one vector of 1 + 2C numbers."""
        return torch.cat([self.count[None], self.first, self.second])


def population(packed: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and (biased) variance from `Moments.packed`; None where it has no values."""
    count, sums = packed[0], packed[1:]
    if count == 0:
        return None
    mean, square = (sums / count).chunk(2)
    return mean, (square - mean.square()).clamp(min=0)


@torch.no_grad()
def update_synchronised(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set the running statistics of every BN layer in training mode to those of the population.

    Args:
        model: run on each batch in its current modes; collective when there are several ranks.
        batches: this rank's batches; the same number on every rank.
    """
    layers = get_bn_modules(model)
    moments = [Moments(layer.num_features, layer.running_mean.device) for layer in layers]
    with _recording_inputs(layers, moments):
        for batch in batches:
            model(batch)
    if not layers:
        return
    packed = [moment.packed() for moment in moments]
    gathered = sum_over_processes(torch.cat(packed))
    for layer, piece in zip(layers, gathered.split([len(p) for p in packed]), strict=True):
        found = population(piece)
        if found is not None:
            layer.running_mean.copy_(found[0])
            layer.running_var.copy_(found[1])


@contextlib.contextmanager
def _recording_inputs(layers: list[nn.Module], moments: list[Moments]) -> Iterator[None]:
    """Add the inputs of each layer to its moments while the block runs."""

    def record(moment: Moments) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _module, inputs: moment.add(inputs[0])

    handles = [layer.register_forward_pre_hook(record(moment)) for layer, moment in zip(layers, moments, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class PreciseBN(HookBase):
    """Make the statistics precise after the last iteration, and every `period` iterations.

    Args:
        method: `synchronised` or `fvcore`.
        period: iterations; 0: only at the end.
        model: the model in training mode.
        batches: given `start` and `stop`, returns these batches of this rank; seeds each forward pass.
        count: batches of a rank.
    """

    def __init__(
        self, method: str, *, period: int, model: nn.Module, batches: Callable[[int, int], Iterable[Any]], count: int
    ) -> None:
        self.method, self.period, self.model, self.batches, self.count = method, period, model, batches, count

    def after_step(self) -> None:
        """Update where an update is due; before the checkpoint of the same iteration."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self.period > 0 and done % self.period == 0):
            # As in Detectron2, each update continues with the batch after the last update's.
            updates_before = -(-done // self.period) - 1 if self.period > 0 else 0
            self.update(updates_before * self.count)

    def update(self, start: int) -> None:
        """Update from `count` batches, beginning with number `start`."""
        logger.info("precise BN (%s) over %d batches a process", self.method, self.count)
        batches = self.batches(start, start + self.count)
        with EventStorage():  # these forward passes must not log to training's storage
            if self.method == "fvcore":
                update_bn_stats(self.model, batches, self.count)
            else:
                update_synchronised(self.model, batches)
