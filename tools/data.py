"""Data sets: draw the toy sets that the demo and the tests run on; check what lies below a data root."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.console import DONE, FAILED, Parser, run

EXAMPLES = """examples:
  python tools/data.py toy datasets/toy
  python tools/data.py toy datasets/toy7 --seed 7 --photos 512 --voc2007 200 100
  python tools/data.py check datasets/toy
  python tools/data.py check /data/detection --published

what lies in OUT then:
  photos/train/<look>/*.jpg, photos/val/...      an ImageFolder, for pre-training
  detection/VOC2007, VOC2012, coco               DETECTRON2_DATASETS may point at OUT/detection
  toy.json                                       seed, sizes and classes; written last
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and hand over to the verb."""
    parser = Parser(prog="data.py", description=__doc__, epilog=EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_toy(verbs.add_parser("toy", help="draw the toy sets: photos, VOC2007, VOC2012 and COCO", epilog=EXAMPLES))
    _add_check(verbs.add_parser("check", help="read every annotation below a data root and report", epilog=EXAMPLES))
    args = parser.parse_args(argv)
    return _toy(args) if args.verb == "toy" else _check(args)


def _add_toy(parser: Parser) -> None:
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the folder to make; asked again for the same sets, nothing is drawn"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed and sizes, same bytes (default: 0)")
    parser.add_argument("--photos", type=int, default=192, metavar="N", help="photos to train on (default: 192)")
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


def _add_check(parser: Parser) -> None:
    parser.add_argument(
        "root", metavar="ROOT", type=Path, help="the folder that holds VOC2007/, VOC2012/ or coco/; or a toy set"
    )
    parser.add_argument(
        "--published", action="store_true", help="fail where a split has not as many images as were published"
    )


def _toy(args: Namespace) -> int:
    from transfer.toy.build import Size, build

    size = Size(args.photos, tuple(args.voc2007), tuple(args.voc2012), tuple(args.coco))
    drawn = build(args.out, args.seed, size)
    print(f"{'drew' if drawn else 'there already:'} the toy sets, seed {args.seed}, in {args.out}")
    print(f"  photos     {size.photos} train, {size.photos_val} val")
    print(f"  VOC2007    {size.voc2007[0]} trainval, {size.voc2007[1]} test")
    print(f"  VOC2012    {size.voc2012[0]} train, {size.voc2012[1]} val")
    print(f"  COCO 2017  {size.coco[0]} train, {size.coco[1]} val")
    return DONE


def _check(args: Namespace) -> int:
    from transfer.doctor.check import check, detection_root, line, splits_below

    root = detection_root(args.root)
    good = True
    for split in splits_below(root):
        checked = check(split, root, args.published)
        print(line(checked), flush=True)
        good = good and not checked.fault
    return DONE if good else FAILED


if __name__ == "__main__":
    run(main)
