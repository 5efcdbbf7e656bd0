"""Failures on a real Slurm: a process that is not the first one, scancel, no record, GPU-hours, a full disk."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.slurm.private_cluster import NODES, small_disk
from tests.slurm.slurm_world import SlurmWorld
from tests.transfer.experiment.small_world import build_no_flock

pytestmark = pytest.mark.slow
TWO_NODES = "resources.pretrain={nodes: 2, gpus: 0, tasks: 1, cpus: 1, memory_gb: 0.5, signal_seconds: 30}"
NAME = "pretrain.simsiam"


def test_a_process_that_is_killed_again_and_again_fails_the_job(world: SlurmWorld) -> None:
    world.order(pretrain={"rank": 1, "kill": True})
    assert world.submit("--set", TWO_NODES) == 0
    assert world.wait_until_over(300)[NAME] == "failed"
    state = world.state(NAME)
    assert (state.attempts, state.kills) == (3, 3)
    assert f"killed 3 times in a row; a process was killed (process 1 on {NODES[1]}: " in str(state.error)
    assert "SIGKILL" in str(state.error)
    assert [one.status for one in state.earlier] == ["requeued", "requeued"]


def test_slurm_s_process_of_another_rank_that_is_killed_counts_too(world: SlurmWorld) -> None:
    """Nothing but srun's line is left of it."""
    world.order(pretrain={"rank": 1, "hang": True})
    assert world.submit("--set", TWO_NODES) == 0
    world.wait(lambda: world.hangs() == 1 and bool(world.processes(NAME, rank=1)), "it does not start")
    os.kill(world.processes(NAME, rank=1)[0], signal.SIGKILL)
    world.wait(lambda: world.state(NAME).kills == 1, "its end is not recorded")  # else what is left might finish first
    world.order()
    assert world.wait_until_over(200)[NAME] == "done"
    state = world.state(NAME)
    assert (state.attempts, state.kills) == (2, 1)
    assert re.search(r"a process was killed \(process 1 on 127\.0\.0\.\d: Killed\)", str(state.earlier[0].error))


