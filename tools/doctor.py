"""Look at what this machine has for the project, and say what to do about what it has not."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.console import DONE, FAILED, Parser, run

if TYPE_CHECKING:
    from transfer.doctor.finding import Finding

EXAMPLES = """examples:
  python tools/doctor.py
  python tools/doctor.py --data-root /data/detection
  python tools/doctor.py --json

exit 0: everything that is needed is there; 1: something is missing (each such line says what to do)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, look, print."""
    parser = Parser(prog="doctor.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="the folder that holds VOC2007/, VOC2012/, coco/ (default: $DETECTRON2_DATASETS and datasets/)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args(argv)
    from transfer.doctor.finding import healthy, render

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, at import: they are no findings
        findings = examine(args.data_root)
    print(json.dumps([finding.as_dict() for finding in findings], indent=1) if args.json else render(findings))
    return DONE if healthy(findings) else FAILED


def examine(data_root: Path | None = None) -> list[Finding]:
    """Everything the doctor looks at, in the order it is printed."""
    from common.environment import ROOT, commit
    from tools.install_detectron2 import GIT_COMMIT, VERSION
    from transfer.doctor import data, machine, software

    return [
        software.checkout(ROOT, commit()),
        software.python(),
        software.torch(),
        software.torchvision(),
        software.detectron2(VERSION, GIT_COMMIT),
        software.packages(),
        machine.gpus(),
        machine.slurm(),
        machine.cores(),
        machine.memory(),
        machine.disk(Path.cwd()),
        *data.look(data_root),
    ]


if __name__ == "__main__":
    run(main)
