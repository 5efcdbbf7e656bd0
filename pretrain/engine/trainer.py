"""One training step, and what every process must know of it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from detectron2.engine.train_loop import TrainerBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.data.dataset import Batch
from pretrain.engine import collapse
from pretrain.methods.base import Method, Output

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast's format for a PRECISION other than fp32."""


class Diverged(Exception):
    """The loss or a weight is no longer a finite number; the message names the iteration and the learning rate."""


class Trainer(TrainerBase):
    """Forward, backward, step; the loss, the spread of the embedding and a wish to stop are shared by all processes.

    Args:
        method: on its device, batch normalisation synchronised already where processes are several.
        optimizer: of the method's parameters; its learning rates are a hook's business.
        batches: float views on the method's device.
        precision: fp32, bf16 or fp16.

    Attributes:
        stop_wanted: set on any process to ask for a stop.
        stopping: whether some process wanted to stop when this step began: the same on all.
        latest: the last step's `loss` and `std`, over all processes.
    """

    def __init__(
        self, method: Method, optimizer: torch.optim.Optimizer, batches: Iterator[Batch], precision: str = "fp32"
    ) -> None:
        super().__init__()
        self.method, self.optimizer, self.batches = method.train(), optimizer, batches
        self.model = _over_processes(method)
        self.device = next(method.parameters()).device
        self.half = HALF.get(precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)
        self.stop_wanted = self.stopping = False
        self.latest: dict[str, float] = {}

    def run_step(self) -> None:
        """Train on the next batch.

        Raises:
            Diverged: the loss is not finite, on any process.
            UserError: an image cannot be read.
        """
        start = time.perf_counter()
        batch = next(self.batches)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            output = self.model(*batch.views)
        self.optimizer.zero_grad()
        self.scaler.scale(output.loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._share(output)
        # Not smoothed: a resumed run must write the very lines that an unbroken one writes.
        self.storage.put_scalars(smoothing_hint=False, **self.latest)
        self.storage.put_scalar("data_time", data_time)

    def _share(self, output: Output) -> None:
        """Add up loss, wish to stop and moments over the processes, in one sum and one wait for the device."""
        head = torch.stack([output.loss.detach().double(), output.loss.new_tensor(self.stop_wanted).double()])
        total = torch.cat([head, collapse.moments(output.embedding)])
        processes = 1
        if dist.is_initialized():
            dist.all_reduce(total)
            processes = dist.get_world_size()
        total = total.cpu()
        self.latest = {"loss": float(total[0]) / processes, "std": collapse.spread(total[2:])}
        self.stopping = float(total[1]) > 0
        if not torch.isfinite(total[0]):
            self.diverge(f"the loss is {float(total[0])}")

    def diverge(self, what: str) -> None:
        """Raise Diverged with where the run is."""
        rates = ", ".join(f"{group['lr']:.6g}" for group in self.optimizer.param_groups)
        raise Diverged(f"{what} at iteration {self.iter}, learning rate {rates}")


def _over_processes(method: Method) -> nn.Module:
    """The method whose gradients are averaged over the processes, where there are several."""
    if not dist.is_initialized():
        return method
    device = next(method.parameters()).device
    return DistributedDataParallel(method, device_ids=[device.index] if device.type == "cuda" else None)
