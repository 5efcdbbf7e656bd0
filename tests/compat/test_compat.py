"""Run folders written by earlier commits are read, resumed and tabulated; make.py says how each was made.

The folders here stand for the runs that users have. A folder is never changed; a release adds one.
"""

from __future__ import annotations

import json
import lzma
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torchvision

from ssl_transfer.console import call_main
from tests.compat.kept import ACTIONS, FOLDERS, STATES, Kept, words_of
from tests.compat.narrow_resnet import NarrowResNet
from tools import convert, evaluate, pretrain, table, transfer

PRETRAININGS = ("moco", "byol", "simclr", "swav", "supervised", "killed")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes' ResNet-18 is the narrow one."""
    monkeypatch.setattr(torchvision.models, "resnet18", NarrowResNet)


def test_there_is_a_folder() -> None:
    assert FOLDERS


@pytest.mark.parametrize("run", ["measures", "transfers"])
def test_plan_finds_what_was_done_and_what_was_killed(kept: Kept, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert kept.launch("plan", run) == 0
    then = words_of((kept.source / f"{run}.plan.txt").read_text(), ACTIONS)
    now = words_of(capsys.readouterr().out, ACTIONS)
    assert len(then) >= 7 and {name: now.get(name) for name in then} == then


@pytest.mark.parametrize("run", ["measures", "transfers", "slurm"])
@pytest.mark.usefixtures("empty_queue")
def test_status_reads_every_job(kept: Kept, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert kept.launch("status", run) == 0
    now = words_of(capsys.readouterr().out, STATES)
    expected = {}
    for job in json.loads((kept.source / run / "graph.json").read_text())["jobs"]:
        file = kept.source / run / job["dir"] / "job.json"
        state = json.loads(file.read_text())["status"] if file.exists() else None
        expected[job["name"]] = {"running": "interrupted", None: "cancelled" if run == "slurm" else "pending"}.get(
            state, state
        )
    assert now == expected


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("row", PRETRAININGS)
def test_a_killed_pretraining_resumes_to_the_same_end(kept: Kept, row: str) -> None:
    name, recipe = f"pretrain.{row}", "simsiam" if row == "killed" else row
    folder = kept.job("measures", name)
    command = ["--config-file", str(kept.path / f"configs/{recipe}.yaml"), "--overlay", kept.overlay, "--resume"]
    command += ["--output", str(folder), "DATA.ROOT", str(kept.source / "toy/photos")]
    command += ["SEED", "1"] if row == "killed" else []
    assert call_main(pretrain.main, command) == 0
    kept.assert_ends_as_recorded("measures", name)


def test_a_killed_swav_run_does_not_resume_in_another_form(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    """Its record lacks the key, which stands for the former value."""
    command = ["--config-file", str(kept.path / "configs/swav.yaml"), "--overlay", kept.overlay, "--resume"]
    command += ["--output", str(kept.job("measures", "pretrain.swav")), "DATA.ROOT", str(kept.source / "toy/photos")]
    assert call_main(pretrain.main, [*command, "SWAV.PROTOTYPE_NORM", "weight_norm"]) == 2
    error = capsys.readouterr().err.strip()
    assert "SWAV.PROTOTYPE_NORM" in error and "normalized" in error and "\n" not in error


@pytest.mark.usefixtures("narrow")
def test_a_killed_evaluation_resumes_to_the_same_end(kept: Kept) -> None:
    name = "evaluate.simsiam.sgd"
    weights = kept.job("measures", "pretrain.simsiam") / "backbone.safetensors"
    command = ["linear", "--config-file", str(kept.path / "configs/linear.yaml"), "--overlay", kept.overlay]
    command += ["--weights", str(weights), "--name", "simsiam", "--data", str(kept.source / "toy/photos"), "--resume"]
    command += ["--output", str(kept.job("measures", name)), "LINEAR.OPTIMIZER", "sgd"]
    assert call_main(evaluate.main, command) == 0
    kept.assert_ends_as_recorded("measures", name)


def test_a_killed_trial_resumes_to_the_same_end(kept: Kept) -> None:
    name = "finetune.scratch.coco.s1"
    command = ["--config-file", str(kept.path / "configs/coco.yaml"), "--overlay", kept.overlay, "--resume"]
    command += ["--weights", "scratch", "--seed", "1", "--output", str(kept.job("transfers", name))]
    assert call_main(transfer.main, [*command, "TRANSFER.DATA_ROOT", str(kept.source / "toy/detection")]) == 0
    # On another machine a proposal more or less decides: with AVX2's kernels single biases end 45 % away.
    kept.assert_ends_as_recorded("transfers", name, tolerance=math.inf)


@pytest.mark.parametrize("run", ["measures", "transfers"])
def test_the_table_has_the_same_numbers(kept: Kept, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(table.main, [str(kept.run(run)), "--format", "json"]) == 0
    now = json.loads(capsys.readouterr().out)
    then = json.loads((kept.source / f"{run}.table.json").read_text())
    numbers = dict(leaves(now))
    lost = {at: value for at, value in leaves(then) if numbers.get(at) != value}
    assert lost == {} and sum(isinstance(value, float) for value in numbers.values()) >= 1


def leaves(node: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every number and flag with its path; words may change."""
    if isinstance(node, (dict, list)):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            yield from leaves(value, (*at, str(key)))
    elif not isinstance(node, str):
        yield at, node


@pytest.fixture
def constants(kept: Kept) -> Callable[[str], Path]:
    """A converted file of that commit with its manifest, unpacked."""

    def unpack(ending: str) -> Path:
        folder = kept.path / f"weights_{ending}"
        folder.mkdir()
        packed = (kept.source / f"weights/constants.{ending}.xz").read_bytes()
        (folder / f"constants.{ending}").write_bytes(lzma.decompress(packed))
        shutil.copy(kept.source / f"weights/constants_{ending}.manifest.json", folder / "constants.manifest.json")
        return folder / f"constants.{ending}"

    return unpack


@pytest.mark.parametrize("ending", ["pkl", "safetensors"])
def test_converted_weights_are_read_whole(kept: Kept, constants: Callable[[str], Path], ending: str) -> None:
    out = kept.path / "again.pkl"
    assert call_main(convert.main, [str(constants(ending)), str(out), "--no-verify"]) == 0
    then = json.loads((kept.source / "weights/constants_pkl.manifest.json").read_text())
    now = json.loads(out.with_suffix(".manifest.json").read_text())
    for key in ("arch", "preprocessing", "tensors", "count"):
        assert now[key] == then[key], key


def test_a_trial_reads_the_converted_weights_manifest(
    kept: Kept, constants: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before any step, for the manifest says another depth."""
    command = ["--config-file", str(kept.path / "configs/voc07.yaml"), "--overlay", kept.overlay]
    command += ["--weights", str(constants("pkl")), "--seed", "1", "--output", str(kept.path / "trial")]
    command += ["MODEL.RESNETS.DEPTH", "101", "TRANSFER.DATA_ROOT", str(kept.source / "toy/detection")]
    assert call_main(transfer.main, command) == 2
    assert "resnet50" in capsys.readouterr().err
