"""Time our code against named peers, with a check that their numbers are equal, and measure each part by itself."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.isolated import Benchmark, Measurement, machine, measure_benchmark
from benchmarks.paired import PairedBenchmark, PairedMeasurement, measure_pairs
from ssl_transfer.console import Parser, ignore_torch_warnings, run_main
from ssl_transfer.errors import EXIT_FAILURE, EXIT_OK


class Named(Protocol):
    """A benchmark, which `--only` selects by its name."""

    @property
    def name(self) -> str: ...


AnyBenchmark = TypeVar("AnyBenchmark", bound=Named)
Row = TypeVar("Row")
EXAMPLES = """examples:
  python -m benchmarks
  python -m benchmarks --pairs 9 --only VOC
  python -m benchmarks --no-comparisons --only cold     what each command line's start costs
  python -m benchmarks --json > bench.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print two tables or JSON; 1 where numbers differ from the peer's or a command failed."""
    parser = Parser(prog="python -m benchmarks", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--pairs", type=int, default=5, help="number of timings of each pair (default: 5)")
    parser.add_argument("--only", default="", metavar="WORD", help="only rows whose name contains this word")
    parser.add_argument("--no-comparisons", action="store_true", help="leave out the rows with a peer")
    parser.add_argument("--no-costs", action="store_true", help="leave out the rows without a peer")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args(argv)
    if args.pairs < 1:
        parser.error("--pairs must be 1 or more")
    ignore_torch_warnings()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs, unequal = ([], 0) if args.no_comparisons else _measure_pairs(folder, args.pairs, args.only)
        rows, failed = ([], 0) if args.no_costs else _measure_isolated(folder, args.only)
    if not pairs and not rows and not unequal and not failed:
        parser.error(f"--only {args.only}: no row's name contains it")
    if args.json:
        found = {"machine": machine(), "comparisons": list(map(dataclasses.asdict, pairs))}
        found["costs"] = list(map(dataclasses.asdict, rows))
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _print_tables(pairs, rows)
    return EXIT_FAILURE if unequal or failed else EXIT_OK


def paired_benchmarks(folder: Path) -> Iterator[PairedBenchmark]:
    """Every benchmark with a peer; `folder` is a scratch folder."""
    from benchmarks import c4_step, checkpoints, comparison, evaluators, input_pipelines, roi_align, simsiam_step

    yield from input_pipelines.benchmarks(folder / "photos")
    yield simsiam_step.simsiam_step()
    yield from evaluators.benchmarks(folder / "detections")
    yield comparison.paired_bootstrap(folder / "comparison")
    yield from c4_step.benchmarks()
    yield from roi_align.benchmarks()
    yield from checkpoints.benchmarks(folder / "checkpoints")
    yield evaluators.cold_plan()


def isolated_benchmarks() -> Iterator[Benchmark]:
    """Every benchmark of a command or function in a process of its own."""
    from benchmarks import pretrain_commands, transfer_commands

    yield from pretrain_commands.benchmarks()
    yield from transfer_commands.benchmarks()


def _measure_pairs(folder: Path, pairs: int, only: str) -> tuple[list[PairedMeasurement], int]:
    return _measure(paired_benchmarks(folder), only, lambda one: measure_pairs(one, pairs), lambda one: one.name)


def _measure_isolated(folder: Path, only: str) -> tuple[list[Measurement], int]:
    def label(one: Benchmark) -> str:
        return f"{one.name}, {one.size} {one.unit}"

    return _measure(isolated_benchmarks(), only, lambda one: measure_benchmark(one, folder), label)


def _measure(
    benchmarks: Iterable[AnyBenchmark],
    only: str,
    measure: Callable[[AnyBenchmark], Row],
    label: Callable[[AnyBenchmark], str],
) -> tuple[list[Row], int]:
    """Measure the benchmarks whose name contains `only`; also count those that failed their check."""
    rows: list[Row] = []
    failed = 0
    for benchmark in benchmarks:
        if only.lower() not in benchmark.name.lower():
            continue
        print(f"measuring {label(benchmark)}", file=sys.stderr)
        try:
            rows.append(measure(benchmark))
        except AssertionError as error:
            print(f"FAILED: {benchmark.name}: {error}", file=sys.stderr)
            failed += 1
    return rows, failed


def _print_tables(pairs: list[PairedMeasurement], rows: list[Measurement]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(" · ".join(f"{key} {value}" for key, value in machine().items()))
    if pairs:
        table = Table("what", "ours", "peer", "ratio (min-max)", "of the fastest", "equality", "the peer is")
        for pair in pairs:
            ratio = f"{pair.ratio:.2f}x ({pair.lowest:.2f}-{pair.highest:.2f})"
            rates = [f"{rate:.3g} {pair.unit}/s" for rate in (pair.ours, pair.theirs)]
            table.add_row(pair.name, *rates, ratio, f"{pair.best:.2f}x", pair.equality, pair.peer)
        console.print(table)
    if rows:
        table = Table("cost of", "size", "seconds", "peak MiB", "of which the work's")
        for row in rows:
            memory = [f"{row.peak_mib:.0f}", f"{row.added_mib:.0f}"]
            table.add_row(row.name, f"{row.size:,} {row.unit}", f"{row.seconds:.3f}", *memory)
        console.print(table)


if __name__ == "__main__":
    run_main(main)
