"""Hostile files against every reader: each ends in its content or in one line that names the file, in bounded time.

`STORM_SEEDS=20 pytest tests/storm/test_hostile_files.py` tries twenty times as many mutations; other numbers, others.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

from ssl_transfer.config import load_with_base, merge_layers, overlay_section
from ssl_transfer.console import print_error
from ssl_transfer.errors import UserError
from ssl_transfer.files import read_json, sha256_of
from ssl_transfer.formats.defaults import check_keys
from ssl_transfer.formats.graph import GraphFile
from ssl_transfer.formats.job import JobState, SlurmSubmission
from ssl_transfer.formats.results import LrSearchRecord
from ssl_transfer.formats.zoo import HubRecord, Zoo, ZooRecord
from ssl_transfer.yaml_file import read_yaml
from transfer.doctor.check import check_task, task_of
from transfer.experiment.graph import read_graph
from transfer.experiment.load import load_experiment, read_site, read_step_times
from transfer.experiment.views import job_progress, last_metrics
from transfer.report.collect import collect
from transfer.report.figures.curves import read_series
from transfer.report.published import load_expected
from transfer.report.reading import imported_trial, read_result
from transfer.search.candidates import read_candidate
from transfer.search.choice import read_choice
from transfer.tasks.classes import toy_classes
from transfer.tasks.coco import read_coco
from transfer.tasks.datasets import Split
from transfer.tasks.voc import read_voc

SEEDS = int(os.environ.get("STORM_SEEDS", "1"))
LIMIT = 8
"""Seconds of one reader on one file; the machine may be busy."""
MEMORY = 1 << 20
"""Kilobytes by which the process may grow."""

EXPERIMENT = {
    "name": "a",
    "rows": {"scratch": {"scratch": True, "label": "x"}, "b": {"weights": "b.pth", "expected": "mocov2"}},
    "tasks": {"voc07": {"config": "voc07.yaml", "trials": 2, "overrides": {"SOLVER.BASE_LR": 0.1}}},
    "data": {"images": "i", "detection": "d"},
    "environment": {"TOKEN": "t"},
    "resources": {"default": {"hours": 3, "sbatch": {"mem": "1G"}}},
    "lr_search": {"grid": [0.1, 0.2], "select_on": "test"},
}
TASK = {
    "TRANSFER": {
        "TASK": "own",
        "CLASSES": ["a", "b"],
        "SPLITS": {"t": {"LAYOUT": "voc", "FOLDER": "v", "IMAGE_SET": "t"}},
    },
    "DATASETS": {"TRAIN": ["t"], "TEST": ["t"]},
    "SOLVER": {"BASE_LR": 0.1, "STEPS": [1, 2], "MAX_ITER": 3},
}
OVERLAY = {"transfer": {"SOLVER": {"MAX_ITER": 3}}, "pretrain": {"SOLVER": {"EPOCHS": 3}}}
JOB = {
    "format": "job/1",
    "name": "finetune.a",
    "fingerprint": "f" * 64,
    "status": "running",
    "executor": "slurm",
    "attempts": 1,
    "started": "2026-01-01T00:00:00+00:00",
    "process": {"host": "h", "pid": 1, "started": 2},
    "inputs": [["a", "b", None]],
}
GRAPH = {
    "format": "graph/1",
    "experiment": "a",
    "source": "name: a",
    "sets": [],
    "rows": [{"key": "a", "label": "A", "expected": None}],
    "tasks": [{"key": "voc07", "trials": 1}],
    "jobs": [
        {
            "name": "finetune.a",
            "kind": "finetune",
            "fingerprint": "f" * 64,
            "row": "a",
            "task": "voc07",
            "dir": "jobs/x",
        }
    ],
}
RESULT = {
    "format": "transfer-result/1",
    "status": "done",
    "task": "voc07",
    "seed": 1,
    "toy": False,
    "metrics": {"bbox": {"AP": 1.0, "AP50": 2.0, "AP75": 3.0, "per_class": {"cat": 1.0}}},
    "settings": {"lr": 0.1, "steps": [1]},
    "weights": {"name": "scratch"},
    "final": {"loss": 1.0},
    "role": "lr_search",
}
CHOICE = {"format": "lr-search/1", "row": "a", "task": "b", "metric": "bbox/AP", "points": [{"lr": 0.1, "value": 1.0}]}
METRICS = {"iteration": 3, "total_loss": 1.0, "time": 0.1, "bbox/AP": 1.0, "bbox/AP50": 1.0, "bbox/AP75": 1.0}
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "cat"}],
}
XML = (
    "<annotation><filename>a.jpg</filename><size><width>9</width><height>9</height><depth>3</depth></size><object>"
    "<name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    "</object></annotation>"
)

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 10**30, float("inf"), float("nan"), 1e-320, "", " ", "x" * 5000, "9" * 5000, "../../etc"),
    *(
        "$x_%{}=@",
        "=1+1",
        "\x1b]0;x\x07",
        "a\nb",
        "\x00",
        "é\u202e",
        "\ud800",
        "2020-13-45",
        "12:00:00",
        "010",
        "1e999",
    ),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": {}}}, ["x"] * 1000, {str(i): i for i in range(1000)}),
)
"""What a value is replaced by."""


def deep(kind: str, depth: int = 200_000) -> str:
    return {"list": "[" * depth, "map": '{"a":' * depth, "block": "- " * depth, "xml": "<a>" * depth}[kind]


BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{l: *a{i - 1}, r: *a{i - 1}}}\n" for i in range(1, 50))
XML_BOMB = (
    '<!DOCTYPE a [<!ENTITY b0 "xxxxxxxxxx">'
    + "".join(f'<!ENTITY b{i} "{f"&b{i - 1};" * 10}">' for i in range(1, 12))
    + "]><annotation>&b11;</annotation>"
)
FIXED: dict[str, dict[str, bytes]] = {
    "yaml": {
        "empty": b"",
        "bomb": BOMB.encode(),
        "loop": b"a: &a [*a]\n",
        "deep list": deep("list").encode(),
        "deep block": deep("block").encode(),
        "many": b"[" + b"1," * 400_000 + b"]",
        "list key": b"? [a]\n: 1\n",
        "tag": b"name: !!python/object/apply:os.system [ls]\n",
        "binary": b"name: !!binary /w==\n",
        "date": b"name: 2020-13-45\nrows: 0001-01-01\n",
        "nul": b"name: \0\n",
        "not utf-8": b"name: \xff\xfe\xfa\n",
        "utf-16": "name: a\n".encode("utf-16"),
        "long line": b"name: " + b"x" * 3_000_000,
        "long number": b"name: " + b"9" * 3_000_000 + b"e9",
        "two": b"a: 1\n---\nb: 2\n",
        "base is a list": b"_BASE_: [a, b]\n",
        "base is itself": b"_BASE_: file.yaml\n",
        "base is a folder": b"_BASE_: .\n",
        "base is long": b"_BASE_: " + b"y" * 5000 + b"\n",
        "random": random.Random(1).randbytes(5000),
    },
    "json": {
        "empty": b"",
        "deep list": deep("list").encode(),
        "deep map": deep("map").encode(),
        "closed deep list": (deep("list", 100_000) + "]" * 100_000).encode(),
        "long number": b'{"format": ' + b"9" * 100_000 + b"}",
        "many": b"[" + b"1," * 400_000 + b"1]",
        "nan": b'{"format": NaN}',
        "surrogate": b'{"format": "\\ud800", "status": "\\udfff"}',
        "nul": b'{"format": "\\u0000"}',
        "not utf-8": b'{"format": "\xff"}',
        "utf-16": '{"format": "x"}'.encode("utf-16"),
        "cut": b'{"format": "job/1", "name": "x',
        "other format": b'{"format": "coco/9"}',
        "no format": json.dumps({k: v for k, v in JOB.items() if k != "format"}).encode(),
        "list": b"[1]",
        "text": b'"x"',
        "null": b"null",
        "random": random.Random(2).randbytes(5000),
    },
    "xml": {
        "empty": b"",
        "bomb": XML_BOMB.encode(),
        "deep": deep("xml").encode(),
        "closed deep": (deep("xml", 100_000) + "</a>" * 100_000).encode(),
        "external": b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        "many objects": f"<annotation>{'<object/>' * 100_000}</annotation>".encode(),
        "long text": XML.replace("cat", "c" * 3_000_000).encode(),
        "nul": XML.replace("cat", "\0").encode(),
        "no encoding": b'<?xml version="1.0" encoding="klingon"?>' + XML.encode(),
        "random": random.Random(3).randbytes(5000),
        **{
            f"number {text}": XML.replace("<width>9", f"<width>{text}").replace("<xmin>1", f"<xmin>{text}").encode()
            for text in ("inf", "-inf", "nan", "1e999", "1" * 5000, "", "0x10", "１", "1_0")
        },
    },
}


def mutations(kind: str, base: Any, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Changed copies of a right document: a value replaced, a key removed or renamed, or the text cut or damaged."""
    rng = random.Random(f"{kind}{seed}{json.dumps(base)}")
    for number in range(count):
        if kind == "xml":
            tag = rng.choice(("filename", "width", "height", "name", "difficult", "xmin", "ymax", "object", "size"))
            value = str(rng.choice(VALUES))[:3000]
            text = XML.replace(f"<{tag}>", rng.choice((f"<{tag}>{value}", f"<{tag}x>", "", f"<{tag}><{tag}/>")), 1)
            data = text.encode(errors="replace")
        else:
            content = json.loads(json.dumps(base))
            _mutate(content, rng)
            data = _written(kind, content)
        if rng.random() < 0.3 and data:
            position = rng.randrange(len(data))
            data = rng.choice((data[:position], data[:position] + rng.randbytes(3) + data[position + 3 :]))
        yield f"{kind} {seed}.{number}", data


