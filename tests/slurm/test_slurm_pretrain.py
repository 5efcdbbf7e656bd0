"""Real pre-training on two nodes: interrupted runs end bit for bit as an uninterrupted one."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.slurm.slurm_world import SlurmWorld
from transfer.experiment.commands import Tools

pytestmark = pytest.mark.slow

RECIPE = """
DATA: {SIZE: 32, WORKERS: 0}
MODEL: {ARCH: resnet18, PROJ_HIDDEN: 32, DIM: 16, PRED_DIM: 8}
SOLVER: {BATCH_SIZE: 8, BASE_LR: 0.8, EPOCHS: 5}
CHECKPOINT: {PERIOD: 3}
LOG: {PERIOD: 1, TENSORBOARD: False}
"""
EXPERIMENT = """\
name: {name}
run_dir: {base}/run
rows:
  unbroken: {{pretrain: &recipe {{config: {base}/recipe.yaml}}}}
  requeued: {{pretrain: *recipe}}
  killed: {{pretrain: *recipe}}
  timed: {{pretrain: *recipe}}
tasks: {{}}
data: {{images: {base}/images}}
resources:
  default: {{cpus: 1, memory_gb: 1}}
  pretrain: {{nodes: 2, gpus: 0, tasks: 1, hours: 1, signal_seconds: 30}}
"""
ROWS = ("unbroken", "requeued", "killed", "timed")


HANGING = """\
name: {name}
run_dir: {base}/run
rows:
  unbroken:
    pretrain: &recipe
      config: {base}/recipe.yaml
      overrides: &own {{MONITOR.HANG_SECONDS: 12, SOLVER.EPOCHS: 15}}
  stopped: {{pretrain: *recipe}}
  worker:
    pretrain: {{config: {base}/recipe.yaml, overrides: {{<<: *own, DATA.WORKERS: 1}}}}
    resources: {{pretrain: {{nodes: 1}}}}
tasks: {{}}
data: {{images: {base}/images}}
resources:
  default: {{cpus: 1, memory_gb: 1}}
  pretrain: {{nodes: 2, gpus: 0, tasks: 1, hours: 1, signal_seconds: 30}}
"""


@pytest.fixture
def two_nodes(world: SlurmWorld) -> SlurmWorld:
    """Pre-trainings of one recipe, each of two processes on two nodes."""
    rng = np.random.RandomState(0)
    for number in range(32):
        file = world.base / f"images/train/class{number % 2}/{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.randint(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC).save(file)
    (world.base / "recipe.yaml").write_text(RECIPE)
    world.file.write_text(EXPERIMENT.format(name=world.base.name, base=world.base))
    world.tools = Tools(python=sys.executable)
    return world


def metrics(world: SlurmWorld, row: str) -> list[dict[str, Any]]:
    path = world.run_dir / world.open().graph[f"pretrain.{row}"].dir / "metrics.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def result(world: SlurmWorld, row: str) -> dict[str, Any]:
    folder = world.run_dir / world.open().graph[f"pretrain.{row}"].dir
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def interrupt_during_training(world: SlurmWorld, row: str, strike: Callable[[], object]) -> threading.Thread:
    """In a thread: strike once the row has written a checkpoint and is between two of them."""

    def wait_and_strike() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if len(metrics(world, row)) >= 5:
                strike()
                return
            time.sleep(0.05)

    thread = threading.Thread(target=wait_and_strike)
    thread.start()
    return thread


def test_an_interrupted_pretraining_on_two_nodes_ends_bit_for_bit_as_an_uninterrupted_one(
    two_nodes: SlurmWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world = two_nodes
    assert world.submit() == 0
    ids = {row: world.ids()[f"pretrain.{row}"] for row in ROWS}
    strikes = {
        "requeued": lambda: world.cluster.run("scontrol", "requeue", ids["requeued"]),
        # the tool's own process, on the second node
        "killed": lambda: os.kill(world.processes("pretrain.killed", rank=1)[-1], signal.SIGKILL),
        # what Slurm sends before a job's time is up; test_slurm_graph has a limit that really strikes
        "timed": lambda: world.cluster.run("scancel", "--signal=USR2", ids["timed"]),
    }
    threads = [interrupt_during_training(world, row, strike) for row, strike in strikes.items()]
    for thread in threads:
        thread.join()
    assert set(world.wait_until_over(500).values()) == {"done"}
    attempts = {row: world.state(f"pretrain.{row}").attempts for row in ROWS}
    assert attempts == {"unbroken": 1, "requeued": 2, "killed": 2, "timed": 2}
    killed = world.state("pretrain.killed")
    assert killed.kills == 1 and "a process was killed (process 1 on " in str(killed.earlier[0].error)
    whole = result(world, "unbroken")
    assert whole["num_processes"] == 2 and whole["iterations"] == 20
    for row in ROWS[1:]:
        assert result(world, row)["backbone_sha256"] == whole["backbone_sha256"], row
        losses = {line["iteration"]: line["loss"] for line in metrics(world, row)}
        assert losses == {line["iteration"]: line["loss"] for line in metrics(world, "unbroken")}, row
    assert (world.run_dir / "table.html").exists()


def stop_loader_worker(world: SlurmWorld) -> None:
    """Of the tool's processes the youngest."""
    os.kill(world.processes("pretrain.worker")[-1], signal.SIGSTOP)


def test_a_hang_is_requeued_the_second_time_without_the_node(two_nodes: SlurmWorld) -> None:
    world = two_nodes
    world.file.write_text(HANGING.format(name=world.base.name, base=world.base))
    assert world.submit() == 0
    thread = interrupt_during_training(
        world, "stopped", lambda: os.kill(world.processes("pretrain.stopped", rank=1)[-1], signal.SIGSTOP)
    )
    for hangs, lines in ((1, 5), (2, 20)):
        world.wait(lambda lines=lines: len(metrics(world, "worker")) >= lines, "it does not train", 300)  # type: ignore[misc]
        stop_loader_worker(world)
        world.wait(lambda hangs=hangs: world.state("pretrain.worker").hangs == hangs, "it does not hang", 120)  # type: ignore[misc]
    state = world.state("pretrain.worker")
    where = re.search(r"hung: no progress for \d+ s in step .* on (\S+)$", str(state.error))
    assert where is not None
    id_ = world.ids()["pretrain.worker"]
    excluded = f"ExcNodeList={where.group(1)}"
    world.wait(lambda: excluded in world.cluster.run("scontrol", "show", "job", id_), "the node is not excluded")
    thread.join()
    assert set(world.wait_until_over(500).values()) == {"done"}
    attempts = {row: world.state(f"pretrain.{row}").attempts for row in ("unbroken", "stopped", "worker")}
    assert attempts == {"unbroken": 1, "stopped": 2, "worker": 3}
    assert result(world, "stopped")["backbone_sha256"] == result(world, "unbroken")["backbone_sha256"]
    for row in ("stopped", "worker"):
        folder = world.run_dir / world.open().graph[f"pretrain.{row}"].dir
        assert "run_step" in (folder / "stacks.rank0.txt").read_text()
