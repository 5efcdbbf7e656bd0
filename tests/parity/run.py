"""Run every comparison with the originals and print one table.

    python tests/parity/run.py ORIGINALS [--only WORD …] [--output FILE]

ORIGINALS is a folder of clones named simsiam, moco, swav, DenseCL, apex, deepmind-research, simclr, lightly, solo-learn
(bare or with a work tree, at any commit: the recorded commit's files are read from git). Each comparison runs the
original's own code and ours on the CPU, and ours again with one change that must be told apart: a comparison that
cannot see it proves nothing. A comparison whose original is not there is named as missing. docs/notes/parity.md has
the table as last measured.

Exits 1 where something differs, a changed variant is not told apart or a comparison fails, 2 where nothing could run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from ssl_transfer.environment import version_of  # noqa: E402
from tests.parity.comparison import Check, Comparison, Original, Outcome, Sources  # noqa: E402

SIMSIAM = Original("facebookresearch/simsiam", "a7bc1772896d0dad0806c51f0bb6f3b16d290468")
MOCO = Original("facebookresearch/moco", "132aea9da9bb995a411c915c0420be3db62052f3")
NOTEBOOK = Original("facebookresearch/moco", "f7364915bc4e9161427d7c6bb4f454fa0f171337")
SWAV = Original("facebookresearch/swav", "06b1b7cbaf6ba2a792300d79c7299db98b93b7f9")
DENSECL = Original("WXinlong/DenseCL", "b64bbb6e267f729d16ca558233b0ef3028857381")
APEX = Original("NVIDIA/apex", "e13873debc4699d39c6861074b9a3b2a02327f92", "apex/parallel")
DEEPMIND = Original("google-deepmind/deepmind-research", "f5de0ede8430809180254ee957abf36ed62579ef", "byol")
SIMCLR = Original("google-research/simclr", "383d4143fd8cf7879ae10f1046a9baeb753ff438")
LIGHTLY = Original("lightly-ai/lightly", "e8d317fc5a87f4387a85a35e689869039ec249ee", "lightly")
SOLO = Original("vturrisi/solo-learn", "9187ea39c2c3f43c455ab06664d2b019a9802954", "solo")

PRETRAINING, DETECTION, RECIPES = "tests.parity.pretraining", "tests.parity.detection", "tests.parity.recipes"
COMPARISONS = (
    Comparison("SimSiam: pre-training, full width", f"{PRETRAINING}:simsiam", (SIMSIAM,)),
    Comparison("SimSiam: linear evaluation, LARC", f"{PRETRAINING}:linear_larc", (SIMSIAM, APEX)),
    Comparison("SimSiam: linear evaluation, SGD", f"{PRETRAINING}:linear_sgd", (SIMSIAM,)),
    Comparison("kNN vote", f"{PRETRAINING}:knn", (NOTEBOOK,)),
    Comparison("MoCo: pre-training, both losses", f"{PRETRAINING}:moco", (MOCO, NOTEBOOK)),
    Comparison("SwAV: pre-training, with and without queue", f"{PRETRAINING}:swav", (SWAV,)),
    Comparison("BYOL: pre-training, loss, momentum", f"{PRETRAINING}:byol", (DEEPMIND, SOLO)),
    Comparison("SimCLR: loss and gradients", f"{PRETRAINING}:simclr", (LIGHTLY, SOLO)),
    Comparison("LARS and LARC", f"{PRETRAINING}:lars", (DEEPMIND, SIMCLR, APEX)),
    Comparison("MoCo detection: VOC", f"{DETECTION}:moco_voc", (MOCO,)),
    Comparison("MoCo detection: VOC, two processes", f"{DETECTION}:moco_voc_two", (MOCO,)),
    Comparison("MoCo detection: COCO", f"{DETECTION}:moco_coco", (MOCO,)),
    Comparison("DenseCL detection: VOC", f"{DETECTION}:densecl_voc", (DENSECL,)),
    Comparison("VOC evaluator", f"{DETECTION}:voc_evaluator", packages=("detectron2",)),
    Comparison("COCO evaluator", f"{DETECTION}:coco_evaluator", packages=("pycocotools", "detectron2")),
    Comparison("Schedules: SimSiam, linear, all iterations", f"{RECIPES}:simsiam_schedules", (SIMSIAM,)),
    Comparison("Schedule: MoCo, all iterations", f"{RECIPES}:moco_schedule", (MOCO,)),
    Comparison("Schedules: SwAV, all iterations", f"{RECIPES}:swav_schedules", (SWAV,)),
    Comparison("Schedules: BYOL, all iterations", f"{RECIPES}:byol_schedules", (DEEPMIND,)),
    Comparison("Schedules: MoCo detection, all iterations", f"{RECIPES}:detection_schedules", (MOCO,)),
    Comparison("Configs: SimSiam, linear", f"{RECIPES}:simsiam_configs", (SIMSIAM,)),
    Comparison("Config: MoCo", f"{RECIPES}:moco_config", (MOCO,)),
    Comparison("Config: SwAV", f"{RECIPES}:swav_config", (SWAV,)),
    Comparison("Configs: MoCo detection, all keys", f"{RECIPES}:moco_detection_configs", (MOCO,)),
    Comparison("Config: DenseCL detection, all keys", f"{RECIPES}:densecl_detection_config", (DENSECL,)),
)
HEAD = ("comparison", "original", "largest difference", "changed variant", "its difference", "verdict")


@dataclass(frozen=True)
class Row:
    """A line of the table; `verdict` is `equal`, `missing …` or what is wrong."""

    name: str
    original: str
    difference: str
    change: str
    spoilt: str
    verdict: str

    @property
    def missing(self) -> bool:
        return self.verdict.startswith("missing")

    @property
    def ok(self) -> bool:
        return self.missing or self.verdict == "equal"


def main(argv: Sequence[str] | None = None, comparisons: Sequence[Comparison] = COMPARISONS) -> int:
    """Run, print, say whether all is equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("originals", type=Path)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="comparisons whose name has a WORD")
    parser.add_argument("--output", type=Path, help="also write the table there")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes below: two threads on a busy machine take minutes
    if not args.originals.is_dir():
        parser.error(f"{args.originals} is not a folder; give the one that holds the clones")
    if args.output and not args.output.parent.is_dir():
        parser.error(f"--output {args.output}: {args.output.parent} is not a folder")
    chosen = [one for one in comparisons if any(word.lower() in one.name.lower() for word in args.only)]
    if not chosen:
        parser.error(f"--only {' '.join(args.only)}: no comparison has such a name; leave it out to see all")
    rows = []
    for comparison in chosen:
        began = time.monotonic()
        rows.append(run(comparison, args.originals))
        sys.stderr.write(f"{rows[-1].name}: {rows[-1].verdict} ({time.monotonic() - began:.0f} s)\n")
    text = table(rows)
    sys.stdout.write(text)
    if args.output:
        args.output.write_text(text)
    missing = sum(row.missing for row in rows)
    if missing:
        sys.stderr.write(f"{missing} of {len(rows)} comparisons could not run; each row says what is missing\n")
    if not all(row.ok for row in rows):
        return 1
    return 2 if missing == len(rows) else 0


