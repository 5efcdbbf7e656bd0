"""Precise BN: after training, the running statistics become those of the whole population, the same on every rank.

Source: Wu and Johnson, Rethinking "Batch" in BatchNorm (arXiv 2105.07576), section 3. Mean and variance are those of
every activation that entered the layer, over all batches and all ranks. fvcore's own weighs a rank's batches by that
rank's size alone and so leaves each rank with statistics of its own (detectron2 issue 5398, fvcore issue 152).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class Moments:
    """Sums over everything that entered a norm layer, per channel, in float64.

    Attributes:
        count: how many values a channel has seen.
        first: sum of values, shape (C,).
        second: sum of squares, shape (C,).
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        # Apple's GPUs lack float64; nothing else here runs on them.
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.first = torch.zeros(channels, dtype=torch.float64, device=device)
        self.second = torch.zeros(channels, dtype=torch.float64, device=device)

    def add(self, values: Tensor) -> None:
        """Count a batch of activations (N, C, H, W) in; an empty one changes nothing."""
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
    """Mean and (biased) variance of what `Moments.packed` counted; None where it counted nothing."""
    count, sums = packed[0], packed[1:]
    if count == 0:
        return None
    mean, square = (sums / count).chunk(2)
    return mean, (square - mean.square()).clamp(min=0)


@torch.no_grad()
def update_synchronised(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set the running statistics of every BN layer in training mode to those of the population.

    Args:
        model: run on each batch as it is, in the modes it is in; collective when there are several ranks.
        batches: this rank's batches; every rank must give as many.
    """
    layers = get_bn_modules(model)
    moments = [Moments(layer.num_features, layer.running_mean.device) for layer in layers]
    with _listening(layers, moments):
        for batch in batches:
            model(batch)
    if not layers:
        return
    packed = [moment.packed() for moment in moments]
    gathered = _summed(torch.cat(packed))
    for layer, piece in zip(layers, gathered.split([len(p) for p in packed]), strict=True):
        found = population(piece)
        if found is not None:
            layer.running_mean.copy_(found[0])
            layer.running_var.copy_(found[1])


@contextlib.contextmanager
def _listening(layers: list[nn.Module], moments: list[Moments]) -> Iterator[None]:
    """Count what enters each layer while the block runs."""

    def listener(moment: Moments) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _module, inputs: moment.add(inputs[0])

    handles = [layer.register_forward_pre_hook(listener(moment)) for layer, moment in zip(layers, moments, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _summed(values: Tensor) -> Tensor:
    """`values` summed over all ranks; the same bits on each."""
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(values)
    return values


class PreciseBN(HookBase):
    """Make the statistics precise after the last iteration, and every `period` iterations.

    Args:
        method: `synchronised` or `fvcore`.
        period: 0: at the end alone.
        model: the model that is trained, in training mode.
        batches: gives this rank's batches from `start` to `stop`, each forward's randomness seeded.
        count: batches a rank.
    """

    def __init__(
        self, method: str, period: int, model: nn.Module, batches: Callable[[int, int], Iterable[Any]], count: int
    ) -> None:
        self.method, self.period, self.model, self.batches, self.count = method, period, model, batches, count

    def after_step(self) -> None:
        """Update where an update is due; before the checkpoint of the same iteration."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self.period > 0 and done % self.period == 0):
            # As in Detectron2, each update reads on where the last one stopped.
            updates_before = -(-done // self.period) - 1 if self.period > 0 else 0
            self.update(updates_before * self.count)

    def update(self, start: int) -> None:
        """Update from `count` batches, the first of them number `start`."""
        logger.info("precise BN (%s) over %d batches a process", self.method, self.count)
        batches = self.batches(start, start + self.count)
        with EventStorage():  # what the forwards log is not training's
            if self.method == "fvcore":
                update_bn_stats(self.model, batches, self.count)
            else:
                update_synchronised(self.model, batches)
