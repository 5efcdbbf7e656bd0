"""Batches are made ready beside the step on a GPU, in this order; elsewhere nothing is different."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.data.loader import SideStream


def test_side_stream_calls_work_directly_on_cpu() -> None:
    made = [torch.ones(2)]
    assert SideStream(torch.device("cpu")).run(lambda: made) is made


def test_side_stream_runs_work_and_current_stream_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    current = SimpleNamespace(name="step", wait_stream=lambda other: said.append(f"step waits for {other}"))

    @contextlib.contextmanager
    def stream(name: Any) -> Iterator[None]:
        said.append(f"on {name}")
        yield
        said.append(f"off {name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: "side")
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: current)
    view: Any = SimpleNamespace(record_stream=lambda other: said.append(f"memory is {other.name}'s"))

    def work() -> list[Any]:
        said.append("copy")
        return [view]

    assert SideStream(torch.device("cuda")).run(work) == [view]
    assert said == ["on side", "copy", "off side", "step waits for side", "memory is step's"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_side_stream_result_equals_current_stream_result() -> None:
    device = torch.device("cuda")
    side, pages = SideStream(device), [torch.randint(0, 256, (64, 3, 224, 224), dtype=torch.uint8).pin_memory()] * 20
    busy = torch.rand(4096, 4096, device=device)
    for page in pages:
        for _ in range(4):
            busy = (busy @ busy).clamp(0, 1)
        (view,) = side.run(lambda page=page: [page.to(device, non_blocking=True).float() / 255])  # type: ignore[misc]
        total = view.sum()
        del view
        assert float(total) == float((page.to(device).float() / 255).sum())
