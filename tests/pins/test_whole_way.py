"""The whole way on a fixed toy run writes the files that commit 54cff5b wrote: names, keys, shapes, types, values.

The kept run folders of tests/compat are that commit's files. Here the same experiments run with today's code, and each
file is compared with the kept one: to the bit on the machine that made them, elsewhere all but floating-point numbers.
Twelve float32 steps of a narrow network amplify rounding errors beyond any tolerance: with the plainest kernels a
running mean ends 1.7 away, a kNN accuracy of few images 12.5 points. (The golden values hold on any CPU.) Paths,
times, hosts, versions and fingerprints are left out.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from safetensors import safe_open

from pretrain.keys import KEY_CHANGES, defaults
from ssl_transfer.config import merge_strict
from ssl_transfer.console import call_main
from ssl_transfer.formats.defaults import default_values
from ssl_transfer.formats.job import JobState
from tests.compat.ends import machine
from tests.compat.kept import MADE_AT
from tests.compat.narrow_resnet import NarrowResNet
from tests.pins.make import KEPT
from tools import launch

KEPT_FOLDER = Path(__file__).parents[1] / "compat" / KEPT
VOLATILE = re.compile(
    r"(^|\.)(time|data_time|data_time_share|seconds|eta_seconds|rank_data_time|started|ended|process|exit_code|inputs|"
    r"host|commit|environment|versions|version|timing|fingerprint|executor|attempts|commands|source|sets|python)(\.|$)"
)
"""Keys whose values depend on when, where or by which tools something ran."""
DIGEST = re.compile(r"[0-9a-f]{64}|(?<=-)[0-9a-f]{8}\b")
GONE = ("TRANSFER.ORDER_OF_WORKERS",)
"""Config keys of that commit which are constants now."""

ADDED = {"digest", "detections"}
"""Keys that later commits write, too."""

KEYS_OF_EVALUATIONS = {"evaluation.json": "config", "result.json": "settings"}
"""Where an evaluation's files hold its config keys."""

WATCH_KEYS = {key: value for key, value in default_values("evaluate").items() if key.startswith("MONITOR.")}
"""Keys of evaluations that later commits have, with their defaults; they change no result."""

