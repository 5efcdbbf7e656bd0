"""Linear evaluations by their command line: the files they write, resume, and several processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils import comm

from pretrain.data.sampler import ResumableBatchSampler
from pretrain.evaluation import linear
from pretrain.evaluation.config import load_evaluation_config
from pretrain.evaluation.linear import DatasetShard, LinearProbe, build_classifier
from ssl_transfer.formats.heartbeat import read_heartbeats
from ssl_transfer.training.distributed import launch
from tests.pretrain.evaluation.conftest import SMALL_LINEAR

Command = Callable[..., int]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def end(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    return {**state["classifier"], **{f"m{n}": s["momentum_buffer"] for n, s in state["optimizer"]["state"].items()}}


def assert_same(ours: Path, theirs: Path) -> None:
    mine, other = end(ours), end(theirs)
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    assert history(ours) == history(theirs)
    assert result(ours)["metrics"] == result(theirs)["metrics"]


def test_writes_the_files_of_the_formats_page(
    evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert evaluate("linear", "--output", str(out)) == 0
    made = result(out)
    assert (made["format"], made["status"], made["kind"]) == ("evaluation-result/1", "done", "linear")
    assert (made["seed"], made["toy"], made["divergence"]) == (0, False, None)
    entries = history(out)
    assert [(entry["epoch"], entry["iteration"]) for entry in entries] == [(1, 3), (2, 7), (3, 11)]
    assert [entry["lr"] for entry in entries] == pytest.approx([1.0, 0.75, 0.25])
    assert all(0 < entry["loss"] < 10 for entry in entries)
    assert made["metrics"] == {"top1": entries[-1]["top1"], "best_top1": max(e["top1"] for e in entries)}
    assert made["weights"]["origin"]["epochs"] == 100 and len(made["weights"]["sha256"]) == 64
    assert made["settings"]["augmentation"] is True and made["settings"]["training_images"] == 30
    assert "3 classes, not 1000" in made["comparable"]["reasons"] and made["comparable"]["ok"] is False
    said = capsys.readouterr()
    assert "finished: linear of" in said.out and "loss" in said.err and "ETA" in said.err
    assert evaluate("linear", "--output", str(out)) == 0
    assert "finished" in capsys.readouterr().out


def test_cached_features_say_so_and_are_removed(evaluate: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert evaluate("linear", "--output", str(out), "LINEAR.CACHE_FEATURES", "True") == 0
    made = result(out)
    assert made["settings"]["augmentation"] is False
    assert any("no augmentation" in reason for reason in made["comparable"]["reasons"])
    assert not list(out.glob("*features*")) and made["metrics"]["best_top1"] > 50


@pytest.mark.parametrize("cached", ["True", "False"])
def test_stopped_and_interrupted_it_resumes_exactly(
    evaluate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: str
) -> None:
    words = ("LINEAR.CACHE_FEATURES", cached)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert evaluate("linear", "--output", str(whole), *words) == 0
    step = LinearProbe.step
    at = {1: "stop", 5: "break"}

    def interrupted(self: LinearProbe, size: int, stop_requested: bool = False) -> tuple[float, bool]:
        what = at.pop(self.progress.iteration, None)
        if what == "break":
            raise RuntimeError("the power went")
        if what == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
            stop_requested = True  # as the loop would see it with the next step
        return step(self, size, stop_requested)

    monkeypatch.setattr(LinearProbe, "step", interrupted)
    handlers = signal.getsignal(signal.SIGTERM)
    assert evaluate("linear", "--output", str(broken), *words) == 75
    assert signal.getsignal(signal.SIGTERM) == handlers
    with pytest.raises(RuntimeError):
        evaluate("linear", "--resume", "--output", str(broken), *words)
    (broken / ".features_train.npy.abcd.tmp").write_bytes(b"half")
    assert evaluate("linear", "--resume", "--output", str(broken), *words) == 0
    assert not at and not list(broken.glob(".*.tmp"))
    assert_same(broken, whole)


@pytest.fixture
def broken_off(evaluate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Words of an evaluation that ended after the features were cached."""
    words = ("linear", "--output", str(tmp_path / "out"), "LINEAR.CACHE_FEATURES", "True")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(LinearProbe, "step", lambda *_: (_ for _ in ()).throw(RuntimeError))
        evaluate(*words)
    assert (tmp_path / "out" / "features_train.npy").exists()
    return words


