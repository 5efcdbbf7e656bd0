"""The same trial by --num-gpus, torchrun and Slurm's variables, on one node and on two; and its end in divergence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssl_transfer.files import read_json
from tests.transfer.engine.broken_off import assert_same_end, command
from transfer.engine.prepare import TrialRequest

RequestFactory = Callable[..., TrialRequest]
pytestmark = pytest.mark.slow
WORDS = ("SOLVER.IMS_PER_BATCH", "4", "SOLVER.CHECKPOINT_PERIOD", "2")


@pytest.fixture
def environment() -> dict[str, str]:
    """Without a place that torchrun or Slurm gave the tests themselves."""
    places = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "TORCHELASTIC_")
    return {key: value for key, value in os.environ.items() if not key.startswith(places)}


def result_of(request: TrialRequest, processes: list[subprocess.Popen[str]]) -> dict[str, Any]:
    for process in processes:
        said, error = process.communicate(timeout=900)
        assert process.returncode == 0, f"{said}\n{error}"
    result: dict[str, Any] = read_json(request.output / "result.json")
    return result


def test_every_launcher_trains_the_same_detector(
    make_request: RequestFactory, root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    def start(words: list[str], **more: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(words, cwd=root, env={**environment, **more}, stdout=pipe, stderr=pipe, text=True)

    spawned, torchrun, slurm, nodes = (
        make_request(*WORDS, task="coco", output=tmp_path / name) for name in ("spawned", "torchrun", "slurm", "nodes")
    )
    results = [result_of(spawned, [start(command(root, spawned, "--num-gpus", "2"))])]

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    results.append(result_of(torchrun, [start([*launcher, *command(root, torchrun)[1:]])]))

    def tasks(request: TrialRequest, job: str, per_node: str, nodelist: str, local: tuple[str, str]) -> dict[str, Any]:
        step = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
        step |= {"SLURM_STEP_TASKS_PER_NODE": per_node, "SLURM_STEP_NODELIST": nodelist}
        ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": local[rank]} for rank in range(2)]
        return result_of(request, [start(command(root, request), **step, **rank) for rank in ranks])

    job = str(os.getpid())
    results.append(tasks(slurm, job, "2", "localhost", ("0", "1")))
    results.append(tasks(nodes, job + "1", "1(x2)", "localhost,localhost", ("0", "0")))
    for request, result in zip((spawned, torchrun, slurm, nodes), results, strict=True):
        assert (result["status"], result["settings"]["num_processes"], result["settings"]["norm"]) == (
            "done",
            2,
            "naiveSyncBN",
        )
        assert_same_end(spawned.output, request.output)


def test_a_diverged_trial_of_two_processes_exits_0(
    make_request: RequestFactory, root: Path, environment: dict[str, str]
) -> None:
    request = make_request(*WORDS, "SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0")
    words = command(root, request, "--num-gpus", "2")
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "diverged at iteration" in done.stdout and "Traceback" not in done.stderr
    result = read_json(request.output / "result.json")
    divergence = result["divergence"]
    assert result["status"] == "diverged" and result["metrics"] is None
    assert 0 < divergence["iteration"] < 4 and divergence["lr"] == 1e30
    before = (request.output / "result.json").stat().st_mtime_ns
    again = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0 and "has ended before (diverged)" in again.stdout
    assert (request.output / "result.json").stat().st_mtime_ns == before
