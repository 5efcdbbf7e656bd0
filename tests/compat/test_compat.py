"""Run folders written by earlier commits are read, resumed and tabulated; make.py says how each was made.

The folders here stand for the runs that users have. A folder is never changed; a release adds one.
"""

from __future__ import annotations

import json
import lzma
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torchvision

from common.console import call
from tests.compat.ends import end_of, machine
from tests.compat.narrow_resnet import NarrowResNet
from tools import convert, evaluate, launch, pretrain, table, transfer

HERE = Path(__file__).parent
FOLDERS = sorted(path.parent for path in HERE.glob("*/ends.json"))
MADE_AT = "/tmp/compat"
"""Where the folders were made: the path of the images stands in the fingerprints, and need not exist."""
PRETRAININGS = ("moco", "byol", "simclr", "swav", "supervised", "killed")
TOLERANCE = 1e-3
"""Relative and absolute, for a pre-training or evaluation that ends on another machine than the recorded one, after
four float32 steps. Measured: 6.5e-5 with ATEN_CPU_CAPABILITY=default and ONEDNN_MAX_CPU_ISA=SSE41 against AVX-512's
kernels, 4.5e-5 with AVX2's, 5.4e-5 with two threads. Without the optimizer's momenta: 0.09 and more."""


class Kept:
    """A copy of a folder that an earlier commit wrote.

    Args:
        source: the folder.
        path: where its copy goes.
    """

    def __init__(self, source: Path, path: Path) -> None:
        self.source, self.path = source, path
        self.ends: dict[str, Any] = json.loads((source / "ends.json").read_text())
        self.overlay = str(path / "configs/narrow.yaml")
        shutil.copytree(source / "configs", path / "configs")
        for file in (path / "configs").glob("*.yaml"):
            text = file.read_text().replace(f"{MADE_AT}/whole_slurm/configs", str(path / "slurm_configs"))
            file.write_text(text.replace(f"{MADE_AT}/configs", str(path / "configs")))

    def run(self, name: str) -> Path:
        """The copy of a run folder."""
        if not (self.path / name).exists():
            shutil.copytree(self.source / name, self.path / name)
            if name == "slurm":
                shutil.copytree(self.source / "slurm_configs", self.path / "slurm_configs")
        return self.path / name

    def job(self, run: str, name: str) -> Path:
        """The copy of a job's folder."""
        [folder] = [path for path in (self.run(run) / "jobs").iterdir() if path.name[:-9] == name]
        return folder

    def launch(self, verb: str, run: str, *words: str) -> int:
        """launch.py on the copy."""
        file = str(self.path / f"configs/{run}.yaml")
        return call(launch.main, [verb, file, "--set", f"run_dir={self.run(run)}", *words])

    def assert_ends_as_recorded(self, run: str, name: str, tolerance: float = TOLERANCE) -> None:
        """The job ended as the one that was not interrupted: to the bit on the machine that recorded it."""
        ours, theirs = end_of(self.job(run, name)), self.ends[run][name]
        exact = machine() == self.ends["machine"]
        assert ours.keys() == theirs.keys()
        for part in theirs:
            assert_close(ours[part], theirs[part], 0.0 if exact else tolerance, (name, part))


def assert_close(ours: Any, theirs: Any, tolerance: float, at: tuple[str, ...]) -> None:
    """Everything recorded is there; numbers within the tolerance."""
    if isinstance(theirs, dict):
        for key in theirs:
            assert key in ours, (*at, key)
            assert_close(ours[key], theirs[key], tolerance, (*at, key))
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), at
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_close(one, other, tolerance, (*at, str(index)))
    elif isinstance(theirs, float):
        assert tolerance == math.inf or ours == pytest.approx(theirs, rel=tolerance, abs=tolerance), at
    else:
        assert ours == theirs, at


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    """A copy of a folder of an earlier commit."""
    return Kept(request.param, tmp_path / "kept")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes' ResNet-18 is the narrow one."""
    monkeypatch.setattr(torchvision.models, "resnet18", NarrowResNet)


@pytest.fixture
def empty_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Slurm that has forgotten every job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in (("squeue", 0), ("sacct", 1)):
        (folder / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def words_of(text: str, words: str) -> dict[str, str]:
    """The word after each job's name in what `plan` or `status` printed."""
    found = re.findall(rf"^\W*([a-z]+(?:\.[\w.]+)?) +({words})\b", text, re.MULTILINE)
    return {name: word for name, word in found if name.split(".")[0] in KINDS}


KINDS = ("pretrain", "convert", "evaluate", "search", "choose", "finetune", "table")
ACTIONS = "run|done|diverged|skip|queued"
STATES = "pending|running|interrupted|done|diverged|failed|cancelled|queued|unknown|incomplete|blocked"


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
    assert call(pretrain.main, command) == 0
    kept.assert_ends_as_recorded("measures", name)


@pytest.mark.usefixtures("narrow")
def test_a_killed_evaluation_resumes_to_the_same_end(kept: Kept) -> None:
    name = "evaluate.simsiam.sgd"
    weights = kept.job("measures", "pretrain.simsiam") / "backbone.safetensors"
    command = ["linear", "--config-file", str(kept.path / "configs/linear.yaml"), "--overlay", kept.overlay]
    command += ["--weights", str(weights), "--name", "simsiam", "--data", str(kept.source / "toy/photos"), "--resume"]
    command += ["--output", str(kept.job("measures", name)), "LINEAR.OPTIMIZER", "sgd"]
    assert call(evaluate.main, command) == 0
    kept.assert_ends_as_recorded("measures", name)


def test_a_killed_trial_resumes_to_the_same_end(kept: Kept) -> None:
    name = "finetune.scratch.coco.s1"
    command = ["--config-file", str(kept.path / "configs/coco.yaml"), "--overlay", kept.overlay, "--resume"]
    command += ["--weights", "scratch", "--seed", "1", "--output", str(kept.job("transfers", name))]
    assert call(transfer.main, [*command, "TRANSFER.DATA_ROOT", str(kept.source / "toy/detection")]) == 0
    # On another machine a proposal more or less decides: with AVX2's kernels single biases end 45 % away.
    kept.assert_ends_as_recorded("transfers", name, tolerance=math.inf)


@pytest.mark.parametrize("run", ["measures", "transfers"])
def test_the_table_has_the_same_numbers(kept: Kept, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(table.main, [str(kept.run(run)), "--format", "json"]) == 0
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
    assert call(convert.main, [str(constants(ending)), str(out), "--no-verify"]) == 0
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
    assert call(transfer.main, command) == 2
    assert "resnet50" in capsys.readouterr().err