def run(comparison: Comparison, folder: Path) -> Row:
    """Run one comparison in a process of its own: originals change what they import."""
    names = [str(original) for original in comparison.originals]
    names += [f"{package} {version_of(package)}" for package in comparison.packages]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        files = []
        for number, original in enumerate(comparison.originals):
            files.append(scratch / f"original{number}" / original.folder)
            if lacking := extract(folder, original, files[-1]):
                return Row(comparison.name, ", ".join(names), "", "", "", f"missing: {lacking}")
        (scratch / "work").mkdir()
        sources = Sources(tuple(files), scratch / "work")
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(comparison.function, sources, scratch / "log", scratch / "found.json")
        )
        process.start()
        process.join()
        if process.exitcode:
            sys.stderr.write((scratch / "log").read_text()[-1500:])
            return Row(comparison.name, ", ".join(names), "", "", "", f"FAILED: exit code {process.exitcode}")
        found = json.loads((scratch / "found.json").read_text())
    checks, spoilt = ([Check(**check) for check in found[key]] for key in ("checks", "spoilt"))
    for check in checks:
        if not check.ok:
            sys.stderr.write(f"  {check}\n")
    return Row(
        comparison.name, ", ".join(names), largest(checks), found["change"], largest(spoilt), judge(checks, spoilt)
    )


def judge(checks: Sequence[Check], spoilt: Sequence[Check]) -> str:
    """The verdict over both variants."""
    if not checks or not all(check.ok for check in checks):
        return "DIFFERS"
    return "equal" if any(not check.ok for check in spoilt) else "CHANGE NOT SEEN"


def largest(checks: Sequence[Check]) -> str:
    """The largest difference as text; inf: keys, names or an order differ."""
    return f"{max(check.difference for check in checks):.2g}"


def extract(folder: Path, original: Original, into: Path) -> str:
    """Write the original's files at its commit; returns what is missing, or nothing."""
    clone = folder / original.folder
    if not clone.is_dir():
        return f"{clone} (git clone https://github.com/{original.repository} {clone})"
    command = ["git", "-C", str(clone), "archive", original.commit, *filter(None, [original.part])]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        return f"commit {original.commit[:7]} in {clone} (git -C {clone} fetch origin {original.commit})"
    into.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as content:
        content.extractall(into, filter="data")
    return ""


def work(function: str, sources: Sources, log: Path, result: Path) -> None:
    """In the comparison's process: run it, its output to `log`, its outcome to `result`."""
    with log.open("w") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    module, _, name = function.partition(":")
    try:
        outcome: Outcome = getattr(importlib.import_module(module), name)(sources)
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    found = {key: [vars(check) for check in getattr(outcome, key)] for key in ("checks", "spoilt")}
    result.write_text(json.dumps({**found, "change": outcome.change}))


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    cells = [HEAD, *((r.name, r.original, r.difference, r.change, r.spoilt, r.verdict) for r in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