def _mutate(content: Any, rng: random.Random) -> None:
    places = [(content, key) for key in content]
    for parent, key in places:  # grows
        if isinstance(parent[key], dict):
            places += [(parent[key], inner) for inner in parent[key]]
        elif isinstance(parent[key], list):
            places += [(parent[key], index) for index in range(len(parent[key]))]
    for parent, key in rng.sample(places, k=min(len(places), rng.randint(1, 2))):
        if isinstance(parent, dict) and rng.random() < 0.3:
            parent[rng.choice((f"{key}x", "<<", "format", ""))] = parent.pop(key, None)
        elif isinstance(parent, dict) or key < len(parent):
            parent[key] = rng.choice(VALUES)


def _written(kind: str, content: Any) -> bytes:
    if kind == "json":
        return json.dumps(content).encode()
    try:
        return yaml.safe_dump(content).encode()
    except (yaml.YAMLError, UnicodeEncodeError):
        return json.dumps(content).encode(errors="replace")


def voc(file: Path) -> object:
    folder = file.parent / "voc"
    (folder / "Annotations/a.xml").unlink(missing_ok=True)
    (folder / "Annotations/a.xml").symlink_to(file)
    return read_voc(Split("t", "voc", folder, "t"), ("cat",))


def checked_task(file: Path) -> object:
    return check_task(task_of(file, file.parent))


