"""What `make bench` measures of pre-training, each beside its peer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from common.measure import Comparison
from pretrain.config import defaults
from pretrain.data.benchmarks import comparisons as input_pipelines
from pretrain.data.randomness import VIEWS
from pretrain.methods import build_method
from pretrain.methods.base import Method
from pretrain.optim.sgd import build_sgd


def comparisons(folder: Path) -> Iterator[Comparison]:
    """All of them; `folder` is a scratch folder for images."""
    yield from input_pipelines(folder)
    yield simsiam_step()


def simsiam_step(batch: int = 16, size: int = 64) -> Comparison:
    """Forward, backward and SGD of SimSiam on a ResNet-50: channels-last beside PyTorch's default memory format."""
    cfg = defaults()
    cfg.SOLVER.BATCH_SIZE = batch
    torch.manual_seed(0)
    method = build_method(cfg)
    views = [torch.randn(batch, 3, size, size) for _ in VIEWS]

    def stepper(last: bool) -> Callable[[], float]:
        form = torch.channels_last if last else torch.contiguous_format
        own: Method = copy.deepcopy(method).to(memory_format=form).train()
        optimizer = build_sgd(own, cfg)
        x1, x2 = (view.to(memory_format=form) for view in views)

        def step() -> float:
            optimizer.zero_grad()
            loss = own(x1, x2).loss
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    def equal() -> str:
        ours, theirs = stepper(True), stepper(False)
        pairs = [(ours(), theirs()) for _ in range(3)]
        gap = max(abs(a - b) for a, b in pairs)  # a cosine: of order 1, and near 0 at first
        assert gap <= 1e-4, f"the losses of three steps differ by {gap}"
        return f"3 losses: max |Δ| {gap:.0e}"

    what = f"SimSiam R50 step, batch {batch} at {size}²"
    return Comparison(what, "the same step, contiguous", stepper(True), stepper(False), equal, 1, "steps")
