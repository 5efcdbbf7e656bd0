"""What an edit of the file leaves in the queue, words that name several jobs, folders that were deleted."""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from ssl_transfer.formats.job import SlurmSubmission
from tests.transfer.experiment.fake_slurm import FakeSlurm
from tests.transfer.experiment.small_world import World
from transfer.experiment import executors
from transfer.experiment.commands import Tools
from transfer.experiment.executors import FolderDeleted, JobAttempt, RunContext
from transfer.experiment.graph import select_jobs
from transfer.experiment.slurm.job_processes import Leader, SlurmProcess, SlurmTask

TRIALS = ["finetune.scratch.voc07.s1", "finetune.scratch.voc07.s2"]


def submit(world: World, *words: str) -> int:
    return world.launch("submit", "--cluster", "slurm", *words)


def ids(world: World) -> dict[str, str]:
    opened = world.open()
    filed = {job.name: SlurmSubmission.read_from(opened.store.folder(job)) for job in opened.graph}
    return {name: one.id for name, one in filed.items() if one}


def names(text: str) -> set[str]:
    return set(re.findall(r"(?:pretrain|convert|finetune|table)[\w.]*", text))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["finetune.scratch.voc07.s1"], {"finetune.scratch.voc07.s1"}),
        (["scratch"], {*TRIALS, "finetune.scratch.coco.s1"}),
        (["coco"], {"finetune.scratch.coco.s1", "finetune.simsiam.coco.s1"}),
        (["pretrain", "convert"], {"pretrain.simsiam", "convert.simsiam"}),
        (["finetune.scratch.voc07"], set(TRIALS)),  # as squeue shows the array
        (["finetune.*.s2"], {"finetune.scratch.voc07.s2", "finetune.simsiam.voc07.s2"}),
        (["sim*", "table"], {"pretrain.simsiam", "convert.simsiam", "finetune.simsiam.voc07.s1",
                             "finetune.simsiam.voc07.s2", "finetune.simsiam.coco.s1", "table"}),
    ],
)  # fmt: skip
def test_a_word_names_a_job_a_row_a_task_a_stage_or_a_pattern(
    world: World, words: list[str], expected: set[str]
) -> None:
    assert {job.name for job in select_jobs(world.open().graph, words)} == expected


@pytest.mark.parametrize(
    ("word", "near"), [("voc70", "voc07"), ("simsaim", "simsiam"), ("finetun", "finetune"), ("x*", "")]
)
@pytest.mark.parametrize("verb", ["cancel", "retry", "status", "logs"])
@pytest.mark.usefixtures("slurm")
def test_a_word_that_names_nothing_is_refused_with_the_nearest(
    world: World, capsys: pytest.CaptureFixture[str], verb: str, word: str, near: str
) -> None:
    opened = world.open()
    opened.graph.write(opened.store.run_dir, opened.tools)
    assert world.launch(verb, word) == 2
    error = capsys.readouterr().err
    assert repr(word) in error and near in error and error.count("\n") == 1


def test_cancel_retry_and_status_of_a_row(world: World, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(world) == 0
    mine = {id_ for name, id_ in ids(world).items() if name.startswith("finetune.scratch.")}
    capsys.readouterr()
    assert world.launch("cancel", "scratch") == 0
    assert names(capsys.readouterr().out) == {*TRIALS, "finetune.scratch.coco.s1"}
    assert {id_ for id_, state in slurm.queue.items() if state == "CANCELLED"} == mine
    assert world.launch("cancel", "scratch") == 2  # nothing of it is left
    assert "none of 3 jobs" in capsys.readouterr().err
    assert world.launch("status", "scratch") == 0
    status = capsys.readouterr().out
    assert status.count("cancelled") >= 3 and "simsiam" not in status
    slurm.calls()
    assert world.launch("retry", "--cluster", "slurm", "voc07") == 0  # of it, only the two have no job any more
    assert {name for name, id_ in ids(world).items() if slurm.queue[id_] == "PENDING" and "scratch" in name} == set(
        TRIALS
    )


def test_a_stage_that_is_done_is_not_retried(world: World) -> None:
    assert world.launch("submit") == 0
    with pytest.raises(UserError, match=r"finetune: all 6 jobs are done"):
        from transfer.experiment.decide import jobs_to_retry

        opened = world.open()
        jobs_to_retry(opened.graph, opened.snapshot(), ["finetune"])


def edit(world: World) -> None:
    """Another schedule for VOC07, and SimSiam's row is gone."""
    (world.base / "configs/voc07.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 5}\n")
    world.edit(rows={"scratch": {"label": "from scratch", "scratch": True}})


OLD = {*TRIALS, "pretrain.simsiam", "convert.simsiam", "finetune.simsiam.voc07.s1", "finetune.simsiam.voc07.s2",
       "finetune.simsiam.coco.s1", "table"}  # fmt: skip
"""What `edit` supersedes: all but COCO from scratch."""


@pytest.mark.parametrize("word", ["keep", "cancel", None])
def test_an_edit_names_what_it_superseded_and_cancels_it_if_told(
    world: World, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], word: str | None
) -> None:
    assert submit(world) == 0
    before = ids(world)
    slurm.start(before["pretrain.simsiam"])
    edit(world)
    capsys.readouterr()
    assert world.launch("plan") == 0
    assert "8 jobs of earlier settings" in capsys.readouterr().err
    assert submit(world, *(["--superseded", word] if word else [])) == 0
    error = capsys.readouterr().err
    assert "8 jobs of earlier settings" in error and names(error) & OLD
    assert ("--superseded" in error) is (word != "cancel")  # the command that cancels them
    old = {before[name] for name in OLD}
    ended = {id_ for id_, state in slurm.queue.items() if state == "CANCELLED"}
    assert ended == (old if word == "cancel" else set())
    assert slurm.queue[before["finetune.scratch.coco.s1"]] == "PENDING"
    assert submit(world) == 0  # the new jobs are in the queue; only the old ones are spoken of
    assert ("jobs of earlier settings" in capsys.readouterr().err) is (word != "cancel")


