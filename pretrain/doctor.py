"""SimSiam for the doctor: a small one whose steps can be compared between devices, and the real one for its speed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.workload import FP32, Steps, Way

if TYPE_CHECKING:
    import torch

SMALL = {"ARCH": "resnet18", "PROJ_HIDDEN": 64, "DIM": 64, "PRED_DIM": 16}
"""MODEL keys of the small one: every kind of layer that the real one has."""
BATCH, SIDE, BATCHES = 16, 32, 4
SCALE = 2.0**10
"""Where the small one's fp16 scaler begins: from torch's 2**16 it may skip the first steps, which it is there for."""

Views = list["torch.Tensor"]


@dataclass(frozen=True)
class SimSiam:
    """A `common.workload.Workload`: SimSiam by pre-training's trainer."""

    name: str = "SimSiam"
    real: str = "ResNet-50 at 224², 32 images of two views: a batch of 256 on 8 GPUs"
    images: int = 32
    ways: tuple[Way, ...] = (
        Way(),
        Way(tf32=True),
        Way("bf16"),
        Way("bf16", channels_last=True),
        Way("bf16", channels_last=True, compiled=True),
    )
    more_images: tuple[int, ...] = (64, 128, 256)
    benchmark: bool = True
    on_cpu: tuple[str, ...] = ("bf16",)

    def small(self, device: str, way: Way = FP32) -> Steps:
        """The first blocks of a ResNet-18's stages at 32², 16 images a step, 4 batches."""
        import torch

        draw = torch.Generator().manual_seed(1)
        shape = (BATCH, 3, SIDE, SIDE)
        first = [torch.randn(shape, generator=draw) for _ in range(BATCHES)]
        batches = [[view, view + 0.5 * torch.randn(shape, generator=draw)] for view in first]
        return _steps(small_config(), batches, device, way, small=True)

    def full(self, device: str, way: Way, images: int) -> Steps:
        """The base recipe's model, at the learning rate of its whole batch."""
        import torch

        from pretrain.config import defaults

        draw = torch.Generator(device).manual_seed(1)
        views = [torch.randn(images, 3, 224, 224, generator=draw, device=device) for _ in range(2)]
        return _steps(defaults(), [views], device, way)


def small_config() -> Any:
    """The small one's config."""
    from pretrain.config import defaults

    cfg = defaults()
    cfg.MODEL.update(SMALL)
    cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.BASE_LR = BATCH, 0.05 * 256 / BATCH
    return cfg


def _cut(encoder: Any) -> None:
    """Leave each stage its first block."""
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        setattr(encoder, stage, getattr(encoder, stage)[:1])


def _steps(cfg: Any, batches: list[Views], device: str, way: Way, small: bool = False) -> Steps:
    """Train on the batches in turn, as the engine builds it but for the data."""
    import torch
    from detectron2.utils.events import EventStorage

    from pretrain.data.dataset import Batch
    from pretrain.engine.trainer import Trainer
    from pretrain.methods import build_method
    from pretrain.optim.optimizer import build_optimizer

    torch.manual_seed(0)  # on the CPU: the weights are the same on every device
    order: Any = {"memory_format": torch.channels_last if way.channels_last else torch.contiguous_format}
    method = build_method(cfg)
    if small:
        _cut(method.encoder)
    method = method.to(device).to(**order)
    placed = [tuple(view.to(device).contiguous(**order) for view in views) for views in batches]

    def rounds() -> Iterator[Batch]:
        for views in itertools.cycle(placed):
            yield Batch(views, torch.arange(len(views[0])))

    trainer = Trainer(method, build_optimizer(method, cfg), rounds(), way.precision, compile_model=way.compiled)
    if small and way.precision == "fp16":
        trainer.scaler = torch.amp.GradScaler(trainer.device.type, init_scale=SCALE)
    if not small:  # as a run reads them: a step late but where a line is written
        trainer.reads_at = lambda iteration: (iteration + 1) % cfg.LOG.PERIOD == 0
    trainer.iter, storage = 0, EventStorage(0)

    def step() -> float:
        with storage as trainer.storage:
            trainer.run_step()
        trainer.iter += 1
        storage.step()
        return trainer.latest.get("loss", math.nan)

    return Steps(step, method, trainer.optimizer)
