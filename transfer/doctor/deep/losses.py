"""Whether a device computes what the CPU computes: 20 steps of a workload, in each precision it has there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from common.workload import FP32, Way, Workload
from transfer.doctor.deep.arithmetic import arithmetic
from transfer.doctor.deep.guard import guarded
from transfer.doctor.deep.lockstep import Gap, lockstep
from transfer.doctor.finding import Finding

STEPS = 20


@dataclass(frozen=True)
class Bounds:
    """What of a `Gap` is still normal, and why."""

    loss: float
    length: float
    update: float
    why: str

    def hold(self, gap: Gap) -> bool:
        """Whether a gap is within them; NaN is not."""
        return gap.loss <= self.loss and gap.length <= self.length and gap.update <= self.update


FULL = Bounds(
    5e-5,
    5e-3,
    0.1,
    "float32 sums in another order; TF32 is off. A learning rate 1 % off is an error of 0.01 in the step's length",
)
HALF = Bounds(0.03, 0.4, 0.9, "autocast rounds activations to 8 bits (bf16) or 11 (fp16); the weights stay float32")
COARSE = Bounds(5e-3, 0.15, 0.7, "TF32 rounds products' inputs to 11 bits")
"""How far a device may be from the CPU's float32 (docs/guides/gpus.md says what was measured)."""


def losses(workload: Workload, device: str) -> list[Finding]:
    """A finding for each way of computing that the device has."""
    found = []
    for way in ways(workload, device):
        subject = f"{workload.name} {way} on {device}"
        found += guarded(subject, partial(_compare, workload, device, way, subject))
    return found


def ways(workload: Workload, device: str) -> list[Way]:
    """Float32 first, then what is held against it."""
    if not device.startswith("cuda"):
        return [FP32, *(Way(precision) for precision in workload.on_cpu)]
    import torch

    new = torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere: what older ones have of bf16 is an emulation
    return [FP32, *([Way(tf32=True), Way("bf16")] if new else []), Way("fp16")]


def _compare(workload: Workload, device: str, way: Way, subject: str) -> list[Finding]:
    with arithmetic(way.tf32, benchmark=False):
        gap = lockstep(workload.small("cpu"), workload.small(device, way), STEPS)
    return [judge(subject, gap, HALF if way.precision != "fp32" else COARSE if way.tf32 else FULL)]


def judge(subject: str, gap: Gap, bounds: Bounds) -> Finding:
    """What a gap says of a device."""
    told = f"loss {gap.loss:.0e}, length {gap.length:.0e}, update {gap.update:.0e}"
    found = f"{len(gap.losses)} steps against the CPU's float32, median errors: {told}; last loss {gap.losses[-1]:.4f}"
    normal = f"up to {bounds.loss:g}, {bounds.length:g}, {bounds.update:g}: {bounds.why}"
    if bounds.hold(gap):
        return Finding(subject, "ok", found, normal=normal)
    advice = "do not train here: try another GPU, then another driver, then the pinned torch (make setup); report it"
    return Finding(subject, "wrong", f"{found}, golden {gap.golden[-1]:.4f}", advice, normal)
