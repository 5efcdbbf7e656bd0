# PYTHON_ARGCOMPLETE_OK
"""Tabulate results as the SimSiam paper's Table 5 (Table 4, ablations) does, beside the published numbers."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(p) for p in Path(__file__).resolve().parents[1:2] if (p / "ssl_transfer").is_dir()]
    __import__("ssl_transfer.errors").errors.exit_on_interrupt()

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssl_transfer.console import Parser, as_typed, run_main
from ssl_transfer.errors import EXIT_OK, UserError, printable

if TYPE_CHECKING:
    from ssl_transfer.formats.detections import Detections
    from transfer.report.tables import Options

FORMATS = {"md": ".md", "long": ".long.csv", "csv": ".csv", "latex": ".tex", "json": ".json", "html": ".html"}
EXAMPLES = """examples:
  # Markdown on the screen
  python tools/table.py runs/table5
  # one self-contained page: plots, provenance
  python tools/table.py runs/table5 --output table5.html
  # two runs in one table, compared with a row
  python tools/table.py runs/table5 runs/mine --against supervised
  # the published row to stand beside one's own
  python tools/table.py runs/mine --expect mine=simsiam_base
  # a trial run elsewhere, flagged as imported
  python tools/table.py runs/mine --import 'MoCo v2' voc0712 metrics.json
  # detections made elsewhere, measured here on the task's test split
  python tools/table.py runs/mine --import 'MoCo v2' coco coco_instances_results.json --data datasets
  # a line for each trial's value, for pandas and R
  python tools/table.py runs/table5 --output table5.long.csv
  # the published Table 5 alone
  python tools/table.py --published rows
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Collect, tabulate, print or write."""
    args = parser().parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    if not args.runs and not args.imports and args.published != "rows":
        raise UserError("name a run folder, or give --published rows to see the published numbers alone")
    kind = args.format or format_of(args.output)
    if args.output is None:
        sys.stdout.write(rendered(args, kind))
        return EXIT_OK
    from ssl_transfer.writer_lock import write_output

    write_output(args.output, lambda: rendered(args, kind))
    print(f"wrote {args.output}")
    return EXIT_OK


def parser() -> Parser:
    """The command line."""
    made = Parser(description=__doc__, epilog=EXAMPLES)
    made.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN_DIR",
        help="an experiment's folder, or any folder with results below it",
    )
    made.add_argument("--format", choices=sorted(FORMATS), help="default: by the output file's name, else md")
    made.add_argument("--output", type=Path, metavar="FILE", help="write here (atomically) instead of to the screen")
    made.add_argument("--plots", type=Path, metavar="DIR", help="also write every plot there, as PNG and SVG")
    made.add_argument(
        "--layout",
        choices=["auto", "table5", "table4", "ablations"],
        default="auto",
        help="default: all that have results",
    )
    made.add_argument(
        "--published",
        choices=["beside", "rows", "none"],
        default="beside",
        help="published numbers beside the means, as rows too, or not at all",
    )
    made.add_argument(
        "--allow-toy", action="store_true", help="show toy results beside real or published ones, flagged"
    )
    made.add_argument(
        "--against",
        default="auto",
        metavar="ROW",
        help="compare every row with this one: interval, p and a verdict in a sentence (default: supervised, if it has "
        "results, else scratch; none: no row)",
    )
    made.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="ROW=KEY",
        help="the published row (key in configs/expected) beside a row",
    )
    _add_imports(made)
    made.add_argument("--sort", metavar="COLUMN.METRIC", help="sort rows by a mean, best first, such as voc07.bbox.AP")
    made.add_argument(
        "--show-machine",
        action="store_true",
        help="keep absolute paths (they name users) and host names on the page, which is made to be forwarded",
    )
    return made


def _add_imports(made: Parser) -> None:
    made.add_argument(
        "--import",
        dest="imports",
        nargs=3,
        action="append",
        default=[],
        metavar=("ROW", "TASK", "FILE"),
        help="a trial run elsewhere: Detectron2's metrics.json, a log with copypaste lines, or COCO's result JSON "
        "(coco_instances_results.json), which is evaluated here; once for each trial",
    )
    made.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="--import of result JSON: the data root (default: $DETECTRON2_DATASETS, else datasets)",
    )


def rendered(args: argparse.Namespace, kind: str) -> str:
    """The report in one of the formats."""
    from transfer.report import tables
    from transfer.report.collect import add_imported, collect
    from transfer.report.render import render_as

    found = collect(args.runs)
    for row, task, file in args.imports:
        add_imported(found, row, task, Path(file), evaluated(Path(file), task, args.data))
    if not found.trials and not found.requested and (args.runs or args.imports) and not found.pretraining:
        named = "".join(f"; {s.path}: {s.reason}" for s in found.skipped[:3])
        raise UserError(
            f"no result below {', '.join(map(str, args.runs))} ({len(found.skipped)} file(s) skipped{named})"
        )
    for skipped in found.skipped:
        print(f"skipped {skipped.path}: {skipped.reason}", file=sys.stderr)
    report = tables.build_report(found, options(args))
    if args.plots:
        from ssl_transfer.writer_lock import WriterLock
        from transfer.report.figures import write_all

        with WriterLock(args.plots, purpose="--plots"):
            print(f"wrote {len(write_all(report, args.plots))} plots to {args.plots}", file=sys.stderr)
    if not report.tables and kind in ("csv", "long", "latex"):  # which have no room for words
        print("\n".join(report.notes), file=sys.stderr)
    return printable(render_as(report, kind))


def evaluated(file: Path, task: str, root: Path | None) -> Detections | None:
    """The detections of a result JSON, matched with the objects of the task's test split; None for another file."""
    from transfer.evaluation.foreign import is_result_list, read_foreign

    if not is_result_list(file):
        return None
    from ssl_transfer.config_files import find_config
    from transfer.doctor.check import task_of
    from transfer.tasks.classes import detection_root, toy_classes
    from transfer.tasks.datasets import data_root
    from transfer.tasks.task import read_split

    settings = task_of(find_config(task, "transfer"), root)
    toy = bool(toy_classes(detection_root(root or data_root(""))))
    try:
        split = read_split(settings.splits[-1], settings.classes, settings.check_counts and not toy)
    except UserError as error:
        raise UserError(str(error).replace("TRANSFER.DATA_ROOT", "--data")) from error
    return read_foreign(file, split, toy)


def options(args: argparse.Namespace) -> Options:
    """The report's options from the command line."""
    from transfer.report.tables import Options

    expect = {}
    for pair in args.expect:
        row, equals, key = pair.rpartition("=")
        if not equals or not row or not key:
            raise UserError(f"--expect {pair}: must be ROW=KEY, such as mine=simsiam_base")
        expect[row] = key
    against = None if args.against == "none" else args.against
    command = as_typed(shlex.join(["python", "tools/table.py", *getattr(args, "words", [])]))
    return Options(args.layout, args.published, args.allow_toy, against, expect, args.sort, args.show_machine, command)


def format_of(output: Path | None) -> str:
    """The format a file name asks for; Markdown without one."""
    if output is None:
        return "md"
    for kind, suffix in FORMATS.items():
        if output.name.lower().endswith(suffix):
            return kind
    raise UserError(f"--output {output}: cannot tell the format from its name; give --format ({', '.join(FORMATS)})")


if __name__ == "__main__":
    run_main(main)
