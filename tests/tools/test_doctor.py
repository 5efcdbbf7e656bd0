"""The doctor, with parts of the machine taken away or broken."""

from __future__ import annotations

import importlib.metadata
import json
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ssl_transfer.console import call_main
from tools import doctor
from tools.install_detectron2 import GIT_COMMIT, VERSION
from transfer.doctor import data_roots, machine, software
from transfer.doctor.finding import Finding, healthy, render


def test_all_that_is_needed_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    """The tests themselves need it."""
    assert call_main(doctor.main, []) == 0
    out = capsys.readouterr().out
    for subject in ("python", "torch", "torchvision", "detectron2", "packages"):
        assert any(line.startswith("ok ") and f" {subject} " in line for line in out.splitlines()), subject
    for subject in ("gpus", "slurm", "cores", "memory", "disk", "data"):
        assert f" {subject} " in out


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(doctor.main, ["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"subject": "python", "state": "ok"}.items() <= next(f for f in found if f["subject"] == "python").items()


def test_a_missing_package_is_exit_1_with_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    assert call_main(doctor.main, []) == 1
    lines = capsys.readouterr().out.splitlines()
    index = next(i for i, line in enumerate(lines) if line.startswith("missing"))
    assert "torchvision" in lines[index] and "does not fit torch" in lines[index]
    assert "make setup TORCH" in lines[index + 1]


def test_an_unknown_option_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(doctor.main, ["--deep-breath"]) == 2
    assert "--deep-breath" in capsys.readouterr().err


def test_it_runs_where_nothing_is_installed(root: Path, tmp_path: Path) -> None:
    """-S leaves site-packages out: the doctor must not need what it looks for."""
    done = subprocess.run(
        [sys.executable, "-S", str(root / "tools" / "doctor.py")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1 and done.stderr == ""
    assert "missing  torch " in done.stdout and "make setup" in done.stdout


def test_a_warning_is_no_failure_and_advice_follows_its_finding() -> None:
    findings = [Finding("a", "ok", "1"), Finding("long", "warning", "2", "do this")]
    assert healthy(findings) and not healthy([*findings, Finding("b", "missing", "3", "do that")])
    assert render(findings).splitlines() == ["ok       a     1", "warning  long  2", "               → do this"]


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software.sys, "version_info", (3, 9, 1))
    assert software.check_python().state == "missing"


@pytest.mark.parametrize("name", ["torch", "torchvision"])
def test_a_package_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "version_of", lambda _: None)
    finding = getattr(software, f"check_{name}")()
    assert (finding.state, finding.found, finding.advice) == ("missing", "not installed", "make setup")


def test_a_torch_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> Any:
        raise OSError("libtorch.so: cannot open shared object file\nmore")

    monkeypatch.setattr(software.importlib, "import_module", fail)
    finding = software.check_torch()
    assert finding.state == "missing"
    assert finding.found.endswith("does not work: OSError: libtorch.so: cannot open shared object file")


def test_operators_that_were_built_for_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.ops

    def fail(*_: object) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", fail)
    assert "does not fit torch" in software.check_torchvision().found
    monkeypatch.setattr(torchvision.ops, "nms", lambda boxes, *_: boxes.new_tensor([0, 1]))
    assert software.check_torchvision().state == "missing"


def distribution(version: str, **origin: object) -> SimpleNamespace:
    return SimpleNamespace(version=version, read_text=lambda _: json.dumps(origin) if origin else None)


@pytest.mark.parametrize(
    ("installed", "state", "words"),
    [
        (distribution(VERSION), "ok", "the re-packed wheel"),
        (distribution("0.6", vcs_info={"commit_id": GIT_COMMIT}), "ok", f"git {GIT_COMMIT[:8]} (the pinned commit)"),
        (distribution("0.6", vcs_info={"commit_id": "f" * 40}), "warning", "git ffffffff (not the pinned one)"),
        (distribution("0.6"), "warning", "another build"),
        (distribution("0.6", dir_info={"editable": True}), "warning", "another build from a working folder"),
    ],
)
def test_where_detectron2_came_from(
    installed: SimpleNamespace, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software.importlib.metadata, "distribution", lambda _: installed)
    finding = software.check_detectron2(VERSION, GIT_COMMIT)
    assert finding.state == state and words in finding.found
    assert ("--fix" in finding.advice) == (state == "warning")


def test_no_detectron2_and_one_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2.modeling", None)
    broken = software.check_detectron2(VERSION, GIT_COMMIT)
    assert broken.state == "missing" and "does not import" in broken.found

    def absent(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(software.importlib.metadata, "distribution", absent)
    finding = software.check_detectron2(VERSION, GIT_COMMIT)
    assert (finding.state, finding.advice) == ("missing", "python tools/doctor.py --fix")


def test_packages_that_are_absent_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["torch>=999", "no-such-package>=1", "numpy>=1", "also-absent>=1; extra == 'dev'"]
    monkeypatch.setattr(software.importlib.metadata, "requires", lambda _: needs)
    finding = software.packages()
    assert finding.state == "missing"
    assert "no-such-package is not installed" in finding.found and "is not >=999" in finding.found
    assert "numpy" not in finding.found and "also-absent" not in finding.found


@pytest.mark.parametrize(
    ("commit", "state", "words"),
    [("unknown", "warning", "no git"), ("a" * 40 + "-dirty", "warning", "changed files"), ("a" * 40, "ok", "aaaaaaaa")],
)
def test_the_checkout(commit: str, state: str, words: str, tmp_path: Path) -> None:
    finding = software.checkout(tmp_path, commit)
    assert finding.state == state and words in finding.found


def fake_torch(count: int, cuda: str | None) -> SimpleNamespace:
    gpu = SimpleNamespace(total_memory=80 << 30)
    return SimpleNamespace(
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            device_count=lambda: count, get_device_name=lambda i: f"card {i}", get_device_properties=lambda i: gpu
        ),
    )


def executable(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(stat.S_IRWXU)


@pytest.mark.parametrize(
    ("count", "cuda", "driver", "state", "words"),
    [
        (2, "13.0", True, "ok", "0: card 0 (80 GiB), 1: card 1 (80 GiB)"),
        (0, "13.0", False, "warning", "none"),
        (0, None, True, "warning", "CPU build"),
        (0, "13.0", True, "warning", "torch sees no GPU"),
    ],
)
def test_gpus(
    count: int, cuda: str | None, driver: bool, state: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(count, cuda))  # type: ignore[arg-type]
    if driver:
        executable(tmp_path, "nvidia-smi", "true")
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = machine.gpus()
    assert finding.state == state and words in finding.found
    assert bool(finding.advice) == (state != "ok")


def slurm_here(folder: Path, sinfo: str) -> None:
    for name in ("sbatch", "squeue"):
        executable(folder, name, "true")
    executable(folder, "sinfo", sinfo)


VERSIONED = 'if [ "$1" = --version ]; then echo slurm 24.05.1; exit; fi\n'


@pytest.mark.parametrize(
    ("sinfo", "state", "words"),
    [
        (VERSIONED + "echo 'gpu* 4 gpu:8'; echo 'cpu 2 (null)'", "ok", "slurm 24.05.1, partitions cpu, gpu"),
        (VERSIONED + "true", "warning", "no partition"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "warning", "Unable to contact slurm controller"),
        ("while :; do :; done", "warning", "did not answer"),
    ],
)
def test_slurm(sinfo: str, state: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_here(tmp_path, sinfo)
    monkeypatch.setenv("PATH", str(tmp_path))
    if "while" in sinfo:
        monkeypatch.setattr(machine, "SLURM_TIMEOUT", 0.3)
    finding = machine.slurm()
    assert finding.state == state and words in finding.found


def test_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path, "sinfo", "true")
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = machine.slurm()
    assert finding.found == "no sbatch, squeue" and "--cluster local" in finding.advice


def test_a_containers_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.cpu_quota(tmp_path) is None and machine.memory_limit(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(f"{4 << 30}\n")
    assert machine.cpu_quota(tmp_path) == 1.5 and machine.memory_limit(tmp_path) == 4 << 30
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.memory().state == "warning" and "4.0 GiB (the container's limit)" in machine.memory().found
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(8))
    assert machine.cores().state == "warning" and "limited to 1.5" in machine.cores().found
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cpu_quota(tmp_path) is None and machine.memory_limit(tmp_path) is None
    assert machine.cores() == Finding("cores", "ok", "8")


@pytest.mark.parametrize(("free", "state"), [(1 << 30, "warning"), (1 << 40, "ok")])
def test_disk(free: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert machine.disk(tmp_path).state == state


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A VOC2007 whose test split has three images, as the data root of the environment."""
    root = tmp_path / "sets"
    (root / "VOC2007" / "ImageSets" / "Main").mkdir(parents=True)
    (root / "VOC2007" / "JPEGImages").mkdir()
    (root / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_text("1\n2\n3\n")
    for name in "123":
        (root / "VOC2007" / "JPEGImages" / f"{name}.jpg").write_bytes(b"")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.chdir(tmp_path)
    return root


def test_a_part_of_a_benchmark_compares_with_nothing(voc: Path) -> None:
    (finding,) = data_roots.check_data_roots()
    assert finding.state == "warning" and "voc_2007_test 3" in finding.found
    assert "published with 4952" in finding.advice


def test_a_whole_benchmark(voc: Path) -> None:
    names = [str(number) for number in range(4952)]
    (voc / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_text("\n".join(names))
    for name in names:
        (voc / "VOC2007" / "JPEGImages" / f"{name}.jpg").touch()
    (finding,) = data_roots.check_data_roots()
    assert finding == Finding("data", "ok", f"{voc}: voc_2007_test 4952")


def test_a_listed_image_that_is_missing(voc: Path) -> None:
    (voc / "VOC2007" / "JPEGImages" / "2.jpg").unlink()
    (finding,) = data_roots.check_data_roots()
    assert finding.state == "warning" and "such as 2.jpg" in finding.found and "data.py check" in finding.advice


def test_a_coco_without_its_images(voc: Path) -> None:
    (voc / "coco" / "annotations").mkdir(parents=True)
    (voc / "coco" / "annotations" / "instances_val2017.json").write_text("{}")
    (finding,) = data_roots.check_data_roots()
    assert finding.state == "warning" and "coco_2017_val: " in finding.found and "No such file" in finding.found


def test_a_toy_set_is_named_as_one(voc: Path) -> None:
    (voc.parent / "toy.json").write_text('{"classes": ["bus"]}')
    (finding,) = data_roots.check_data_roots()
    assert finding.state == "ok" and "a toy set: voc_2007_test 3" in finding.found


def test_no_data_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "gone"))
    (finding,) = data_roots.check_data_roots()
    assert finding.state == "warning" and "gone (does not exist)" in finding.found and "datasets" in finding.found
    assert "tools/data.py toy" in finding.advice


def test_a_root_given_by_hand_is_the_only_one(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (finding,) = data_roots.check_data_roots(tmp_path / "other")
    assert "other" in finding.found and "VOC2007" in finding.found and str(voc) not in finding.found


def test_fix_installs_nothing_where_the_pinned_detectron2_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(doctor.main, ["--fix"]) == 0
    assert "nothing to install" in capsys.readouterr().out
