"""A job's status by queue and disk, its final state, the lines of sinfo: without Slurm."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from ssl_transfer.environment import host_name
from ssl_transfer.errors import UserError
from ssl_transfer.formats.job import JobState, SlurmSubmission, utc_now
from tests.transfer.experiment.small_world import World
from transfer.experiment.decide import Decision, decide
from transfer.experiment.graph import Job
from transfer.experiment.load import read_site, read_step_times
from transfer.experiment.slurm.endings import (
    describe_stop,
    final_state,
    read_process_ends,
    read_slurm_log,
    write_process_end,
)
from transfer.experiment.slurm.job_processes import SlurmProcess
from transfer.experiment.slurm.setup import Partition, choose_partition, parse_hours, parse_partition, site_text
from transfer.experiment.slurm_queue import QueueEntry, query_jobs, query_starts
from transfer.experiment.spec import StepTime
from transfer.experiment.store import Snapshot, Store
from transfer.experiment.views import job_cost, status_lines

NAME = "finetune.scratch.coco.s1"
STOPS = ("PREEMPTION", "JOB REQUEUE", "TIME LIMIT")

LATER = "2026-11-28T12:00:00.000+00:00"


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that is all of PATH; a command that is tried again does not wait."""
    monkeypatch.setattr("transfer.experiment.slurm_queue.time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")  # /usr/bin may hold a real Slurm
    return tmp_path / "bin"