def test_an_error_of_another_process_is_the_job_s_at_once(
    world: SlurmWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.order(pretrain={"rank": 1, "raise": "shapes do not fit"})
    assert world.submit("--set", TWO_NODES) == 0
    assert world.wait_until_over()[NAME] == "failed"
    state = world.state(NAME)
    assert (state.attempts, state.kills) == (1, 0)
    reason = f"process 1 on {NODES[1]}: RuntimeError: shapes do not fit"
    assert state.error == reason
    capsys.readouterr()
    assert world.launch("status") == 0
    assert reason in capsys.readouterr().out


def test_scancel_is_told_from_a_preemption(world: SlurmWorld) -> None:
    world.order(finetune={"hang": True}, pretrain={"steps": 1})
    assert world.submit() == 0
    names = ["finetune.scratch.voc07.s1", "finetune.scratch.coco.s1"]
    world.wait(lambda: all(world.statuses()[name] == "running" for name in names) and world.hangs() >= 4, "no start")
    world.cluster.run("scancel", world.ids()[names[0]], check=True)
    world.cluster.run("scontrol", "requeue", world.ids()[names[1]], check=True)
    world.wait(lambda: world.statuses()[names[0]] == "cancelled", "it is not cancelled")
    state = world.state(names[0])
    assert (state.status, state.error, state.exit_code) == ("cancelled", "cancelled by user (scancel)", 75)
    world.wait(lambda: world.state(names[1]).status == "requeued", "it is not requeued")
    assert world.state(names[1]).error == "stopped by Slurm: job requeue"


def test_a_job_that_left_no_record_has_slurm_s(world: SlurmWorld, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(finetune__scratch__coco={"hang": True})
    name = one_job(world)
    assert world.submit() == 0
    world.wait(lambda: world.hangs() == 1, "it does not start")
    id_ = world.ids()[name]
    raw = re.search(r"JobId=(\d+)", world.cluster.run("scontrol", "show", "job", id_))
    assert raw is not None
    words = re.compile(rf"job0*{raw.group(1)}/slurm_script")
    script = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if words.search(_command(entry))]
    assert script, "no batch script"
    for pid in script:
        os.kill(pid, signal.SIGKILL)
    world.wait(lambda: world.statuses()[name] not in ("running", "queued"), "Slurm does not end it")
    capsys.readouterr()
    assert world.launch("status") == 0
    line = next(one for one in capsys.readouterr().out.splitlines() if one.startswith(name))
    assert re.search(rf"Slurm job {id_}: FAILED, exit code 0:9, \w+, on 127\.0\.0\.\d", line), line


def _command(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def one_job(world: SlurmWorld) -> str:
    """Leave one trial of the experiment, and the table; the trial's name."""
    world.edit(rows={"scratch": {"scratch": True}}, tasks={"coco": {"config": f"{world.base}/configs/coco.yaml"}})
    return "finetune.scratch.coco.s1"


def test_a_full_disk_is_the_reason_of_a_job(world: SlurmWorld) -> None:
    with small_disk(world.base / "small", 3) as disk:
        world.order(finetune__scratch__coco={"fill": str(disk / "filler")})
        sets = ("--set", f"run_dir={disk}/run")
        name = one_job(world)
        assert world.submit(*sets) == 0
        opened = world.open(*sets[1::2])
        world.wait(lambda: opened.snapshot().views[name].status == "failed", "it does not fail")
        state = opened.store.read(opened.graph[name])
        assert state is not None and "No space left on device" in str(state.error) and state.attempts == 1
        (disk / "filler").unlink()
        world.cluster.empty()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_jobs_on_nodes_without_flock_are_resumed(world: SlurmWorld) -> None:
    """This process has flock, as a login node that mounts the file system in another way."""
    library = build_no_flock(world.base)
    world.order(finetune__scratch__coco={"once": {"kill": True}})
    name = one_job(world)
    assert world.submit("--set", f"resources.default.setup=['export LD_PRELOAD={library}']") == 0
    assert set(world.wait_until_over().values()) == {"done"}
    state = world.state(name)
    assert (state.attempts, state.kills) == (2, 1)
    assert not list(world.run_dir.rglob("*.owner*"))
    errors = "".join(path.read_text() for path in world.run_dir.glob("slurm/*.err"))
    assert "Traceback" not in errors and "object file" not in errors, errors


def test_accounting_knows_every_start_of_a_job(harsh_world: SlurmWorld, capsys: pytest.CaptureFixture[str]) -> None:
    """Without GPUs: jobs refuse those of this cluster, which are empty files."""
    world = harsh_world
    world.order(finetune__scratch__coco={"hang": True})
    name = one_job(world)
    assert world.submit() == 0
    world.wait(lambda: world.hangs() == 1, "it does not start")
    time.sleep(2)  # accounting counts whole seconds
    world.cluster.run("scontrol", "requeue", world.ids()[name], check=True)
    world.wait(lambda: world.hangs() == 2, "it does not start again", 200)
    time.sleep(2)
    world.cluster.run("scancel", world.ids()[name], check=True)
    world.wait(lambda: world.statuses()[name] == "cancelled", "it does not end")
    opened = world.open()
    view = opened.snapshot().views[name]

    def accounted() -> int:
        return len(opened.snapshot().with_accounting().starts.get(world.ids()[name], ()))

    world.wait(lambda: accounted() == 2, "accounting does not know both starts")
    starts = opened.snapshot().with_accounting().starts
    assert [one.gpus for one in starts[world.ids()[name]]] == [None, None]
    assert view.usage(starts) == (2, 0)
    assert sum(one.seconds for one in starts[world.ids()[name]]) >= 4
    capsys.readouterr()
    assert world.launch("status") == 0
    assert re.search(rf"{name} +cancelled .* 2 +cancelled by user", capsys.readouterr().out)