ABBREVIATED = re.compile(r" and \d+ more$")
"""How that commit ended a long list, which is recorded whole now."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Both experiments of the kept folder, run in this process; of the pre-trainings only SimSiam's."""
    base = tmp_path_factory.mktemp("whole")
    shutil.copytree(KEPT_FOLDER / "configs", base / "configs")
    shutil.copytree(KEPT_FOLDER / "toy", base / "toy")
    for file in (base / "configs").glob("*.yaml"):
        file.write_text(file.read_text().replace(MADE_AT, str(base)))
    measures = yaml.safe_load((base / "configs/measures.yaml").read_text())
    measures["rows"] = {"simsiam": measures["rows"]["simsiam"]}
    (base / "configs/measures.yaml").write_text(yaml.safe_dump(measures, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "resnet18", NarrowResNet)
        for run in ("measures", "transfers"):
            assert call_main(launch.main, ["submit", str(base / f"configs/{run}.yaml"), "--cluster", "debug"]) == 0
    yield base


JOBS = [
    ("measures", "pretrain.simsiam"),
    ("measures", "evaluate.simsiam.knn"),
    ("measures", "evaluate.simsiam.linear"),
    ("transfers", "search.scratch.voc07.lr0.01"),
    ("transfers", "choose.scratch.voc07"),
    ("transfers", "finetune.scratch.voc07.s1"),
    ("transfers", "finetune.high.voc07.s1"),
]


def folder_of(run: Path, job: str) -> Path:
    [found] = [path for path in (run / "jobs").iterdir() if path.name[:-9] == job]
    return found


NOT_KEPT = re.compile(r"(checkpoint_\d+|model_\w+)\.pth$|predictions/|events\.out\.tfevents|detections\.safetensors$")
"""Files that tests/compat/make.py left out or that commit did not write; TensorBoard names its files by the time."""


def names_of(folder: Path) -> set[str]:
    """The files below a job's folder."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not NOT_KEPT.match(name)}


@pytest.mark.parametrize(("run", "job"), JOBS)
def test_a_job_writes_the_same_files(runs: Path, run: str, job: str) -> None:
    now, then = folder_of(runs / run, job), folder_of(KEPT_FOLDER / run, job)
    left_out = {"log.txt", "stdout.log"}  # words
    names = names_of(then)
    assert names_of(now) == names
    exact = machine() == json.loads((KEPT_FOLDER / "ends.json").read_text())["machine"]
    tolerance = 0.0 if exact else float("inf")
    for name in sorted(names - left_out):
        reader = READERS.get(Path(name).suffix)
        if reader is not None:
            before = reader(then / name)
            if name == "job.json":
                before = JobState.parse(before, name).as_dict()  # with the defaults of newer keys
            if job.startswith("evaluate.") and name in KEYS_OF_EVALUATIONS:
                before[KEYS_OF_EVALUATIONS[name]] |= WATCH_KEYS
            if name == "config.yaml":
                before = of_today(before) if run == "measures" else with_new_defaults(before)
            differing = [*differences(reader(now / name), before, tolerance)]
            assert differing == [], name


def test_the_graph_is_the_same(runs: Path) -> None:
    now, then = (read_json(folder / "transfers/graph.json") for folder in (runs, KEPT_FOLDER))
    assert [*differences(now, then, 0.0)] == []
    assert [job["name"] for job in now["jobs"]] == [job["name"] for job in then["jobs"]]
    assert [job["needs"] for job in now["jobs"]] == [job["needs"] for job in then["jobs"]]


def differences(now: Any, then: Any, tolerance: float, at: str = "") -> Iterator[str]:
    """Where two contents differ: keys and types everywhere, values where they are not volatile, as readable lines."""
    if VOLATILE.search(at) and type(now) is type(then):
        return
    if isinstance(now, dict) and isinstance(then, dict):
        yield from (f"{at}.{key}: lost" for key in then.keys() - now.keys() if not f"{at}.{key}".endswith(GONE))
        yield from (f"{at}.{key}: new" for key in now.keys() - then.keys() - ADDED)
        for key in then.keys() & now.keys():
            yield from differences(now[key], then[key], tolerance, f"{at}.{key}" if at else str(key))
    elif isinstance(now, list) and isinstance(then, list):
        if len(now) != len(then):
            yield f"{at}: {len(now)} entries, not {len(then)}"
        for index, (one, other) in enumerate(zip(now, then, strict=False)):
            yield from differences(one, other, tolerance, f"{at}.{index}")
    elif isinstance(now, torch.Tensor) and isinstance(then, torch.Tensor):
        if (now.shape, now.dtype) != (then.shape, then.dtype):
            yield f"{at}: {now.dtype} {list(now.shape)}, not {then.dtype} {list(then.shape)}"
        elif not torch.allclose(now.double(), then.double(), rtol=tolerance, atol=tolerance):
            yield f"{at}: {float((now.double() - then.double()).abs().max()):.1e} away"
    elif isinstance(now, float) and isinstance(then, float):
        if not (now == then or abs(now - then) <= tolerance * max(1.0, abs(then))):
            yield f"{at}: {now!r}, not {then!r}"
    elif isinstance(now, str) and isinstance(then, str) and at.endswith("origin.config"):
        yield from differences(yaml.safe_load(now), of_today(yaml.safe_load(then)), tolerance, at)
    elif isinstance(now, str) and isinstance(then, str):
        if ABBREVIATED.search(then) and now.replace("; ", ", ").startswith(ABBREVIATED.sub("", then)):
            return
        if words(now) != words(then):
            yield f"{at}: {words(now)!r}, not {words(then)!r}"
    elif type(now) is not type(then) or now != then:
        yield f"{at}: {now!r}, not {then!r}"


def of_today(config: dict[str, Any]) -> dict[str, Any]:
    """A pre-training's recorded config with today's names of the keys, and the defaults of those that it lacked."""
    today = defaults()
    merge_strict(today, config, "config.yaml", KEY_CHANGES, recorded=True)
    values: dict[str, Any] = yaml.safe_load(today.dump())
    return values


def with_new_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A trial's recorded config with the defaults of the keys that it lacked, and of run-only ones that changed."""
    config["TRANSFER"]["KEEP_CHECKPOINTS"] = 2
    for key, value in default_values("transfer").items():
        *sections, name = key.split(".")
        node = config
        for section in sections:
            node = node.setdefault(section, {})
        node.setdefault(name, value)
    return config


def words(text: str) -> str:
    """Text without digests and without the folder that everything lies in."""
    return DIGEST.sub("DIGEST", re.sub(r"(/[\w.+-]+)+/(?=(configs|toy|measures|transfers)\b)", "BASE/", text))


def read_json(path: Path) -> Any:
    """JSON, or JSON lines."""
    text = path.read_text()
    if path.name == "metrics.json":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def read_tensors(path: Path) -> dict[str, Any]:
    """Metadata and tensors of a safetensors file."""
    with safe_open(path, "pt") as file:
        metadata = {key: json.loads(value) if value[:1] == "{" else value for key, value in file.metadata().items()}
        return {"metadata": metadata, "tensors": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": read_json,
    ".yaml": lambda path: yaml.safe_load(path.read_text()),
    ".safetensors": read_tensors,
    "": lambda path: path.read_text().strip(),
    ".txt": lambda path: path.read_text(),
}
"""By a file's ending; `last_checkpoint` and `job.lock` have none."""
