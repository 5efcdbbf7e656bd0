"""All-reduce: measurement and findings."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from pretrain.config import defaults
from pretrain.methods import build_method
from tests.gpu import exchange
from tests.gpu.exchange import (
    BUCKET,
    GRADIENTS,
    AllReduceTiming,
    all_reduce_between_processes,
    all_reduce_finding,
    measure_all_reduce,
)
from tests.gpu.processes import ProcessResult


def of(backend: str = "nccl", processes: int = 8, seconds: float = 0.002, right: bool = True) -> ProcessResult:
    return ProcessResult(AllReduceTiming(backend, processes, {BUCKET: seconds / 4, GRADIENTS: seconds}, right))


def test_the_size_of_simsiams_gradients() -> None:
    with torch.device("meta"):
        method = build_method(defaults())
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) * 4 == GRADIENTS


def test_the_bandwidth_is_that_of_nccl_tests() -> None:
    """busbw = bytes / seconds × 2(n − 1)/n (NVIDIA/nccl-tests, doc/PERFORMANCE.md)."""
    done = AllReduceTiming("nccl", 4, {BUCKET: 0.001}, True)
    assert done.bandwidth(BUCKET) == pytest.approx(BUCKET / 0.001 * 1.5)


def test_a_single_process_uses_a_group_of_one_and_destroys_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "TIMED", 1)
    done = measure_all_reduce((4096, 8192))
    assert (done.backend, done.processes, done.right) == ("gloo", 1, True)
    assert set(done.seconds) == {4096, 8192} and all(seconds > 0 for seconds in done.seconds.values())
    assert not dist.is_initialized()


def test_a_wrong_sum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    reduce = dist.all_reduce

    def one_off(values: torch.Tensor) -> None:
        reduce(values)
        values[-1] += 1

    monkeypatch.setattr(dist, "all_reduce", one_off)
    done = measure_all_reduce((4096,))
    assert not done.right
    finding = all_reduce_finding(ProcessResult(done), None)
    assert finding.state == "wrong" and "a sum is wrong" in finding.found and "NCCL_DEBUG" in finding.advice


def test_findings() -> None:
    assert all_reduce_finding(ProcessResult(error="no answer within 120 s"), None).state == "wrong"
    alone = all_reduce_finding(of(processes=1), 0.1)
    assert alone.state == "ok" and "nothing to communicate" in alone.found
    fast = all_reduce_finding(of(), 0.1)
    assert fast.state == "ok" and "GB/s" in fast.found and "unknown" in fast.normal and not fast.advice
    assert all_reduce_finding(of(), None).state == "ok"  # no step was timed
    slow = all_reduce_finding(of(seconds=0.06), 0.1)
    assert (
        slow.state == "warning" and "0.6 of SimSiam's fastest step" in slow.found and "nvidia-smi topo" in slow.advice
    )
    assert all_reduce_finding(of(seconds=0.05), 0.1).state == "ok"
    assert all_reduce_finding(of("gloo", 2, 10.0), None).state == "ok"


@pytest.mark.slow
def test_two_processes_of_this_machine() -> None:
    answer = all_reduce_between_processes(2, 120)
    assert answer.error == "" and answer.value.processes == 2 and answer.value.right
