# PYTHON_ARGCOMPLETE_OK
"""Data sets: draw the toy ones, download the public ones, check, divide and convert own ones."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(p) for p in Path(__file__).resolve().parents[1:2] if (p / "ssl_transfer").is_dir()]
    __import__("ssl_transfer.errors").errors.exit_on_interrupt()

import argparse
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ssl_transfer.console import Parser, is_quiet, run_main, verb_examples
from ssl_transfer.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, UserError

if TYPE_CHECKING:
    from transfer.doctor.check import CheckedSplit, SplitToCheck

EXAMPLES = """examples:
  python tools/data.py toy datasets/toy
  python tools/data.py toy datasets/toy7 --seed 7 --photos 512 --voc2007 200 100
  python tools/data.py scenes /data/cifar10 datasets/scenes --labels 500
  python tools/data.py download voc2007 /data/detection
  python tools/data.py download coco /data/detection --mirror http://mirror.example/coco
  python tools/data.py download cifar10 /data
  python tools/data.py check datasets/toy
  python tools/data.py check /data/detection --published
  python tools/data.py check --config-file own_task.yaml /data/own
  python tools/data.py check --images /data/photos --decode
  python tools/data.py split own/flat --val 0.2 --seed 0
  python tools/data.py import yolo own/yolo own/yolo/coco