def progress(file: Path) -> object:
    (file.parent / "result.json").unlink(missing_ok=True)
    (file.parent / "result.json").symlink_to(file)
    read_graph_job = GraphFile.parse(GRAPH, "graph").jobs[0]
    done = JobState.parse({**JOB, "status": "done", "ended": JOB["started"]}, "job")
    return job_progress(read_graph_job, file.parent, done), collect([file.parent])  # type: ignore[arg-type]


def as_name(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """A reader of a folder, in which the file has that name."""

    def reader(file: Path) -> object:
        folder = file.parent / "folder"
        folder.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(file)
        return read(folder)

    return reader


def keys_of(file: Path) -> object:
    from ssl_transfer.config import flatten, load_with_sources

    values, sources = load_with_sources(file)
    return check_keys("transfer", flatten(values), sources)


READERS: dict[str, list[tuple[str, Any, Callable[[Path], object]]]] = {
    "yaml": [
        ("experiment", EXPERIMENT, load_experiment),
        ("site", {"resources": EXPERIMENT["resources"]}, read_site),
        ("step times", [], read_step_times),
        ("task", TASK, load_with_base),
        ("task's keys", TASK, keys_of),
        ("task's splits", TASK, checked_task),
        ("overlay", OVERLAY, lambda file: overlay_section(file, "transfer")),
        ("overlay's merge", OVERLAY, lambda file: merge_layers({}, file, "transfer", str(file), ())),
        ("zoo", {"a": {"title": "x", "url": "u", "layout": "l", "branch": "online"}}, Zoo.read),
        ("published", {"format": "expected/1"}, as_name("table5.yaml", lambda folder: load_expected("table5", folder))),
        ("any", TASK, read_yaml),
    ],
    "json": [
        ("job", JOB, JobState.read),
        ("submission", {**JOB, "format": "filed/1", "id": "1", "at": "x", "attempt": 1}, SlurmSubmission.read),
        ("graph", GRAPH, as_name("graph.json", read_graph)),
        ("collection", GRAPH, as_name("graph.json", lambda folder: collect([folder]))),
        ("result", RESULT, read_result),
        ("progress", RESULT, progress),
        ("candidate", RESULT, as_name("result.json", lambda folder: read_candidate(folder, "bbox/AP"))),
        ("choice", CHOICE, read_choice),
        ("search", CHOICE, LrSearchRecord.read),
        ("zoo's record", {"name": "a", "url": "b", "sha256": "c", "bytes": 1, "first_used": "d"}, ZooRecord.read),
        ("hub's record", {"name": "a", "url": "b", "sha256": "c", "bytes": 1, "commit": "e" * 40}, HubRecord.read),
        ("metrics", METRICS, last_metrics),
        ("series", METRICS, lambda file: read_series(file, ["total_loss"], ["bbox/AP"])),
        ("import", METRICS, lambda file: imported_trial(file, "a", "voc07")),
        ("toy", {"classes": ["a"]}, as_name("toy.json", lambda folder: toy_classes(folder / "detection"))),
        ("coco", COCO, lambda file: read_coco(Split("t", "coco", file.parent, "", file), ("cat",))),
        ("any", COCO, read_json),
    ],
    "xml": [("voc", XML, voc)],
}
CASES = [(kind, *reader) for kind, readers in READERS.items() for reader in readers]


class Hang(BaseException):
    """A reader took longer than `LIMIT`."""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with what the right documents name."""
    (tmp_path / "voc/Annotations").mkdir(parents=True)
    (tmp_path / "voc/ImageSets/Main").mkdir(parents=True)
    (tmp_path / "voc/JPEGImages").mkdir()
    (tmp_path / "voc/ImageSets/Main/t.txt").write_text("a\n")
    for folder in (tmp_path, tmp_path / "voc/JPEGImages"):
        (folder / "a.jpg").write_bytes(b"x")
    return tmp_path


def outcome(read: Callable[[Path], object], file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """`clean`, or what is wrong."""

    def on_alarm(_number: int, _frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(LIMIT)
    try:
        read(file)
    except UserError as error:
        print_error(error)
        line = capsys.readouterr().err
        return "clean" if line.count("\n") == 1 and len(line) < 5000 else f"no line: {line[:200]!r}"
    except Hang:
        return "hang"
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return "clean"


@pytest.mark.parametrize(("kind", "name", "base", "read"), CASES, ids=[f"{kind}-{name}" for kind, name, *_ in CASES])
def test_every_reader_takes_every_hostile_file(
    world: Path, kind: str, name: str, base: Any, read: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = [(f"{kind} {label}", data) for label, data in FIXED[kind].items()]
    for seed in range(SEEDS):
        files += mutations(kind, base, seed, 12)
    wrong, counts = [], Counter[str]()
    for label, data in files:
        file = world / f"file.{kind}"
        file.write_bytes(data)
        found = outcome(read, file, capsys)
        counts[found.partition(":")[0]] += 1
        if found != "clean":
            wrong.append(f"{label}: {found}")
    with capsys.disabled():
        if SEEDS > 1:
            sys.stdout.write(f"\n{kind} {name}: {dict(counts)}\n")
    assert not wrong, "\n".join(wrong)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start < MEMORY


@pytest.mark.parametrize(("kind", "name", "base", "read"), CASES, ids=[f"{kind}-{name}" for kind, name, *_ in CASES])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(
    world: Path, kind: str, name: str, base: Any, read: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    file = world / f"file.{kind}"
    wrong = []
    for label in ("pipe", "device", "folder", "dangling", "loop", "sparse"):
        if label == "pipe":
            os.mkfifo(file)
        elif label == "device":
            file.symlink_to("/dev/zero")
        elif label == "folder":
            file.mkdir()
        elif label == "sparse":
            with open(file, "wb") as stream:
                stream.truncate(1 << 43)
        else:
            file.symlink_to(world / ("nowhere" if label == "dangling" else f"file.{kind}"))
        found = outcome(read, file, capsys)
        wrong += [f"{label}: {found}"] if found != "clean" else []
        file.rmdir() if label == "folder" else file.unlink()
    assert not wrong, "\n".join(wrong)


def test_a_digest_of_a_pipe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert outcome(sha256_of, tmp_path / "pipe", capsys) == "clean"
    assert outcome(read_json, Path("x" * 5000), capsys) == "clean"
    assert outcome(load_experiment, Path("x\0y"), capsys) == "clean"
