# PYTHON_ARGCOMPLETE_OK
"""The search of the fine-tuning learning rate: choose among candidates that were run, and record the choice."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(p) for p in Path(__file__).resolve().parents[1:2] if (p / "ssl_transfer").is_dir()]
    __import__("ssl_transfer.errors").errors.exit_on_interrupt()

from argparse import Namespace
from collections.abc import Sequence

from ssl_transfer.console import Parser, run_main
from ssl_transfer.errors import EXIT_FAILURE, EXIT_OK

EXAMPLES = """examples:
  for lr in 0.01 0.02 0.05 0.1; do
    python tools/transfer.py --config-file configs/transfer/voc07.yaml --weights simsiam.pkl --seed 1000 \\
        --role lr_search --select-on test --output runs/search/$lr --num-gpus 8 --resume SOLVER.BASE_LR $lr
  done
  python tools/lr_search.py choose runs/search/* --row simsiam --task voc07 --output runs/search/lr_search.json
  python tools/transfer.py --config-file configs/transfer/voc07.yaml --weights simsiam.pkl --seed 1 \\
      --lr-from runs/search/lr_search.json --output runs/voc07/1 --num-gpus 8 --resume

the highest value wins, a tie goes to the smaller lr; candidates that diverged or are missing are recorded and named.
exit codes: 0 chosen; 1 no candidate has a value (recorded as such); 2 wrong use, nothing written.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and hand over to the verb."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chooser = verbs.add_parser("choose", help="choose the best of the candidates in RESULT_DIR …", epilog=EXAMPLES)
    chooser.add_argument("folders", nargs="+", type=Path, metavar="RESULT_DIR", help="a candidate's trial folder")
    chooser.add_argument("--row", required=True, metavar="R", help="the row's name in the record")
    chooser.add_argument("--task", required=True, metavar="T", help="the task's name in the record")
    chooser.add_argument("--output", required=True, type=Path, metavar="F", help="the record: lr_search.json")
    chooser.add_argument("--metric", default="bbox/AP", metavar="M", help="metric to maximise (default: bbox/AP)")
    chooser.add_argument(
        "--grid", nargs="+", type=float, default=[], metavar="LR", help="every lr that was to be tried"
    )
    return _choose(parser.parse_args(argv))


def _choose(args: Namespace) -> int:
    from transfer.search.choice import choose, write_choice

    choice = choose(args.folders, row=args.row, task=args.task, metric=args.metric, grid=args.grid)
    write_choice(choice, args.output)
    record = choice.record
    for candidate in record.points:
        value = "-" if candidate.value is None else f"{candidate.value:.2f}"
        print(f"lr {candidate.lr:<8g} {args.metric} {value:>6s}  {candidate.status}")
    for line in choice.warnings:
        print(f"note: {line}")
    if record.chosen is None:
        print(f"nothing chosen: no candidate has a value; recorded in {args.output}")
        return EXIT_FAILURE
    print(f"chosen on {record.split}: lr {record.chosen:g}; recorded in {args.output}")
    return EXIT_OK


if __name__ == "__main__":
    run_main(main)
