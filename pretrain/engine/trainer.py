"""One training step, and what every process must know of it."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from detectron2.engine.train_loop import TrainerBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from pretrain.data.dataset import Batch
from pretrain.engine.compiled import Compiled
from pretrain.engine.results import Results, StepResult
from pretrain.methods.base import Method, Output

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast's format for a PRECISION other than fp32."""

MAX_SKIPPED = 50
"""Steps in a row that fp16's scaler may skip; it halves its scale each time, and starts at 2**16."""


class Diverged(Exception):
    """The loss, a gradient or a weight left its bounds; the message names the iteration and the learning rate."""


class Trainer(TrainerBase):
    """Forward, backward, step; the loss, the spread of the embedding and a wish to stop are shared by all processes.

    Args:
        method: on its device, batch normalisation synchronised already where processes are several.
        optimizer: of the method's parameters; its learning rates are a hook's business.
        batches: float views on the method's device.
        precision: fp32, bf16 or fp16.
        accumulate: parts in which a process computes its batch, one after the other; divides its size.
        grad_norm_limit: a norm of all gradients above it ends the run; 0 = only one that is not finite.
        compile_model: whether torch.compile takes the method over.
        at_end: called once training has ended, however it ended: it ends the loaders' processes.
        reads_at: whether an iteration's result is read before the next begins, as it must be where something is written
            or saved; else it is read while the next is computed. The same on all processes.

    Attributes:
        stop_wanted: set on any process to ask for a stop.
        stopping: whether some process wanted to stop when the last step read began: the same on all.
        heard: the results read in this step, oldest first.
        latest: `loss` and `std`, over all processes, of the last step read.
    """

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        batches: Iterator[Batch],
        precision: str = "fp32",
        accumulate: int = 1,
        grad_norm_limit: float = 0.0,
        compile_model: bool = False,
        at_end: Callable[[], None] = lambda: None,
        reads_at: Callable[[int], bool] = lambda _iteration: True,
    ) -> None:
        super().__init__()
        self.method, self.optimizer, self.batches = method.train(), optimizer, batches
        self.parallel = _over_processes(method)
        self.model = Compiled(self.parallel) if compile_model else self.parallel
        self.device = next(method.parameters()).device
        self.half = HALF.get(precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)
        self.accumulate, self.grad_norm_limit = accumulate, grad_norm_limit
        self.at_end, self.reads_at = at_end, reads_at
        self.results = Results()
        self.heard: list[StepResult] = []
        self.stop_wanted = self.stopping = False
        self.latest: dict[str, float] = {}
        self._skipped = 0

    def after_train(self) -> None:
        """Let the hooks end, then the loaders."""
        try:
            super().after_train()
        finally:
            self.at_end()

    def run_step(self) -> None:
        """Train on the next batch.

        Raises:
            Diverged: the loss or the gradient is not finite, or the gradient's norm is above its limit.
            UserError: an image cannot be read.
        """
        start = time.perf_counter()
        batch = next(self.batches)
        data_time = time.perf_counter() - start
        outputs = self._forward_backward(batch)
        self.scaler.unscale_(self.optimizer)
        self.method.after_backward(self.iter)
        norm = self._gradient_norm()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step(self.iter)
        self._share(outputs, norm)
        share = data_time / (time.perf_counter() - start)
        self.storage.put_scalars(data_time=data_time, data_time_share=share)

    def _forward_backward(self, batch: Batch) -> list[Output]:
        """Add up the gradients of the batch's parts; the processes exchange them with the last."""
        self.optimizer.zero_grad()
        parts = _parts(batch, self.accumulate)
        outputs = []
        for number, part in enumerate(parts, start=1):
            with self._autocast():  # of its own, so that no weight cast without gradient is taken for the next block's
                self.method.before_step(self.iter, part)
            with self._exchange(number == len(parts)):
                with self._autocast():
                    output = self.model(*part.views)
                self.scaler.scale(output.loss / len(parts)).backward()
            outputs.append(output._replace(loss=output.loss.detach()))
        return outputs

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.half, enabled=self.half is not None)

    def _exchange(self, now: bool) -> contextlib.AbstractContextManager[None]:
        """Whether this backward pass averages the gradients over the processes."""
        if now or not isinstance(self.parallel, DistributedDataParallel):
            return contextlib.nullcontext()
        waiting: contextlib.AbstractContextManager[None] = self.parallel.no_sync()
        return waiting

    def _gradient_norm(self) -> torch.Tensor:
        """The Euclidean norm of all gradients together; the same on all processes, who have exchanged them."""
        held = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return get_total_norm(held)

    def _share(self, outputs: list[Output], norm: torch.Tensor) -> None:
        """Tell every process how the step went, and hear of it now or, where nothing hangs on it yet, a step later."""
        self.results.send(outputs, norm, self.stop_wanted, self.iter, self._rates())
        self.heard = []
        self._hear(leave=0 if self.reads_at(self.iter) else 1)
        if self.stopping:  # the step that will be saved is looked at first
            self._hear(leave=0)

    def _hear(self, leave: int) -> None:
        for result in self.results.read(leave):
            self.heard.append(result)
            self.latest = result.values
            self.stopping = self.stopping or result.stop
            self._guard(result)
            if result.iteration == self.iter:
                # Not smoothed: a resumed run must write the very lines that an unbroken one writes.
                self.storage.put_scalars(smoothing_hint=False, **self.latest)

    def _guard(self, result: StepResult) -> None:
        """Raise Diverged where a step was no good; checkpoints, written after it is looked at, stay as they are."""
        norm, here = result.norm, result.iteration == self.iter
        if not math.isfinite(result.values["loss"]):
            self.diverge(f"the loss is {result.values['loss']}", result)
        if self.scaler.is_enabled():
            self._count_skipped(not math.isfinite(norm), result)
        elif not math.isfinite(norm):
            self.diverge(f"the gradient's norm is {norm}", result)
        if math.isfinite(norm):
            if here:
                self.storage.put_scalar("grad_norm", norm, smoothing_hint=False)
            limit = self.grad_norm_limit
            if 0 < limit < norm:
                self.diverge(f"the gradient's norm is {norm:.6g}, above MONITOR.GRAD_NORM_LIMIT {limit:g}", result)

    def _count_skipped(self, skipped: bool, result: StepResult) -> None:
        """A gradient too large for fp16 is no divergence: the scaler skips the step and halves its scale."""
        if result.iteration == self.iter:
            self.storage.put_scalar("skipped", float(skipped), smoothing_hint=False)
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped > MAX_SKIPPED:
            what = f"the gradient has not been finite for {self._skipped} steps, however small fp16's scale"
            self.diverge(what, result)

    def _rates(self) -> str:
        return ", ".join(f"{group['lr']:.6g}" for group in self.optimizer.param_groups)

    def diverge(self, what: str, result: StepResult | None = None) -> None:
        """Raise Diverged with where the run is, or was when it made the step of `result`."""
        iteration, rates = (self.iter, self._rates()) if result is None else (result.iteration, result.rates)
        raise Diverged(f"{what} at iteration {iteration}, learning rate {rates}")


def _parts(batch: Batch, count: int) -> list[Batch]:
    """The batch cut along its samples; no copies."""
    views = zip(*(view.chunk(count) for view in batch.views), strict=True)
    indices = batch.indices.chunk(count)
    labels = [None] * count if batch.labels is None else batch.labels.chunk(count)
    return [Batch(*part) for part in zip(views, indices, labels, strict=True)]


def _over_processes(method: Method) -> nn.Module:
    """The method whose gradients are averaged over the processes, where there are several."""
    if not dist.is_initialized():
        return method
    device = next(method.parameters()).device
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer torch has another name for the last argument
        return DistributedDataParallel(
            method,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # training reads none of BN's; a method's own may be gigabytes, equal everywhere
        )
