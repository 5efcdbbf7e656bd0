"""Progress, ETA and the last error line, from files that may be half written."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from rich.console import Console

from ssl_transfer.formats.heartbeat import Heartbeat
from ssl_transfer.formats.job import JobState, utc_now
from tests.transfer.experiment.small_world import World
from transfer.experiment.executors import last_error_line, signal_name
from transfer.experiment.graph import Job
from transfer.experiment.store import Store
from transfer.experiment.views import JobProgress, job_progress, last_metrics, status_lines, status_table


@pytest.fixture
def job(world: World) -> Job:
    return replace(world.open().graph["finetune.scratch.voc07.s1"], total=200.0)


def running(job: Job) -> JobState:
    values = {"name": job.name, "fingerprint": job.fingerprint, "started": utc_now()}
    return JobState(**values, status="running", executor="local", attempts=1)


def progress(job: Job, store: Store, state: JobState) -> JobProgress:
    return job_progress(job, store.folder(job), state)


def metrics(store: Store, job: Job, *lines: dict[str, object], tail: str = "") -> None:
    store.folder(job).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines) + tail
    (store.folder(job) / "metrics.json").write_text(text)


def test_fraction_and_eta(world: World, job: Job) -> None:
    store = Store(world.run_dir)
    assert progress(job, store, running(job)).fraction is None
    metrics(store, job, {"iteration": 50, "time": 2.0, "total_loss": 0.5}, tail='{"iteration": 60, "ti')
    found = progress(job, store, running(job))
    assert found.fraction == 0.25
    assert found.eta == pytest.approx(150 * 2.0)
    assert found.note == "loss 0.5"


def heartbeats(store: Store, job: Job, *, age: float = 0.0, hung: str | None = None, wait: float = 0.1) -> None:
    """Two processes' heartbeats, the second's with other waits for images."""
    at = (datetime.now(timezone.utc) - timedelta(seconds=age)).isoformat(timespec="seconds")
    for rank, data in enumerate((0.1, wait)):
        content = Heartbeat(
            rank=rank, host=f"n{rank}", pid=1, attempt="", at=at, phase="step", iteration=9,
            step_seconds=1.0, data_seconds=data, hung=hung if rank else None,
        )  # fmt: skip
        content.write(store.folder(job) / f"heartbeat.rank{rank}.json")


def test_a_job_that_evaluates_says_how_far_it_is(world: World, job: Job) -> None:
    store, state = Store(world.run_dir), running(job).replace(started="2026-01-01T00:00:00+00:00")
    metrics(store, job, {"iteration": 198, "time": 2.0, "total_loss": 0.5})
    heartbeats(store, job)
    file = store.folder(job) / "heartbeat.rank0.json"
    Heartbeat.read(file).model_copy(update={"doing": "evaluating 120 of 400 images"}).write(file)
    assert progress(job, store, state).note == "loss 0.5 · evaluating 120 of 400 images"


def test_hangs_silence_and_stragglers_of_a_running_job_are_named(world: World, job: Job) -> None:
    store, state = Store(world.run_dir), running(job).replace(started="2026-01-01T00:00:00+00:00")
    metrics(store, job)
    heartbeats(store, job)
    assert progress(job, store, state).note == ""
    heartbeats(store, job, wait=0.6)
    assert "rank 1 on n1" in progress(job, store, state).note
    heartbeats(store, job, age=600)
    assert "no heartbeat for 10:0" in progress(job, store, state).note
    heartbeats(store, job, age=600, hung="no progress for 300 s")
    assert "hung: no progress for 300 s" in progress(job, store, state).note
    assert progress(job, store, running(job)).note == ""  # of an earlier attempt
    for damaged in ('{"format": "heartbeat/1"', "[]", (store.folder(job) / "heartbeat.rank0.json").read_text()[:-40]):
        (store.folder(job) / "heartbeat.rank1.json").write_text(damaged)
        assert "no heartbeat for 10:0" in progress(job, store, state).note
    heartbeats(store, job, age=600)
    for rank in (0, 1):
        file = store.folder(job) / f"heartbeat.rank{rank}.json"
        file.write_text(re.sub(r'"at": "[^"]*"', '"at": "2020-13-45"', file.read_text()))
    assert progress(job, store, state).note == ""


def test_the_tool_s_own_estimate_comes_first(world: World, job: Job) -> None:
    store = Store(world.run_dir)
    metrics(store, job, {"iteration": 50, "time": 2.0, "eta_seconds": 7})
    assert progress(job, store, running(job)).eta == 7


def test_pretraining_counts_epochs(world: World) -> None:
    job = replace(world.open().graph["pretrain.simsiam"], total=10.0)
    store = Store(world.run_dir)
    metrics(store, job, {"iteration": 40, "epoch": 4.0, "time": 0.5, "loss": -0.8})
    found = progress(job, store, running(job))
    assert (found.fraction, found.eta) == (0.4, pytest.approx(60 * 0.5))


def test_unknown_total_gives_no_fraction(world: World, job: Job) -> None:
    store = Store(world.run_dir)
    metrics(store, job, {"iteration": 40, "time": 0.5})
    found = progress(replace(job, total=None), store, running(job))
    assert (found.fraction, found.eta) == (None, None)


@pytest.mark.parametrize("text", ["", "\n", "garbage\n", '{"a": 1', "[1]\n"])
def test_empty_and_broken_metrics_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    assert last_metrics(tmp_path / "metrics.json") == {}


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("".join(json.dumps({"iteration": i, "pad": "x" * 100}) + "\n" for i in range(5000)))
    assert last_metrics(path)["iteration"] == 4999


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", ""),
        ("working\nwarming up\n", "warming up"),
        ("error: no such file\nbye\n", "error: no such file"),
        (
            "Traceback (most recent call last):\n  File x\nValueError: 3 is not 4\ncleaning up\n",
            "ValueError: 3 is not 4",
        ),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory\n", "torch.cuda.OutOfMemoryError: CUDA out of memory"),
        ("error: of attempt one\n== attempt 2 · now · python x\nall is well\n", "all is well"),
    ],
)
def test_last_error_line(tmp_path: Path, log: str, line: str) -> None:
    path = tmp_path / "stdout.log"
    path.write_text("== attempt 1 · now · python x\n" + log)
    assert last_error_line(path) == line
    assert last_error_line(tmp_path / "nothing") == ""


def test_signal_names() -> None:
    assert signal_name(9) == "SIGKILL (out of memory?)"
    assert signal_name(15) == "SIGTERM"
    assert signal_name(99) == "signal 99"


def test_status_table_shows_progress_of_running_jobs(world: World, job: Job) -> None:
    store = Store(world.run_dir)
    graph = world.open().graph
    with store.lock(job) as lock:
        assert lock.acquire()
        store.write(job, running(job))
        metrics(store, job, {"iteration": 1, "time": 2.0, "total_loss": 0.5})
        out = io.StringIO()
        Console(width=120, file=out).print(status_table(graph, store, store.snapshot(graph)))
        text = out.getvalue()
    row = next(line for line in text.splitlines() if line.startswith("finetune.scratch.voc07.s1"))
    assert row.split()[1:] == ["running", "33%", "0:00", "0:04", "loss", "0.5"]


def test_status_in_a_pipe_cuts_nothing_off(world: World, job: Job) -> None:
    store = Store(world.run_dir)
    graph = world.open().graph
    store.write(job, running(job).finish("failed", error="the word " * 40))
    title, heads, *lines = status_lines(graph, store, store.snapshot(graph))
    assert "1 failed" in title
    row = next(line for line in lines if line.startswith(job.name))
    assert row.index("failed") == heads.index("state")
    assert row.count("the word") == 40
    assert all(line == line.rstrip() for line in (heads, *lines))
