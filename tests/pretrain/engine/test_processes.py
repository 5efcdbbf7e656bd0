"""Two processes with half the batch each end where one process with the whole batch ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils import comm

from pretrain.config import defaults
from pretrain.data.index import find_images
from pretrain.engine.build_trainer import build_trainer
from pretrain.engine.resume import PeriodicCheckpoint, load_latest, restore
from pretrain.models.batch_norm import CPUSyncBatchNorm
from ssl_transfer.training.distributed import launch
from tests.pretrain.engine.narrow_runs import apart, narrow_trainer

Command = Callable[..., int]
GIVEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")


def _weights(folder: Path, iterations: int) -> dict[str, torch.Tensor]:
    file = folder / f"checkpoint_{iterations:07d}.pth"
    state: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["method"]
    return state


def _distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Euclidean distance of all parameters and statistics together, relative to their length."""
    names = [name for name in theirs if theirs[name].is_floating_point()]
    mine, other = (torch.cat([tensors[name].flatten() for name in names]) for tensors in (ours, theirs))
    return float((mine - other).norm() / other.norm())


def _equal(ours: Path, theirs: Path, iterations: int) -> bool:
    mine, other = _weights(ours, iterations), _weights(theirs, iterations)
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_two_processes_of_7_images_equal_one_of_14(
    pretrain: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["SOLVER.BATCH_SIZE", "14", "SOLVER.BASE_LR", "0.5", "SOLVER.EPOCHS", "2"]
    assert pretrain(tmp_path / "one", *words) == 0
    assert pretrain(tmp_path / "two", *words, "--num-gpus", "2") == 0
    assert "finished" in capfd.readouterr().out
    # Float32: sums in another order differ by about 1e-7, which each step of training multiplies; see the next test.
    assert _distance(_weights(tmp_path / "two", 2), _weights(tmp_path / "one", 2)) < 1e-3
    rows = [(tmp_path / name / "metrics.json").read_text().splitlines() for name in ("one", "two")]
    for one, two in zip(*rows, strict=True):
        for key in ("loss", "std", "grad_norm"):
            assert json.loads(two)[key] == pytest.approx(json.loads(one)[key], rel=1e-3)


def test_one_process_with_two_groups_equals_two_processes_without_sync_bn(pretrain: Command, tmp_path: Path) -> None:
    words = ["SOLVER.BATCH_SIZE", "14", "SOLVER.BASE_LR", "0.5", "SOLVER.EPOCHS", "2", "MODEL.SYNC_BN", "False"]
    runs = {"one": [], "grouped": ["MODEL.BN_GROUP_SIZE", "7"], "two": ["--num-gpus", "2"]}
    for name, more in runs.items():
        assert pretrain(tmp_path / name, *words, *more) == 0
    found = {name: _parameters(_weights(tmp_path / name, 2)) for name in runs}
    near, far = (_distance(found["grouped"], found[name]) for name in ("two", "one"))
    assert near < 0.05 * far, f"{near:.2g} from the two, {far:.2g} from the one"


def _parameters(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without running statistics, which are the first process's alone."""
    return {name: tensor for name, tensor in tensors.items() if "running_" not in name}


def _train_narrow(folder: str, images: str) -> None:
    """In float64, 12 steps of 16 images over all processes: in one run, resumed half way, in parts."""
    facts: dict[str, Any] = {"whole": _end(narrow_trainer(), 0, 12)}
    at = Path(folder) / f"{comm.get_world_size()}"
    half = narrow_trainer(stop=6)
    half.register_hooks([_checkpoints(at)])
    _end(half, 0, 6)
    state = load_latest(at)
    assert state is not None
    resumed = narrow_trainer(start=6)
    restore(resumed, state)
    facts["resumed"] = _end(resumed, 6, 12)
    facts["exchanges"], facts["parts"] = _in_parts()
    facts["synchronised"] = {keep: _synchronised(keep, images) for keep in (True, False)}
    if comm.is_main_process():
        torch.save(facts, f"{at}.pt")


def _end(trainer: Any, first: int, last: int) -> dict[str, Any]:
    trainer.train(first, last)
    latest = {name: torch.tensor(value, dtype=torch.float64) for name, value in trainer.latest.items()}
    return {**trainer.method.state_dict(), **latest}


def _checkpoints(folder: Path) -> PeriodicCheckpoint:
    folder.mkdir(exist_ok=True)
    return PeriodicCheckpoint(folder, 6, defaults().CHECKPOINT, extra={})


def _in_parts() -> tuple[int, dict[str, Any]]:
    """Three steps in two parts each; the number of gradient all-reduces."""
    trainer, count = narrow_trainer(stop=3, accumulate=2), [0]
    if comm.get_world_size() > 1:

        def hook(_, bucket):  # type: ignore[no-untyped-def]  # DDP evaluates the annotations itself
            count[0] += bucket.is_last()
            work = torch.distributed.all_reduce(bucket.buffer() / comm.get_world_size(), async_op=True)
            return work.get_future().then(lambda done: done.value()[0])

        trainer.parallel.register_comm_hook(None, hook)
    end = _end(trainer, 0, 3)
    return count[0], end


def _synchronised(sync: bool, images: str) -> int:
    """The number of synchronized norms of a trainer, by MODEL.SYNC_BN."""
    cfg = defaults()
    cfg.MODEL.update(ARCH="resnet18", PROJ_HIDDEN=8, DIM=8, PRED_DIM=4, SYNC_BN=sync)
    cfg.SOLVER.BATCH_SIZE, cfg.DATA.WORKERS = 4, 0
    trainer = build_trainer(cfg, find_images(images), torch.device("cpu"), start=0, total=3)
    return sum(isinstance(module, CPUSyncBatchNorm) for module in trainer.method.modules())


def test_in_double_precision_two_processes_of_8_images_equal_one_of_16(tmp_path: Path, images: Path) -> None:
    for count in (1, 2):
        launch(_train_narrow, (str(tmp_path), str(images)), count)
    one, two = (torch.load(tmp_path / f"{count}.pt") for count in (1, 2))
    assert apart(two["whole"], one["whole"]) < 1e-9
    for run in (one, two):  # saved and resumed on the way: the very same
        assert run["resumed"].keys() == run["whole"].keys()
        assert all(torch.equal(run["resumed"][name], run["whole"][name]) for name in run["whole"])
    assert apart(two["resumed"], one["resumed"]) < 1e-9
    # A part is the same images, however many processes share it; gradients are exchanged once a step.
    assert apart(two["parts"], one["parts"]) < 1e-9 and two["exchanges"] == 3
    assert one["synchronised"] == {True: 0, False: 0}
    assert two["synchronised"] == {True: 24, False: 0}  # 20 of the ResNet-18 and 4 of the heads


@pytest.mark.slow
def test_two_processes_equal_one_on_the_command_line_across_a_resume(
    pretrain: Command, tmp_path: Path, draw: Callable[[Path, int], Path]
) -> None:
    images = draw(tmp_path / "images", 33)
    words = ["DATA.ROOT", str(images), "SOLVER.BATCH_SIZE", "16", "SOLVER.BASE_LR", "0.5", "CHECKPOINT.KEEP", "9"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert pretrain(one, *words) == 0
    assert pretrain(two, *words, "--num-gpus", "2") == 0
    whole = _weights(two, 4)
    for name in ("result.json", "backbone.safetensors", "checkpoint_0000004.pth"):
        (two / name).unlink()
    assert pretrain(two, *words, "--num-gpus", "2", "--resume") == 0
    again = _weights(two, 4)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert _distance(again, _weights(one, 4)) < 1e-3  # float32


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_is_refused(
    pretrain: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in (["SOLVER.BATCH_SIZE", "5"], ["SOLVER.BATCH_SIZE", "6", "SOLVER.GRAD_ACCUM_STEPS", "2"]):
        assert pretrain(tmp_path / "out", *words, "--num-gpus", "2") == 2
        errors = capfd.readouterr().err
        assert "SOLVER.BATCH_SIZE" in errors and "2 processes" in errors and "Traceback" not in errors
    words = ["SOLVER.BATCH_SIZE", "4", "SOLVER.GRAD_ACCUM_STEPS", "2", "MODEL.SYNC_BN", "False"]
    assert pretrain(tmp_path / "out", *words, "--num-gpus", "2") == 2
    assert "one image at a time" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def command(config: Path, images: Path, root: Path) -> Callable[..., list[str]]:
    """`command(output, *words)`: runs 20 steps of 6 images on two processes, or resumes."""

    def words(output: Path, *more: str) -> list[str]:
        parts = [str(root / "tools" / "pretrain.py"), "--config-file", str(config), "--output", str(output), "--resume"]
        parts += ["DATA.ROOT", str(images), "SOLVER.BATCH_SIZE", "6", "SOLVER.BASE_LR", "0.5", "SOLVER.EPOCHS", "10"]
        return [*parts, *more]

    return words


def _environment(**more: Any) -> dict[str, str]:
    """The environment without the variables of torchrun and Slurm."""
    own = {name: value for name, value in os.environ.items() if name not in GIVEN and not name.startswith("SLURM_")}
    return {**own, **{name: str(value) for name, value in more.items()}}


def _as_slurm_tasks(words: list[str], job: int) -> list[subprocess.Popen[str]]:
    """Two processes with the variables that srun gives to the tasks of a step on one node."""
    step = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_TASKS_PER_NODE": "2"}
    step["SLURM_STEP_NODELIST"] = "localhost"
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env=_environment(**step, SLURM_PROCID=rank, SLURM_LOCALID=rank),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def _as_two_nodes(words: list[str], port: int) -> list[subprocess.Popen[str]]:
    """Two torchrun agents, as on two nodes, with a process each."""
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    agent += ["--master-addr", "127.0.0.1", "--master-port", str(port), "--node-rank"]
    return [
        subprocess.Popen([*agent, str(node), *words], env=_environment(), stderr=subprocess.PIPE, text=True)
        for node in range(2)
    ]


def _ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    try:
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, errors) for process, errors in zip(processes, said, strict=True)]


def _await_a_step(folder: Path, process: subprocess.Popen[str]) -> None:
    begun = time.monotonic()
    while not _lines(folder / "metrics.json") and process.poll() is None and time.monotonic() - begun < 120:
        time.sleep(0.02)


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.slow
def test_torchrun_on_two_nodes_and_slurm_tasks_with_a_stop_signal_end_equally(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    nodes, tasks = tmp_path / "nodes", tmp_path / "tasks"
    port, job = 29000 + os.getpid() % 900, os.getpid()
    for code, errors in _ends(_as_two_nodes(command(nodes), port)):
        assert code == 0, errors
    processes = _as_slurm_tasks(command(tasks), job)
    _await_a_step(tasks, processes[0])
    processes[1].send_signal(signal.SIGUSR2)  # rank 1 alone: both must leave, after the same step
    for code, errors in _ends(processes):
        assert code == 75 and "stopped: saved after" in errors and "Traceback" not in errors, errors
    stopped = int((tasks / "last_checkpoint").read_text()[11:18])
    assert 0 < stopped < 20
    for code, errors in _ends(_as_slurm_tasks(command(tasks), job + 1)):
        assert code == 0, errors
    assert _equal(tasks, nodes, 20)
    assert [json.loads((folder / "result.json").read_text())["num_processes"] for folder in (nodes, tasks)] == [2, 2]


@pytest.mark.slow
def test_a_signal_to_the_parent_stops_both_and_the_rest_follows_exactly(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def begin(folder: Path, *more: str) -> subprocess.Popen[str]:
        words = [sys.executable, *command(folder, "--num-gpus", "2", *more)]
        return subprocess.Popen(words, env=_environment(), stderr=subprocess.PIPE, text=True)

    assert _ends([begin(whole)])[0][0] == 0
    process = begin(broken, "DATA.WORKERS", "1")  # whose loaders, deaf to signals, must not keep it from leaving
    _await_a_step(broken, process)
    process.send_signal(signal.SIGTERM)
    code, errors = _ends([process])[0]
    assert code == 75, errors
    assert "stopped: saved after" in errors and "Traceback" not in errors
    assert 0 < int((broken / "last_checkpoint").read_text()[11:18]) < 20
    assert _ends([begin(broken)])[0][0] == 0
    assert _equal(broken, whole, 20)
