# PYTHON_ARGCOMPLETE_OK
"""Fine-tune a detector from pre-trained weights and evaluate it: one trial."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(p) for p in Path(__file__).resolve().parents[1:2] if (p / "ssl_transfer").is_dir()]
    __import__("ssl_transfer.errors").errors.exit_on_interrupt()

import argparse
from collections.abc import Sequence
from typing import Any

from ssl_transfer.config import explain_config
from ssl_transfer.console import Parser, ignore_torch_warnings, run_main
from ssl_transfer.errors import EXIT_OK
from ssl_transfer.profiling import add_option

EXAMPLES = """examples:
  python tools/transfer.py --config-file configs/transfer/voc07.yaml --weights simsiam.pkl --seed 1 \\
      --output runs/voc07/1 --num-gpus 8
  python tools/transfer.py --config-file configs/transfer/coco.yaml --weights scratch --seed 1 \\
      --output runs/coco --resume
  python tools/transfer.py --config-file configs/transfer/voc07.yaml --weights scratch --seed 1 --output runs/toy \\
      --overlay configs/overlays/cpu.yaml TRANSFER.DATA_ROOT datasets/toy/detection SOLVER.MAX_ITER 20

exit codes: 0 done (also a trial that diverged: its result says so), 1 failed, 2 wrong use,
75 stopped by Ctrl-C or SIGTERM after a checkpoint: the printed command continues it. A second Ctrl-C leaves at once.
torchrun and srun also start it: one process per GPU.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run the trial, print its numbers."""
    args = vars(_parse(argv))
    ignore_torch_warnings()
    if args.pop("print_config"):
        from transfer.engine.config import load_config

        loaded = load_config(args["config_file"], args["overlay"], args["overrides"], runs_here=False)
        print(explain_config(loaded.cfg, loaded.sources))
        return EXIT_OK
    from ssl_transfer.training.distributed import read_distributed_environment
    from transfer.engine.prepare import TrialRequest
    from transfer.engine.trial import run_trial

    outcome = run_trial(TrialRequest(**args | {"overrides": tuple(args["overrides"])}))
    place = read_distributed_environment()
    if place is None or place.rank == 0:
        print(_summary(outcome))
    return EXIT_OK


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    overlay = "merged after the config file: a file, or a name of configs/overlays/, such as cpu"
    task = "the task: a file, or a name of configs/transfer/"
    parser.add_configs("transfer", help=task, required=True, overlay=overlay)
    parser.add_argument("--weights", required=True, metavar="W", help="scratch, or a .pkl that tools/convert.py wrote")
    parser.add_argument("--seed", required=True, type=int, metavar="S", help="the trial's seed, 0 or more")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="the trial's folder; result.json comes last"
    )
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    parser.add_argument(
        "--reference-gpus",
        type=int,
        metavar="N",
        help="the recipe is for N GPUs: scale batch, lr and schedule together to those used (default: never)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in DIR, if there is one"
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate the newest checkpoint in DIR; writes evaluation.json"
    )
    parser.add_argument(
        "--role",
        choices=("trial", "lr_search"),
        default="trial",
        help="lr_search: a candidate of an lr search, not reported",
    )
    parser.add_argument(
        "--select-on",
        choices=("test", "heldout"),
        help="with --role lr_search: evaluate on the test split, as the paper did, or on held-out training images",
    )
    parser.add_argument(
        "--lr-from", type=Path, metavar="F", help="use the lr that tools/lr_search.py choose recorded in F"
    )
    parser.add_print_config()
    parser.add_quiet()
    add_option(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="any config key; merged last")
    return parser.parse_intermixed_args(argv)


def _summary(outcome: Any) -> str:
    """The outcome in a few lines of text."""
    content = outcome.content
    lines = [f"{outcome.file}"]
    if outcome.status == "already":
        lines.insert(0, f"this trial has ended before ({content['status']}); nothing was done")
    divergence = content.get("divergence")
    if divergence:
        lines.insert(
            0, f"diverged at iteration {divergence['iteration']}, lr {divergence['lr']:g}: {divergence['what']}"
        )
    for kind, values in (content.get("metrics") or {}).items():
        numbers = "  ".join(f"{key} {_number(values[key])}" for key in ("AP50", "AP", "AP75"))
        lines.insert(-1, f"{kind:5s} {numbers}")
    comparable = content.get("comparable")
    if content.get("toy"):
        lines.insert(-1, "toy: compares with nothing published")
    elif comparable and not comparable["ok"]:
        lines.insert(-1, f"not comparable with published numbers: {'; '.join(comparable['reasons'])}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    run_main(main)
