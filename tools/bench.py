"""Ours beside a named peer, in the same run, with the numbers' equality checked."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.console import DONE, FAILED, Parser, run
from common.measure import Measured

EXAMPLES = """examples:
  python tools/bench.py
  python tools/bench.py --pairs 9 --only VOC
  python tools/bench.py --json > bench.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print one table (or JSON); exit 1 where numbers that must be equal are not."""
    parser = Parser(prog="bench.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--pairs", type=int, default=5, help="how often each pair is timed (default: 5)")
    parser.add_argument("--only", default="", metavar="WORD", help="only rows whose name holds this word")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    if args.pairs < 1:
        parser.error("--pairs must be 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        rows, wrong = _measure(Path(folder), args.pairs, args.only)
    if args.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1, ensure_ascii=False))
    else:
        _print_table(rows)
    if not rows and not wrong:
        parser.error(f"--only {args.only}: no row's name holds it")
    return FAILED if wrong else DONE


def _measure(folder: Path, pairs: int, only: str) -> tuple[list[Measured], int]:
    from common.measure import measure
    from pretrain.benchmarks import comparisons as pretraining
    from transfer.benchmarks import comparisons as transferring

    rows: list[Measured] = []
    wrong = 0
    for number, room in enumerate((pretraining, transferring)):
        for comparison in room(folder / str(number)):
            if only.lower() not in comparison.what.lower():
                continue
            print(f"measuring {comparison.what}", file=sys.stderr)
            try:
                rows.append(measure(comparison, pairs))
            except AssertionError as error:
                print(f"NOT EQUAL: {comparison.what}: {error}", file=sys.stderr)
                wrong += 1
    return rows, wrong


def _print_table(rows: list[Measured]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "ours", "peer", "ratio (min-max)", "equality", "the peer is")
    for row in rows:
        ratio = f"{row.ratio:.2f}x ({row.lowest:.2f}-{row.highest:.2f})"
        each = [f"{rate:.3g} {row.unit}/s" for rate in (row.ours, row.theirs)]
        table.add_row(row.what, *each, ratio, row.equality, row.peer)
    Console(width=None if sys.stdout.isatty() else 170).print(table)


if __name__ == "__main__":
    run(main)
