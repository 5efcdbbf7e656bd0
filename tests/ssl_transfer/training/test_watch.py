"""A training in which nothing moves writes its stacks and exits with 75; resumed, it ends like an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssl_transfer.formats.heartbeat import Heartbeat, describe_stragglers, own_seconds, read_heartbeats, slowest_host
from ssl_transfer.training import watch as watching
from ssl_transfer.training.watch import CHECKPOINT, EVALUATION, START, HangWatch
from tests.pretrain.conftest import SMALL, draw_images

ROOT = Path(__file__).resolve().parents[3]
BOUND = "8"
"""Seconds; below the shortest that a user would set, above what a step takes on a busy machine."""


def _heartbeat(
    rank: int, host: str, iteration: int, step: float = 1.0, data: float = 0.1, collectives: float = 0.0
) -> Heartbeat:
    return Heartbeat(
        rank=rank, host=host, pid=1, attempt="", at="2026-01-01T00:00:00+00:00", phase="step",
        iteration=iteration, step_seconds=step, data_seconds=data, collective_seconds=collectives,
    )  # fmt: skip


def test_each_phase_has_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = HangWatch(tmp_path, 20.0)
    assert watch.bound() == watching.BOUNDS[START] >= 600
    now = iter([0.0, 1.0, 10.0, 13.0, 20.0, 25.0, 30.0])
    monkeypatch.setattr(watching.time, "perf_counter", lambda: next(now))
    for _ in range(3):
        watch.begin_step()
        watch.end_step(0.5)
    watch.begin_step()
    assert watch.bound() == 30  # ten times the median
    watch.seconds = 300.0
    assert watch.bound() == 300
    for phase in (EVALUATION, CHECKPOINT):
        watch.enter(phase)
        assert watch.bound() == watching.BOUNDS[phase]


def test_the_heartbeat_says_how_far_an_evaluation_is_until_the_next_step(tmp_path: Path) -> None:
    watch = HangWatch(tmp_path, 300.0)
    for report, expected in ((True, "evaluating 3 of 9 images"), (False, None)):
        if report:
            watch.report("evaluating 3 of 9 images")
        else:
            watch.enter(CHECKPOINT)
        watch._write()
        (one,) = read_heartbeats(tmp_path)
        assert (one.doing, one.phase) == (expected, EVALUATION if report else CHECKPOINT)


def test_a_run_that_ends_leaves_no_file(tmp_path: Path) -> None:
    with HangWatch(tmp_path, 300.0):
        time.sleep(1.5 * watching.POLL)
        (one,) = read_heartbeats(tmp_path)
        assert (one.rank, one.phase, one.pid, one.hung) == (0, START, os.getpid(), None)
    assert not list(tmp_path.iterdir())


def test_the_process_that_got_least_far_is_blamed() -> None:
    assert slowest_host([_heartbeat(0, "a", 7), _heartbeat(1, "b", 6), _heartbeat(2, "c", 7)]) == "b"


def test_stragglers_are_named_by_their_own_times() -> None:
    alike = [_heartbeat(rank, "a", 9, 1.0 + 0.1 * rank) for rank in range(3)]
    assert describe_stragglers(alike) is None
    assert describe_stragglers(alike[:1]) is None
    named = describe_stragglers([*alike, _heartbeat(3, "slow", 9, data=0.9)])
    assert named is not None and "rank 3 on slow" in named and "0.90 s" in named and "0.10 s" in named


def test_a_process_that_waits_for_the_slow_one_is_not_slow() -> None:
    """All steps take as long as the slowest process's, which is the one that does not wait in collectives."""
    waiting = [_heartbeat(rank, "a", 9, 1.0, collectives=0.7) for rank in range(3)]
    named = describe_stragglers([*waiting, _heartbeat(3, "slow", 9, 1.0, collectives=0.1)])
    assert named is not None and "rank 3 on slow" in named and "0.90 s" in named and "0.30 s" in named
    unknown = _heartbeat(3, "new", 1, 1.0).model_copy(update={"collective_seconds": None})
    assert describe_stragglers([*waiting, unknown]) is None


SLOW = """
import sys, time
from pathlib import Path
import torch
from detectron2.utils import comm
from torch import nn
from ssl_transfer.training import collective_times, collectives, distributed, watch

class Slow(nn.Module):
    \"\"\"Rank 1 sleeps: before a collective of the forward pass, or in the backward pass.\"\"\"
    def __init__(self, where):
        super().__init__()
        self.layer, self.where = nn.Linear(4, 4), where
    def forward(self, x):
        y = self.layer(x)
        if comm.get_rank() and self.where == "forward":
            time.sleep(0.3)
        y = y - collectives.sum_over_processes(y.mean(0))
        if comm.get_rank() and self.where == "backward":
            y.register_hook(lambda _: time.sleep(0.3))
        return y.square().mean()

def run(folder, where):
    collective_times.EVERY, watch.WRITE_EVERY = 2, 0.0
    model = collectives.wrap_distributed(Slow(where))
    with watch.HangWatch(Path(folder), 0.0) as own:
        own.times.watch_gradients(model)
        for _ in range(8):
            own.begin_step()
            model(torch.randn(8, 4)).backward()
            own.end_step()
        own._write("kept")
        comm.synchronize()
        (Path(folder) / f"heartbeat.rank{comm.get_rank()}.json").rename(Path(folder) / f"rank{comm.get_rank()}.json")

if __name__ == "__main__":
    distributed.launch(run, (sys.argv[1], sys.argv[2]), 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_process_that_sleeps_is_the_straggler_wherever_the_others_wait(tmp_path: Path, where: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SLOW)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(script), str(tmp_path), where], env=env, check=True, timeout=100)
    fast, slow = (Heartbeat.read(tmp_path / f"rank{rank}.json") for rank in range(2))
    assert fast.step_seconds is not None and fast.step_seconds >= 0.3  # the step's time names nobody
    assert slow.collective_seconds is not None and own_seconds(slow) >= 0.3 > 2 * own_seconds(fast)
    named = describe_stragglers([fast, slow])
    assert named is not None and "rank 1 " in named


SCRIPT = """
import sys, time
from pathlib import Path
import torch, torch.distributed as dist
from detectron2.utils import comm
from ssl_transfer.training import distributed, watch

