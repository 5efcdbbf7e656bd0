"""Limits and faults of large sites: room in the queue, arrays, other Pythons, set-up lines, missing GPUs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ssl_transfer.formats.job import JobState
from tests.slurm.private_cluster import MAX_SUBMITTED, NODES, PrivateCluster, wrap
from tests.slurm.slurm_world import SlurmWorld, make_slurm_world
from tests.transfer.experiment.small_world import FAKES, ROOT

pytestmark = pytest.mark.slow


class TestUnprivilegedUser:
    """Six jobs in the queue and five in an array are all that the harsh cluster grants."""

    @pytest.fixture
    def user_world(self, harsh_cluster: PrivateCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmWorld]:
        base = harsh_cluster.home / "limited"
        base.mkdir()
        for name, value in {**harsh_cluster.environment, "XDG_CONFIG_HOME": str(base)}.items():
            monkeypatch.setenv(name, value)
        world = make_slurm_world(base, harsh_cluster)
        world.edit(tasks={"voc07": {"config": f"{base}/configs/voc07.yaml", "trials": 7}})
        world.order(finetune__scratch={"steps": 800})  # the first submit ends before they do
        subprocess.run(["chown", "-R", "--reference", harsh_cluster.home, base], check=True)
        yield world
        harsh_cluster.empty()

    def launch(self, world: SlurmWorld, *words: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import sys; from pathlib import Path; from ssl_transfer.console import call_main; "
            "from tools import launch; "
            "from transfer.experiment.commands import Tools; from transfer.experiment.slurm import executor; "
            f"executor.ROOM_PAUSE = 1.0; tools = Tools(Path({str(FAKES)!r}), {world.tools.python!r}); "
            "sys.exit(call_main(lambda argv: launch.main(argv, tools), sys.argv[1:]))"
        )
        variables = {"FAKE_DIR": str(world.base), "PYTHONPATH": str(ROOT), "TMPDIR": "/tmp"}
        return world.cluster.as_user(sys.executable, "-c", code, *words, **variables)

    def test_what_is_left_is_submitted_as_room_appears(self, user_world: SlurmWorld) -> None:
        world, words = user_world, ("submit", str(user_world.file), "--cluster", "slurm")
        first = self.launch(world, *words)
        assert first.returncode == 1, first.stderr
        assert "QOSMaxSubmitJobPerUserLimit" in first.stderr and "--wait-for-room" in first.stderr
        assert 2 <= len(world.ids()) <= MAX_SUBMITTED
        assert "table" in world.ids() or " table\n" in first.stderr, "all that was submitted runs already"
        rest = self.launch(world, *words, "--wait-for-room")
        assert rest.returncode == 0, rest.stderr
        statuses = world.wait_until_over()
        assert set(statuses.values()) == {"done"}, (statuses, first.stderr, rest.stderr)
        assert "missing" not in (world.run_dir / "table.md").read_text()
        started = [name for name in world.started() if not name.startswith("table")]
        assert sorted(started) == sorted(set(started)), "no job ran twice"


def test_a_flaky_sbatch_that_loses_answers_and_a_slow_squeue_submit_each_job_once(
    world: SlurmWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = wrap(world.base / "bin", "sbatch", fail_every=3, lose_every=2)
    wrap(folder, "squeue", seconds=0.5, fail_every=3)
    reliable = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{folder}:{reliable}")
    assert world.submit() == 0
    monkeypatch.setenv("PATH", reliable)
    assert len(world.submitted_ids()) == 9, "a job whose answer was lost is not submitted again"
    monkeypatch.setenv("PATH", f"{folder}:{reliable}")
    assert set(world.wait_until_over().values()) == {"done"}


def test_arrays_longer_than_slurm_allows(harsh_world: SlurmWorld) -> None:
    world = harsh_world
    world.edit(tasks={"voc07": {"config": f"{world.base}/configs/voc07.yaml", "trials": 7}})
    assert world.submit() == 0
    arrays = {id_.partition("_")[0] for name, id_ in world.ids().items() if name.startswith("finetune.scratch")}
    assert len(arrays) == 2
    assert set(world.wait_until_over().values()) == {"done"}


def test_a_job_without_the_gpus_it_asked_for_fails_at_once(harsh_world: SlurmWorld) -> None:
    world = harsh_world
    assert world.submit("--set", "resources.pretrain={gpus: 2, cpus: 1}") == 0
    assert world.wait_until_over()["pretrain.simsiam"] == "failed"
    error = str(world.state("pretrain.simsiam").error)
    assert "2 GPUs were requested" in error and "doctor.py" in error
    assert "pretrain.simsiam" not in world.started()


class TestOtherNodes:
    """What a node has and the submitting machine has not, and vice versa."""

    def test_every_follow_up_runs_by_the_job_s_own_python(self, world: SlurmWorld) -> None:
        """A Python that only nodes have; the environment of the submitting shell does not reach them."""
        own = world.base / "node_python"
        own.write_text(f'#!/bin/sh\necho "$@" >> {world.base}/calls\nexec {sys.executable} "$@"\n')
        own.chmod(0o755)
        world.order(finetune__scratch__coco={"once": {"kill": True}}, pretrain={"steps": 50})
        resources = f"{{python: {own}, sbatch: {{export: NONE}}, gpus: 0, cpus: 1, memory_gb: 0.5, hours: 0.5}}"
        environment = f"environment={{FAKE_DIR: {world.base}, PATH: '{os.environ['PATH']}'}}"
        assert world.submit("--set", f"resources.default={resources}", "--set", environment) == 0
        assert set(world.wait_until_over().values()) == {"done"}
        assert world.state("finetune.scratch.coco.s1").attempts == 2
        record = "run_module('transfer.experiment.slurm.job_processes'"
        world.wait(lambda: (world.base / "calls").read_text().count(record) == 10, "not every end is recorded by it")
        scripts = "".join(path.read_text() for path in world.run_dir.glob("slurm/*_submission.sh"))
        assert scripts.count(str(own)) == 2 * 7

    def test_a_failing_set_up_line_is_the_reason(self, world: SlurmWorld) -> None:
        assert world.submit("--set", "resources.finetune.setup=['true', 'module load no/such', 'touch /never']") == 0
        statuses = world.wait_until_over()
        assert statuses["finetune.scratch.coco.s1"] == "failed" and statuses["pretrain.simsiam"] == "done"
        assert "set-up line failed with exit code 127: module load no/such" in str(
            world.state("finetune.scratch.coco.s1").error
        )
        assert not [name for name in world.started() if name.startswith("finetune")]


SMALL = {"gpus": 0, "cpus": 1, "memory_gb": 1, "hours": 0.1}


class TestInit:
    """The check job."""

    def init(self, world: SlurmWorld, *words: str) -> int:
        return world.run_verb("init", "--run-dir", str(world.base / "runs"), *words)

    def site(self, world: SlurmWorld, **default: object) -> None:
        """A site file before `init` writes one: its check job is submitted by hand."""
        file = world.base / "ssl-detection-transfer/site.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"resources: {{default: {default}}}\n".replace("'", ""))

    def check(self, world: SlurmWorld) -> list[str]:
        from transfer.experiment.slurm.setup import describe_findings, submit_check_job, wait_for_findings

        id_, folder = submit_check_job(world.base / "runs")
        found = wait_for_findings(id_, folder, 100, lambda _: None)
        assert found is not None
        return describe_findings(found)

    def test_all_processes_of_all_nodes_all_reduce(self, world: SlurmWorld) -> None:
        self.site(world, nodes=2, tasks=2, **SMALL, setup="[export FROM_SETUP=1]")
        found = "\n".join(self.check(world))
        assert f"4 processes all-reduced on 2 nodes: {NODES[0]}, {NODES[1]}" in found

    def test_a_node_that_does_not_see_the_run_folder(self, world: SlurmWorld) -> None:
        self.site(world, nodes=2, tasks=1, **SMALL)
        for node in NODES:
            with contextlib.ExitStack() as stack:
                stack.enter_context(world.cluster.hidden_on(node, world.base / "runs"))
                with pytest.raises(Exception, match=rf"{node}.* see {world.base}/runs/site-check|it wrote nothing"):
                    self.check(world)

    def test_a_requested_gpu_that_is_not_usable(
        self, harsh_world: SlurmWorld, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.init(harsh_world) == 2
        captured = capsys.readouterr()
        assert "gres: gpu:fake:2" in captured.out and "2 GPUs were requested" in captured.err

    def test_the_stages_fit_the_short_partition(self, world: SlurmWorld, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.init(world, "--partition", "short") == 0
        assert "hours: 0:02:00" in capsys.readouterr().out
        world.edit(resources={"default": {"memory_gb": 1, "cpus": 1}})
        assert world.launch("submit") == 0, "the site file makes Slurm the default"
        assert set(world.wait_until_over().values()) == {"done"}
        too_long = "resources.pretrain.hours=1"
        assert world.launch("submit", "--set", too_long, "--set", f"run_dir={world.base}/other") == 2
        assert "hours 1:00 is more than the 0:02 (h:mm) of partition short" in capsys.readouterr().err


def test_a_killed_job_of_an_unreachable_controller_is_recorded(world: SlurmWorld) -> None:
    """The batch script's own squeue fails: how the job ended is written down all the same."""
    folder = wrap(world.base / "bin", "squeue", fail_every=2)
    world.order(finetune__scratch__coco={"exit": 3, "say": "boom"})
    assert world.submit("--set", f"resources.finetune.setup=['export PATH={folder}:$PATH']") == 0
    assert world.wait_until_over()["finetune.scratch.coco.s1"] == "failed"
    state: JobState = world.state("finetune.scratch.coco.s1")
    assert state.error == "error: boom" and state.exit_code == 3
    assert signal.Signals(signal.SIGKILL).name not in str(state.error)
