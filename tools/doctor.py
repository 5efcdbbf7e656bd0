# PYTHON_ARGCOMPLETE_OK
"""Check what this machine has for the project, and say what to do about what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(p) for p in Path(__file__).resolve().parents[1:2] if (p / "ssl_transfer").is_dir()]
    __import__("ssl_transfer.errors").errors.exit_on_interrupt()

import json
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssl_transfer.console import Parser, as_typed, run_main
from ssl_transfer.environment import ROOT, commit, load_tool
from ssl_transfer.errors import EXIT_FAILURE, EXIT_OK

if TYPE_CHECKING:
    from transfer.doctor.finding import Finding

EXAMPLES = """examples:
  python tools/doctor.py
  python tools/doctor.py --data-root /data/detection
  python tools/doctor.py --fix
  python tools/doctor.py --json
  python tools/doctor.py --deep
  # on two machines, each with its own number in $NODE and the first one's name in $HOST
  torchrun --nnodes 2 --node-rank "$NODE" --nproc-per-node 8 --master-addr "$HOST" --master-port 29500 \\
      tools/doctor.py --deep
  srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 python tools/doctor.py --deep

exit 0: everything required is there; 1: something is missing or computes wrong numbers (each such line says what
to do)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, check, print."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="the folder that holds VOC2007/, VOC2012/, coco/ (default: $DETECTRON2_DATASETS and datasets/)",
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also train on each GPU: losses against the CPU's, half precision, speed, memory, all-reduce "
        "(about two minutes; without a GPU, what can be checked on the CPU); needs a checkout, see tests/gpu",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--fix", action="store_true", help="install the pinned Detectron2 with pip, and do no more")
    args = parser.parse_args(argv)
    if args.fix:
        return _fix()
    from transfer.doctor.finding import healthy, render

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, at import
        findings = examine(args.data_root)
        if args.deep:
            findings += examine_deeply()
    if not first_process():
        return EXIT_OK if healthy(findings) else EXIT_FAILURE
    text = json.dumps([finding.as_dict() for finding in findings], indent=1) if args.json else render(findings)
    print(as_typed(text))
    return EXIT_OK if healthy(findings) else EXIT_FAILURE


def _fix() -> int:
    """Install the pinned Detectron2 where another one or none is there, or it does not import."""
    from transfer.doctor import software

    pinned = load_tool("install_detectron2")
    found = software.check_detectron2(pinned.VERSION, pinned.GIT_COMMIT)
    if found.state == "ok":
        print(f"detectron2 {found.found}: nothing to install")
        return EXIT_OK
    return int(pinned.main(["--force"]))


def examine(data_root: Path | None = None) -> list[Finding]:
    """Run every check that needs no training, in the order of the output."""
    from transfer.doctor import data_roots, machine, software

    pinned = load_tool("install_detectron2")
    return [
        software.checkout(ROOT, commit()),
        software.check_python(),
        software.check_torch(),
        software.check_torchvision(),
        software.check_detectron2(pinned.VERSION, pinned.GIT_COMMIT),
        software.packages(),
        machine.gpus(),
        machine.slurm(),
        machine.cores(),
        machine.memory(),
        machine.disk(Path.cwd()),
        *data_roots.check_data_roots(data_root),
    ]


def examine_deeply() -> list[Finding]:
    """Train on this machine's devices (`tests/gpu`, which only a checkout has)."""
    from transfer.doctor.finding import Finding

    if not (ROOT / "tests" / "gpu" / "verify.py").is_file():
        advice = "run `python tools/doctor.py --deep` in a checkout of the repository"
        return [Finding("deep", "skipped", f"{ROOT} has no tests/gpu, which only a checkout has", advice)]
    from tests.gpu.verify import examine_devices

    return examine_devices()


def first_process() -> bool:
    """Whether this is the process that prints: the only one, or rank 0."""
    from ssl_transfer.training.distributed import read_distributed_environment

    environment = read_distributed_environment()
    return environment is None or environment.rank == 0


if __name__ == "__main__":
    run_main(main)
