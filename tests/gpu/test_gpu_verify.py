"""All checks on simulated GPUs: speed, memory, a GPU that hangs, and a machine without GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.gpu import speed
from tests.gpu import verify as module
from tests.gpu.exchange import BUCKET, GRADIENTS, AllReduceTiming
from tests.gpu.numerics import check_operators
from tests.gpu.processes import ProcessResult
from tests.gpu.verify import examine_devices, examine_gpu
from tests.gpu.workloads import FP32, PrecisionConfig
from transfer.doctor.finding import Finding

Tiny = Callable[..., Any]


def state_of(findings: list[Finding], subject: str) -> str:
    (found,) = [finding.state for finding in findings if finding.subject == subject]
    return found


@pytest.fixture
def exchanged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """All-reduce takes no time; the requested numbers of processes."""
    requested: list[int] = []

    def between(count: int, _seconds: float) -> ProcessResult:
        requested.append(count)
        return ProcessResult(AllReduceTiming("nccl", count, {BUCKET: 1e-3, GRADIENTS: 4e-3}, True))

    monkeypatch.setattr(module, "all_reduce_between_processes", between)
    return requested


def test_a_machine_without_gpus_reports_skipped_checks(
    tiny: Tiny, exchanged: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    findings = examine_devices((tiny(),))
    assert state_of(findings, "Tiny fp32 on cpu") == "ok" and exchanged == [2]
    skipped = {finding.subject for finding in findings if finding.state == "skipped"}
    assert skipped == {"GPU against CPU", "Tiny AMP", "Tiny speed and memory", "NCCL"}
    assert all("no GPU here" in finding.found for finding in findings if finding.state == "skipped")
    said = capsys.readouterr()
    assert "Tiny on the CPU, twice" in said.err and not said.out


def test_without_torch(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    monkeypatch.setitem(module.sys.modules, "torch", None)
    (finding,) = examine_devices((tiny(),))
    assert finding.state == "missing" and "make setup" in finding.advice


def test_all_checks_of_one_gpu(tiny: Tiny, one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "check_operators", lambda _device: check_operators("cpu"))
    monkeypatch.setattr(speed, "run_in_processes", lambda target, calls, _seconds: [ProcessResult(target(*calls[0]))])
    findings, fastest = examine_gpu((tiny(),), 0)
    assert {finding.state for finding in findings} == {"ok"}, findings
    subjects = [finding.subject for finding in findings]
    assert subjects == [
        "torchvision on cpu",
        *(f"Tiny {way} on cuda:0" for way in ("fp32", "fp32 + TF32", "bf16", "fp16")),
        *(f"Tiny {way} on cuda:0, speed" for way in ("fp32", "bf16")),
        "Tiny fp32 on cuda:0, memory",
        "Tiny bf16 + compile on cuda:0, speed",
    ]
    assert fastest is not None and fastest > 0
    timed, memory = findings[-4], findings[-2]
    assert "images/s" in timed.found and "peak 3.0 GiB" in timed.found and "unknown" in timed.normal
    assert memory.found == "images on this GPU of 80 GiB: 4: 3.0 GiB, 8: 3.0 GiB, 16: 3.0 GiB"


def test_every_gpu_has_a_process_and_one_without_result_is_wrong(
    tiny: Tiny, one_gpu: None, exchanged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    calls: list[Any] = []

    def run_in_processes(target: Any, calls_: Any, seconds: float, env: Any) -> list[ProcessResult]:
        calls.append((target, [index for _, index in calls_], env))
        return [
            ProcessResult(([Finding("a", "ok", "")], 0.1)),
            ProcessResult(error="no answer within 300 s"),
            ProcessResult(([], 0.2)),
        ]

    monkeypatch.setattr(module, "run_in_processes", run_in_processes)
    findings = examine_devices((tiny(),))
    assert calls[0][:2] == (examine_gpu, [0, 1, 2]) and {int(one["OMP_NUM_THREADS"]) >= 1 for one in calls[0][2]} == {
        True
    }
    assert state_of(findings, "a") == "ok" and state_of(findings, "cuda:1") == "wrong"
    assert exchanged == [3] and state_of(findings, "all-reduce") == "ok"


def test_images_that_do_not_fit(tiny: Tiny, one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    full = type(tiny()).full

    def limited(self: Any, device: str, precision: PrecisionConfig, images: int) -> Any:
        if images > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return full(self, device, precision, images)

    monkeypatch.setattr(type(tiny()), "full", limited)
    finding = speed.measure_memory(tiny(), "cuda:0", time.monotonic() + 60)
    assert finding.state == "ok" and finding.found.endswith("4: 3.0 GiB, 8: 3.0 GiB, 16: does not fit")
    with pytest.raises(torch.OutOfMemoryError):
        speed.time_steps(tiny(), "cuda:0", FP32, 16)


def test_checks_without_time_left_are_skipped(tiny: Tiny, one_gpu: None) -> None:
    seconds: list[float] = []
    findings = speed.measure_speeds(tiny(), "cuda:0", time.monotonic() - 1, seconds)
    assert [finding.state for finding in findings] == ["skipped", "skipped", "ok", "skipped"] and not seconds
    assert "no time was left" in findings[0].found and "no time was left" in findings[2].found
    later = speed.measure_speeds(tiny(), "cuda:0", time.monotonic() + speed.LEAST_FOR_COMPILE - 1, seconds)
    assert later[-1].state == "skipped" and "too few for torch.compile" in later[-1].found and len(seconds) == 2


def test_a_compiler_that_takes_too_long_or_fails(tiny: Tiny, one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "run_in_processes", lambda *_: [ProcessResult(error="no answer within 40 s")])
    finding = speed.measure_speeds(tiny(), "cuda:0", time.monotonic() + 100, [])[-1]
    assert (finding.state, finding.found) == ("skipped", "torch.compile: no answer within 40 s")


def test_operators_agree_with_themselves_and_a_wrong_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.ops

    assert check_operators("cpu").state == "ok"
    pool = torchvision.ops.roi_align
    calls: list[int] = []

    def second_differs(*args: Any) -> torch.Tensor:
        calls.append(0)
        return pool(*args) * (1 + 1e-3 * (len(calls) - 1))

    monkeypatch.setattr(torchvision.ops, "roi_align", second_differs)
    assert check_operators("cpu").state == "wrong"
