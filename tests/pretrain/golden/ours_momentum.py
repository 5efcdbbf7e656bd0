"""Our MoCo and BYOL on the golden values' narrow model, in float64, and what is written down of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from detectron2.engine.train_loop import HookBase
from torch import nn

from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Trainer
from pretrain.methods.base import Method, TrainingInfo
from pretrain.methods.byol import BYOL
from pretrain.methods.moco import MoCo
from pretrain.models.heads import build_predictor, build_projector
from tests.pretrain.golden import narrow, narrow_momentum
from tests.pretrain.golden.narrow_momentum import under

MethodT = TypeVar("MethodT", bound=Method)


def _encoder(zero_init_residual: bool) -> nn.Module:
    encoder = narrow.NarrowResNet(1, zero_init_residual)
    encoder.fc = nn.Identity()
    return encoder


def narrow_moco(
    symmetry: str = "symmetric",
    momentum: float = narrow_momentum.KEY_MOMENTUM,
    temperature: float = narrow_momentum.TEMPERATURE,
    shuffle: bool = True,
) -> MoCo:
    """MoCo with the golden run's weights and queue."""
    networks = {
        "encoder": _encoder(False),
        "projector": build_projector(narrow.WIDTH, narrow.WIDTH, narrow.DIM, layers=2, norm="none"),
    }
    narrow.fill(under(networks).double())
    sizes = {"dim": narrow.DIM, "queue_size": narrow_momentum.KEYS}
    method = MoCo(**networks, **sizes, momentum=momentum, temperature=temperature, symmetry=symmetry, shuffle=shuffle)
    method.double().queue.keys.copy_(narrow_momentum.queue())
    return method


def narrow_byol(momentum: float = narrow_momentum.TARGET_MOMENTUM) -> BYOL:
    """BYOL with the golden run's weights, the target's its own."""

    def network() -> dict[str, Any]:
        head = build_projector(narrow.WIDTH, narrow.WIDTH, narrow.DIM, layers=2, norm="hidden", bias=False)
        return {"encoder": _encoder(True), "projector": head}

    online, target = network(), network()
    online["predictor"] = build_predictor(narrow.DIM, narrow_momentum.PRED_HIDDEN, "hidden", bias=False)
    narrow.fill(under(online).double())
    narrow.fill(under({"target": under(target)}).double())
    copies = {f"target_{name}": module for name, module in target.items()}
    return BYOL(**online, **copies, dim=narrow.DIM, target_momentum=momentum).double()


def batches(first: int = 0) -> Iterator[Batch]:
    """The golden run's steps."""
    for step in range(first, narrow_momentum.STEPS):
        yield Batch(narrow.images(step), torch.arange(narrow.BATCH))


class Record(HookBase):
    """The losses, and the first step's gradients."""

    trainer: Trainer

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, list[float]] = {}

    def after_step(self) -> None:
        """Write them down."""
        self.losses.append(self.trainer.latest["loss"])
        self.gradients = self.gradients or narrow_momentum.gradients(self.trainer.method)


def trained(method: Method, look: Callable[[int], Iterator[Batch]] = batches) -> Record:
    """Train with the golden runs' optimiser, through the trainer."""
    method.prepare(TrainingInfo(narrow.BATCH, narrow_momentum.STEPS, narrow_momentum.STEPS, look))
    optimizer = narrow_momentum.sgd([p for p in method.parameters() if p.requires_grad])
    trainer, record = Trainer(method, optimizer, look(0)), Record()
    trainer.register_hooks([record])
    trainer.train(0, narrow_momentum.STEPS)
    return record


def ends(method: Method) -> dict[str, dict[str, list[float]]]:
    """Checksums of the online and the target networks' tensors."""
    names = ("encoder", "projector", "predictor")
    online = {name: module for name, module in method.named_children() if name in names}
    target = {name: getattr(method, f"target_{name}") for name in names[:2]}
    return {"online": narrow.checksums(under(online)), "target": narrow.checksums(under(target))}