def run(folder, what):
    watch.SUSPENDED = 2.0
    with watch.HangWatch(Path(folder), 1.0) as own:
        own.begin_step()
        own.end_step()
        own.enter(watch.STEP)
        if what == "suspended":
            print("ready", flush=True)
            end = time.monotonic() + 6
            while time.monotonic() < end:
                time.sleep(0.1)
                own.beat()
        elif what == "alone" or comm.get_rank():
            time.sleep(60)
        else:
            dist.all_reduce(torch.zeros(1))

if __name__ == "__main__":
    distributed.launch(run, (sys.argv[1], sys.argv[2]), 2 if sys.argv[2] == "collective" else 1)
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)

    def start(folder: Path, what: str) -> subprocess.Popen[str]:
        folder.mkdir()
        command = [sys.executable, str(file), str(folder), what]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.mark.parametrize(("what", "processes"), [("alone", 1), pytest.param("collective", 2, marks=pytest.mark.slow)])
def test_a_deadlock_ends_with_75_and_the_stacks_of_all_processes(
    script: Callable[..., subprocess.Popen[str]], tmp_path: Path, what: str, processes: int
) -> None:
    process = script(tmp_path / "run", what)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 75 and "error: hung: no progress" in errors and "Traceback" not in errors
    found = read_heartbeats(tmp_path / "run")
    assert len(found) == processes and any(one.hung for one in found)
    for rank in range(processes):
        assert "in run" in (tmp_path / "run" / f"stacks.rank{rank}.txt").read_text()


@pytest.mark.slow
def test_a_process_that_was_itself_suspended_goes_on(
    script: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = script(tmp_path / "run", "suspended")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=100)
    assert process.returncode == 0 and not list((tmp_path / "run").iterdir())


def _command(folder: Path, output: Path, *words: str, bound: str = "300") -> list[str]:
    if not (folder / "small.yaml").exists():
        draw_images(folder / "images", 14)
        (folder / "small.yaml").write_text(SMALL)
    command = [sys.executable, "tools/pretrain.py", "--resume", "--config-file", str(folder / "small.yaml")]
    own = ["DATA.ROOT", str(folder / "images"), "SOLVER.EPOCHS", "10", "CHECKPOINT.PERIOD", "2"]
    return [*command, "--output", str(output), *own, "MONITOR.HANG_SECONDS", bound, *words]


def _wait_for_lines(output: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    file, deadline = output / "metrics.json", time.monotonic() + 120
    while not file.exists() or len(file.read_bytes().splitlines()) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def _rank_one(output: Path) -> int:
    return next(one.pid for one in read_heartbeats(output) if one.rank == 1)


def _loader_worker(output: Path) -> int:
    trainer = read_heartbeats(output)[0].pid
    return int(Path(f"/proc/{trainer}/task/{trainer}/children").read_text().split()[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "words"),
    [(_rank_one, ("--num-gpus", "2")), (_loader_worker, ("DATA.WORKERS", "1"))],
    ids=["rank", "worker"],
)
def test_a_stopped_process_ends_the_run_which_resumes_to_the_same_end(
    tmp_path: Path, victim: Callable[[Path], int], words: tuple[str, ...]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert subprocess.run(_command(tmp_path, whole, *words), cwd=ROOT, check=False).returncode == 0
    process = subprocess.Popen(_command(tmp_path, broken, *words, bound=BOUND), cwd=ROOT, stderr=subprocess.PIPE)
    _wait_for_lines(broken, 5, process)
    os.kill(victim(broken), signal.SIGSTOP)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75 and b"hung: no progress" in errors
    stacks = "".join(file.read_text() for file in broken.glob("stacks.rank*.txt"))
    assert "run_step" in stacks and stacks.count("Current thread") + stacks.count("most recent call first") >= 2
    assert any(one.hung for one in read_heartbeats(broken))
    assert subprocess.run(_command(tmp_path, broken, *words), cwd=ROOT, check=False).returncode == 0
    ends = [torch.load(sorted(one.glob("checkpoint_*.pth"))[-1], weights_only=True) for one in (whole, broken)]
    assert all(torch.equal(ends[0]["method"][name], ends[1]["method"][name]) for name in ends[0]["method"])
    losses = [[json.loads(line)["loss"] for line in (one / "metrics.json").open()] for one in (whole, broken)]
    assert losses[0] == losses[1] and len(losses[0]) == 30
