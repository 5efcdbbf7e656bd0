# PYTHON_ARGCOMPLETE_OK
"""Convert any ResNet checkpoint for Detectron2's C4 and FPN detectors, and verify that nothing was lost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path[:1] = [str(p) for p in Path(__file__).resolve().parents[1:2] if (p / "ssl_transfer").is_dir()]
    __import__("ssl_transfer.errors").errors.exit_on_interrupt()

import argparse
from collections.abc import Sequence

from ssl_transfer.console import Parser, Stages, ignore_torch_warnings, is_quiet, megabytes, run_main
from ssl_transfer.errors import EXIT_OK, printable

if TYPE_CHECKING:
    from ssl_transfer.formats.manifest import Manifest

EPILOG = """examples:
  python tools/convert.py checkpoint_0199.pth.tar simsiam.pkl
  python tools/convert.py runs/simsiam/backbone.safetensors backbone.pkl
  python tools/convert.py moco_v2_800ep.pth.tar moco_target.pkl --branch target
  python tools/convert.py run.pth mine.pkl --prefix student.backbone.
  python tools/convert.py zoo:simsiam_200ep_b256 simsiam.pkl
  python tools/convert.py hf-hub:timm/resnet50.a1_in1k timm.pkl
  # back to torchvision's names, the same bits
  python tools/convert.py simsiam.pkl simsiam.pth
  python tools/convert.py --inspect checkpoint.pth
  python tools/convert.py --list-zoo

The layout is recognised by the file's content. The output appears only after it is verified: loaded by Detectron2's
own checkpointer into Faster and Mask R-CNN C4 and FPN, every tensor equal, features equal to the source's. Exit 2:
nothing is written.
"""


def parser() -> Parser:
    options = Parser(description=__doc__, epilog=EPILOG)
    options.add_argument("input", metavar="IN", nargs="?", help="a checkpoint, zoo:NAME, or hf-hub:ORG/NAME")
    options.add_argument("output", metavar="OUT", nargs="?", help="the file to write; its manifest is put beside it")
    options.add_argument("--source", default="auto", metavar="NAME", help="IN's layout; by default it is recognised")
    options.add_argument("--branch", choices=("online", "target"), help="which encoder, if there are two")
    options.add_argument("--prefix", metavar="P", help="where in IN the ResNet is, as --inspect lists it")
    options.add_argument("--to", metavar="FORMAT", help="detectron2, torchvision or safetensors; default: OUT's ending")
    options.add_argument("--verify", action=argparse.BooleanOptionalAction, default=True, help="compare OUT with IN")
    options.add_argument(
        "--trust-checkpoint", action="store_true", help="let IN's own classes run, to open its objects"
    )
    options.add_quiet()
    options.add_argument("--inspect", action="store_true", help="describe IN and what would be converted; no OUT")
    options.add_argument("--list-zoo", action="store_true", help="list the public checkpoints that zoo:NAME can name")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parser()
    args = options.parse_args(argv)
    if args.list_zoo:
        if args.input:
            options.error("--list-zoo takes no file")
        return _list_zoo()
    if args.input is None:
        options.error("IN is missing")
    if args.inspect != (args.output is None):
        options.error("--inspect takes no OUT" if args.inspect else "OUT is missing")
    from transfer.weights.public import resolve_source

    path, source, branch = resolve_source(args.input, args.source, args.branch, args.prefix, megabytes(args.input))
    return _inspect(args, path, source, branch) if args.inspect else _convert(args, path, source, branch)


def _list_zoo() -> int:
    from transfer.weights import checkpoint_zoo

    for name, entry in checkpoint_zoo.read_zoo().items():
        numbers = ", ".join(f"{key} {_format_number(value)}" for key, value in entry.published.items()) or "unknown"
        state = "downloaded" if entry.file.exists() else "not downloaded"
        print(f"zoo:{name}\n  {entry.title} · {entry.layout}, {entry.branch} · {entry.licence} · {state}")
        print(f"  published: {numbers} ({entry.source})\n  {entry.url}")
    return EXIT_OK


def _format_number(value: object) -> str:
    return "/".join(str(part) for part in value) if isinstance(value, list) else str(value)


def _inspect(args: argparse.Namespace, path: str, source: str, branch: str | None) -> int:
    from transfer.weights.containers import read_checkpoint
    from transfer.weights.inspect_checkpoint import describe_checkpoint

    for line in describe_checkpoint(read_checkpoint(path, args.trust_checkpoint), source, branch, args.prefix):
        print(printable(" ".join(line.split())))
    return EXIT_OK


def _convert(args: argparse.Namespace, path: str, source: str, branch: str | None) -> int:
    from ssl_transfer.training.distributed import one_thread
    from transfer.weights.conversion import convert

    ignore_torch_warnings()
    with one_thread():  # hashing and copying do not gain from more threads
        how: dict[str, Any] = {"source": source, "branch": branch, "to": args.to, "prefix": args.prefix}
        stages = Stages()
        manifest = convert(path, args.output, verify=args.verify, trust=args.trust_checkpoint, report=stages, **how)
        stages()
    if not is_quiet():
        _describe(manifest, branch)
    for warning in manifest.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(manifest.proof.summary() if manifest.proof else f"{manifest.count} tensors · not verified")
    print(f"written: {Path(args.output)}")
    return EXIT_OK


def _describe(manifest: Manifest, branch: str | None) -> None:
    """Print what was read and left out."""
    from ssl_transfer.formats.backbone import TORCHVISION

    read = manifest.source
    print(f"{read.path}: {read.layout}, {read.branch} ({read.rule})")
    for item in manifest.left_out:
        print(printable(" ".join(f"dropped: {item.name} ({item.why})".split())))
    other = "target" if read.branch == "online" else "online"
    if branch is None and any(item.name == f"{other} encoder" for item in manifest.left_out):
        print(f"two encoders ({read.rule}): {read.branch} is read by default; --branch {other} reads the other")
    block = manifest.preprocessing
    if block != TORCHVISION:
        stride = "1×1" if block.stride_in_1x1 else "3×3"
        numbers = f"mean {list(block.mean)}, std {list(block.std)}"
        print(f"preprocessing: {block.channel_order}, {numbers}, stride on the {stride}")
    if manifest.converted_up:
        print(f"converted up to float32: {len(manifest.converted_up)} tensors")


if __name__ == "__main__":
    run_main(main)
