"""Measure the size and the shape of the source, beside the limits that the project set itself.

    python tests/house/measure.py               # the table
    python tests/house/measure.py --details     # also what each measure counted
    python tests/house/measure.py --check       # exit 1 where a limit is exceeded (CI)
    python tests/house/measure.py --root DIR    # another checkout

Everything is counted in the source's text and syntax tree; nothing is imported. Two limits cannot be counted this way:
the table says where they are tested or timed.

How things are counted:

- Source: every `.py` file below `ssl_transfer/`, `pretrain/`, `transfer/` and `tools/`; lines include blank ones.
- Import arrows: pairs of modules where the first imports the second anywhere, inside functions too. Within
  `transfer/experiment` the package `slurm/` counts as one module.
- Arrows that run up: `LAYERS` gives each package a height; an import of a higher package, or one between `pretrain/`
  and `transfer/`, runs up.
- Positional parameters: those that may be passed by position; `self` and `cls` do not count.
- Lists of run-only keys: modules that hold a literal with two or more of `RUN_ONLY_KEYS`, keys known not to change a
  result.
- Longest line: without a trailing `# type: ignore` or `# noqa`, as ruff counts.
- Markdown: lines over 120 characters outside code and tables; the target of a link and recorded output below `tests/`
  do not count.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("ssl_transfer", "pretrain", "transfer", "tools")
LINE_LENGTH = 120
FUNCTION_LENGTH = 60
POSITIONAL = 7
SAME_NAME_ALLOWED = ("__init__", "config", "result")
SIZE = {
    "the whole at issue 13": (225, 28_000),
    "files as people have them (issue 14)": (10, 2_200),
    "clusters as they are (issue 15)": (5, 2_400),
    "steady (issue 16)": (5, 2_900),
    "the front door (issue 20)": (6, 1_000),
    "a transfer that can be seen (issue 21)": (6, 900),
    "a comparison that decides (issue 18)": (17, 2_600),
    "the columns (issue 19)": (5, 900),
}
"""Files and lines of the source that each capability may bring; a limit is raised by a capability, never by drift."""

LAYERS = {
    "ssl_transfer": 0,
    "ssl_transfer.training": 1,
    "pretrain.data": 2,
    "pretrain.models": 2,
    "pretrain.optim": 3,
    "pretrain.methods": 3,
    "pretrain.evaluation": 4,
    "pretrain.engine": 5,
    "transfer.modeling": 2,
    "transfer.toy": 2,
    "transfer.search": 2,
    "transfer.report": 2,
    "transfer.resampling": 2,
    "transfer.weights": 3,
    "transfer.tasks": 4,
    "transfer.evaluation": 5,
    "transfer.comparison": 5,
    "transfer.engine": 6,
    "transfer.experiment": 6,
    "transfer.doctor": 7,
    "benchmarks": 8,
    "tools": 9,
    "tests": 10,
}
"""The height of each package; modules directly in `pretrain/` have none within `pretrain/`."""

RUN_ONLY_KEYS = {
    *("LOG", "LOG.PERIOD", "DATA.WORKERS", "CHECKPOINT", "CHECKPOINT.PERIOD", "CHECKPOINT.KEEP", "MONITOR"),
    *("DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD", "TRANSFER.KEEP_CHECKPOINTS", "TRANSFER.CHECK_IMAGES"),
    *("num_workers", "num_processes"),
}


@dataclass
class Measure:
    """One row of the table.

    Attributes:
        name: what is measured.
        start: its value at commit 54cff5b, as text.
        now: its value in this checkout.
        at_most: the limit for each number of `now`; None where there is none.
        counted: what was counted, one line each, for `--details`.
        note: where it is decided, when not by this script.
    """

    name: str
    start: str
    now: tuple[int, ...] = ()
    at_most: tuple[int, ...] | None = None
    counted: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def exceeded(self) -> bool:
        """Whether a number is above its limit."""
        return self.at_most is not None and any(n > most for n, most in zip(self.now, self.at_most, strict=False))

    def row(self) -> tuple[str, str, str, str]:
        """The cells of the table."""
        now = self.note or _numbers(self.now)
        return self.name, self.start, now + (" (!)" if self.exceeded else ""), _numbers(self.at_most or ())


class Source:
    """The parsed source files of a checkout and the imports between them.

    Args:
        root: the checkout.
        packages: top folders to read.
    """

    def __init__(self, root: Path, packages: tuple[str, ...] = PACKAGES) -> None:
        self.root = root
        self.files = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
        self.text = {path: path.read_text(encoding="utf-8") for path in self.files}
        self.tree = {path: ast.parse(text) for path, text in self.text.items()}
        self.module = {path: self._module(path) for path in self.files}
        self._modules = set(self.module.values())
        self.imports = {self.module[path]: self._imported(path) for path in self.files}

    def classes(self) -> dict[str, list[str]]:
        """Public class names with every place that defines one."""
        found = defaultdict(list)
        for path, tree in self.tree.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(self.place(path, node))
        return found

    def functions(self) -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
        """Every function and method, nested ones too."""
        for path, tree in self.tree.items():
            for node in ast.walk(tree):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield path, node

    def place(self, path: Path, node: ast.stmt) -> str:
        """`file:line`."""
        return f"{path.relative_to(self.root)}:{node.lineno}"

    def arrows(self) -> Iterator[tuple[str, str]]:
        """Every pair of modules where the first imports the second."""
        for importer, imported in self.imports.items():
            for other in sorted(imported):
                yield importer, other

    def _module(self, path: Path) -> str:
        return ".".join(path.relative_to(self.root).with_suffix("").parts).removesuffix(".__init__")

    def _imported(self, path: Path) -> set[str]:
        found: set[str] = set()
        for node in ast.walk(self.tree[path]):
            if isinstance(node, ast.Import):
                found.update(self._known(alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(path, node)
                found.update(self._known(f"{base}.{alias.name}") for alias in node.names)
        return found - {"", self.module[path]}

    def _absolute(self, path: Path, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = path.relative_to(self.root).parts[: -node.level]
        return ".".join([*package, *([node.module] if node.module else [])])

    def _known(self, name: str) -> str:
        """The longest prefix of a dotted name that is a module of this source, or an empty string."""
        while name and name not in self._modules:
            name = name.rpartition(".")[0]
        return name


def measure(root: Path) -> list[Measure]:
    """Every row of the table for the checkout at `root`."""
    source = Source(root)
    return [
        _size(source),
        _repeated_classes(source),
        _repeated_files(source),
        _experiment(source),
        _cycles_and_layers(source),
        _positional(source),
        _run_only_lists(source),
        Measure(
            "file reads for a job filed with Slurm, per decision",
            "7",
            at_most=(2,),
            note="tests/compat/test_file_reads.py",
        ),
        _markdown(root),
        Measure("`make test` on two free cores, minutes", "up to 15", at_most=(10,), note="timed by hand"),
        *_lengths(source),
    ]


def _size(source: Source) -> Measure:
    lines = {path: len(text.splitlines()) for path, text in source.text.items()}
    rooms: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path, count in lines.items():
        room = "/".join(path.relative_to(source.root).parts[:-1][:2])
        rooms[room] += count
        files[room] += 1
    counted = [f"{room}: {files[room]} files, {rooms[room]} lines" for room in sorted(rooms)]
    now = (len(lines), sum(lines.values()))
    files_limit, lines_limit = map(sum, zip(*SIZE.values(), strict=True))
    return Measure("source files · lines", "339 · 31918", now, (files_limit, lines_limit), counted)


def _repeated_classes(source: Source) -> Measure:
    repeated = {name: places for name, places in source.classes().items() if len(places) > 1}
    counted = [f"{name}: {', '.join(places)}" for name, places in sorted(repeated.items())]
    return Measure("public class names defined more than once", "29", (len(repeated),), (3,), counted)


def _repeated_files(source: Source) -> Measure:
    names = defaultdict(list)
    for path in source.files:
        names[path.stem].append(str(path.relative_to(source.root)))
    repeated = {name: at for name, at in names.items() if len(at) > 1 and name not in SAME_NAME_ALLOWED}
    counted = [f"{name}: {', '.join(at)}" for name, at in sorted(repeated.items())]
    return Measure("repeated file names (but __init__, config, result)", "41", (len(repeated),), (15,), counted)


def _experiment(source: Source) -> Measure:
    room = "transfer.experiment"

    def unit(module: str) -> str:
        return f"{room}.slurm" if module.startswith(f"{room}.slurm") else module

    inside = [module for module in source.imports if module.startswith(room)]
    arrows = {(unit(a), unit(b)) for a, b in source.arrows() if a.startswith(room) and b.startswith(room)}
    arrows = {(a, b) for a, b in arrows if a != b}
    counted = [f"{a} -> {b}" for a, b in sorted(arrows)]
    now = (len(inside), len(arrows))
    return Measure("files in transfer/experiment · import arrows between them", "43 · 102", now, (20, 55), counted)


def _cycles_and_layers(source: Source) -> Measure:
    cycles = _cycles(source.imports)
    up = [f"up: {a} -> {b}" for a, b in source.arrows() if _runs_up(a, b)]
    counted = [f"cycle: {', '.join(sorted(cycle))}" for cycle in cycles] + up
    return Measure("import cycles · arrows that run up", "1 · 0", (len(cycles), len(up)), (0, 0), counted)


def _runs_up(importer: str, imported: str) -> bool:
    halves = {importer.split(".")[0], imported.split(".")[0]}
    if halves == {"pretrain", "transfer"}:
        return True
    low, high = _height(importer), _height(imported)
    return low is not None and high is not None and high > low


def _height(module: str) -> int | None:
    parts = module.split(".")
    return LAYERS.get(".".join(parts[:2]), LAYERS.get(parts[0]))


def _cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or not (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            component = stack[at:]
            del stack[at:]
            if len(component) > 1:
                found.append(component)

    for node in graph:
        if node not in index:
            visit(node)
    return found


def _positional(source: Source) -> Measure:
    counted = []
    for path, node in source.functions():
        names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count >= POSITIONAL:
            counted.append(f"{source.place(path, node)} {node.name}: {count}")
    name = "functions with seven or more positional parameters"
    return Measure(name, "24", (len(counted),), (3,), counted)


def _run_only_lists(source: Source) -> Measure:
    counted = []
    for path, tree in source.tree.items():
        for node in tree.body:
            value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            texts = {n.value for n in ast.walk(value) if isinstance(n, ast.Constant)} if value else set()
            if len(texts & RUN_ONLY_KEYS) >= 2:
                counted.append(source.place(path, node))
    files = {place.rpartition(":")[0] for place in counted}
    return Measure("lists of run-only keys (modules that hold one)", "5", (len(files),), (1,), counted)


def _markdown(root: Path) -> Measure:
    counted = [
        f"{path.relative_to(root)}:{number}"
        for path in _markdown_files(root)
        for number, line in _prose(path.read_text(encoding="utf-8"))
        if len(line) > LINE_LENGTH
    ]
    return Measure("Markdown lines over 120 characters", "381", (len(counted),), (0,), counted)


def _markdown_files(root: Path) -> list[Path]:
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "*.md"], capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        names = [name for name in listed.stdout.splitlines() if not name.startswith("tests/")]  # recorded output
        return [root / name for name in names if (root / name).is_file()]
    return sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md")])


def _prose(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without code, tables and the targets of links."""
    fenced = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    ") and not line.lstrip().startswith("|"):
            yield number, re.sub(r"https?://\S+", "", re.sub(r"\]\([^)]*\)", "]", line))


