"""Make swav.json: float64 golden values from the original facebookresearch/swav, run unchanged, and from lightly.

    python tests/pretrain/golden/make_swav.py SWAV LIGHTLY

SwAV's own `distributed_sinkhorn`, `train` and the forward pass of its ResNet's head run on the CPU, as one process;
only the encoder, the weights and the images are ours (narrow.py), and the optimizer is SGD without apex's LARC.
lightly's SwaVLoss computes the gradients of the swapped prediction, including those of the codes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.pretrain.golden import narrow  # noqa: E402
from tests.pretrain.golden import narrow_contrast as fixed  # noqa: E402
from tests.pretrain.golden.harness import recording_meter, write_golden_values  # noqa: E402

ORIGINALS = {
    "facebookresearch/swav": "06b1b7cbaf6ba2a792300d79c7299db98b93b7f9",
    "lightly-ai/lightly": "e8d317fc5a87f4387a85a35e689869039ec249ee",
}


def files(clones: Sequence[Path]) -> dict[str, Path]:
    """The originals' files."""
    swav, lightly = clones
    used = swav / "main_swav.py", swav / "src" / "resnet50.py", lightly / "lightly/loss/swav_loss.py"
    return {file.name: file for file in used}


def values(clones: Sequence[Path], _files: Mapping[str, Path]) -> dict[str, Any]:
    """All golden values."""
    swav, lightly = clones
    original = load(swav)
    return {
        "torch": torch.__version__,
        "codes": {str(steps): codes(original, steps) for steps in (1, fixed.SINKHORN_STEPS)},
        "swapped": swapped(lightly),
        "runs": {"plain": run(original, None), "queue": run(original, fixed.QUEUE)},
    }


def load(checkout: Path) -> ModuleType:
    """main_swav.py without apex and its log's pandas, as the only process of a group, on the CPU."""
    sys.path.insert(0, str(checkout))
    for name in ("apex", "apex.parallel", "apex.parallel.LARC", "pandas"):
        sys.modules[name] = MagicMock()
    torch.Tensor.cuda = lambda tensor, *_args, **_kwargs: tensor  # type: ignore[assignment]
    import main_swav

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    original: ModuleType = main_swav
    original.args = SimpleNamespace(  # type: ignore[attr-defined]
        epsilon=fixed.EPSILON,
        sinkhorn_iterations=fixed.SINKHORN_STEPS,
        temperature=fixed.TEMPERATURE,
        freeze_prototypes_niters=fixed.FREEZE,
        crops_for_assign=[0, 1],
        nmb_crops=[2],
        world_size=1,
        rank=1,  # any but 0, which logs
        use_fp16=False,
    )
    return original


def codes(original: Any, steps: int) -> list[list[float]]:
    """The assignments of the first view's fixed scores."""
    original.args.sinkhorn_iterations = steps
    found: list[list[float]] = original.distributed_sinkhorn(fixed.scores()[0].detach()).tolist()
    original.args.sinkhorn_iterations = fixed.SINKHORN_STEPS
    return found


def swapped(checkout: Path) -> dict[str, Any]:
    """The loss of the fixed scores and its gradients by both views'."""
    sys.path.insert(0, str(checkout))
    from lightly.loss.swav_loss import SwaVLoss

    first, second = fixed.scores()
    loss = SwaVLoss(fixed.TEMPERATURE, fixed.SINKHORN_STEPS, fixed.EPSILON)([first, second], [])
    loss.backward()
    assert first.grad is not None and second.grad is not None
    return {"loss": loss.item(), "gradients": [first.grad.tolist(), second.grad.tolist()]}


class Narrow(nn.Module):
    """The narrow encoder under the original's head: its ResNet's own forward passes, borrowed."""

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        self.encoder = narrow.NarrowResNet(1, zero_init_residual=False)
        self.encoder.fc = nn.Identity()  # type: ignore[assignment]
        width = narrow.WIDTH
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        self.projector = nn.Sequential(*layers, nn.Linear(width, narrow.DIM))
        self.prototypes = nn.Linear(narrow.DIM, fixed.RUN_PROTOTYPES, bias=False)
        self.l2norm, self.resnet = True, resnet

    @property
    def projection_head(self) -> nn.Module:
        return self.projector

    def forward_backbone(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.encoder(x)
        return found

    def forward_head(self, x: torch.Tensor) -> Any:
        return self.resnet.forward_head(self, x)

    def forward(self, inputs: list[torch.Tensor]) -> Any:
        return self.resnet.forward(self, inputs)


class Parallel(nn.Module):
    """In place of DistributedDataParallel: the model as `module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: list[torch.Tensor]) -> Any:
        return self.module(inputs)


def run(original: Any, queue_length: int | None, change: Callable[[Narrow], None] = lambda _: None) -> dict[str, Any]:
    """Train for a few epochs and write down every loss and where the weights end.

    Args:
        original: main_swav.py.
        queue_length: images in the queue; None for no queue.
        change: changes the model before its first step.
    """
    model = Narrow(original.resnet_models.ResNet).double()
    narrow.fill(model)
    change(model)
    losses: list[float] = []
    original.AverageMeter = recording_meter(original.AverageMeter, losses, lambda _meter, n: n == narrow.BATCH)
    optimizer = torch.optim.SGD(
        model.parameters(), fixed.LR, momentum=narrow.MOMENTUM, weight_decay=narrow.WEIGHT_DECAY
    )
    rates = np.full(narrow.EPOCHS * narrow.STEPS_PER_EPOCH, fixed.LR)
    queue = None
    for epoch in range(narrow.EPOCHS):
        if queue_length and epoch == fixed.QUEUE_START:
            queue = torch.zeros(2, queue_length, narrow.DIM, dtype=torch.float64)
        steps = range(epoch * narrow.STEPS_PER_EPOCH, (epoch + 1) * narrow.STEPS_PER_EPOCH)
        batches = [list(narrow.images(step)) for step in steps]
        _, queue = original.train(batches, Parallel(model), optimizer, epoch, rates, queue)
    return {"losses": losses, "end": narrow.checksums(model)}


if __name__ == "__main__":
    write_golden_values("swav", __doc__, ORIGINALS, files, values)