"""
TOY = """
OUT then holds:
  photos/train/<class>/*.jpg, photos/val/...     an ImageFolder, for pre-training
  detection/VOC2007, VOC2012, coco               set DETECTRON2_DATASETS to OUT/detection
  toy.json                                       seed, sizes and classes; written last
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run the verb."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    options = {
        "toy": (_add_toy, "draw the toy sets: photos, VOC2007, VOC2012 and COCO"),
        "scenes": (_add_scenes, "make detection sets of small photographs"),
        "check": (_add_check, "read every annotation below a data root and report"),
        "download": (_add_download, "fetch, verify, unpack and check a public set"),
        "split": (_add_split, "divide a labelled set into train and val"),
        "import": (_add_import, "convert a set of another layout to COCO files"),
    }
    for verb, (add_options, help_) in options.items():
        epilog = verb_examples(EXAMPLES, verb) + (TOY if verb == "toy" else "")
        add_options(verbs.add_parser(verb, help=help_, description=help_, epilog=epilog))
    args = parser.parse_args(argv)
    call = {"toy": _toy, "scenes": _scenes, "check": _check, "download": _download, "split": _split, "import": _import}
    return call[args.verb](args)


def _add_toy(parser: Parser) -> None:
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the folder to create; where it holds the same sets, nothing is drawn"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed and sizes, same bytes (default: 0)")
    parser.add_argument("--photos", type=int, default=192, metavar="N", help="photos to train on (default: 192)")
    parser.add_argument(
        "--any-hue",
        action="store_true",
        help="objects of any colour, large in photos: only outlines tell classes",
    )
    pairs = (
        ("voc2007", "TRAINVAL", "TEST", (60, 40)),
        ("voc2012", "TRAIN", "VAL", (30, 20)),
        ("coco", "TRAIN", "VAL", (60, 30)),
    )
    for name, first, second, default in pairs:
        parser.add_argument(
            f"--{name}",
            type=int,
            nargs=2,
            metavar=(first, second),
            default=default,
            help=f"images of {name} (default: {default[0]} {default[1]})",
        )


def _add_scenes(parser: Parser) -> None:
    parser.add_argument("photographs", metavar="CIFAR", type=Path, help="an ImageFolder with train/ and test/")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to create, as of toy")
    parser.add_argument("--seed", type=int, default=0, help="same seed and photographs, same bytes (default: 0)")
    numbers = (
        (
            "labels",
            1000,
            "photographs in VOC2007's and COCO's training scenes; twice as many others in VOC2012's",
        ),
        ("scenes", 400, "training scenes of VOC2007 and of COCO; twice as many of VOC2012"),
        ("test", 400, "test scenes, all of test photographs"),
    )
    for name, default, text in numbers:
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")


def _add_check(parser: Parser) -> None:
    parser.add_argument(
        "root",
        metavar="ROOT",
        type=Path,
        nargs="?",
        help="the folder of VOC2007/, VOC2012/ or coco/; or a toy set; with --config-file, its data root",
    )
    parser.add_configs("transfer", help="check the splits that this task names, your own ones too")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="check unlabelled images, as pre-training reads them (DATA.ROOT)"
    )
    parser.add_argument(
        "--published", action="store_true", help="fail where a split has another number of images than published"
    )
    _add_reading(parser)


def _add_download(parser: Parser) -> None:
    parser.add_argument("set", metavar="SET", help="voc2007, voc2012, coco or cifar10")
    parser.add_argument(
        "root", metavar="ROOT", type=Path, help="the data root: VOC2007/, VOC2012/, coco/ or cifar10/ are created in it"
    )
    parser.add_argument("--mirror", metavar="URL", help="URL of a folder with the archives (default: the publishers)")
    parser.add_argument(
        "--remove-archives", action="store_true", help="remove each archive after it is unpacked (default: keep it)"
    )
    _add_reading(parser)


def _add_split(parser: Parser) -> None:
    parser.add_argument(
        "set",
        metavar="SET",
        type=Path,
        help="a folder of images and VOC's XML files: writes ImageSets/Main/train.txt and val.txt; "
        "or a COCO file F.json: writes F_train.json and F_val.json",
    )
    parser.add_argument("--val", type=float, default=0.2, metavar="SHARE", help="share of val (default: 0.2)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="same seed and ids, same division (default: 0)"
    )


def _add_import(parser: Parser) -> None:
    parser.add_argument("layout", choices=("yolo",), help="yolo: text labels with data.yaml or classes.txt")
    parser.add_argument("set", metavar="SET", type=Path, help="the set's folder, or its data.yaml")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder of instances_train.json, …")


def _add_reading(parser: Parser) -> None:
    parser.add_quiet()
    parser.add_argument(
        "--decode", action="store_true", help="decode each image, not only its header (slow; finds truncated files)"
    )
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="threads, or processes with --decode (default: 16, or the cores)"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _toy(args: Namespace) -> int:
    from transfer.toy.build import Size, build_toy_sets

    size = Size(args.photos, tuple(args.voc2007), tuple(args.voc2012), tuple(args.coco))
    drawn = build_toy_sets(args.out, args.seed, size, args.any_hue)
    print(f"{'drew' if drawn else 'exists already:'} the toy sets, seed {args.seed}, in {args.out}")
    print(f"  photos     {size.photos} train, {size.photos_val} val")
    print(f"  VOC2007    {size.voc2007[0]} trainval, {size.voc2007[1]} test")
    print(f"  VOC2012    {size.voc2012[0]} train, {size.voc2012[1]} val")
    print(f"  COCO 2017  {size.coco[0]} train, {size.coco[1]} val")
    return EXIT_OK


def _scenes(args: Namespace) -> int:
    from transfer.toy.photo_scenes import SceneSizes, build_scene_sets

    made = build_scene_sets(args.photographs, args.out, args.seed, SceneSizes(args.labels, args.scenes, args.test))
    print(f"{'exists already:' if made is None else 'made'} the scenes, seed {args.seed}, in {args.out}")
    if made is not None and any(made.dropped):
        print("  left out, the same as another: {} test and {} train photographs".format(*made.dropped))
    print(f"  VOC2007  {args.scenes} trainval, {args.test} test, {args.scenes // 2} heldout")
    print(f"  VOC2012  {args.scenes} train, {args.scenes} val")
    print(f"  COCO     {args.scenes} train, {args.test} val, {args.scenes // 2} heldout")
    return EXIT_OK


def _download(args: Namespace) -> int:
    from transfer.doctor.check import splits_below
    from transfer.tasks.fetch import PUBLIC, fetch

    fetch(args.set, args.root, args.mirror, not args.remove_archives, _say)
    tops = {folder.target.split("/")[0] for folder in PUBLIC[args.set]}
    if args.set == "cifar10":
        return max(_print_unreadable(args.root / "cifar10" / split, args) for split in ("train", "test"))
    splits = [
        one for one in splits_below(args.root, counts=True) if one.split.folder.relative_to(args.root).parts[0] in tops
    ]
    return _report(splits, args)


def _say(text: str) -> None:
    if not is_quiet():
        print(text, flush=True)


def _split(args: Namespace) -> int:
    from transfer.tasks.divide import divide

    print("\n".join(divide(args.set, args.val, args.seed)))
    return EXIT_OK


def _import(args: Namespace) -> int:
    from transfer.tasks.yolo import import_yolo

    print("\n".join(import_yolo(args.set, args.out)))
    return EXIT_OK


def _check(args: Namespace) -> int:
    from transfer.doctor.check import check_task, splits_below, task_of

    if args.images is not None:
        return _check_images(args)
    if args.config_file is not None:
        settings = task_of(args.config_file, args.root, args.published)
        return _print_checks(check_task(settings, args.decode, args.workers))
    if args.root is None:
        raise UserError("give ROOT, --config-file F, or both; or --images DIR")
    return _report(splits_below(args.root, args.published), args)


def _check_images(args: Namespace) -> int:
    if args.root is not None or args.config_file is not None or args.published:
        raise UserError("--images DIR checks unlabelled images: give no ROOT, --config-file or --published with it")
    return _print_unreadable(args.images, args)


def _print_unreadable(folder: Path, args: Namespace) -> int:
    """Print what is wrong with each image of a folder, and a line about all of them."""
    from pretrain.data.check_images import unreadable_images
    from pretrain.data.index import find_images
    from ssl_transfer.console import Progress

    try:
        index = find_images(str(folder))
    except UserError as error:
        raise UserError(str(error).replace("DATA.ROOT", "--images")) from error
    progress = Progress(len(index), "checking", "images")
    count = 0
    for number, faults in unreadable_images(index, args.decode, args.workers):
        progress.step(number)
        for fault in faults:
            print(fault, flush=True)
        count += len(faults)
    where = f"{len(index)} images in {index.folder}"
    if not count:
        print(
            f"{where}, nothing wrong"
            + ("" if args.decode else " with their headers and ends; --decode reads every pixel")
        )
        return EXIT_OK
    print(f"{where}, {count} cannot be read; repair or remove them, or pre-train without: DATA.UNREADABLE replace")
    return EXIT_USAGE


def _report(splits: list[SplitToCheck], args: Namespace) -> int:
    from transfer.doctor.check import check_split

    return _print_checks(check_split(split, args.decode, args.workers) for split in splits)


def _print_checks(checks: Iterable[CheckedSplit]) -> int:
    """Print each split's report as soon as it is checked."""
    from transfer.doctor.check import render_split, summary

    found = []
    for checked in checks:
        found.append(checked)
        print("\n".join(render_split(checked)), flush=True)
    print(summary(found))
    return EXIT_FAILURE if any(checked.faults for checked in found) else EXIT_OK


if __name__ == "__main__":
    run_main(main)