def _lengths(source: Source) -> list[Measure]:
    lengths = {
        f"{source.place(path, node)} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path, node in source.functions()
    }
    long = [f"{place}: {length}" for place, length in lengths.items() if length > FUNCTION_LENGTH]
    median = round(statistics.median(lengths.values()))
    lines = {
        f"{path.relative_to(source.root)}:{number}": len(re.sub(r"\s+# (type: ignore|noqa).*", "", line))
        for path, text in source.text.items()
        for number, line in enumerate(text.splitlines(), start=1)
    }
    wide = [place for place, length in lines.items() if length > LINE_LENGTH]
    return [
        Measure(
            "lines of a function, median · longest",
            "7 · 58",
            (median, max(lengths.values())),
            (12, FUNCTION_LENGTH),
            long,
        ),
        Measure("longest line of the source", "120", (max(lines.values()),), (LINE_LENGTH,), wide),
    ]


def _numbers(values: tuple[int, ...]) -> str:
    return " · ".join(str(value) for value in values)


def render(measures: list[Measure]) -> str:
    """The table in Markdown."""
    rows = [("measure", "at the start (54cff5b)", "now", "at most"), *(measure.row() for measure in measures)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the table; with `--check`, 1 where a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is exceeded")
    parser.add_argument("--details", action="store_true", help="list what each measure counted")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="the checkout")
    arguments = parser.parse_args(argv)
    if not (arguments.root / "transfer" / "experiment").is_dir():
        parser.error(f"--root {arguments.root} is no checkout of this project")
    measures = measure(arguments.root)
    print(render(measures))
    for entry in measures if arguments.details else ():
        print(f"\n{entry.name}:", *(f"  {line}" for line in entry.counted), sep="\n")
    exceeded = [entry.name for entry in measures if entry.exceeded]
    if exceeded:
        print(f"\n(!) over the limit: {'; '.join(exceeded)}")
    return 1 if arguments.check and exceeded else 0


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # its reader, such as head, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
