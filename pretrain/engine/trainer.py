"""The training step and its loop: Detectron2's TrainerBase with metrics, guards and stop requests of all processes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.engine.train_loop import TrainerBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from pretrain.data.dataset import Batch
from pretrain.engine.metrics import MetricsReducer, StepResult
from pretrain.methods.base import Method, MethodOutput
from ssl_transfer.errors import UserError
from ssl_transfer.training.collectives import wrap_distributed
from ssl_transfer.training.divergence import Diverged

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast's dtype for a PRECISION other than fp32."""

MAX_SKIPPED = 50
"""Steps in a row that the gradient scaler may skip; it halves its scale each time, and starts at 2**16."""


class Trainer(TrainerBase):
    """Forward, backward, step; the loss, the std of the embedding and stop requests are reduced over all processes.

    Args:
        method: on its device; batch normalization is already synchronized where there are several processes.
        optimizer: of the method's parameters; a hook sets its learning rates.
        batches: float views on the method's device.
        precision: fp32, bf16 or fp16.
        accumulate: number of parts in which a process computes its batch one after the other; divides its size.
        grad_norm_limit: a norm of all gradients above it ends the run; 0: only one that is not finite does.
        compile_model: compile the method by torch.compile.
        close: called when training has ended, however it ended: ends the loader's workers.
        sync_at: whether an iteration's metrics are read before the next step begins, as they must be where something
            is logged or saved; otherwise they are read while the next step runs. The same on all processes.

    Attributes:
        stop_requested: set on any process to request a stop.
        stopping: whether a process had requested a stop when the last step read began: the same on all processes.
        step_results: the results read in this step, oldest first.
        latest: `loss`, `std` and the method's metrics, over all processes, of the last step read.
        report: called by monitors with each batch, with how far they are.
    """

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        batches: Iterator[Batch],
        *,
        precision: str = "fp32",
        accumulate: int = 1,
        grad_norm_limit: float = 0.0,
        compile_model: bool = False,
        close: Callable[[], None] = lambda: None,
        sync_at: Callable[[int], bool] = lambda _iteration: True,
    ) -> None:
        super().__init__()
        self.method, self.optimizer, self.batches = method.train(), optimizer, batches
        self.parallel = wrap_distributed(method)
        self.model = Compiled(self.parallel) if compile_model else self.parallel
        self.device = next(method.parameters()).device
        self.half = HALF.get(precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)
        self.accumulate, self.grad_norm_limit = accumulate, grad_norm_limit
        self.close, self.sync_at = close, sync_at
        self.reducer = MetricsReducer()
        self.step_results: list[StepResult] = []
        self.stop_requested = self.stopping = False
        self.latest: dict[str, float] = {}
        self.report: Callable[[str], None] = lambda _doing: None
        self._skipped = 0

    def after_train(self) -> None:
        """Run the hooks' `after_train`, then end the loader's workers."""
        try:
            super().after_train()
        finally:
            self.close()

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
        self._reduce_metrics(outputs, norm)
        share = data_time / (time.perf_counter() - start)
        self.storage.put_scalars(data_time=data_time, data_time_share=share)

    def _forward_backward(self, batch: Batch) -> list[MethodOutput]:
        """Accumulate the gradients of the batch's parts; they are averaged over the processes with the last part."""
        self.optimizer.zero_grad()
        parts = split_batch(batch, self.accumulate)
        outputs = []
        for number, part in enumerate(parts, start=1):
            # An autocast context of its own: weights cast without gradient must not be cached for the next context.
            with self._autocast():
                self.method.before_step(self.iter, part)
            with self._gradient_sync(number == len(parts)):
                with self._autocast():
                    output = self.model(*part.views)
                self.scaler.scale(output.loss / len(parts)).backward()
            outputs.append(output._replace(loss=output.loss.detach()))
        return outputs

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.half, enabled=self.half is not None)

    def _gradient_sync(self, enabled: bool) -> contextlib.AbstractContextManager[None]:
        if enabled or not isinstance(self.parallel, DistributedDataParallel):
            return contextlib.nullcontext()
        no_sync: contextlib.AbstractContextManager[None] = self.parallel.no_sync()
        return no_sync

    def _gradient_norm(self) -> torch.Tensor:
        """The Euclidean norm of all gradients; the same on all processes, because gradients are averaged already."""
        grads = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return get_total_norm(grads)

    def _reduce_metrics(self, outputs: list[MethodOutput], norm: torch.Tensor) -> None:
        """All-reduce the step's metrics; read them now or, where nothing is logged or saved, one step later."""
        self.reducer.submit(outputs, norm=norm, stop=self.stop_requested, iteration=self.iter, lrs=self._lrs())
        self.step_results = []
        self._drain(leave=0 if self.sync_at(self.iter) else 1)
        if self.stopping:  # a checkpoint follows: this step must be checked before it is saved
            self._drain(leave=0)

    def _drain(self, leave: int) -> None:
        for result in self.reducer.receive(leave):
            self.step_results.append(result)
            self.latest = result.values
            self.stopping = self.stopping or result.stop
            self._check_finite(result)
            if result.iteration == self.iter:
                # Not smoothed: a resumed run must write the same lines as an uninterrupted one.
                self.storage.put_scalars(smoothing_hint=False, **self.latest)

    def _check_finite(self, result: StepResult) -> None:
        """Raise Diverged for a step that is not usable. Checkpoints are written after this check."""
        norm, current = result.norm, result.iteration == self.iter
        if not math.isfinite(result.values["loss"]):
            self.diverge(f"the loss is {result.values['loss']}", result)
        if self.scaler.is_enabled():
            self._count_skipped(not math.isfinite(norm), result)
        elif not math.isfinite(norm):
            self.diverge(f"the gradient's norm is {norm}", result)
        if math.isfinite(norm):
            if current:
                self.storage.put_scalar("grad_norm", norm, smoothing_hint=False)
            limit = self.grad_norm_limit
            if 0 < limit < norm:
                self.diverge(f"the gradient's norm is {norm:.6g}, above MONITOR.GRAD_NORM_LIMIT {limit:g}", result)

    def _count_skipped(self, skipped: bool, result: StepResult) -> None:
        """A gradient that overflows fp16 is no divergence: the scaler skips the step and halves its scale."""
        if result.iteration == self.iter:
            self.storage.put_scalar("skipped", float(skipped), smoothing_hint=False)
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped > MAX_SKIPPED:
            what = f"the gradient has not been finite for {self._skipped} steps, however small fp16's scale"
            self.diverge(what, result)

    def _lrs(self) -> tuple[float, ...]:
        return tuple(group["lr"] for group in self.optimizer.param_groups)

    def diverge(self, what: str, result: StepResult | None = None) -> None:
        """Raise Diverged for the step of `result`, or for the current one."""
        iteration, lrs = (self.iter, self._lrs()) if result is None else (result.iteration, result.lrs)
        raise Diverged(what, iteration, lrs)


def split_batch(batch: Batch, count: int) -> list[Batch]:
    """The batch split along its samples into `count` parts, without copies."""
    views = zip(*(view.chunk(count) for view in batch.views), strict=True)
    indices = batch.indices.chunk(count)
    labels = [None] * count if batch.labels is None else batch.labels.chunk(count)
    return [Batch(*part) for part in zip(views, indices, labels, strict=True)]


class Compiled(nn.Module):
    """A module compiled by torch.compile at its first batch, which takes minutes.

    Checkpoints are not affected: they hold the state dict of the method itself.

    Args:
        module: the method, or its DistributedDataParallel.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.call = torch.compile(module)

    def forward(self, *views: torch.Tensor) -> Any:
        try:
            return self.call(*views)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            cause = (str(error.inner_exception).strip() or type(error.inner_exception).__name__).splitlines()[0]
            remedy = "install a C++ compiler (on a CPU) or Triton (on a GPU), or leave ENGINE.COMPILE False"
            raise UserError(f"ENGINE.COMPILE is True, but torch.compile failed ({cause}); {remedy}") from error
