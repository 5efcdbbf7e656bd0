"""A model that can be trained for a few steps on made-up batches: what the doctor tries on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Way:
    """How steps are computed.

    Attributes:
        precision: fp32, bf16 or fp16 (autocast).
        channels_last: whether model and images lie in that order.
        compiled: whether torch.compile takes the model over.
        tf32: whether a GPU may round the inputs of float32 products to TF32.
    """

    precision: str = "fp32"
    channels_last: bool = False
    compiled: bool = False
    tf32: bool = False

    def __str__(self) -> str:
        marks = {"TF32": self.tf32, "channels_last": self.channels_last, "compile": self.compiled}
        return " + ".join([self.precision, *(mark for mark, on in marks.items() if on)])


FP32 = Way()


@dataclass(frozen=True)
class Steps:
    """A training that goes on step by step, its batches coming round in turn.

    Attributes:
        step: makes a step; gives the loss that it began with.
        model: what is trained, on its device.
        optimizer: of the model's parameters.
    """

    step: Callable[[], float]
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer


class Workload(Protocol):
    """Something that the project trains, by its own trainer.

    Attributes:
        name: what is trained.
        real: what a step of the real size is, in words.
        images: how many images such a step has on a GPU.
        ways: the ways of the real size whose speed is asked, the trainer's default first.
        more_images: larger numbers of images a GPU whose memory is asked.
        benchmark: whether its trainer lets cuDNN search for its fastest algorithms.
        on_cpu: precisions other than fp32 that its trainer has on a CPU.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def real(self) -> str: ...  # noqa: D102

    @property
    def images(self) -> int: ...  # noqa: D102

    @property
    def ways(self) -> tuple[Way, ...]: ...  # noqa: D102

    @property
    def more_images(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def benchmark(self) -> bool: ...  # noqa: D102

    @property
    def on_cpu(self) -> tuple[str, ...]: ...  # noqa: D102

    def small(self, device: str, way: Way = FP32) -> Steps:
        """A small model with fixed weights and batches, the same on every device."""
        ...

    def full(self, device: str, way: Way, images: int) -> Steps:
        """The model of the published runs on one batch of `images`, which lies on the device."""
        ...
