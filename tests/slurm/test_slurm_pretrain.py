"""Real pre-training on two nodes: however it is interrupted, it ends bit for bit as the unbroken run."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from slurm_world import SlurmWorld

from transfer.experiment.commands import Tools

pytestmark = pytest.mark.slow

RECIPE = """
DATA: {SIZE: 32, WORKERS: 0}
MODEL: {ARCH: resnet18, PROJ_HIDDEN: 32, DIM: 16, PRED_DIM: 8}
SOLVER: {BATCH_SIZE: 8, BASE_LR: 0.8, EPOCHS: 12}
CHECKPOINT: {PERIOD: 4}
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


@pytest.fixture
def two_nodes(world: SlurmWorld) -> SlurmWorld:
    """Four pre-trainings of one recipe, each of two processes on two nodes."""
    rng = np.random.RandomState(0)
    for number in range(48):
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


def once_it_trains(world: SlurmWorld, row: str, strike: Callable[[], object]) -> None:
    """Strike once the row has written a checkpoint and is between two of them."""
    deadline = time.monotonic() + 240
    while len(metrics(world, row)) < 6:
        assert time.monotonic() < deadline, world.statuses()
        time.sleep(0.1)
    assert world.statuses()[f"pretrain.{row}"] == "running"
    strike()


def test_requeued_killed_and_told_that_time_is_up_it_ends_as_unbroken(
    two_nodes: SlurmWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world = two_nodes
    assert world.submit() == 0
    ids = world.ids()
    scontrol = lambda *words: world.cluster.run("scontrol", *words, check=True)  # noqa: E731
    once_it_trains(world, "requeued", lambda: scontrol("requeue", ids["pretrain.requeued"]))
    second_node = world.processes("pretrain.killed", rank=1)[-1]
    once_it_trains(world, "killed", lambda: os.kill(second_node, signal.SIGKILL))
    # What Slurm sends before a job's time is up; test_slurm_graph has a limit that really strikes.
    once_it_trains(world, "timed", lambda: world.cluster.run("scancel", "--signal=USR2", ids["pretrain.timed"]))

    assert set(world.wait_until_over(300).values()) == {"done"}
    attempts = {row: world.state(f"pretrain.{row}").attempts for row in ROWS}
    assert attempts == {"unbroken": 1, "requeued": 2, "killed": 2, "timed": 2}
    whole = result(world, "unbroken")
    assert whole["num_processes"] == 2 and whole["iterations"] == 72
    for row in ROWS[1:]:
        assert result(world, row)["backbone_sha256"] == whole["backbone_sha256"], row
        losses = {line["iteration"]: line["loss"] for line in metrics(world, row)}
        assert losses == {line["iteration"]: line["loss"] for line in metrics(world, "unbroken")}, row
    assert (world.run_dir / "table.html").exists()
