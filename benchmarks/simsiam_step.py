"""Benchmark of a SimSiam training step against the released code's step."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from detectron2.utils.events import EventStorage
from fvcore.common.config import CfgNode
from torch import nn

from benchmarks.paired import PairedBenchmark
from pretrain.config import defaults
from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Trainer
from pretrain.methods import build_method
from pretrain.methods.base import Method
from pretrain.methods.simsiam import SimSiam
from pretrain.optim.optimizer import build_optimizer

LOSS_LIMIT = 1e-4
"""Largest difference of a step's losses: float32 sums in another order, of cosines that start near 0."""

Stepper = Callable[[], float]


def simsiam_step(batch: int = 8, size: int = 224) -> PairedBenchmark:
    """Time a step of the trainer with ENGINE.CHANNELS_LAST on a ResNet-50, monitors and guards included.

    Args:
        batch: images.
        size: of a view, in pixels.
    """

    @functools.cache
    def steppers() -> tuple[Stepper, Stepper]:  # created lazily: a row that --only leaves out costs nothing
        cfg = defaults()
        cfg.SOLVER.BATCH_SIZE = batch
        torch.manual_seed(0)
        method = build_method(cfg)
        views = [torch.randn(batch, 3, size, size) for _ in range(method.views)]
        return our_stepper(method, cfg, views), their_stepper(method, cfg, views)

    def equal() -> str:
        ours, theirs = steppers()
        gap = max(abs(ours() - theirs()) for _ in range(3))
        assert gap <= LOSS_LIMIT, f"the losses of three steps differ by {gap:.2g}"
        return f"3 losses: max |Δ| {gap:.0e}"

    peer = "the released code's step: contiguous, loss read by item()"
    what = f"SimSiam R50 step, batch {batch} at {size}²"
    return PairedBenchmark(what, peer, lambda: steppers()[0](), lambda: steppers()[1](), equal, batch, "images")


def our_stepper(method: Method, cfg: CfgNode, views: Sequence[torch.Tensor]) -> Stepper:
    """The trainer's step on a copy of the method; views are channels-last, as our loader returns them."""
    own = copy.deepcopy(method).to(memory_format=torch.channels_last)
    ready = tuple(view.contiguous(memory_format=torch.channels_last) for view in views)
    batches = itertools.repeat(Batch(ready, torch.arange(len(ready[0]))))
    trainer = Trainer(own, build_optimizer(own, cfg), batches)
    trainer.iter = 0
    trainer.storage = EventStorage(0)

    def step() -> float:
        trainer.run_step()
        trainer.iter += 1
        return trainer.latest["loss"]

    return step


def their_stepper(method: Method, cfg: CfgNode, views: Sequence[torch.Tensor]) -> Stepper:
    """The released code's step, re-implemented: the same networks, one forward pass per view.

    It reads the loss after each step, for its meters, and has neither of our guards.
    """
    assert isinstance(method, SimSiam) and method.predictor is not None
    own = copy.deepcopy(method).train()
    assert own.predictor is not None
    encoder, projector, predictor = own.encoder, own.projector, own.predictor
    optimizer = build_optimizer(own, cfg)
    similarity = nn.CosineSimilarity(dim=1)

    def step() -> float:
        z1 = projector(encoder(views[0]))
        z2 = projector(encoder(views[1]))
        p1, p2 = predictor(z1), predictor(z2)
        loss = -(similarity(p1, z2.detach()).mean() + similarity(p2, z1.detach()).mean()) / 2
        read = loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return read

    return step
