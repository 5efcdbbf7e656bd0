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

from common.console import Parser, run
from common.errors import EXIT_FAILURE, EXIT_OK

if TYPE_CHECKING:
    from transfer.doctor.finding import Finding

EXAMPLES = """examples:
  python tools/doctor.py
  python tools/doctor.py --data-root /data/detection
  python tools/doctor.py --json
  python tools/doctor.py --deep
  torchrun --nnodes 2 --node-rank 0|1 --nproc-per-node 8 --master-addr HOST --master-port 29500 tools/doctor.py --deep
  srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 python tools/doctor.py --deep

exit 0: everything that is needed is there; 1: something is missing or computes wrong numbers (each such line says what
to do)
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
    parser.add_argument(
        "--deep",
        action="store_true",
        help="then train on each GPU: losses against the CPU's, half precision, speed, memory, all-reduce "
        "(some two minutes; without a GPU, what the CPU can show)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args(argv)
    from transfer.doctor.finding import healthy, render

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, at import: they are no findings
        findings = examine(args.data_root)
        if args.deep:
            findings += examine_deeply()
    if not first_process():
        return EXIT_OK if healthy(findings) else EXIT_FAILURE
    print(json.dumps([finding.as_dict() for finding in findings], indent=1) if args.json else render(findings))
    return EXIT_OK if healthy(findings) else EXIT_FAILURE


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


def examine_deeply() -> list[Finding]:
    """What training on this machine's devices shows."""
    from pretrain.doctor import SimSiam
    from transfer.doctor.deep.c4 import Detector
    from transfer.doctor.deep.look import look

    return look((SimSiam(), Detector()))


def first_process() -> bool:
    """Whether this is the one process of a job, or the only one, that prints."""
    from common.training.distributed import read_distributed_environment

    place = read_distributed_environment()
    return place is None or place.rank == 0


if __name__ == "__main__":
    run(main)
