"""One whole way through the stable command lines: toy images → pre-train → convert → fine-tune → table."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SHORT = {"SOLVER.MAX_ITER": 6, "SOLVER.STEPS": [4], "SOLVER.WARMUP_ITERS": 2, "TEST.PRECISE_BN.NUM_ITER": 2}


def tool(root: Path, name: str, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command line as a user does."""
    command = [sys.executable, str(root / "tools" / f"{name}.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=900)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def experiment(folder: Path, **rows: dict[str, object]) -> Path:
    """A file like configs/experiments/demo.yaml, with every stage cut to a few steps."""
    content = {
        "name": "short",
        "run_dir": str(folder / "run"),
        "overlay": "configs/overlays/cpu.yaml",
        "data": {"images": str(folder / "toy" / "photos"), "detection": str(folder / "toy" / "detection")},
        "rows": rows,
        "tasks": {
            "voc07": {"config": "configs/transfer/voc07.yaml", "trials": 2, "overrides": SHORT},
            "coco": {"config": "configs/transfer/coco.yaml", "trials": 1, "overrides": SHORT},
        },
        "local": {"slots": 2, "threads": 1},
    }
    file = folder / "short.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def simsiam(**overrides: object) -> dict[str, object]:
    """A row that pre-trains for one epoch of two steps on small views."""
    short = {"SOLVER.EPOCHS": 1, "SOLVER.BATCH_SIZE": 8, "DATA.SIZE": 32, "LOG.PERIOD": 1, **overrides}
    config = "configs/pretrain/simsiam_r50_b256_200ep_base.yaml"
    return {"label": "SimSiam", "pretrain": {"config": config, "overrides": short}, "expected": "simsiam_base"}


@pytest.fixture(scope="module")
def toy(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy sets just large enough for two steps and a precise BN."""
    folder = tmp_path_factory.mktemp("whole_way")
    sizes = ["--photos", 16, "--voc2007", 8, 6, "--voc2012", 4, 4, "--coco", 8, 6]
    tool(root, "data", "toy", folder / "toy", *map(str, sizes))
    return folder


def test_from_images_to_table(root: Path, toy: Path) -> None:
    """Both rows get their cells, the backbone reaches the detector whole, and asking again runs nothing."""
    file = experiment(toy, scratch={"label": "scratch", "scratch": True}, simsiam=simsiam())
    first = tool(root, "launch", "submit", file, "--cluster", "local")
    assert "SimSiam" in first.stdout and "scratch" in first.stdout
    run = toy / "run"
    graph = json.loads((run / "graph.json").read_text())
    trials = [job for job in graph["jobs"] if job["kind"] == "finetune"]
    assert len(trials) == 6
    for job in trials:
        result = json.loads((run / job["dir"] / "result.json").read_text())
        assert result["toy"] is True and result["status"] == "done"
        assert result["comparable"]["ok"] is False and any("16" in reason for reason in result["comparable"]["reasons"])
        assert ("segm" in result["metrics"]) == (job["task"] == "coco")
        assert 0 <= result["metrics"]["bbox"]["AP50"] <= 100
        if job["row"] == "simsiam":
            assert result["guards"]["weights_loaded"].startswith("265/265")
            assert result["weights"]["manifest"]["origin"]["method"] == "simsiam"
    page = (run / "table.html").read_text()
    assert "SimSiam" in page and "http://" not in page.replace("http://www.w3.org", "")

    stamps = {job["name"]: (run / job["dir"] / "job.json").stat().st_mtime_ns for job in graph["jobs"]}
    tool(root, "launch", "submit", file, "--cluster", "local")
    assert {job["name"]: (run / job["dir"] / "job.json").stat().st_mtime_ns for job in graph["jobs"]} == stamps
    listing = tool(root, "table", run, "--format", "json").stdout
    assert {"scratch", "simsiam"} <= set(listing.replace('"', " ").split())


def test_toy_results_stand_beside_published_ones_only_when_asked(root: Path, toy: Path) -> None:
    """The run of the test above, tabulated beside the published rows."""
    run = toy / "run"
    if not (run / "graph.json").exists():
        pytest.skip("the whole way did not run")
    refused = tool(root, "table", run, "--published", "rows", check=False)
    assert refused.returncode == 2 and "toy" in refused.stderr and refused.stderr.count("\n") == 1
    assert "75.5" in tool(root, "table", run, "--published", "rows", "--allow-toy").stdout


@pytest.mark.slow
def test_killed_at_random_and_asked_again_ends_the_same(root: Path, toy: Path, tmp_path: Path) -> None:
    """SIGKILL to the process group at random moments; the results are those of a run that nobody disturbed."""
    (tmp_path / "toy").symlink_to(toy / "toy")
    file = experiment(tmp_path, simsiam=simsiam())
    whole = results(root, file, tmp_path / "whole", kills=0)
    broken = results(root, file, tmp_path / "broken", kills=6)
    assert broken == whole


def results(root: Path, file: Path, run: Path, kills: int) -> dict[str, object]:
    """Metrics of every trial of a run that was killed `kills` times on its way."""
    command = [sys.executable, str(root / "tools" / "launch.py"), "submit", str(file), "--set", f"run_dir={run}"]
    rng = random.Random(7)
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=root, start_new_session=True, stdout=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(2, 20))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL, timeout=900)
    graph = json.loads((run / "graph.json").read_text())
    trials = [job for job in graph["jobs"] if job["kind"] == "finetune"]
    return {job["name"]: json.loads((run / job["dir"] / "result.json").read_text())["metrics"] for job in trials}


@pytest.mark.slow
def test_a_resnet_18_from_images_to_an_fpn_and_its_frozen_column(root: Path, toy: Path) -> None:
    """A ResNet-18 transfers to FPN; frozen, all of its 100 tensors stay those that were pre-trained."""
    short = {**SHORT, "MODEL.RESNETS.DEPTH": 18}
    file = experiment(toy, simsiam=simsiam(**{"MODEL.ARCH": "resnet18"}))
    content = yaml.safe_load(file.read_text())
    content["run_dir"] = str(toy / "run18")
    content["tasks"] = {
        task: {"config": f"configs/transfer/{task}.yaml", "trials": 1, "overrides": short}
        for task in ("coco_fpn", "coco_fpn_frozen")
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    tool(root, "launch", "submit", file, "--cluster", "local")
    graph = json.loads((toy / "run18" / "graph.json").read_text())
    results = {
        job["task"]: json.loads((toy / "run18" / job["dir"] / "result.json").read_text())
        for job in graph["jobs"]
        if job["kind"] == "finetune"
    }
    guards = {task: (made["guards"]["weights_loaded"], made["guards"]["frozen"]) for task, made in results.items()}
    frozen = results["coco_fpn_frozen"]
    source = frozen["weights"]["manifest"]["tensors"]
    lines = sorted(f"backbone.bottom_up.{name} {entry['sha256']}\n" for name, entry in source.items())
    assert frozen["guards"]["frozen_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert guards == {
        "coco_fpn": ("100/100 exact", 0),
        "coco_fpn_frozen": ("100/100 exact", 100),
    }
    table = json.loads(tool(root, "table", toy / "run18", "--format", "json").stdout)
    assert "coco_fpn_frozen" in json.dumps(table)
