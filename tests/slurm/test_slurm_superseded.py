"""What an edit leaves in a real queue, and jobs whose folder is deleted while they run."""

from __future__ import annotations

import shutil

import pytest

from tests.slurm.slurm_world import SlurmWorld

pytestmark = pytest.mark.slow
OLD = "finetune.scratch.coco.s1"


def test_superseded_jobs_save_and_leave_the_queue(world: SlurmWorld, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(finetune__scratch__coco={"hang": True})
    assert world.submit() == 0
    world.wait(lambda: world.hangs() == 1, "the trial does not start")
    old, id_ = world.open().store.folder(world.open().graph[OLD]), world.ids()[OLD]
    (world.base / "configs/coco.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 2}\n")
    world.order()
    capsys.readouterr()
    assert world.submit("--superseded", "cancel") == 0
    assert f"{OLD} (running, Slurm job {id_})" in capsys.readouterr().err
    assert set(world.wait_until_over().values()) == {"done"}
    world.wait(lambda: id_ not in world.cluster.run("squeue", "-hr", "-o", "%i").split(), "the old job goes on")
    assert '"cancelled"' in (old / "job.json").read_text()


def test_a_job_ends_whose_run_folder_is_deleted(world: SlurmWorld, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(finetune={"hang": True}, pretrain={"hang": True})
    assert world.submit() == 0
    world.wait(lambda: world.hangs() >= 3, "nothing runs")
    shutil.rmtree(world.run_dir)
    capsys.readouterr()
    assert world.launch("cancel", "table") == 0  # found in the queue alone
    assert "table (Slurm job" in capsys.readouterr().out

    def names() -> set[str]:
        return set(world.cluster.run("squeue", "-hr", "-o", "%j").split())

    world.wait(lambda: not names(), "the jobs go on", seconds=90)
    assert not list(world.run_dir.rglob("job.json")) and not list(world.run_dir.rglob("checkpoint.json"))
