"""Ours beside a named peer in the same run, the numbers' equality checked; and what each part costs by itself."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.console import Parser, ignore_torchs_announcements, run
from common.costs import Spent, machine, measure_cost
from common.errors import EXIT_FAILURE, EXIT_OK
from common.measure import Measured


class Named(Protocol):
    """What can be asked for by its name."""

    @property
    def what(self) -> str: ...  # noqa: D102


One = TypeVar("One", bound=Named)
Row = TypeVar("Row")
EXAMPLES = """examples:
  python tools/bench.py
  python tools/bench.py --pairs 9 --only VOC
  python tools/bench.py --no-comparisons --only cold     what each command line's start costs
  python tools/bench.py --json > bench.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print two tables (or JSON); exit 1 where numbers that must be equal are not, or a cost's work failed."""
    parser = Parser(prog="bench.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--pairs", type=int, default=5, help="how often each pair is timed (default: 5)")
    parser.add_argument("--only", default="", metavar="WORD", help="only rows whose name holds this word")
    parser.add_argument("--no-comparisons", action="store_true", help="only what each part costs by itself")
    parser.add_argument("--no-costs", action="store_true", help="only what has a peer beside it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args(argv)
    if args.pairs < 1:
        parser.error("--pairs must be 1 or more")
    ignore_torchs_announcements()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, wrong = ([], 0) if args.no_comparisons else _measure(folder, args.pairs, args.only)
        costs, failed = ([], 0) if args.no_costs else _costs(folder, args.only)
    if not rows and not costs and not wrong and not failed:
        parser.error(f"--only {args.only}: no row's name holds it")
    if args.json:
        found = {"machine": machine(), "comparisons": list(map(dataclasses.asdict, rows))}
        found["costs"] = list(map(dataclasses.asdict, costs))
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _print_tables(rows, costs)
    return EXIT_FAILURE if wrong or failed else EXIT_OK


def _measure(folder: Path, pairs: int, only: str) -> tuple[list[Measured], int]:
    from common.measure import measure
    from pretrain.benchmarks import comparisons as pretraining
    from transfer.benchmarks import comparisons as transferring

    rooms = enumerate((pretraining, transferring))
    asked = (one for number, room in rooms for one in room(folder / str(number)))
    return _each(asked, only, lambda one: measure(one, pairs), lambda one: one.what)


def _costs(folder: Path, only: str) -> tuple[list[Spent], int]:
    from pretrain.costs import costs as pretraining
    from transfer.costs import costs as transferring

    asked = (one for room in (pretraining, transferring) for one in room())
    return _each(asked, only, lambda one: measure_cost(one, folder), lambda one: f"{one.what}, {one.size} {one.unit}")


def _each(
    asked: Iterable[One], only: str, measured: Callable[[One], Row], called: Callable[[One], str]
) -> tuple[list[Row], int]:
    """What was measured of those whose name holds `only`, and how many did not hold what they promise."""
    rows: list[Row] = []
    wrong = 0
    for one in asked:
        if only.lower() not in one.what.lower():
            continue
        print(f"measuring {called(one)}", file=sys.stderr)
        try:
            rows.append(measured(one))
        except AssertionError as error:
            print(f"NOT AS PROMISED: {one.what}: {error}", file=sys.stderr)
            wrong += 1
    return rows, wrong


def _print_tables(rows: list[Measured], costs: list[Spent]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(" · ".join(f"{key} {value}" for key, value in machine().items()))
    if rows:
        table = Table("what", "ours", "peer", "ratio (min-max)", "of the fastest", "equality", "the peer is")
        for row in rows:
            ratio = f"{row.ratio:.2f}x ({row.lowest:.2f}-{row.highest:.2f})"
            each = [f"{rate:.3g} {row.unit}/s" for rate in (row.ours, row.theirs)]
            table.add_row(row.what, *each, ratio, f"{row.best:.2f}x", row.equality, row.peer)
        console.print(table)
    if costs:
        table = Table("cost of", "size", "seconds", "peak MiB", "of which the work's")
        for cost in costs:
            memory = [f"{cost.peak_mib:.0f}", f"{cost.added_mib:.0f}"]
            table.add_row(cost.what, f"{cost.size:,} {cost.unit}", f"{cost.seconds:.3f}", *memory)
        console.print(table)


if __name__ == "__main__":
    run(main)
