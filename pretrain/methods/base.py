"""The interface between a method and the training engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

if TYPE_CHECKING:
    from pretrain.data.dataset import Batch


class MethodOutput(NamedTuple):
    """Result of a method's forward pass.

    Attributes:
        loss: scalar, the mean over this process's samples.
        embedding: (N, d), the output for the first views, used to detect collapse; detached.
        metrics: further scalars by name, the same names at every step; means over this process's samples, detached.
    """

    loss: torch.Tensor
    embedding: torch.Tensor
    metrics: Mapping[str, torch.Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class TrainingInfo:
    """Properties of the training run, passed to `Method.prepare`.

    Attributes:
        num_images: size of the training set; `Batch.indices` are below it.
        steps_per_epoch: iterations per epoch.
        total_steps: iterations of the run.
        batches: loads this process's batches from an iteration on, equal to the batches of training.
        num_classes: number of classes, of which `Batch.labels` are the indices; 0 without labels.
    """

    num_images: int
    steps_per_epoch: int
    total_steps: int
    batches: Callable[[int], Iterator[Batch]]
    num_classes: int = 0


class Method(nn.Module, ABC):
    """Base class of methods: networks and their loss; `forward(view1, view2)` returns a `MethodOutput`.

    State that a method carries between steps belongs in its state dict. Most methods need none of the hooks: `prepare`
    is called once in every process, before a checkpoint is loaded and before the first step; `before_step` before each
    forward pass, under its autocast; `after_backward` before the optimizer step; `after_step` after it.

    Attributes:
        encoder: the online encoder, saved as the backbone file.
        target_encoder: the momentum encoder, saved as a second backbone file; only in methods that have one.
        predictor: the head whose learning rate SOLVER.FIX_PRED_LR keeps constant, or None.
        dim: d, the width of `MethodOutput.embedding`.
        views: number of views of an image that `forward` takes, each (N, 3, H, W).
        classifier: only in methods trained on labels: the layer from the encoder's feature to the classes.
    """

    encoder: ResNet
    predictor: nn.Module | None
    dim: int
    views: int = 2
    classifier: nn.Linear

    def prepare(self, info: TrainingInfo) -> None:
        """Initialize what depends on the run; the method is on its device already."""

    def before_step(self, iteration: int, batch: Batch) -> None:
        """Called before the forward pass of an iteration (from 0) on this process's batch, or on a part of it."""

    def after_backward(self, iteration: int) -> None:
        """Called when the step's gradients are averaged over processes and unscaled."""

    def after_step(self, iteration: int) -> None:
        """Called after the optimizer step."""

    @abstractmethod
    def forward(self, *views: torch.Tensor) -> MethodOutput:
        """Compute the loss on the views."""


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32, so that losses do not use autocast's formats; other dtypes are kept."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def l2_normalize(x: torch.Tensor) -> torch.Tensor:
    """Scale the rows of x (N, d) to unit length, in float32 or better."""
    return F.normalize(full_precision(x), dim=1)


def section_arguments(section: CfgNode) -> dict[str, Any]:
    """A config section as keyword arguments: keys in lower case."""
    return {key.lower(): value for key, value in section.items()}
