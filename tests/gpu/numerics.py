"""Whether a device computes what the CPU computes: training steps and torchvision's operators, side by side.

Each step starts from the CPU's weights. Left to itself a training drifts: the losses of two trainings that differ by
rounding differ ten times as much with each step. Started from the same weights, each step can be held tightly, and so
can its update: a learning rate that is 1 % off changes every update by 1 %.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tests.gpu.guard import run_check
from tests.gpu.workloads import FP32, PrecisionConfig, TrainStep, Workload
from transfer.doctor.finding import Finding

if TYPE_CHECKING:
    import torch

STEPS = 20


@dataclass(frozen=True)
class Bounds:
    """The largest normal `Gap`, and its explanation."""

    loss: float
    length: float
    update: float
    why: str

    def contain(self, gap: Gap) -> bool:
        """Whether a gap is within the bounds; NaN is not."""
        return gap.loss <= self.loss and gap.length <= self.length and gap.update <= self.update


FP32_BOUNDS = Bounds(
    5e-5,
    5e-3,
    0.1,
    "float32 sums in another order; TF32 is off. A learning rate 1 % off is an error of 0.01 in the step's length",
)
HALF_BOUNDS = Bounds(
    0.03, 0.4, 0.9, "autocast rounds activations to 8 bits (bf16) or 11 (fp16); the weights stay float32"
)
TF32_BOUNDS = Bounds(5e-3, 0.15, 0.7, "TF32 rounds products' inputs to 11 bits")
"""Bounds on the difference from the CPU's float32 (docs/notes/gpus.md lists the measurements)."""


def compare_losses(workload: Workload, device: str) -> list[Finding]:
    """Compare every precision that the device supports with the CPU; one finding each."""
    found = []
    for precision in supported_precisions(workload, device):
        subject = f"{workload.name} {precision} on {device}"
        found += run_check(subject, partial(_compare, workload, device, precision, subject))
    return found


def supported_precisions(workload: Workload, device: str) -> list[PrecisionConfig]:
    """Precision configs to compare on a device, float32 first."""
    if not device.startswith("cuda"):
        return [FP32, *(PrecisionConfig(precision) for precision in workload.on_cpu)]
    import torch

    new = torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere; older GPUs emulate bf16
    return [FP32, *([PrecisionConfig(tf32=True), PrecisionConfig("bf16")] if new else []), PrecisionConfig("fp16")]


def _compare(workload: Workload, device: str, precision: PrecisionConfig, subject: str) -> list[Finding]:
    with backend_precision(precision.tf32, benchmark=False):
        gap = run_lockstep(workload.small("cpu"), workload.small(device, precision), STEPS)
    full = TF32_BOUNDS if precision.tf32 else FP32_BOUNDS
    return [gap_finding(subject, gap, full if precision.precision == "fp32" else HALF_BOUNDS)]


def gap_finding(subject: str, gap: Gap, bounds: Bounds) -> Finding:
    """The finding for a device with this gap."""
    errors = f"loss {gap.loss:.0e}, length {gap.length:.0e}, update {gap.update:.0e}"
    found = (
        f"{len(gap.losses)} steps against the CPU's float32, median errors: {errors}; last loss {gap.losses[-1]:.4f}"
    )
    normal = f"up to {bounds.loss:g}, {bounds.length:g}, {bounds.update:g}: {bounds.why}"
    if bounds.contain(gap):
        return Finding(subject, "ok", found, normal=normal)
    advice = "do not train here: try another GPU, then another driver, then the pinned torch (make setup); report it"
    return Finding(subject, "wrong", f"{found}, on the CPU {gap.reference[-1]:.4f}", advice, normal)


@dataclass(frozen=True)
class Gap:
    """Difference between a device and the CPU.

    Attributes:
        loss: median over the steps of |Δ loss|, relative where the loss is above 1.
        length: median of |⟨u, g⟩/⟨g, g⟩ − 1| with u and g the updates of the parameters on the device and on the CPU:
            the relative error of the update's length.
        update: median of ‖u − g‖/‖g‖.
        losses: losses on the device.
        reference: losses on the CPU.
    """

    loss: float
    length: float
    update: float
    losses: tuple[float, ...]
    reference: tuple[float, ...]