class TestQueries:
    """One squeue for all jobs, sacct for purged ones."""

    def test_one_call_for_all_and_sacct_for_the_rest(self, bin_dir: Path, tmp_path: Path) -> None:
        program(bin_dir, "squeue", f'echo "$@" >> {tmp_path}/calls; echo "7_0|PENDING|Priority||0"; '
                'echo "8|RUNNING|None|n[1-2]|0"; echo "7_1|PENDING|Priority||0"')  # fmt: skip
        program(
            bin_dir,
            "sacct",
            'echo "9|CANCELLED by 0|n1|0:9"; echo "9.batch|CANCELLED|n1|0:9"; echo "10|TIMEOUT|n1|0:0"',
        )
        found = query_jobs({"7_0", "8", "9", "10", "11"})
        assert {id_: entry.state for id_, entry in found.items()} == {
            "7_0": "PENDING", "8": "RUNNING", "9": "CANCELLED", "10": "TIMEOUT",
        }  # fmt: skip
        assert found["9"] == QueueEntry("9", "CANCELLED", nodes="n1", exit_code="0:9", user="root")
        assert (tmp_path / "calls").read_text().count("\n") == 1
        assert "--jobs=10,11,7,8,9" in (tmp_path / "calls").read_text()
        assert query_jobs(()) == {}

    def test_without_accounting_purged_jobs_are_left_out(self, bin_dir: Path) -> None:
        program(bin_dir, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
        assert query_jobs({"9"}) == {}
        program(bin_dir, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
        assert query_jobs({"9"}) == {}

    def test_a_controller_that_does_not_answer_is_one_line(self, bin_dir: Path) -> None:
        program(bin_dir, "squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
        with pytest.raises(UserError, match="squeue failed: Unable to contact slurm controller"):
            query_jobs({"9"})

    def test_starts_by_accounting(self, bin_dir: Path) -> None:
        assert query_starts({"9"}) == {}
        program(
            bin_dir,
            "sacct",
            'case "$*" in *--duplicates*) ;; *) exit 1;; esac\necho "9|60|cpu=4,gres/gpu:a=2,gres/gpu=2,node=1"\n'
            'echo "9|30|cpu=4,gres/gpu=2"\necho "9|0|"\necho "10|50|cpu=4"\necho "11|5|cpu=4"',
        )
        found = query_starts({"9", "10"})
        assert {id_: [(one.seconds, one.gpus) for one in starts] for id_, starts in found.items()} == {
            "9": [(60, 2), (30, 2)],
            "10": [(50, None)],
        }

    def test_no_squeue_is_one_line(self, bin_dir: Path) -> None:
        with pytest.raises(UserError, match="there is no squeue on this machine"):
            query_jobs({"9"})


@pytest.fixture
def job(world: World) -> Job:
    return world.open().graph[NAME]


def state(job: Job, **changes: object) -> JobState:
    running = {"status": "running", "executor": "slurm", "attempts": 1, "started": utc_now(), "job_id": "7"}
    return JobState(**{"name": job.name, "fingerprint": job.fingerprint, **running, **changes})


def submission(job: Job, **changes: object) -> SlurmSubmission:
    values = {"id": "7", "at": utc_now(), "attempt": 0, "requeues": 20, "name": job.name}
    return SlurmSubmission(**{**values, "fingerprint": job.fingerprint, **changes})


def queue_with(state: str | None, reason: str = "", error: str | None = None) -> Snapshot:
    """What the queue says of Slurm job 7."""
    return Snapshot(queue={"7": QueueEntry("7", state, reason)} if state else {}, queue_error=error)


def decisions(world: World, queue: Snapshot) -> dict[str, Decision]:
    opened = world.open()
    return decide(opened.graph, opened.store.snapshot(opened.graph, queue))


@pytest.mark.parametrize(
    ("on_disk", "queued", "word"),
    [
        (None, "PENDING", "queued"),
        (None, "RUNNING", "running"),
        (None, None, "cancelled"),  # taken out before it began
        (None, "CANCELLED", "cancelled"),
        (None, "FAILED", "failed"),
        ({}, "RUNNING", "running"),
        ({}, None, "interrupted"),
        ({}, "TIMEOUT", "failed"),
        ({}, "OUT_OF_MEMORY", "failed"),
        ({}, "NODE_FAIL", "interrupted"),
        ({"status": "requeued", "ended": LATER}, "PENDING", "queued"),
        ({"status": "requeued", "ended": LATER}, None, "interrupted"),
        ({"status": "failed", "ended": LATER}, "RUNNING", "running"),  # the batch script may put it back
        ({"status": "failed", "ended": LATER}, "FAILED", "failed"),
        ({"status": "failed", "ended": LATER}, None, "failed"),
        ({"status": "cancelled", "ended": LATER}, "COMPLETING", "cancelled"),
        ({"status": "diverged", "ended": LATER}, "COMPLETING", "incomplete"),  # its output is not there
        ({"status": "failed", "ended": LATER, "job_id": "6"}, "PENDING", "queued"),  # of an earlier filing
        ({"status": "failed", "ended": LATER, "job_id": "6"}, None, "cancelled"),
        ({"status": "failed", "ended": LATER, "job_id": None, "attempts": 2}, None, "failed"),  # later, without a queue
    ],
)
def test_status_by_disk_and_queue(
    world: World, job: Job, on_disk: dict[str, object] | None, queued: str | None, word: str
) -> None:
    store = Store(world.run_dir)
    is_other = on_disk is not None and on_disk.get("job_id", "7") != "7"
    submission(job, attempt=1 if is_other else 0).write_to(store.folder(job))
    if on_disk is not None:
        store.write(job, state(job, **on_disk))
    assert store.snapshot([job], queue_with(queued)).views[NAME].status == word


@pytest.mark.parametrize(
    ("on_disk", "entry", "words"),
    [
        (
            None,
            QueueEntry("7", "FAILED", "JobLaunchFailure", "n1", "0:9"),
            ["FAILED, exit code 0:9, JobLaunchFailure", "n1"],
        ),
        (
            {},
            QueueEntry("7", "OUT_OF_MEMORY", "OutOfMemory", "n1", "0:125"),
            ["ran out of memory (Slurm job 7: ", "on n1"],
        ),
        (
            {},
            QueueEntry("7", "TIMEOUT", "TimeLimit", "n1", "0:0"),
            ["reached its time limit", "TIMEOUT, TimeLimit, on n1"],
        ),
        ({}, QueueEntry("7", "NODE_FAIL", "NodeDown", "n[1-2]"), ["its node failed", "on n[1-2]); continues from"]),
        ({}, QueueEntry("7", "CANCELLED", "None", "n1", "0:9", "ann"), ["cancelled by user ann (", "exit code 0:9"]),
        (None, QueueEntry("7", "CANCELLED", "None"), ["cancelled by user ("]),
        (None, QueueEntry("7", "CANCELLED", "DependencyNeverSatisfied"), ["cancelled by Slurm (", "Dependency"]),
        (
            {"status": "requeued", "ended": "2026-01-01T00:00:05+00:00", "error": "SIGTERM"},
            QueueEntry("7", "CANCELLED"),
            ["cancelled by user"],
        ),
        (
            {"status": "requeued", "ended": "2026-01-01T00:00:05+00:00", "error": "its node"},
            None,
            ["its node; continues"],
        ),
        (
            {"status": "failed", "ended": "2026-01-01T00:00:05+00:00", "error": "boom"},
            QueueEntry("7", "FAILED", "NonZeroExitCode"),
            ["failed: boom"],
        ),
        (
            {"status": "failed", "ended": "2026-01-01T00:00:05+00:00", "error": "of old", "job_id": "6"},
            QueueEntry("7", "TIMEOUT"),
            ["time limit"],
        ),
    ],
)
def test_the_reason_is_the_job_s_own_or_slurm_s(
    world: World,
    job: Job,
    capsys: pytest.CaptureFixture[str],
    on_disk: dict[str, object] | None,
    entry: QueueEntry | None,
    words: list[str],
) -> None:
    store, graph = Store(world.run_dir), world.open().graph
    submission(job, attempt=1 if on_disk and "job_id" in on_disk else 0).write_to(store.folder(job))
    if on_disk is not None:
        store.write(job, state(job, **on_disk))
        (store.folder(job) / "metrics.json").write_text('{"iteration": 1, "total_loss": 0.5}\n')
    queue = Snapshot(queue={"7": entry} if entry else {})
    why = decide(graph, store.snapshot(graph, queue))[NAME].why
    line = next(line for line in status_lines(graph, store, store.snapshot(graph, queue)) if line.startswith(NAME))
    for word in words:
        assert word in why
        assert word.partition("; continues")[0].removeprefix("failed: ") in line
    assert "0.5" not in line, "the loss of a job that has ended is not why"


def test_attempts_and_gpu_hours_are_summed_over_attempts(world: World, job: Job, bin_dir: Path) -> None:
    store, graph = Store(world.run_dir), world.open().graph
    log = store.log(job)
    log.parent.mkdir(parents=True)
    log.touch()
    begun = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
    at = [(begun + timedelta(minutes=10 * n)).isoformat() for n in range(5)]
    first = state(job, job_id="6", started=at[0], ended=at[1], status="failed", error="boom", gpus=8)
    second = state(job, started=at[1], gpus=4, kills=1).after(first, log)  # its node died: only its log says when
    os.utime(log, ((begun + timedelta(minutes=20)).timestamp(),) * 2)
    third = state(job, started=at[3], ended=at[4], status="done", gpus=4, restarts=1).after(second, log)
    assert (second.attempts, third.attempts, second.kills, third.kills) == (2, 3, 0, 0)
    assert [(one.job_id, one.seconds, one.error) for one in third.earlier] == [("6", 600, "boom"), ("7", 600, None)]
    store.write(job, third)
    submission(job).write_to(store.folder(job))
    program(bin_dir, "squeue", "")
    snapshot = store.snapshot(graph)
    assert snapshot.views[NAME].usage({}) == (3, pytest.approx((8 * 10 + 4 * 10 + 4 * 10) / 60))
    program(bin_dir, "sacct", 'echo "7|900|cpu=1"; echo "7|600|gres/gpu=2"')  # it does not know job 6
    accounted = snapshot.with_accounting()
    assert snapshot.views[NAME].usage(accounted.starts) == (3, pytest.approx((8 * 10 + 4 * 15 + 2 * 10) / 60))
    title, heads, *lines = status_lines(graph, store, accounted)
    assert "2.7 GPU-hours" in title and "attempts  GPU-hours" in heads
    row = next(line for line in lines if line.startswith(NAME))
    assert row[heads.index("attempts")] == "3" and row[heads.index("GPU-hours") :].startswith("2.67")


def test_a_queued_job_is_not_submitted_again(world: World, job: Job) -> None:
    store = Store(world.run_dir)
    submission(job).write_to(store.folder(job))
    found = decisions(world, queue_with("PENDING", "Priority"))
    assert (found[NAME].action, found[NAME].why) == ("queued", "Slurm job 7, Priority")
    assert found["table"].action == "run"
    one = decisions(world, queue_with(None, error="squeue did not answer"))[NAME]
    assert (one.action, one.status) == ("queued", "unknown")
    assert "Slurm job 7" in one.why and "squeue did not answer" in one.why


@pytest.mark.parametrize("status", [None, "running", "requeued", "failed", "done"])
def test_a_decision_reads_each_file_of_a_submitted_job_once(
    world: World, job: Job, status: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, graph = Store(world.run_dir), world.open().graph
    submission(job).write_to(store.folder(job))
    if status is not None:
        store.write(job, state(job, status=status))
    read: list[str] = []

    def counted(path: Path, _limit: int = 0) -> object:
        read.append(Path(path).name)
        return json.loads(Path(path).read_text())

    monkeypatch.setattr("ssl_transfer.formats.read_json", counted)
    decide(graph, store.snapshot(graph, queue_with("RUNNING" if status == "running" else None)))
    assert sorted(read) == ["filed.json"] + (["job.json"] if status is not None else [])


def test_a_submission_that_a_later_attempt_replaced_needs_no_queue(world: World, job: Job, bin_dir: Path) -> None:
    store = Store(world.run_dir)
    submission(job).write_to(store.folder(job))
    store.write(job, state(job, status="failed", ended=LATER, job_id=None, attempts=2))
    snapshot = store.snapshot(world.open().graph)  # there is no squeue
    assert snapshot.queue_error is None
    assert snapshot.views[NAME].status == "failed"


class TestFinalState:
    """The batch script's last line writes down how the job ended: by the first end that is no effect of another."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """The job's folder; beside it, that of Slurm's output."""
        (tmp_path / "slurm").mkdir()
        (tmp_path / "jobs/x").mkdir(parents=True)
        return tmp_path / "jobs/x"

    @pytest.fixture
    def final(self, job: Job, folder: Path) -> Callable[..., JobState]:
        def find(before: JobState | None, *, restarts: int = 0, requeues: int = 20, code: int = 1) -> JobState:
            ends = read_process_ends(folder, f"7.{restarts}")
            sent = submission(job, requeues=requeues)
            return final_state(before, ends, sent, restarts=restarts, code=code, folder=folder)

        return find

    @staticmethod
    def printed(folder: Path, *lines: str, rank: int = 0) -> None:
        with open(folder.parents[1] / f"slurm/7_{rank}_log.err", "a") as stream:
            stream.write("".join(f"{line}\n" for line in lines))

    STOPPED: ClassVar = {
        "status": "requeued",
        "ended": "2026-01-01T00:00:05+00:00",
        "error": "SIGTERM",
        "exit_code": 75,
    }
    """The first process, to which srun has sent SIGTERM because another one failed."""

    def test_a_vanished_first_process_is_requeued(self, job: Job, final: Callable[..., JobState]) -> None:
        found = final(state(job), code=137)
        assert (found.status, found.kills, found.error) == ("requeued", 1, "a process was killed")

    def test_a_first_process_that_raised_is_no_vanished_one(
        self, job: Job, folder: Path, final: Callable[..., JobState]
    ) -> None:
        self.printed(folder, "Traceback", "OSError: [Errno 5] Input/output error")
        found = final(state(job))
        assert found.status == "failed" and "exited with 1: OSError: [Errno 5]" in str(found.error)

    def test_a_killed_tool_is_requeued(self, job: Job, final: Callable[..., JobState]) -> None:
        before = state(job, status="failed", exit_code=-signal.SIGKILL, ended=LATER, error="killed by SIGKILL")
        assert final(before).status == "requeued"

    def test_three_kills_in_a_row_fail(self, job: Job, final: Callable[..., JobState]) -> None:
        found = final(state(job, kills=2), code=137)
        assert found.status == "failed" and str(found.error).startswith("killed 3 times in a row; a process was")

    @pytest.mark.parametrize("before", [{}, STOPPED], ids=["vanished", "stopped"])
    def test_another_process_s_error_is_the_reason(
        self,
        job: Job,
        folder: Path,
        final: Callable[..., JobState],
        before: dict[str, object],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("SLURMD_NODENAME", "gpu07")  # Slurm's name, which --exclude takes, not the host's
        write_process_end(folder, "7.0", 2, "RuntimeError: Connection closed by peer [10.0.0.1]:4", 1)
        write_process_end(folder, "7.0", 1, "ValueError: boom", 1)
        found = final(state(job, **before))
        assert (found.status, found.error, found.kills) == ("failed", "process 1 on gpu07: ValueError: boom", 0)

    @pytest.mark.parametrize("before", [{}, STOPPED], ids=["vanished", "stopped"])
    def test_a_kill_of_another_process_counts(
        self, job: Job, folder: Path, final: Callable[..., JobState], before: dict[str, object]
    ) -> None:
        write_process_end(folder, "7.0", 3, "killed by SIGKILL (out of memory?)", -9)
        write_process_end(folder, "7.0", 1, "RuntimeError: Connection reset by peer", 1)
        found = final(state(job, **before))
        assert (found.status, found.kills) == ("requeued", 1)
        assert f"process 3 on {host_name()}: killed by SIGKILL" in str(found.error)
        found = final(state(job, **before, kills=2))
        assert found.status == "failed" and "process 3 on" in str(found.error)

    def test_the_first_process_s_error_after_a_kill_is_its_effect(
        self, job: Job, folder: Path, final: Callable[..., JobState]
    ) -> None:
        write_process_end(folder, "7.0", 1, "killed by SIGKILL", -9)
        before = state(
            job, status="failed", exit_code=1, ended="3000-01-01T00:00+00:00", error="RuntimeError: no answer"
        )
        assert final(before).status == "requeued"
        before = before.replace(ended="2000-01-01T00:00:00+00:00")  # this one came first
        assert final(before) == before

    @pytest.mark.parametrize("what", ["Killed", "Out Of Memory"])
    def test_srun_s_line_names_a_process_that_left_no_record(
        self, job: Job, folder: Path, final: Callable[..., JobState], what: str
    ) -> None:
        self.printed(folder, "srun: error: n1: task 1: Exited with exit code 1", "== end of start 7.0: requeued")
        stop = "srun: launch/slurm: _step_signal: Terminating StepId=7.0"
        self.printed(
            folder, f"srun: error: n2: task 1: {what}", stop, "srun: error: n1: task 0: Exited with exit code 1"
        )
        found = final(state(job, **self.STOPPED, restarts=1), restarts=1, code=137)
        assert (found.status, found.error) == ("requeued", f"a process was killed (process 1 on n2: {what})")

    def test_a_process_that_cannot_even_start_is_the_failure(
        self, job: Job, folder: Path, final: Callable[..., JobState]
    ) -> None:
        self.printed(folder, "ModuleNotFoundError: No module named 'submitit'", rank=1)
        self.printed(folder, "srun: error: n2: tasks 1-3: Exited with exit code 1", "srun: Terminating StepId=7.0")
        found = final(state(job, **self.STOPPED))
        assert found.status == "failed"
        assert "process 1 on n2: Exited with exit code 1: ModuleNotFoundError" in str(found.error)

    def test_an_error_of_its_own_stays(self, job: Job, folder: Path, final: Callable[..., JobState]) -> None:
        write_process_end(folder, "7.0", 1, "RuntimeError: Connection closed by peer", 1)
        before = state(job, status="failed", exit_code=2, ended=LATER, error="error: no such file")
        assert final(before) == before

    def test_requeues_are_limited(self, job: Job, final: Callable[..., JobState]) -> None:
        before = state(job, status="requeued", ended=LATER, error="SIGTERM", restarts=3)
        assert final(before, restarts=3) == before
        found = final(before, restarts=3, requeues=3)
        assert (found.status, found.error) == ("failed", "was requeued 3 times already; SIGTERM")

    def test_a_job_that_never_began_names_the_reason_and_the_log(
        self, job: Job, folder: Path, final: Callable[..., JobState]
    ) -> None:
        self.printed(folder, "execve(): apptainer: No such file or directory", "srun: error: Exited")
        found = final(None, code=2)
        assert found.status == "failed"
        log = folder.parents[1] / "slurm/7_0_log.err"
        assert f"execve(): apptainer: No such file or directory ({log})" in str(found.error)

    def test_a_restart_that_never_began_is_not_taken_for_the_start_before_it(
        self, job: Job, folder: Path, final: Callable[..., JobState]
    ) -> None:
        self.printed(folder, "module: command not found")
        before = state(job, status="requeued", ended="2026-01-01T00:00:05+00:00", error="its time limit", restarts=0)
        found = final(before, restarts=1, code=127)
        assert (found.status, found.attempts, len(found.earlier)) == ("failed", 2, 1)
        assert "module: command not found" in str(found.error)

    def test_error_records_of_an_earlier_start_are_ignored(self, folder: Path) -> None:
        write_process_end(folder, "7.0", 1, "ValueError: old", 1)
        write_process_end(folder, "7.1", 2, "killed by SIGKILL", -9)
        [end] = read_process_ends(folder, "7.1")
        assert end.kind == "killed" and end.error.startswith("process 2 on ")

    def test_why_slurm_sent_sigterm(self, job: Job, folder: Path) -> None:
        stop = "slurmstepd-n1: error: *** {} 7 ON n1 CANCELLED AT 2026-11-28T19:49:39 {}***"
        self.printed(folder, stop.format("STEP", ""), *(stop.format("JOB", f"DUE TO {why} ") for why in STOPS))
        self.printed(folder, stop.format("JOB", ""))
        stops = tuple(read_slurm_log(folder, "7").stops.values())
        assert stops == (*STOPS, "")
        found = [describe_stop(state(job, **self.STOPPED), why) for why in stops]
        assert [one.status for one in found] == ["requeued"] * 3 + ["cancelled"]
        assert "preemption" in str(found[0].error) and "by user" in str(found[-1].error)

    def test_what_srun_printed_before_a_requeue_is_of_an_earlier_start(
        self, job: Job, folder: Path, final: Callable[..., JobState]
    ) -> None:
        self.printed(folder, "srun: error: n2: task 1: Killed")
        self.printed(
            folder, "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-28T19:49:39 DUE TO PREEMPTION ***"
        )
        self.printed(folder, "srun: error: n3: task 2: Exited with exit code 1", "srun: Terminating StepId=7.0")
        found = final(state(job, **self.STOPPED, restarts=1), restarts=1)
        assert (found.status, found.error) == ("failed", "process 2 on n3: Exited with exit code 1")

    def test_current_process_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in list(os.environ):
            if name.startswith("SLURM_"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("SLURM_JOB_ID", "9")
        assert SlurmProcess.current() == SlurmProcess("9", 0, 0)
        for name, value in {"ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "2", "RESTART_COUNT": "1", "PROCID": "3"}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        assert SlurmProcess.current() == SlurmProcess("7_2", 1, 3)


class TestPartitions:
    """sinfo's lines."""

    LINES = (
        "debug*|up|30:00|2|16|64000|(null)",
        "gpu|up|2-00:00:00|40|96+|1031000|gpu:a100:8(S:0-1)",
        "old|down|infinite|8|48|256000|gpu:4",
    )

    def test_lines(self) -> None:
        found = [parse_partition(line) for line in self.LINES]
        assert found[0] == Partition("debug", True, True, 0.5, 2, 16, 62.5, 0, "")
        assert (found[1].gpus, found[1].gpu_type, found[1].hours, found[1].cpus) == (8, "a100", 48, 96)
        assert (found[2].gpus, found[2].gpu_type, found[2].hours, found[2].is_up) == (4, "", None, False)
        assert choose_partition(found).name == "gpu"
        assert choose_partition(found, "debug").name == "debug"
        with pytest.raises(UserError, match=r"--partition gpus: did you mean gpu\?"):
            choose_partition(found, "gpus")
        with pytest.raises(UserError, match="no partition is up"):
            choose_partition(found, "old")

    def test_the_site_file(self, tmp_path: Path) -> None:
        found = [parse_partition(line) for line in self.LINES]
        (tmp_path / "site.yaml").write_text(site_text(choose_partition(found), found))
        site = read_site(tmp_path / "site.yaml").resources.default
        assert (site.partition, site.gres, site.gpus, site.cpus) == ("gpu", "gpu:a100:8", 8, 12)
        assert (site.memory_gb, site.hours) == (906, 24)

    @pytest.mark.parametrize(
        ("limit", "expected"),
        [("30", 0.5), ("30:00", 0.5), ("12:30:00", 12.5), ("2-12", 60), ("1-00:00:00", 24), ("infinite", None)],
    )
    def test_limits(self, limit: str, expected: float | None) -> None:
        assert parse_hours(limit) == expected


class TestCosts:
    """GPU-hours, each with its source, or unknown."""

    def test_shipped_numbers_and_sources(self) -> None:
        seconds = {recipe: entry for entry in read_step_times() for recipe in entry.recipes}
        assert (seconds["voc07"].seconds, seconds["coco"].seconds, seconds["coco_fpn"].seconds) == (0.537, 0.584, 0.261)
        measured = [entry for entry in read_step_times() if not entry.estimate]
        assert measured and all("MODEL_ZOO.md" in entry.source for entry in measured)
        estimated = [entry for entry in read_step_times() if entry.estimate]
        assert estimated and all(
            "MODEL_ZOO.md" in entry.source or "docs/notes/performance.md" in entry.source for entry in estimated
        )
        assert seconds["simsiam_r50_b256_100ep_base"].seconds == pytest.approx(1_281_167 / (8 * 400), abs=0.1)

    def test_a_site_s_own_come_first(self, job: Job) -> None:
        coco = dataclasses.replace(job, recipe="coco", total=90_000.0)
        found = job_cost(coco, read_step_times())
        assert found is not None and found.gpu_hours == pytest.approx(116.8)
        own = StepTime(recipes=["coco"], seconds=0.25, gpus=4, device="H100", source="ours")
        mine = job_cost(coco, [own, *read_step_times()])
        assert mine is not None and (mine.gpu_hours, mine.measured.device) == (25.0, "H100")

    def test_another_batch_or_an_overlay_has_no_known_cost(self, world: World) -> None:
        (world.base / "configs/coco.yaml").write_text("TRANSFER: {TASK: coco}\nSOLVER: {MAX_ITER: 90000}\n")
        assert world.open().graph[NAME].recipe == "coco"
        assert world.open("tasks.coco.overrides={SOLVER.IMS_PER_BATCH: 8}").graph[NAME].recipe is None
        (world.base / "overlay.yaml").write_text("transfer: {TRANSFER: {TOY: true}}\n")
        assert world.open(f"overlay={world.base}/overlay.yaml").graph[NAME].recipe is None

    def test_plan_shows_known_and_unknown_cost(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        (world.base / "configs/coco.yaml").write_text("TRANSFER: {TASK: coco}\nSOLVER: {MAX_ITER: 90000}\n")
        assert world.launch("plan") == 0
        out = capsys.readouterr().out
        assert "finetune: 6 jobs, 233.6 GPU-hours on V100, 4 unknown (facebookresearch/detectron2 MODEL_ZOO.md" in out
        assert "pretrain: 1 jobs, unknown GPU-hours" in out
