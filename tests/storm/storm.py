"""Storms over every tool: killed before file events, the disk failing at writes, bits flipped, run folders damaged.

`python -m tests.storm.storm --seed 1 --points 25` (`make storm`) prints how many of each ended clean, with a traceback,
wrong, hung or lost, and every one that was not clean. The same seed strikes at the same places.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
import yaml
from safetensors.numpy import load_file

from tests.compat.narrow_resnet import NarrowResNet
from tests.conftest import NARROW_DETECTOR, ROOT
from tests.pretrain.conftest import SMALL, draw_images
from tests.storm.faults import ERRNOS, KILL, Outcome, flips, points, run_child
from tests.transfer.engine.broken_off import logged
from tests.transfer.experiment import small_world
from tests.transfer.report import made_results
from tools import convert, evaluate, launch, pretrain, table, transfer

CLEAN = "clean"


@dataclass(frozen=True)
class Tool:
    """A command line on a small world.

    Attributes:
        main: its entry point.
        words: the words that write below a folder; the same words continue.
        end: what must be equal at the end, whatever happened on the way.
    """

    main: Callable[[Sequence[str] | None], int]
    words: Callable[[Path], list[str]]
    end: Callable[[Path], Any]


@dataclass
class Storm:
    """One storm: its counts, and what was not clean."""

    base: Path
    seed: int
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._number = 0

    def note(self, tool: str, fault: str, verdict: str, details: str = "") -> None:
        self.counts[tool, fault, verdict] += 1
        if verdict != CLEAN:
            self.bad.append(f"{tool} {fault}: {verdict}: {details[-1500:]}")

    def new_folder(self) -> Path:
        self._number += 1
        folder = self.base / f"world{self._number}"
        folder.mkdir()
        return folder

    def strike(self, name: str, tool: Tool, count: int, kinds: Sequence[str]) -> None:
        """Run the tool unbroken, then once for each chosen event and kind of fault."""
        whole = self.new_folder()
        first = run_child(tool.main, tool.words(whole), whole)
        if first.code != 0:
            self.note(name, "unbroken", "lost", first.err)
            return
        expected = tool.end(whole)
        for kind in kinds:
            for at in points(first.events, count, self.random.sample):
                folder = self.new_folder()
                strike = self._killed if kind == "kill" else self._failing
                verdict, details = strike(tool, folder, at, expected)
                self.note(name, kind, verdict, f"event {at} {first.events[at]}: {details}")
                shutil.rmtree(folder)

    def _killed(self, tool: Tool, folder: Path, at: int, expected: Any) -> tuple[str, str]:
        """Killed at an event, often twice more on the way, then continued to the end."""
        errors = [run_child(tool.main, tool.words(folder), folder, at).err]
        while self.random.random() < 0.4 and len(errors) < 3:
            errors.append(run_child(tool.main, tool.words(folder), folder, self.random.randrange(1 + at)).err)
        if "Traceback" in "".join(errors):
            return "traceback", "".join(errors)
        return self._continued(tool, folder, expected)

    def _failing(self, tool: Tool, folder: Path, at: int, expected: Any) -> tuple[str, str]:
        number = self.random.choice(ERRNOS)
        broken = run_child(tool.main, tool.words(folder), folder, at, number)
        if broken.code is None:
            return "hang", broken.err
        if not broken.is_one_line() and (broken.code != 0 or "Traceback" in broken.err):
            what = "traceback" if "Traceback" in broken.err else "wrong"
            return what, f"{os.strerror(number)}, exit {broken.code}: {broken.err}"
        return self._continued(tool, folder, expected)

    def _continued(self, tool: Tool, folder: Path, expected: Any) -> tuple[str, str]:
        done = Outcome(75, "", [])
        for _ in range(3):
            if done.code == 75:
                done = run_child(tool.main, tool.words(folder), folder)
        if done.code is None:
            return "hang", done.err
        if done.code != 0:
            return "traceback" if "Traceback" in done.err else "lost", f"exit {done.code}: {done.err}"
        if tool.end(folder) != expected:
            parts = zip(tool.end(folder), expected, strict=True) if isinstance(expected, tuple) else ()
            return "wrong", "another end: " + "; ".join(f"{a} not {b}"[:500] for a, b in parts if a != b)
        left = [str(path) for path in folder.rglob("*") if path.name.endswith((".tmp", ".writer.lock"))]
        return ("left behind", str(left)) if left else (CLEAN, "")

    def flip(self, name: str, file: Path, count: int, read: Callable[[], Any], tail: int = 0) -> None:
        """Flip bits of a file (`flips`): a reader refuses it, or reads what was written."""
        from ssl_transfer.errors import UserError

        content, expected = file.read_bytes(), read()
        for changed in flips(content, count, self.random.randrange, tail):
            file.write_bytes(changed)
            try:
                found = read()
                self.note(name, "flip", CLEAN if found == expected else "wrong", str(file))
            except UserError as error:
                self.note(name, "flip", CLEAN if str(file.name) in str(error) else "wrong", str(error))
            except Exception as error:
                self.note(name, "flip", "traceback", repr(error))
            finally:
                for aside in file.parent.glob(f"{file.name}.damaged*"):
                    aside.unlink()
        file.write_bytes(content)


def lines_of(file: Path) -> list[Any]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("data_") and k != "time"} for row in rows]


def tensors_of(path: Path) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in torch.load(path, weights_only=True)["model"].items()}


def make_tools(base: Path) -> dict[str, Tool]:
    """The tools on small worlds, whose inputs lie below `base`."""
    from transfer.toy.build import Size, build_toy_sets

    photos, toy = draw_images(base / "photos", 12), base / "toy"
    shutil.copytree(photos / "train", photos / "val")
    build_toy_sets(toy, size=Size(photos=8, voc2007=(8, 4), voc2012=(8, 4), coco=(8, 6)))
    (base / "small.yaml").write_text(SMALL.replace("EPOCHS: 2", "EPOCHS: 1"))
    (base / "narrow.yaml").write_text(yaml.safe_dump({"transfer": NARROW_DETECTOR}))
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50().state_dict(), base / "r50.pth")
    made_results.whole(base / "results")
    made = base / "made"
    recipe = ["--config-file", str(base / "small.yaml"), "DATA.ROOT", str(photos)]
    if run_child(pretrain.main, ["--output", str(made), *recipe], base).code != 0:
        raise RuntimeError("the unbroken pre-training failed")

    def transfer_words(out: Path) -> list[str]:
        words = ["--config-file", str(ROOT / "configs/transfer/voc07.yaml"), "--overlay", str(base / "narrow.yaml")]
        words += ["--weights", "scratch", "--seed", "1", "--output", str(out / "trial"), "--resume"]
        return [*words, "TRANSFER.DATA_ROOT", str(toy / "detection"), "SOLVER.CHECKPOINT_PERIOD", "1"]

    def linear_words(out: Path) -> list[str]:
        words = ["linear", "--weights", str(made / "backbone.safetensors"), "--data", str(photos), "--resume"]
        words += ["--output", str(out / "linear"), "DATA.SIZE", "32", "DATA.RESIZE", "32", "DATA.WORKERS", "0"]
        return [*words, "LINEAR.BATCH_SIZE", "8", "LINEAR.EPOCHS", "2", "LINEAR.CACHE_FEATURES", "True"]

    return {
        "pretrain": Tool(
            pretrain.main,
            lambda out: ["--output", str(out / "run"), "--resume", *recipe],
            lambda out: (
                {name: array.tobytes() for name, array in load_file(out / "run/backbone.safetensors").items()},
                lines_of(out / "run/metrics.json"),
            ),
        ),
        "evaluate": Tool(
            evaluate.main,
            linear_words,
            lambda out: (
                json.loads((out / "linear/result.json").read_text())["metrics"],
                lines_of(out / "linear/metrics.json"),
            ),
        ),
        "convert": Tool(
            convert.main,
            lambda out: [str(base / "r50.pth"), str(out / "w.pkl"), "--no-verify"],
            lambda out: hashlib.sha256((out / "w.pkl").read_bytes()).hexdigest(),
        ),
        "transfer": Tool(
            transfer.main,
            transfer_words,
            lambda out: (
                tensors_of(out / "trial/model_final.pth"),
                json.loads((out / "trial/result.json").read_text())["metrics"],
                logged(out / "trial"),
            ),
        ),
        "table": Tool(
            table.main,
            lambda out: [str(base / "results"), "--output", str(out / "t.md"), "--plots", str(out / "plots")],
            lambda out: {path.name: path.read_bytes() for path in out.rglob("*.*") if path.suffix != ".png"},
        ),
        "launch": make_launch(),
    }


def make_launch() -> Tool:
    """The launcher with the fake tools of its own tests."""
    worlds: dict[Path, small_world.World] = {}

    def world(out: Path) -> small_world.World:
        if out not in worlds:
            worlds[out] = small_world.make(out)
        os.environ["FAKE_DIR"] = str(out)
        return worlds[out]

    def words(out: Path) -> list[str]:
        return ["submit", str(world(out).file), "--cluster", "local"]

    def main(argv: Sequence[str] | None) -> int:
        file = Path((argv or [""])[1])
        return launch.main(argv, worlds[file.parent].tools)

    return Tool(main, words, lambda out: set(world(out).statuses().values()))


def mutate(folder: Path, chance: random.Random) -> str:
    """Damage one file of a run folder in one of many ways; says which."""
    file = chance.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    how = chance.choice(["remove", "empty", "cut", "noise", "folder", "value", "key", "loop", "pipe", "list", "binary"])
    content = file.read_bytes()
    if how in ("remove", "folder", "loop", "pipe"):
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how == "loop":
            file.symlink_to(file)
        elif how == "pipe":
            os.mkfifo(file)
    elif how in ("value", "key") and file.suffix == ".json" and content[:1] == b"{":
        found = json.loads(content) if file.name != "metrics.json" else {"a": 1}
        key = chance.choice(sorted(found))
        value = found.pop(key)
        if how == "value":
            found[key] = chance.choice([None, [], {}, -1, "", 1e308, [value], True, "2020-13-45"])
        file.write_text(json.dumps(found))
    else:
        start = chance.randrange(len(content) + 1)
        new = {"empty": b"", "cut": content[:start], "list": b"[" * 50_000, "binary": bytes(range(256))}
        file.write_bytes(new.get(how, content[:start] + bytes([chance.randrange(256)]) + content[start + 1 :]))
    return f"{how} {file.relative_to(folder)}"


def damage_folders(storm: Storm, tool: Tool, count: int) -> None:
    """Mutations of a finished run folder under status, table, retry and submit: one line, never a traceback."""
    whole = storm.new_folder()
    tool.words(whole)
    if run_child(tool.main, tool.words(whole), whole).code != 0:
        storm.note("folder", "unbroken", "lost")
        return
    kept = storm.base / "kept"
    shutil.copytree(whole / "run", kept)
    for _ in range(count):
        shutil.rmtree(whole / "run")
        shutil.copytree(kept, whole / "run", symlinks=True)
        what = mutate(whole / "run", storm.random)
        verb = storm.random.choice(["status", "status", "table", "table", "retry", "submit"])
        main, words = tool.main, [verb, str(whole / "experiment.yaml")]
        if verb == "table":
            main, words = table.main, [str(whole / "run")]
        elif verb != "status":
            words += ["--cluster", "local"]
        done = run_child(main, words, whole)
        verdict = "hang" if done.code is None else "traceback" if "Traceback" in done.err else CLEAN
        verdict = verdict if verdict != CLEAN or done.code in (0, 1, 2) else "wrong"
        storm.note(verb, "mutation", verdict, f"{what}: exit {done.code}: {done.err}")


def flip_files(storm: Storm, base: Path, count: int) -> None:
    """Bit flips in what stages hand on: checkpoints, backbone, results, the search's record."""
    from pretrain.evaluation.backbone_features import read_backbone
    from ssl_transfer.files import read_json
    from ssl_transfer.formats.backbone import check_backbone_file
    from ssl_transfer.formats.results import LrSearchRecord, PretrainResult
    from ssl_transfer.training.checkpoint import set_aside_if_damaged
    from tests.ssl_transfer.formats.test_formats_results import SEARCH
    from transfer.report.reading import read_result

    made = base / "made"
    checkpoint = max(made.glob("checkpoint_*.pth"))

    def read_checkpoint() -> Any:
        if set_aside_if_damaged(checkpoint):
            return original
        return {name: t.numpy().tobytes() for name, t in torch.load(checkpoint, weights_only=True)["method"].items()}

    original = read_checkpoint()
    storm.flip("checkpoint", checkpoint, count, read_checkpoint)

    def read_weights() -> Any:
        check_backbone_file(made / "backbone.safetensors")
        loaded = read_backbone(made / "backbone.safetensors")
        return loaded.preprocessing, {k: v.numpy().tobytes() for k, v in loaded.encoder.state_dict().items()}

    storm.flip("backbone", made / "backbone.safetensors", count, read_weights)
    copied = storm.base / "copied.safetensors"  # without the result beside it
    shutil.copy(made / "backbone.safetensors", copied)
    storm.flip("backbone copy", copied, count, lambda: check_backbone_file(copied))
    record = PretrainResult.read(made / "result.json")
    storm.flip("result", made / "result.json", count, lambda: PretrainResult.read(made / "result.json") == record)
    search = storm.base / "lr_search.json"
    LrSearchRecord.parse(SEARCH, "search").write(search)
    storm.flip("lr search", search, count, lambda: LrSearchRecord.read(search).as_dict())
    trial = storm.base / "result.json"
    made_results.put(storm.base, made_results.result("simsiam", "voc07", 1, [75.0, 47.0, 50.0]))
    from ssl_transfer.formats.results import TransferResult

    TransferResult.parse(read_json(trial), trial).write(trial)
    whole = read_result(trial)

    def read_trial() -> Any:
        found = read_result(trial)
        return whole if found[1] else found  # altered: marked, not averaged

    storm.flip("trial result", trial, count, read_trial)
    from ssl_transfer.formats.detections import DETECTIONS_FILE, Detections
    from tests.ssl_transfer.formats.test_formats_detections import made as made_detections

    kept = storm.base / DETECTIONS_FILE
    made_detections().write(kept)
    storm.flip("detections", kept, count, lambda: Detections.read(kept).boxes.tobytes())


