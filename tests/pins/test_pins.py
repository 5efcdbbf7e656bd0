"""What must not move: fingerprints and Table 5's plan, tables of kept results, the toy set. make.py says how recorded.

Words may change; names, numbers, keys and columns may not.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_transfer.console import call_main
from tests.pins.make import FIELDS, FORMS, KEPT, PUBLISHED, numbers_in_cells, printed, sets_of
from tools import data, launch, table
from transfer.experiment.service import open_experiment

HERE = Path(__file__).parent
KEPT_FOLDER = HERE.parent / "compat" / KEPT
PLANS: dict[str, dict[str, Any]] = json.loads((HERE / "plans.json").read_text())
NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")


def graph(root: Path, name: str, tmp_path: Path) -> Any:
    """The graph of a shipped experiment whose run folder holds all that commit 54cff5b would have made."""
    run = tmp_path / "run"
    for job, fingerprint in PLANS[name]["fingerprints"].items():
        (run / "jobs" / f"{job}-{fingerprint[:8]}").mkdir(parents=True)
    sets = [*sets_of(name, tmp_path), f"run_dir={run}"]
    return open_experiment(str(root / f"configs/experiments/{name}.yaml"), sets).graph


@pytest.mark.parametrize("name", PLANS)
def test_only_swav_jobs_of_a_shipped_experiment_run_again(root: Path, name: str, tmp_path: Path) -> None:
    """SwAV's recipes now normalize the prototypes inside the gradient.

    The table's own fingerprint holds its rows' labels, which are words.
    """
    then = {job: print_ for job, print_ in PLANS[name]["fingerprints"].items() if job != "table"}
    now = {job.name: job.fingerprint for job in graph(root, name, tmp_path) if job.name != "table"}
    assert now.keys() == then.keys()
    assert {job for job in then if now[job] != then[job]} == {job for job in then if job.split(".")[1][:4] == "swav"}


def test_table_5_has_the_same_jobs(root: Path, tmp_path: Path) -> None:
    jobs = list(graph(root, "table5", tmp_path))
    for job, then in zip(jobs, PLANS["table5"]["jobs"], strict=True):
        assert {**{field: getattr(job, field) for field in FIELDS}, "needs": list(job.needs)} == then
        outputs = [output.replace(job.fingerprint[:8], "PRINT") for output in job.outputs]
        assert outputs == PLANS["table5"]["outputs"][job.name]


def test_table_5_is_planned_with_the_same_numbers(root: Path, tmp_path: Path) -> None:
    file = str(root / "configs/experiments/table5.yaml")
    words = [word for one in sets_of("table5", tmp_path) for word in ("--set", one)]
    now = printed(launch.main, ["plan", file, *words]).splitlines()
    then = PLANS["table5"]["plan"]
    assert NUMBER.findall(now[0]) == NUMBER.findall(then[0])  # 5 of table5, and how many jobs there are and run

    assert jobs_in(now) == jobs_in(then)
    costs, known = costs_in(now), costs_in(then)
    # Since then pre-training has an estimate beside its number of jobs, and there is a total.
    assert costs["finetune"] == known["finetune"] and costs["pretrain"][0] == known["pretrain"][0]
    assert costs.keys() == {*known, "total"}


def jobs_in(lines: list[str]) -> list[str]:
    """The jobs that a plan names, in order."""
    return [name for line in lines for name in re.findall(r"\b(?:pretrain|convert|finetune)\.[\w.]+", line)]


def costs_in(lines: list[str]) -> dict[str, list[str]]:
    """Jobs and GPU-hours of each stage."""
    return {line.partition(":")[0]: NUMBER.findall(line.partition(" on ")[0]) for line in lines if "GPU-h" in line}


@pytest.mark.parametrize("kind", ["", ".published"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", ["measures", "transfers"])
def test_a_table_of_kept_results_has_the_same_numbers(run: str, form: str, kind: str) -> None:
    now = printed(table.main, [str(KEPT_FOLDER / run), "--format", form, *(PUBLISHED if kind else ())])
    if form == "html":
        assert numbers_in_cells(now) == json.loads((HERE / f"{run}{kind}.html.json").read_text())
        return
    then = (HERE / f"{run}{kind}.{form}").read_text()
    pinned, found = list(rows(then, form)), list(rows(now, form))
    if form == "csv":  # which since then has intervals and verdicts at the end of each line
        found = [line[: len(kept)] for line, kept in zip(found, pinned, strict=True)]
    assert found == pinned


def rows(text: str, form: str) -> Iterator[Any]:
    """What of each line of a table is pinned: CSV's columns and all but its words, elsewhere the numbers."""
    if form == "csv":
        head: list[str] = []
        for line in csv.reader(text.splitlines()):
            if not head or not line:
                head = line  # an empty line stands before the next table
                yield line
            else:
                yield [cell if is_pinned(name) else bool(cell) for name, cell in zip(head, line, strict=True)]
    else:
        sign = "|" if form == "md" else "&"
        yield from (NUMBER.findall(line) for line in text.splitlines() if sign in line)


def is_pinned(column: str) -> bool:
    """Whether a column of the CSV holds no words."""
    return not column.endswith(("marks", "label"))


def test_the_toy_set_is_the_same(tmp_path: Path) -> None:
    """Each file by its digest, or a picture by its pixels where this Pillow has another encoder."""
    sizes = "--photos 16 --voc2007 16 6 --voc2012 3 3 --coco 8 5"  # as tests/compat/make.py
    assert call_main(data.main, ["toy", str(tmp_path / "toy"), *sizes.split()]) == 0
    then, now = files(KEPT_FOLDER / "toy"), files(tmp_path / "toy")
    assert now.keys() == then.keys() and len(then) > 100
    changed = [name for name in then if now[name] != then[name]]
    assert [name for name in changed if not same_picture(KEPT_FOLDER / "toy" / name, tmp_path / "toy" / name)] == []


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def same_picture(one: Path, other: Path) -> bool:
    if one.suffix not in (".jpg", ".png"):
        return False
    pixels = [np.asarray(Image.open(path).convert("RGB"), dtype=int) for path in (one, other)]
    return pixels[0].shape == pixels[1].shape and abs(pixels[0] - pixels[1]).max() <= 2
