"""Runs of the command line that are interrupted and resumed, compared with one that is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.engine.trainer import Trainer
from pretrain.models import heads
from tests.pretrain.golden import narrow

State = dict[str, torch.Tensor]


def narrow_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every method's encoder by the golden values' narrow one, so that a step takes milliseconds."""

    def build(_arch: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
        encoder = narrow.NarrowResNet(1, zero_init_residual)
        encoder.fc = nn.Identity()
        return encoder, narrow.WIDTH

    monkeypatch.setattr(heads, "build_encoder", build)


def assert_ends_the_same(
    pretrain: Callable[..., int],
    folder: Path,
    words: Sequence[str],
    crashes: Sequence[int],
    resumed: Sequence[str] = (),
) -> State:
    """A run of 6 steps that breaks off at some of them ends bit for bit as the unbroken one.

    Args:
        pretrain: the command line.
        folder: for both runs: `whole` and `broken`.
        words: the runs' overrides.
        crashes: the steps at which it breaks off, one after the other.
        resumed: overrides of the broken run alone.

    Returns:
        What the last checkpoint holds: the method's state, and the optimiser's momenta.
    """
    whole, broken = folder / "whole", folder / "broken"
    assert pretrain(whole, *words) == 0
    step = Trainer.run_step
    for crash_at in crashes:

        def crash(self: Trainer, at: int = crash_at) -> None:
            if self.iter == at:
                raise RuntimeError("the power went")
            step(self)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
            patch.setattr(Trainer, "run_step", crash)
            pretrain(broken, *words, "--resume", *resumed)
    assert pretrain(broken, *words, "--resume", *resumed) == 0
    (ours, curve), (theirs, expected) = _final(broken), _final(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert curve == expected and len(curve) == 6
    return theirs


def _final(folder: Path) -> tuple[State, list[dict[str, Any]]]:
    state = torch.load(folder / "checkpoint_0000006.pth", weights_only=True)
    tensors = dict(state["method"])
    for number, entry in state["optimizer"]["state"].items():
        tensors[f"momentum {number}"] = entry["momentum_buffer"]
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return tensors, [{key: row[key] for key in ("iteration", "loss", "std")} for row in rows]
