"""Comparison of a device with the CPU: equal, slightly wrong, broken, and with the project's trainers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.gpu import numerics as module
from tests.gpu.numerics import (
    FP32_BOUNDS,
    HALF_BOUNDS,
    TF32_BOUNDS,
    backend_precision,
    compare_losses,
    gap_finding,
    run_lockstep,
    supported_precisions,
)
from tests.gpu.workloads import FP32, DetectorWorkload, PrecisionConfig, SimSiamWorkload, TrainStep, Workload

OURS = [SimSiamWorkload(), DetectorWorkload()]
Tiny = Callable[..., Any]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 3)


def other_rate(steps: TrainStep, factor: float = 1.01) -> TrainStep:
    for group in steps.optimizer.param_groups:
        group["lr"] *= factor
    return steps


def noisy_weights(steps: TrainStep, size: float = 1e-3) -> TrainStep:
    """The device computes with weights that are not quite those it was given."""

    def step() -> float:
        with torch.no_grad():
            for parameter in steps.model.parameters():
                parameter.add_(size)
        loss = steps.step()
        with torch.no_grad():
            for parameter in steps.model.parameters():
                parameter.sub_(size)
        return loss

    return dataclasses.replace(steps, step=step)


def nan_loss(steps: TrainStep) -> TrainStep:
    return dataclasses.replace(steps, step=lambda: steps.step() * float("nan"))


def test_the_same_device_gives_the_same_numbers(tiny: Tiny) -> None:
    (finding,) = compare_losses(tiny(), "cpu")
    assert finding.state == "ok" and finding.subject == "Tiny fp32 on cpu" and not finding.advice
    assert "3 steps against the CPU's float32, median errors: loss 0e+00, length 0e+00, update 0e+00" in finding.found
    assert finding.normal.startswith("up to 5e-05, 0.005, 0.1: ") and "TF32 is off" in finding.normal


@pytest.mark.parametrize("spoil", [other_rate, noisy_weights, nan_loss])
def test_a_device_that_computes_otherwise_is_wrong(tiny: Tiny, spoil: Callable[[TrainStep], TrainStep]) -> None:
    (finding,) = compare_losses(tiny(spoil), "cpu")
    assert finding.state == "wrong" and "on the CPU" in finding.found and "do not train here" in finding.advice


@pytest.mark.parametrize("workload", OURS, ids=lambda workload: workload.name)
def test_ours_repeat_bit_for_bit_on_the_cpu(workload: Workload) -> None:
    gap = run_lockstep(workload.small("cpu"), workload.small("cpu"), 2)
    assert (gap.loss, gap.length, gap.update) == (0.0, 0.0, 0.0) and gap.losses == gap.reference
    assert len(set(gap.losses)) == 2  # it trains, or its batches differ


@pytest.mark.parametrize("workload", OURS, ids=lambda workload: workload.name)
def test_of_ours_a_learning_rate_one_per_cent_off_is_found(workload: Workload) -> None:
    gap = run_lockstep(workload.small("cpu"), other_rate(workload.small("cpu")), 3)
    assert gap.loss == 0.0 and gap.length == pytest.approx(0.01, abs=1e-4)
    assert gap_finding("", gap, FP32_BOUNDS).state == "wrong"


@pytest.mark.parametrize("workload", OURS, ids=lambda workload: workload.name)
def test_of_ours_a_perturbed_weight_is_found(workload: Workload) -> None:
    gap = run_lockstep(workload.small("cpu"), noisy_weights(workload.small("cpu")), 2)
    assert gap_finding("", gap, FP32_BOUNDS).state == "wrong" and gap.loss > FP32_BOUNDS.loss


@pytest.mark.parametrize("workload", OURS, ids=lambda workload: workload.name)
def test_of_ours_rounding_is_not_found(workload: Workload) -> None:
    """Another memory layout sums in another order, as another device does."""
    gap = run_lockstep(workload.small("cpu"), workload.small("cpu", PrecisionConfig(channels_last=True)), 3)
    assert gap.losses != gap.reference and gap_finding("", gap, FP32_BOUNDS).state == "ok", gap


def test_bf16_of_simsiam_is_near_and_not_equal() -> None:
    gap = run_lockstep(SimSiamWorkload().small("cpu"), SimSiamWorkload().small("cpu", PrecisionConfig("bf16")), 2)
    assert gap_finding("", gap, HALF_BOUNDS).state == "ok" and gap_finding("", gap, FP32_BOUNDS).state == "wrong"


def test_the_precisions_a_device_has(tiny: Tiny, one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert supported_precisions(tiny(), "cpu") == [FP32] and supported_precisions(SimSiamWorkload(), "cpu") == [
        FP32,
        PrecisionConfig("bf16"),
    ]
    assert [str(precision) for precision in supported_precisions(tiny(), "cuda:0")] == [
        "fp32",
        "fp32 + TF32",
        "bf16",
        "fp16",
    ]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 0))
    assert [str(precision) for precision in supported_precisions(tiny(), "cuda:0")] == ["fp32", "fp16"]


def test_each_precision_has_its_own_bounds(tiny: Tiny, one_gpu: None) -> None:
    normal = [finding.normal for finding in compare_losses(tiny(), "cuda:0")]
    assert [text.split(":")[0] for text in normal] == [
        f"up to {b.loss:g}, {b.length:g}, {b.update:g}" for b in (FP32_BOUNDS, TF32_BOUNDS, HALF_BOUNDS, HALF_BOUNDS)
    ]


def _raise(error: Exception) -> Callable[[TrainStep], TrainStep]:
    def spoil(_steps: TrainStep) -> TrainStep:
        raise error

    return spoil


def test_what_breaks_is_a_finding(tiny: Tiny) -> None:
    (broken,) = compare_losses(tiny(_raise(RuntimeError("CUDA error: an illegal memory access\nmore"))), "cpu")
    assert broken.state == "wrong" and broken.found.startswith(
        "failed: RuntimeError: CUDA error: an illegal memory access"
    )
    assert "test_gpu_numerics.py:" in broken.found and "\n" not in broken.found
    (full,) = compare_losses(tiny(_raise(torch.OutOfMemoryError("CUDA out of memory"))), "cpu")
    assert (full.state, full.found) == ("warning", "out of memory") and "nvidia-smi" in full.advice


@pytest.mark.parametrize("workload", OURS, ids=lambda workload: workload.name)
def test_a_missing_package_is_a_finding(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2.utils.events", None)
    findings = compare_losses(workload, "cpu")
    assert {finding.state for finding in findings} == {"missing"}, findings
    assert all("detectron2" in finding.found and "make setup" in finding.advice for finding in findings)


def test_the_arithmetic_is_put_back() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.benchmark
    with backend_precision(tf32=not before[0], benchmark=not before[2]):
        assert cudnn.allow_tf32 != before[0] and cudnn.benchmark != before[2]
    with pytest.raises(KeyError), backend_precision(tf32=True, benchmark=False):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert before == (cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.benchmark)
