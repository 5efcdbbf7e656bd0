"""Linear evaluation: one linear layer trained on frozen pooled features.

Source: facebookresearch/simsiam main_lincls.py. The backbone stays in evaluation mode and gets no gradient, so only the
layer is trained: weights ~ N(0, 0.01), bias 0, mean cross-entropy, cosine once an epoch, the test set after each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.errors import Preempted
from common.training.collectives import sum_over_processes
from pretrain.evaluation.data import EpochPieces
from pretrain.evaluation.optimizer import build_optimizer, peak_lr
from pretrain.evaluation.sources import Batches, Share
from pretrain.methods.parts.topk import hits
from pretrain.optim.schedule import CosineByEpoch


class Diverged(Exception):
    """The loss is no longer a finite number; the argument says where: `iteration`, `lr`, `what`."""

    def __init__(self, iteration: int, lr: float, what: str) -> None:
        super().__init__(f"{what} at iteration {iteration}, learning rate {lr:.6g}")
        self.record = {"iteration": iteration, "lr": lr, "what": what}


def build_classifier(width: int, classes: int, seed: int) -> nn.Linear:
    """The layer with its initial weights, a function of the seed alone."""
    layer = nn.Linear(width, classes)
    with torch.no_grad():
        layer.weight.normal_(0.0, 0.01, generator=torch.Generator().manual_seed(seed))
        layer.bias.zero_()
    return layer


@dataclass
class RunState:
    """How far a run is; what a checkpoint holds besides tensors.

    Attributes:
        iteration: steps done.
        loss_sum, seen: of the epoch's steps so far: each step's loss times its images, and the images.
        history: one entry an epoch: `epoch`, `iteration`, `lr`, `loss` (mean over the epoch), `top1`, `top5`.
    """

    iteration: int
    loss_sum: float
    seen: int
    history: list[dict[str, float]]


class LinearProbe:
    """The training of one classifier.

    Args:
        classifier: on its device.
        linear: the LINEAR section.
        pieces: the order of the images.
        batches: this process's features, in that order, from `pieces.start` on.
        test: this process's part of the test set.
    """

    def __init__(
        self, classifier: nn.Linear, linear: CfgNode, pieces: EpochPieces, batches: Batches, test: Share
    ) -> None:
        self.classifier, self.pieces, self.batches, self.test = classifier, pieces, batches, test
        self.optimizer = build_optimizer(classifier.parameters(), linear)
        self.schedule = CosineByEpoch(peak_lr(linear), linear.EPOCHS, pieces.steps_per_epoch)
        self.progress = RunState(0, 0.0, 0, [])
        self.model = _over_processes(classifier)

    def fit(
        self, save: Callable[[], None], period: int, stop_wanted: Callable[[], bool], tell: Callable[[int, float], None]
    ) -> None:
        """Train from `progress.iteration` to the last iteration.

        Args:
            save: writes a checkpoint; called at each epoch's end, every `period` iterations, and before a stop.
            period: 0 for the ends of epochs only.
            stop_wanted: whether this process was asked to stop.
            tell: told each step's images and loss.

        Raises:
            Diverged: the loss is not finite.
            Preempted: a process was asked to stop; saved.
        """
        while self.progress.iteration < self.pieces.stop:
            size = self.pieces.size(self.progress.iteration)
            loss, stopping = self.step(size, stop_wanted())
            tell(size, loss)
            done = self.progress.iteration
            ends = done % self.pieces.steps_per_epoch == 0
            if ends:
                self._end_epoch()
            stopping = stopping and done < self.pieces.stop
            if ends or stopping or (period and done % period == 0):
                save()
            if stopping:
                raise Preempted(f"saved after {done} of {self.pieces.stop} iterations, --resume continues")

    def step(self, size: int, stop_wanted: bool = False) -> tuple[float, bool]:
        """One step on the next batch, `size` images over all processes.

        Returns:
            The mean loss over all its images, and whether any process wanted to stop: the same on all processes.

        Raises:
            Diverged: the loss is not finite.
        """
        lr = self.schedule.at(self.progress.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        features, labels = next(self.batches)
        logits = self.model(features)
        mean = F.cross_entropy(logits, labels) if len(labels) else logits.sum()
        # DistributedDataParallel averages over processes, whose parts may differ in size; alone, the factor is 1.
        loss = mean * (len(labels) * comm.get_world_size() / size)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        shared = sum_over_processes(torch.stack([loss.detach().double(), loss.new_tensor(stop_wanted).double()])).cpu()
        value = float(shared[0]) / comm.get_world_size()
        if not math.isfinite(value):
            raise Diverged(self.progress.iteration, lr, f"the loss is {value}")
        self.progress.iteration += 1
        self.progress.loss_sum += value * size
        self.progress.seen += size
        return value, bool(shared[1] > 0)

    def _end_epoch(self) -> None:
        progress = self.progress
        entry = {
            "epoch": progress.iteration // self.pieces.steps_per_epoch,
            "iteration": progress.iteration - 1,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": progress.loss_sum / progress.seen,
            **accuracy(self.classifier, self.test),
        }
        progress.history.append(entry)
        progress.loss_sum, progress.seen = 0.0, 0

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs besides the data."""
        return {
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up `state`; `batches` must begin at its iteration."""
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = RunState(**state["progress"])


@torch.no_grad()
def accuracy(classifier: nn.Linear, share: Share) -> dict[str, float]:
    """`top1` and, where there are classes enough, `top5` in per cent over all processes' shares."""
    right = hits(classifier(share.features), share.labels)
    counts = torch.stack([*right.values(), torch.tensor(len(share.labels), device=share.labels.device)])
    *shared, total = sum_over_processes(counts).tolist()
    return {name: 100 * count / total for name, count in zip(right, shared, strict=True)}


def _over_processes(classifier: nn.Linear) -> nn.Module:
    if not dist.is_initialized():
        return classifier
    device = classifier.weight.device
    return DistributedDataParallel(classifier, device_ids=[device.index] if device.type == "cuda" else None)
