"""Convert any ResNet-50 checkpoint for Detectron2's C4 detector, with the proof that nothing was lost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.console import Parser, ignore_torchs_announcements, megabytes, run
from common.errors import EXIT_OK

EPILOG = """examples:
  python tools/convert.py checkpoint_0199.pth.tar simsiam.pkl
  python tools/convert.py runs/demo/backbone.safetensors backbone.pkl
  python tools/convert.py moco_v2_800ep.pth.tar moco_target.pkl --branch target
  python tools/convert.py zoo:simsiam_200ep_b256 simsiam.pkl
  python tools/convert.py simsiam.pkl simsiam.pth              back to torchvision's names, the same bits
  python tools/convert.py --inspect checkpoint.pth
  python tools/convert.py --list-zoo

The layout is found by what the file holds. The output appears only once it is proven: loaded by Detectron2's own
checkpointer into Faster and Mask R-CNN C4, every tensor equal, features equal to the source's. Exit 2: nothing written.
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="python tools/convert.py", description=__doc__, epilog=EPILOG)
    made.add_argument("input", metavar="IN", nargs="?", help="a checkpoint, or zoo:NAME")
    made.add_argument("output", metavar="OUT", nargs="?", help="the file to write; its manifest goes beside it")
    made.add_argument("--source", default="auto", metavar="NAME", help="the checkpoint's layout; found if not given")
    made.add_argument("--branch", choices=("online", "target"), help="which encoder, where there are two")
    made.add_argument("--to", metavar="TARGET", help="detectron2, torchvision or safetensors; OUT's ending says it too")
    made.add_argument("--verify", action=argparse.BooleanOptionalAction, default=True, help="prove the written file")
    made.add_argument("--trust-checkpoint", action="store_true", help="let the file's own pickle run code")
    made.add_argument("--inspect", action="store_true", help="say what IN holds and what would be converted; no OUT")
    made.add_argument("--list-zoo", action="store_true", help="list the public checkpoints that zoo:NAME can name")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    words = parser()
    args = words.parse_args(argv)
    if args.list_zoo:
        if args.input:
            words.error("--list-zoo takes no file")
        return _list_zoo()
    if args.input is None:
        words.error("IN is missing")
    if args.inspect != (args.output is None):
        words.error("--inspect takes no OUT" if args.inspect else "OUT is missing")
    path, source, branch = _resolved(args)
    return _inspect(args, path, source, branch) if args.inspect else _convert(args, path, source, branch)


def _resolved(args: argparse.Namespace) -> tuple[str, str, str | None]:
    """The input as a path; a zoo entry also says its layout and branch, unless the user did."""
    from transfer.weights import zoo

    path, entry = zoo.resolve(args.input, megabytes(args.input))
    if entry is None:
        return path, args.source, args.branch
    return path, entry.layout if args.source == "auto" else args.source, args.branch or entry.branch


def _list_zoo() -> int:
    from transfer.weights import zoo

    for name, entry in zoo.entries().items():
        numbers = ", ".join(f"{key} {_number(value)}" for key, value in entry.published.items()) or "unknown"
        here = "downloaded" if entry.file.exists() else "not downloaded"
        print(f"zoo:{name}\n  {entry.title} · {entry.layout}, {entry.branch} · {entry.licence} · {here}")
        print(f"  published: {numbers} ({entry.source})\n  {entry.url}")
    return EXIT_OK


def _number(value: object) -> str:
    return "/".join(str(part) for part in value) if isinstance(value, list) else str(value)


def _inspect(args: argparse.Namespace, path: str, source: str, branch: str | None) -> int:
    from transfer.weights import containers
    from transfer.weights.inspect_file import describe_file

    for line in describe_file(containers.load(path, args.trust_checkpoint), source, branch):
        print(line)
    return EXIT_OK


def _convert(args: argparse.Namespace, path: str, source: str, branch: str | None) -> int:
    from common.training.distributed import one_thread
    from transfer.weights.convert import convert

    ignore_torchs_announcements()
    trust = args.trust_checkpoint
    with one_thread():  # hashing and copying: on a busy machine, two would mostly wait for one another
        done = convert(path, args.output, source=source, branch=branch, to=args.to, verify=args.verify, trust=trust)
    taken = done.manifest["source"]
    print(f"{taken['path']}: {taken['layout']}, {taken['branch']} ({taken['rule']})")
    for item in done.manifest["left_out"]:
        print(f"left out: {item['name']} ({item['why']})")
    if done.manifest["converted_up"]:
        print(f"converted up to float32: {len(done.manifest['converted_up'])} tensors")
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(done.proof.line() if done.proof else f"{done.manifest['count']} tensors · not verified")
    print(f"written: {done.out}")
    return EXIT_OK


if __name__ == "__main__":
    run(main)