def test_cancel_of_superseded_jobs_leaves_the_current_ones(
    world: World, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(world) == 0
    before = ids(world)
    edit(world)
    assert submit(world) == 0
    capsys.readouterr()
    assert world.launch("status") == 0
    assert "8 jobs of earlier settings" in capsys.readouterr().err
    assert world.launch("cancel", "--superseded", "simsiam") == 0  # a row that is gone
    assert names(capsys.readouterr().out) == {name for name in OLD if "simsiam" in name}
    assert world.launch("cancel", "--superseded", "simsiam") == 2
    assert world.launch("cancel", "--superseded") == 0
    alive = {id_ for id_, state in slurm.queue.items() if state == "PENDING"}
    assert alive == set(ids(world).values()) and not alive & {before[name] for name in OLD}
    capsys.readouterr()
    assert world.launch("cancel", "--superseded") == 0
    assert "nothing is running" in capsys.readouterr().out


def test_a_local_job_of_earlier_settings_is_superseded_too(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(finetune__scratch__voc07__s1={"hang": True})
    shell = world.spawn()
    world.wait_for("hang", TRIALS[0])
    shell.kill()  # the submit alone; its job survives
    shell.communicate()
    world.order()
    edit(world)
    assert world.launch("submit", "--superseded", "cancel") == 0
    error = capsys.readouterr().err
    assert f"{TRIALS[0]} (running)" in error
    deadline = time.monotonic() + 10
    while world.open().snapshot().superseded:
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestDeletedFolders:
    """Nobody continues what has no folder, and nothing writes it again."""

    def test_cancel_finds_the_jobs_of_a_deleted_run_folder_by_their_scripts(
        self, world: World, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert submit(world) == 0
        shutil.rmtree(world.run_dir)
        capsys.readouterr()
        assert world.launch("cancel", "table") == 0
        assert names(capsys.readouterr().out) == {"table"}
        assert world.launch("cancel") == 0
        assert set(slurm.queue.values()) == {"CANCELLED"}
        assert not world.run_dir.exists()
        assert world.launch("cancel") == 2
        assert "nothing was submitted" in capsys.readouterr().err

    def test_a_submit_into_the_same_folder_names_them(
        self, world: World, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert submit(world) == 0
        before = set(ids(world).values())
        shutil.rmtree(world.run_dir)
        capsys.readouterr()
        assert submit(world, "--superseded", "cancel") == 0
        assert "9 jobs of earlier settings" in capsys.readouterr().err
        assert {id_ for id_, state in slurm.queue.items() if state == "CANCELLED"} == before
        assert set(ids(world).values()).isdisjoint(before)

    @pytest.fixture
    def attempt(self, world: World, monkeypatch: pytest.MonkeyPatch) -> JobAttempt:
        """A trial that hangs."""
        monkeypatch.setattr(executors, "FOLDER_SECONDS", 0.05)
        world.order(finetune={"hang": True})
        opened = world.open()
        job = opened.graph[TRIALS[0]]
        opened.graph.write(opened.store.run_dir, opened.tools)
        commands = job.commands(opened.tools)
        made = JobAttempt.start(job, commands, opened.graph, opened.store, RunContext("slurm", {}, 0, "7"))
        assert made is not None
        world.wait_for("hang", TRIALS[0])
        return made

    def test_a_running_job_is_killed_and_writes_nothing(self, world: World, attempt: JobAttempt) -> None:
        assert attempt.poll() is None
        shutil.rmtree(world.run_dir)
        deadline = time.monotonic() + 10
        with pytest.raises(FolderDeleted, match="was deleted"):
            while attempt.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert attempt._child.returncode == -signal.SIGKILL
        assert not world.run_dir.exists()

    def test_a_folder_that_a_file_server_hides_once_is_not_deleted(self, world: World, attempt: JobAttempt) -> None:
        folder = world.run_dir / "jobs"
        folder.rename(world.base / "hidden")
        time.sleep(0.06)
        assert attempt.poll() is None
        (world.base / "hidden").rename(folder)
        for _ in range(4):
            time.sleep(0.06)
            assert attempt.poll() is None
        attempt.kill()

    def test_a_local_run_ends_in_one_line(
        self, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(executors, "FOLDER_SECONDS", 0.05)
        world.order(pretrain={"hang": True}, finetune={"hang": True})

        def delete() -> None:
            world.wait_for("hang", "pretrain.simsiam")
            world.wait_for("hang", TRIALS[0])
            shutil.rmtree(world.run_dir)

        thread = threading.Thread(target=delete)
        thread.start()
        assert world.launch("submit") == 2
        thread.join()
        assert "was deleted" in capsys.readouterr().err
        assert not world.run_dir.exists()

    def test_a_slurm_job_that_starts_late_ends_at_once(self, world: World) -> None:
        job = world.open().graph[TRIALS[0]]
        task = SlurmTask(str(world.run_dir), job, Tools(Path("/nowhere")), {}, 0, 0, 1.0)
        with pytest.raises(SystemExit, match="was deleted"):
            Leader(task, SlurmProcess("7")).run()
        assert not world.run_dir.exists()
