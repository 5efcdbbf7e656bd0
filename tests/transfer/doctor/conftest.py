"""A workload that trains in microseconds, and GPUs that are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from common.workload import FP32, Steps, Way


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A linear model; `spoil` is called with a training that does not run on the CPU as it should.

    Attributes:
        spoil: changes the second training of two, or raises.
    """

    spoil: Callable[[Steps], Steps] = lambda steps: steps
    name: str = "Tiny"
    real: str = "a linear layer"
    images: int = 4
    ways: tuple[Way, ...] = (Way(), Way("bf16"), Way("bf16", compiled=True))
    more_images: tuple[int, ...] = (8, 16)
    benchmark: bool = True
    on_cpu: tuple[str, ...] = ()
    made: list[Way] = dataclasses.field(default_factory=list)

    def small(self, device: str, way: Way = FP32) -> Steps:
        """The first is golden, the second is spoilt."""
        self.made.append(way)
        steps = self.full(device, way, 4)
        return steps if len(self.made) % 2 else self.spoil(steps)

    def full(self, device: str, way: Way, images: int) -> Steps:
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

        return Steps(step, model, optimizer)


@pytest.fixture
def tiny() -> Callable[..., Tiny]:
    """`tiny(spoil=…)`."""
    return Tiny


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda answers as if there were a card with 80 GiB."""
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