def flip_converted(storm: Storm, convert_to: Tool, count: int) -> None:
    """Bit flips in converted weights, half of them in the manifest at their end, and in the manifest beside them."""
    from ssl_transfer.formats.manifest import Manifest
    from transfer.weights.converted import manifest_path, read_converted

    run_child(convert_to.main, convert_to.words(storm.base), storm.base)
    file = storm.base / "w.pkl"
    tensors, _ = read_converted(file)

    def read() -> Any:
        found, its_manifest = read_converted(file)
        return its_manifest.as_dict(), all(torch.equal(found[name], tensors[name]) for name in tensors)

    storm.flip("pickle", file, count // 3, read, tail=1 << 16)  # of 94 MB
    beside = manifest_path(file)
    storm.flip("manifest", beside, count, lambda: Manifest.read(beside).as_dict())


def flip_evaluation(storm: Storm, tool: Tool, count: int) -> None:
    """Bit flips in what an evaluation resumes from and in its result."""
    from pretrain.evaluation import evaluate_backbone, linear
    from ssl_transfer.formats.results import EvaluationResult

    run_child(tool.main, tool.words(storm.base), storm.base)
    folder = storm.base / "linear"
    original: list[Any] = []

    def read_checkpoint() -> Any:
        state = evaluate_backbone._load_state(folder / "checkpoint.pth")
        found = [state["progress"], {n: t.numpy().tobytes() for n, t in state["classifier"].items()}] if state else []
        original.extend(found if not original else ())
        return found or original

    storm.flip("linear", folder / "checkpoint.pth", count, read_checkpoint)
    result = folder / "result.json"
    storm.flip("evaluation", result, count, lambda: EvaluationResult.read(result).as_dict())
    cached, kept = folder / "features_train.npy", np.random.default_rng(storm.seed).random((16, 16), np.float32)

    def write_features() -> None:
        np.save(folder / "part.npy", kept)
        linear._complete(folder / "part.npy", cached)

    def read_features() -> bytes:
        found = np.load(cached) if linear._is_whole(cached) else kept
        return bytes(found.tobytes())

    for file in (cached, cached.with_suffix(".sha256")):
        for _ in range(count):
            write_features()
            storm.flip("features", file, 1, read_features)


def run(seed: int, names: Sequence[str], count: int, mutations: int, bits: int) -> Iterator[str]:
    """A whole storm; yields the lines of its report, the last one `N not clean`."""
    torchvision.models.resnet18 = NarrowResNet
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        storm = Storm(base, seed)
        tools = make_tools(base)
        for name in names:
            storm.strike(name, tools[name], count, ("kill", "errno"))
            yield f"{name}: {sum(n for (tool, *_), n in storm.counts.items() if tool == name)} faults"
        if mutations:
            damage_folders(storm, tools["launch"], mutations)
        if bits:
            flip_files(storm, base, bits)
            flip_converted(storm, tools["convert"], bits)
            flip_evaluation(storm, tools["evaluate"], bits)
        yield from storm.bad
        for (tool, fault, verdict), number in sorted(storm.counts.items()):
            yield f"{tool:14s} {fault:9s} {verdict:12s} {number}"
        yield f"{len(storm.bad)} not clean of {storm.counts.total()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--points", type=int, default=25, help="events of each tool, for kills and for errors")
    parser.add_argument("--mutations", type=int, default=500)
    parser.add_argument("--bits", type=int, default=200, help="of each file")
    parser.add_argument(
        "--tools", nargs="*", default=["pretrain", "evaluate", "convert", "transfer", "table", "launch"]
    )
    args = parser.parse_args()
    line = ""
    for line in run(args.seed, args.tools, args.points, args.mutations, args.bits):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    return 0 if line.startswith("0 not clean") else 1


if __name__ == "__main__":
    assert KILL == 0
    sys.exit(main())
