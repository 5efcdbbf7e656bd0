"""A job's status by queue and disk, its final state, the lines of sinfo: without Slurm."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest

from common.errors import UserError
from common.formats.job import JobState, SlurmSubmission, utc_now
from tests.transfer.experiment.small_world import World
from transfer.experiment.decide import Decision, decide
from transfer.experiment.graph import Job
from transfer.experiment.load import read_site, read_step_times
from transfer.experiment.slurm.job_processes import (
    SlurmProcess,
    WorkerError,
    final_state,
    read_worker_errors,
    write_worker_error,
)
from transfer.experiment.slurm.setup import Partition, choose_partition, parse_hours, parse_partition, site_text
from transfer.experiment.slurm_queue import QueueEntry, query_jobs
from transfer.experiment.spec import StepTime
from transfer.experiment.store import Snapshot, Store
from transfer.experiment.views import job_cost

NAME = "finetune.scratch.coco.s1"


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that is all of PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")  # /usr/bin may hold a real Slurm
    return tmp_path / "bin"


class TestQueries:
    """One squeue for all jobs, sacct for purged ones."""

    def test_one_call_for_all_and_sacct_for_the_rest(self, bin_dir: Path, tmp_path: Path) -> None:
        program(bin_dir, "squeue", f'echo "$@" >> {tmp_path}/calls; echo "7_0|PENDING|Priority|"; '
                'echo "8|RUNNING|None|n[1-2]"; echo "7_1|PENDING|Priority|"')  # fmt: skip
        program(bin_dir, "sacct", 'echo "9|CANCELLED by 1000|n1"; echo "9.batch|CANCELLED|n1"; echo "10|TIMEOUT|n1"')
        found = query_jobs({"7_0", "8", "9", "10", "11"})
        assert {id_: entry.state for id_, entry in found.items()} == {
            "7_0": "PENDING", "8": "RUNNING", "9": "CANCELLED", "10": "TIMEOUT",
        }  # fmt: skip
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
        ({"status": "requeued", "ended": "x"}, "PENDING", "queued"),
        ({"status": "requeued", "ended": "x"}, None, "interrupted"),
        ({"status": "failed", "ended": "x"}, "RUNNING", "running"),  # the batch script may put it back
        ({"status": "failed", "ended": "x"}, "FAILED", "failed"),
        ({"status": "failed", "ended": "x"}, None, "failed"),
        ({"status": "cancelled", "ended": "x"}, "COMPLETING", "cancelled"),
        ({"status": "diverged", "ended": "x"}, "COMPLETING", "incomplete"),  # its output is not there
        ({"status": "failed", "ended": "x", "job_id": "6"}, "PENDING", "queued"),  # of an earlier filing
        ({"status": "failed", "ended": "x", "job_id": "6"}, None, "cancelled"),
        ({"status": "failed", "ended": "x", "job_id": None, "attempts": 2}, None, "failed"),  # later, without a queue
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

    monkeypatch.setattr("common.formats.read_json", counted)
    decide(graph, store.snapshot(graph, queue_with("RUNNING" if status == "running" else None)))
    assert sorted(read) == ["filed.json"] + (["job.json"] if status is not None else [])


def test_a_submission_that_a_later_attempt_replaced_needs_no_queue(world: World, job: Job, bin_dir: Path) -> None:
    store = Store(world.run_dir)
    submission(job).write_to(store.folder(job))
    store.write(job, state(job, status="failed", ended="x", job_id=None, attempts=2))
    snapshot = store.snapshot(world.open().graph)  # there is no squeue
    assert snapshot.queue_error is None
    assert snapshot.views[NAME].status == "failed"


class TestFinalState:
    """The batch script's last line writes down how the job ended."""

    def final(
        self, job: Job, before: JobState | None, *, restarts: int = 0, requeues: int = 20, **codes: int
    ) -> JobState:
        errors = [WorkerError(f"process 1 on n2: {text}", code == -9) for text, code in codes.items()]
        process, sent = SlurmProcess("7", restarts), submission(job, requeues=requeues)
        return final_state(before, errors, process, sent, code=1, folder=Path("/nowhere"))

    def test_a_vanished_first_process_is_requeued(self, job: Job) -> None:
        found = self.final(job, state(job))
        assert (found.status, found.kills, found.error) == ("requeued", 1, "a process was killed")

    def test_a_killed_tool_is_requeued(self, job: Job) -> None:
        before = state(job, status="failed", exit_code=-signal.SIGKILL, ended="x", error="killed by SIGKILL")
        assert self.final(job, before).status == "requeued"

    def test_three_kills_in_a_row_fail(self, job: Job) -> None:
        found = self.final(job, state(job, kills=2))
        assert found.status == "failed" and str(found.error).startswith("killed 3 times in a row; a process was")

    def test_another_process_s_error_is_the_reason(self, job: Job) -> None:
        found = self.final(job, state(job), boom=1)
        assert (found.status, found.error) == ("failed", "process 1 on n2: boom")
        assert self.final(job, state(job), killed=-9).status == "requeued"

    def test_an_error_of_its_own_stays(self, job: Job) -> None:
        before = state(job, status="failed", exit_code=2, ended="x", error="error: no such file")
        assert self.final(job, before) == before

    def test_requeues_are_limited(self, job: Job) -> None:
        before = state(job, status="requeued", ended="x", error="SIGTERM")
        assert self.final(job, before, restarts=3) == before
        found = self.final(job, before, restarts=3, requeues=3)
        assert (found.status, found.error) == ("failed", "was requeued 3 times already; SIGTERM")

    def test_a_job_that_never_began_names_the_reason_and_the_log(self, job: Job, tmp_path: Path) -> None:
        (tmp_path / "slurm").mkdir()
        (tmp_path / "slurm/7_0_log.err").write_text(
            "execve(): apptainer: No such file or directory\nsrun: error: Exited\n"
        )
        found = final_state(None, [], SlurmProcess("7"), submission(job), code=2, folder=tmp_path / "jobs/x")
        assert found.status == "failed"
        assert f"execve(): apptainer: No such file or directory ({tmp_path}/slurm/7_0_log.err)" in str(found.error)

    def test_error_records_of_an_earlier_start_are_ignored(self, tmp_path: Path) -> None:
        write_worker_error(tmp_path, SlurmProcess("7", 0, 1), "ValueError: old", 1)
        write_worker_error(tmp_path, SlurmProcess("7", 1, 2), "killed by SIGKILL", -9)
        [error] = read_worker_errors(tmp_path, SlurmProcess("7", 1))
        assert error.was_killed and error.error.startswith("process 2 on ")

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
        assert (seconds["voc07"].seconds, seconds["coco"].seconds) == (0.537, 0.584)
        assert all("MODEL_ZOO.md" in entry.source for entry in read_step_times())

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
