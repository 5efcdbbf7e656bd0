"""What the engine asks of a method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import ResNet

if TYPE_CHECKING:
    from pretrain.data.dataset import Batch


class Output(NamedTuple):
    """What a method returns for a batch.

    Attributes:
        loss: scalar, the mean over this process's samples.
        embedding: (N, d), the first views' output that the collapse monitor watches; no gradient.
        metrics: further scalars by name, the same names at every step, means over this process's samples; no gradient.
    """

    loss: torch.Tensor
    embedding: torch.Tensor
    metrics: Mapping[str, torch.Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Course:
    """What a method may know of its run.

    Attributes:
        images: how many images the training set has; `Batch.indices` are below it.
        steps_per_epoch: iterations an epoch.
        total: iterations of the run.
        batches: this process's batches from an iteration on, the very ones that training gets, decoded once more.
        classes: how many classes the images have, of which `Batch.labels` are the numbers; 0 where those are None.
    """

    images: int
    steps_per_epoch: int
    total: int
    batches: Callable[[int], Iterator[Batch]]
    classes: int = 0


class Method(nn.Module):
    """A network and its loss: `forward(view1, view2)` of two float batches (N, 3, H, W) gives an `Output`.

    A method that carries state from step to step keeps it in its state dict and overrides hooks: `prepare`, called once
    by every process before a checkpoint is loaded and the first step is made; `before_step`, called before each forward
    pass, in its autocast; `after_backward`, before the optimiser takes the gradients; and `after_step`, when the
    weights are new. Most need none.

    Attributes:
        encoder: the online encoder, whose tensors become the backbone file.
        target_encoder: the momentum encoder, which becomes a second backbone file; only where a method has one.
        predictor: the head whose learning rate SOLVER.FIX_PRED_LR keeps constant; None where a method has none.
        dim: d, the width of `Output.embedding`.
        views: how many views of an image `forward` takes.
        classifier: only where a method is trained on labels: the layer from the encoder's feature to the classes.
    """

    encoder: ResNet
    predictor: nn.Module | None
    dim: int
    views: int = 2
    classifier: nn.Linear

    def prepare(self, course: Course) -> None:
        """Get ready for a run; the method lies on its device already."""

    def before_step(self, iteration: int, batch: Batch) -> None:
        """What is due before the forward pass of an iteration (from 0) on this process's `batch`, or a part of it."""

    def after_backward(self, iteration: int) -> None:
        """What is due when the step's gradients are there, averaged over the processes and free of fp16's scale."""

    def after_step(self, iteration: int) -> None:
        """What is due when the optimiser has updated the weights."""

    def forward(self, *views: torch.Tensor) -> Output:
        """The method's loss on the views."""
        raise NotImplementedError


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """A half-precision tensor as float32; others as they are. Losses are computed outside autocast's formats."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit(x: torch.Tensor) -> torch.Tensor:
    """The rows of x (N, d) at unit length, in float32 at least."""
    return F.normalize(full_precision(x), dim=1)
