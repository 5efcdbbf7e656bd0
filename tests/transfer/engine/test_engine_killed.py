"""A trial that is killed with -9, with all its processes, and asked for again ends bit for bit as the unbroken one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.transfer.engine.broken_off import assert_same_end, command, iterations
from transfer.engine.prepare import TrialRequest
from transfer.engine.trial import run_trial

RequestFactory = Callable[..., TrialRequest]
WORDS = ("SOLVER.MAX_ITER", "40", "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.STEPS", "[30]", "TEST.EVAL_PERIOD", "20")


@pytest.mark.slow
@pytest.mark.parametrize(("task", "workers"), [("coco", 0), ("voc07", 2)])
def test_killed_with_sigkill_it_resumes_bit_for_bit(
    make_request: RequestFactory, root: Path, tmp_path: Path, task: str, workers: int
) -> None:
    """Killed while it starts, between checkpoints, inside the writing of one, and while it measures."""
    words = (*WORDS, "DATALOADER.NUM_WORKERS", str(workers))
    whole, broken = (make_request(*words, task=task, output=tmp_path / name) for name in ("whole", "broken"))
    run_trial(whole)
    moments = random.Random(workers)
    folder = broken.output
    killed(root, broken, lambda _: True, after=moments.uniform(0.2, 3))
    for _ in range(2):
        before = newest(folder)
        assert killed(root, broken, lambda _, before=before: newest(folder) > before, after=moments.uniform(0, 0.3))
    for _ in range(5):
        assert killed(root, broken, lambda known: bool(torn(folder) - known))
        if torn(folder):
            break
    assert torn(folder), "no kill fell inside the writing of a checkpoint"
    assert killed(root, broken, lambda _: (folder / "model_final.pth").exists())
    assert not (folder / "result.json").exists()
    assert subprocess.run(command(root, broken), cwd=root, capture_output=True, check=False).returncode == 0
    assert_same_end(whole.output, folder)
    logged = iterations(folder)
    assert len(logged) == len(set(logged)) and set(iterations(whole.output)) <= set(logged)


def newest(folder: Path) -> str:
    """The newest checkpoint's name; empty when there is none."""
    return max((file.name for file in folder.glob("model_0*.pth")), default="")


def torn(folder: Path) -> set[str]:
    """Checkpoints that are being written, or whose writing a kill ended."""
    return {name for name in os.listdir(folder) if name.startswith(".model_")} if folder.is_dir() else set()  # noqa: PTH208


def killed(root: Path, request: TrialRequest, moment: Callable[[set[str]], bool], after: float = 0.0) -> bool:
    """Start the trial and kill its process group `after` seconds after the moment came; whether it was running still.

    Args:
        moment: asked again and again, with the names of what earlier kills left behind.
    """
    known = torn(request.output)
    words = command(root, request)
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(words, cwd=root, stdout=quiet, stderr=quiet, start_new_session=True)
    deadline = time.monotonic() + 240
    while process.poll() is None and not moment(known) and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(after)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive
