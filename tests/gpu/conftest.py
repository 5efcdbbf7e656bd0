"""A workload that trains in microseconds, and a simulated GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.gpu.workloads import FP32, PrecisionConfig, TrainStep


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A linear model; `spoil` changes every second training.

    Attributes:
        spoil: changes the second training of two, or raises.
    """

    spoil: Callable[[TrainStep], TrainStep] = lambda steps: steps
    name: str = "Tiny"
    real: str = "a linear layer"
    images: int = 4
    precisions: tuple[PrecisionConfig, ...] = (
        PrecisionConfig(),
        PrecisionConfig("bf16"),
        PrecisionConfig("bf16", compiled=True),
    )
    more_images: tuple[int, ...] = (8, 16)
    benchmark: bool = True
    on_cpu: tuple[str, ...] = ()
    made: list[PrecisionConfig] = dataclasses.field(default_factory=list)

    def small(self, device: str, precision: PrecisionConfig = FP32) -> TrainStep:
        """The first training is the reference, the second is passed to `spoil`."""
        self.made.append(precision)
        steps = self.full(device, precision, 4)
        return steps if len(self.made) % 2 else self.spoil(steps)

    def full(self, device: str, precision: PrecisionConfig, images: int) -> TrainStep:
        """On the CPU, whatever the device."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x = torch.randn(images, 3)

        def step() -> float:
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return TrainStep(step, model, optimizer)


@pytest.fixture
def tiny() -> Callable[..., Tiny]:
    """`tiny(spoil=…)`."""
    return Tiny


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda behaves as with one GPU of 80 GiB."""
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "init": lambda: None,
        "set_device": lambda _device: None,
        "synchronize": lambda _device=None: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda _device: None,
        "max_memory_allocated": lambda _device: 3 << 30,
        "get_device_name": lambda _device: "a card",
        "get_device_capability": lambda _device: (9, 0),
        "get_device_properties": lambda _device: type("Card", (), {"total_memory": 80 << 30}),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
