"""Training the golden values' narrow model in float64, on as many processes as there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from detectron2.utils import comm

from pretrain.config import defaults
from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Trainer
from pretrain.models.batch_norm import convert_sync_batch_norm
from pretrain.optim.optimizer import build_sgd
from tests.pretrain.golden import narrow
from tests.pretrain.golden.ours import narrow_simsiam


def batches(start: int, stop: int, images: int = 2 * narrow.BATCH) -> Iterator[Batch]:
    """This process's part of each step's views, strided as the sampler strides them."""
    rank, world = comm.get_rank(), comm.get_world_size()
    for step in range(start, stop):
        pairs = [narrow.images(2 * step), narrow.images(2 * step + 1)]
        views = [torch.cat([pair[view] for pair in pairs])[:images][rank::world] for view in (0, 1)]
        yield Batch(tuple(views), torch.arange(images)[rank::world])


def narrow_trainer(start: int = 0, stop: int = 12, base_lr: float = 0.05, **arguments: Any) -> Trainer:
    """A trainer of the narrow SimSiam; `arguments` are Trainer's."""
    method = narrow_simsiam()
    if comm.get_world_size() > 1:
        method = convert_sync_batch_norm(method, torch.device("cpu"))
    cfg = defaults()
    cfg.SOLVER.BASE_LR = base_lr
    return Trainer(method, build_sgd(method, cfg), batches(start, stop), **arguments)


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest difference of two tensors of the same name, relative to the tensor's largest entry."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-3))
        for name in ours
        if theirs[name].is_floating_point()
    )
