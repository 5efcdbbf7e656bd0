"""A small experiment on a real Slurm: from submit to table, failures, retry, twice at once, the shell gone."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.slurm.slurm_world import SlurmWorld

pytestmark = pytest.mark.slow


def test_from_submit_to_table(world: SlurmWorld, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.submit() == 0
    captured = capsys.readouterr()
    assert "9 jobs" in captured.out
    assert re.search(
        r"finetune\.scratch\.voc07\.s1 … finetune\.scratch\.voc07\.s2 \(2 jobs\) as \d+_\[0-1\]", captured.err
    )
    assert set(world.wait_until_over().values()) == {"done"}
    table = (world.run_dir / "table.md").read_text()
    assert table.count("weights of simsiam") == 3 and "missing" not in table
    world.forget()
    assert world.submit() == 0
    assert "0 jobs" in capsys.readouterr().out
    assert world.events() == []


def test_a_failure_cancels_its_dependents_and_retry_runs_only_them(
    world: SlurmWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.order(convert__simsiam={"exit": 2, "say": "not a checkpoint"}, finetune__scratch__voc07__s2={"diverge": True})
    assert world.submit() == 0
    statuses = world.wait_until_over()
    waited = {name for name in statuses if name.startswith("finetune.simsiam")}
    assert {name for name, word in statuses.items() if word == "cancelled"} == waited and len(waited) == 3
    assert statuses["convert.simsiam"] == "failed"
    assert statuses["finetune.scratch.voc07.s2"] == "diverged"
    table = (world.run_dir / "table.md").read_text()
    assert "finetune.simsiam.coco.s1: missing" in table and "loss is NaN" in table
    capsys.readouterr()
    assert world.launch("status") == 0
    status = capsys.readouterr().out
    assert re.search(r"convert\.simsiam +failed .* error: not a checkpoint", status)
    assert re.search(r"finetune\.simsiam\.coco\.s1 +cancelled +by Slurm: needs convert\.simsiam", status)
    world.order()
    world.forget()
    assert world.launch("retry", "--cluster", "slurm") == 0
    assert {*world.wait_until_over().values()} == {"done", "diverged"}
    assert set(world.started()) == {"convert.simsiam", "table.md", "table.html", *waited}
    assert "missing" not in (world.run_dir / "table.md").read_text()


def test_two_submits_at_once_submit_each_job_once(world: SlurmWorld) -> None:
    shells = [world.spawn("submit", "--cluster", "slurm") for _ in range(2)]
    outputs = [shell.communicate(timeout=120) for shell in shells]
    codes = sorted(shell.returncode for shell in shells)
    assert codes in ([0, 0], [0, 2]), outputs  # the second finds the lock held, or all jobs submitted
    assert set(world.wait_until_over().values()) == {"done"}
    assert len(world.started()) == len(set(world.started())) == 10
    assert len(world.submitted_ids()) == 9


def test_a_submit_killed_halfway_is_completed_by_the_next(
    world: SlurmWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.order(pretrain={"steps": 100})
    shell = world.spawn("submit", "--cluster", "slurm")
    world.wait(lambda: "pretrain.simsiam" in world.ids(), "nothing is submitted")
    os.killpg(shell.pid, signal.SIGKILL)
    shell.communicate()
    assert world.launch("status") == 0
    assert re.search(r"pretrain\.simsiam +(queued|running)", capsys.readouterr().out)
    assert world.submit() == 0
    assert set(world.wait_until_over().values()) == {"done"}
    assert sorted(world.started()) == sorted({*world.ids(), "table.md", "table.html"} - {"table"})


def test_requeued_and_killed_jobs_resume_from_their_checkpoint(world: SlurmWorld) -> None:
    """`scontrol requeue` of one, kill -9 of the tool of another, kill -9 of what Slurm started of a third."""
    world.order(finetune={"steps": 400})
    assert world.submit() == 0
    victims = [f"finetune.scratch.{trial}" for trial in ("voc07.s1", "voc07.s2", "coco.s1")]
    world.wait(lambda: all(world.steps(name) > 20 for name in victims), "the trials do not start")
    world.cluster.run("scontrol", "requeue", world.ids()[victims[0]], check=True)
    os.kill(world.processes(victims[1])[-1], signal.SIGKILL)
    os.kill(world.processes(victims[2])[0], signal.SIGKILL)
    statuses = world.wait_until_over()
    assert set(statuses.values()) == {"done"}
    for name in victims:
        assert world.state(name).attempts == 2, name
        assert 400 <= world.steps(name) <= 402  # no step twice but the one that was cut off


def test_a_job_at_its_time_limit_is_requeued_and_resumes(world: SlurmWorld) -> None:
    """A job of fifty seconds under a limit of one minute, of which Slurm warns half a minute early or more."""
    world.order(finetune__scratch__coco={"steps": 4500})
    short = "resources={finetune: {cpus: 1, memory_gb: 0.5, hours: 0.016, signal_seconds: 15}}"
    assert world.submit("--set", short) == 0
    assert set(world.wait_until_over(300).values()) == {"done"}
    attempts = world.state("finetune.scratch.coco.s1").attempts
    assert attempts >= 2
    assert 4500 <= world.steps("finetune.scratch.coco.s1") < 4500 + attempts


def test_a_job_requeued_too_often_fails_with_the_reason(world: SlurmWorld) -> None:
    world.order(pretrain={"hang": True})
    assert world.submit("--set", "slurm.requeues=1") == 0
    for attempt in (1, 2):
        world.wait(lambda: world.hangs() == attempt, "it does not start")  # noqa: B023
        world.cluster.run("scancel", "--signal=USR2", world.ids()["pretrain.simsiam"])
    assert world.wait_until_over()["pretrain.simsiam"] == "failed"
    error = str(world.state("pretrain.simsiam").error)
    assert "requeued 1 times" in error and "slurm.requeues" in error


def test_a_job_killed_three_times_in_a_row_fails_with_the_reason(
    world: SlurmWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.order(finetune__scratch__coco={"kill": True})
    assert world.submit() == 0
    assert world.wait_until_over()["finetune.scratch.coco.s1"] == "failed"
    assert world.started().count("finetune.scratch.coco.s1") == 3
    assert "killed 3 times in a row" in str(world.state("finetune.scratch.coco.s1").error)
    assert "finetune.scratch.coco.s1: missing" in (world.run_dir / "table.md").read_text()


def test_cancel_empties_the_queue_and_submit_resumes(world: SlurmWorld, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(pretrain={"hang": True})
    assert world.submit() == 0
    world.wait(lambda: world.hangs() == 1, "it does not start")
    assert world.launch("cancel", "finetune.simsiam.coco.s1") == 0
    assert world.launch("cancel") == 0
    statuses = world.wait_until_over(60)
    assert statuses["pretrain.simsiam"] == statuses["finetune.simsiam.coco.s1"] == statuses["table"] == "cancelled"
    assert world.state("pretrain.simsiam").exit_code == 75, "it saved a checkpoint and was not killed"
    world.order()
    assert world.submit() == 0
    assert set(world.wait_until_over().values()) == {"done"}


def test_local_refuses_to_run_jobs_that_are_in_the_queue(world: SlurmWorld, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(pretrain={"hang": True})
    assert world.submit() == 0
    assert world.launch("submit", "--cluster", "local") == 2
    err = capsys.readouterr().err
    assert "jobs of this run folder are in Slurm's queue" in err


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["resources.default.partition=mian"], "partition mian: did you mean main?"),
        (["resources.pretrain.nodes=3"], "resources.pretrain: sbatch refuses: "),
        (["resources.default.sbatch={no-such-option: 1}"], "unrecognized option"),
    ],
)
def test_refused_resources_are_one_line_and_write_nothing(
    world: SlurmWorld, capsys: pytest.CaptureFixture[str], sets: list[str], message: str
) -> None:
    assert world.submit(*(word for one in sets for word in ("--set", one))) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not world.run_dir.exists()
    assert world.cluster.run("squeue", "-h") == ""
