# PYTHON_ARGCOMPLETE_OK
"""Compare two trials, rows or result files: differences with intervals, per class and size, kinds of error, images."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(p) for p in Path(__file__).resolve().parents[1:2] if (p / "ssl_transfer").is_dir()]
    __import__("ssl_transfer.errors").errors.exit_on_interrupt()

import argparse
from collections.abc import Sequence

from ssl_transfer.console import Parser, Stages, run_main
from ssl_transfer.errors import EXIT_OK, UserError, printable

FORMATS, MAX_IMAGES = (".md", ".json", ".html"), 64
EXAMPLES = """examples:
  # two trials, as Markdown on the screen
  python tools/compare.py runs/simsiam/1 runs/supervised/1
  # all trials of two rows of an experiment, as one self-contained page
  python tools/compare.py runs/table5:simsiam runs/table5:supervised --task voc07 --output page.html
  # a trial and the results of another code base on the same test split
  python tools/compare.py runs/coco/1 coco_instances_results.json --data datasets --output page.html
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Read both sides, compare, print or write."""
    args = parser().parse_args(argv)
    if args.output is None:
        sys.stdout.write(_rendered(args, ".md"))
        return EXIT_OK
    from ssl_transfer.writer_lock import write_output

    kind = args.output.suffix.lower()
    if kind not in FORMATS:
        raise UserError(
            f"--output {args.output}: cannot tell the format from its name; end it with {', '.join(FORMATS)}"
        )
    write_output(args.output, lambda: _rendered(args, kind))
    print(f"wrote {args.output}")
    return EXIT_OK


def parser() -> Parser:
    """The command line."""
    made = Parser(description=__doc__, epilog=EXAMPLES)
    side = "a trial's folder, a row of an experiment as RUN_DIR:ROW, or a file of detections in COCO's format"
    made.add_argument("a", metavar="A", help=side)
    made.add_argument("b", metavar="B", help="what to compare it with; the same kinds")
    written = "write .html, .md or .json (atomically) instead of to the screen"
    made.add_argument("--output", type=Path, metavar="FILE", help=written)
    made.add_argument("--task", metavar="T", help="the task, where a row has several, or where both are foreign files")
    root = "the data root (default: the trial's, else $DETECTRON2_DATASETS)"
    made.add_argument("--data", type=Path, metavar="DIR", help=root)
    pictures = "images in the gallery, 0 … 64 (default: %(default)s)"
    made.add_argument("--images", type=_count, default=8, metavar="N", help=pictures)
    made.add_argument("--show-machine", action="store_true", help="keep absolute paths on the page")
    made.add_quiet()
    return made


def _count(text: str) -> int:
    if not text.isdigit() or int(text) > MAX_IMAGES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {MAX_IMAGES}")
    return int(text)


def _rendered(args: argparse.Namespace, kind: str) -> str:
    """The comparison in one of the formats; what takes how long goes to stderr."""
    stage = Stages()
    stage("reading")
    from transfer.comparison import comparison_page, texts
    from transfer.comparison.differences import compare_sides
    from transfer.comparison.sides import find_sides

    sides, dataset, note = find_sides((args.a, args.b), args.task, args.data)
    found = compare_sides(sides, dataset, note, args.images, stage)
    stage("rendering")
    if kind == ".html":
        text = comparison_page.render_page(found, dataset, args.show_machine)
    else:
        text = (texts.render_json if kind == ".json" else texts.render_markdown)(found)
    stage()
    return printable(text)


if __name__ == "__main__":
    run_main(main)