def run_lockstep(reference: TrainStep, other: TrainStep, count: int) -> Gap:
    """Run `count` steps of both trainings; each step starts from the reference's state.

    Medians are reported, not maxima: a detector selects anchors and proposals, and where two scores differ by less than
    rounding the selection may differ in one of the steps.

    Args:
        reference: the training on the CPU, in float32.
        other: the same training on another device or in another precision.
        count: number of steps.
    """
    rows, losses, theirs = [], [], []
    for _ in range(count):
        _copy_state(reference, other)
        before = _parameters(reference)
        theirs.append(reference.step())
        losses.append(other.step())
        errors = _errors(_parameters(other) - before, _parameters(reference) - before)
        rows.append((_loss_error(losses[-1], theirs[-1]), *errors))
    loss, length, update = (statistics.median(column) for column in zip(*rows, strict=True))
    return Gap(loss, length, update, tuple(losses), tuple(theirs))


def _loss_error(loss: float, reference: float) -> float:
    return abs(loss - reference) / max(1.0, abs(reference))


def _errors(update: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Relative errors of an update: of its length, and of the whole vector."""
    length = (update @ reference) / (reference @ reference) - 1
    return abs(float(length)), float((update - reference).norm() / reference.norm())


def _parameters(steps: TrainStep) -> torch.Tensor:
    """Copy all trainable parameters into one float64 vector on the CPU."""
    import torch

    return torch.cat([p.detach().cpu().double().flatten() for p in steps.model.parameters() if p.requires_grad])


def _copy_state(source: TrainStep, target: TrainStep) -> None:
    """Copy weights, statistics and momentum buffers from `source` to `target`."""
    import torch

    with torch.no_grad():
        ours_by_name = target.model.state_dict()
        for name, tensor in source.model.state_dict().items():
            ours_by_name[name].copy_(tensor)
        for ours, theirs in zip(_trained(target), _trained(source), strict=True):
            state = source.optimizer.state.get(theirs, {})
            if "momentum_buffer" in state:
                target.optimizer.state[ours]["momentum_buffer"] = state["momentum_buffer"].to(ours.device, copy=True)


def _trained(steps: TrainStep) -> list[torch.Tensor]:
    return [parameter for group in steps.optimizer.param_groups for parameter in group["params"]]


@contextlib.contextmanager
def backend_precision(tf32: bool, benchmark: bool) -> Iterator[None]:
    """Set TF32 for products and convolutions, and cudnn.benchmark; restore them afterwards.

    `fp32` means TF32 off in this project; PyTorch's default is off for products and on for convolutions.
    """
    import torch

    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = tf32, benchmark
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before[0], before[2]
        torch.set_float32_matmul_precision(before[1])


def check_operators(device: str) -> Finding:
    """Compare torchvision's NMS and RoIAlign with the CPU: the same boxes, values and gradients within rounding."""
    import torch
    from torchvision.ops import nms, roi_align

    draw = torch.Generator().manual_seed(3)
    corner = torch.rand(200, 2, generator=draw) * 40
    boxes = torch.cat([corner, corner + 4 + torch.rand(200, 2, generator=draw) * 20], 1)
    scores = torch.linspace(0, 1, 200)[torch.randperm(200, generator=draw)]
    kept = [nms(boxes.to(where), scores.to(where), 0.5).cpu() for where in ("cpu", device)]
    maps, pooled = [], []
    for where in ("cpu", device):
        features = torch.rand(1, 8, 16, 16, generator=torch.Generator().manual_seed(4)).to(where).requires_grad_()
        pooled.append(roi_align(features, [boxes.to(where)], 7, 0.25, 0, True))
        pooled[-1].square().sum().backward()
        assert features.grad is not None
        maps.append(features.grad.cpu())
    same = torch.equal(*kept)
    values = float((pooled[0].detach() - pooled[1].detach().cpu()).abs().max())
    gradient = float((maps[0] - maps[1]).abs().max() / maps[0].abs().max())
    boxes_kept = f"NMS keeps {'the same' if same else 'other'} boxes"
    found = f"{boxes_kept}, RoIAlign differs by {values:.0e}, its gradient by {gradient:.0e}"
    if same and values <= 1e-5 and gradient <= 1e-4:
        return Finding(f"torchvision on {device}", "ok", found, normal="the same boxes, up to 1e-05 and 1e-04")
    advice = "install the torchvision made for this torch and its CUDA: make setup TORCH=… TORCHVISION=…"
    return Finding(f"torchvision on {device}", "wrong", found, advice, "the same boxes, up to 1e-05 and 1e-04")