def test_a_complete_cache_is_reused(
    evaluate: Command, broken_off: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_allocate", lambda *_: pytest.fail("computed again"))
    assert evaluate(*broken_off, "--resume") == 0


@pytest.mark.parametrize("damaged", ["features_train.npy", "features_train.sha256"])
def test_a_damaged_cache_is_set_aside_and_made_anew(
    evaluate: Command, broken_off: tuple[str, ...], tmp_path: Path, damaged: str
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    content = bytearray((out / damaged).read_bytes())
    content[-1] ^= 1
    (out / damaged).write_bytes(content)
    features = (out / "features_train.npy").read_bytes()
    assert evaluate(*broken_off, "--resume") == 0
    assert (out / "features_train.npy.damaged").read_bytes() == features
    assert not (out / "features_train.npy").exists() and not (out / "features_train.sha256").exists()
    assert evaluate("linear", "--output", str(whole), *broken_off[3:]) == 0
    assert_same(out, whole)


def test_what_a_process_left_that_was_killed_after_its_result_is_removed(
    evaluate: Command, broken_off: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert evaluate(*broken_off, "--resume") == 0
    for name in (".writer.lock", "features_train.npy", "features_train.sha256"):
        (out / name).touch()
    assert evaluate(*broken_off) == 0
    assert sorted(file.name for file in out.iterdir()) == [
        "checkpoint.pth", "evaluation.json", "metrics.json", "result.json",
    ]  # fmt: skip


def test_a_run_that_diverges_is_recorded_and_not_repeated(
    evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--output", str(tmp_path / "out"), "LINEAR.OPTIMIZER", "sgd", "LINEAR.BASE_LR", "1e38")
    assert evaluate("linear", *words) == 1
    made = result(tmp_path / "out")
    assert made["status"] == "diverged" and made["metrics"] is None
    what, where = made["divergence"]["what"], made["divergence"]["iteration"]
    assert what in ("the loss is nan", "the loss is inf") and 0 < made["divergence"]["lr"] <= 1e38 / 32
    said = capsys.readouterr().err
    assert f"diverged: {what} at iteration {where}" in said
    monkeypatch.setattr(LinearProbe, "step", lambda *_: pytest.fail("tried again"))
    assert evaluate("linear", *words, "--resume") == 1
    assert "diverged" in capsys.readouterr().err


def fit(out: Path) -> None:
    """A classifier trained on fixed features of 22 samples in batches of 7, the last of one sample."""
    overrides = ["LINEAR.BATCH_SIZE", "7", "LINEAR.EPOCHS", "2", "LINEAR.OPTIMIZER", "sgd", "LINEAR.BASE_LR", "9"]
    root = Path(__file__).resolve().parents[3]
    recipe = root / "configs/evaluation/linear_imagenet_lars_b4096_90ep.yaml"
    cfg = load_evaluation_config(recipe, "linear", overrides=overrides)[0]
    features = torch.randn(22, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(22) % 3
    ranks = {"rank": comm.get_rank(), "world_size": comm.get_world_size()}
    sampler = ResumableBatchSampler(22, 7, 0, start=0, stop=8, drop_last=False, **ranks)
    batches = linear.cached_features(features.numpy(), SimpleNamespace(labels=labels), sampler, torch.device("cpu"))  # type: ignore[arg-type]
    share = DatasetShard(
        features[comm.get_rank() :: comm.get_world_size()], labels[comm.get_rank() :: comm.get_world_size()]
    )
    probe = LinearProbe(build_classifier(5, 3, 0).double(), cfg.LINEAR, sampler=sampler, batches=batches, test=share)
    probe.fit(save=lambda: None, period=0, stop_requested=lambda: False, report=lambda *_: None)
    if comm.get_rank() == 0:
        torch.save({"state": probe.classifier.state_dict(), "history": probe.progress.history}, out)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Also where a step's images are shared unequally, or one process has none (22 = 3 × 7 + 1)."""
    fit(tmp_path / "one")
    launch(fit, (tmp_path / "two",), 2)
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    for name, tensor in one["state"].items():
        torch.testing.assert_close(two["state"][name], tensor, rtol=1e-12, atol=1e-14)
    for mine, other in zip(two["history"], one["history"], strict=True):
        assert mine == pytest.approx(other, rel=1e-12)


def sampled(start: int = 0, rank: int = 0, world_size: int = 1) -> ResumableBatchSampler:
    return ResumableBatchSampler(22, 7, 3, start=start, stop=8, rank=rank, world_size=world_size, drop_last=False)


def test_batches_hold_every_image_once_per_epoch_for_any_number_of_processes() -> None:
    whole = list(sampled())
    assert [len(piece) for piece in whole] == [7, 7, 7, 1] * 2
    for epoch in (0, 1):
        assert sorted(i for piece in whole for e, i in piece if e == epoch) == list(range(22))
    assert [i for p in whole[:4] for _, i in p] != [i for p in whole[4:] for _, i in p]
    parts = [list(sampled(rank=r, world_size=3)) for r in range(3)]
    for step, piece in enumerate(whole):
        assert sorted(piece) == sorted(sample for part in parts for sample in part[step])
    assert list(sampled(start=5)) == whole[5:]
    assert [sampled().step_size(step) for step in range(8)] == [len(piece) for piece in whole]


@pytest.mark.slow
def test_killed_at_random_moments(evaluate: Command, weights: Path, labelled: Path, tmp_path: Path, root: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ("LINEAR.EPOCHS", "12", "CHECKPOINT.PERIOD", "1")
    command = [sys.executable, "tools/evaluate.py", "linear", "--weights", str(weights), "--data", str(labelled)]
    command += ["--resume", "--output", str(broken), *SMALL_LINEAR, *words]
    assert evaluate("linear", "--output", str(whole), *words) == 0
    rng = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(command, cwd=root, start_new_session=True, stderr=subprocess.DEVNULL)
        begun = time.monotonic()
        while not (broken / "checkpoint.pth").exists() and process.poll() is None and time.monotonic() - begun < 120:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 4))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=root, check=True)
    assert_same(broken, whole)
    assert not list(broken.glob(".*.tmp"))


@pytest.mark.slow
def test_a_stopped_loader_worker_ends_it_and_it_resumes_to_the_same_end(
    evaluate: Command, weights: Path, labelled: Path, tmp_path: Path, root: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ("LINEAR.EPOCHS", "30", "CHECKPOINT.PERIOD", "1", "DATA.WORKERS", "1", "MONITOR.HANG_SECONDS", "3")
    command = [sys.executable, "tools/evaluate.py", "linear", "--weights", str(weights), "--data", str(labelled)]
    command += ["--resume", "--output", str(broken), *SMALL_LINEAR, *words]
    assert evaluate("linear", "--output", str(whole), *words) == 0
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE)
    while not (broken / "checkpoint.pth").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]), signal.SIGSTOP)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75 and b"hung: no progress" in errors and b"Traceback" not in errors
    stacks = (broken / "stacks.rank0.txt").read_text()
    assert "fresh_features" in stacks and "_worker_loop" in stacks
    (hung,) = read_heartbeats(broken)
    assert hung.hung and hung.iteration > 0
    subprocess.run(command, cwd=root, check=True)
    assert_same(broken, whole)
