# PYTHON_ARGCOMPLETE_OK
"""Evaluate a frozen backbone: kNN, a linear classifier on images, or one on the RoIs of objects."""

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
from ssl_transfer.environment import ROOT
from ssl_transfer.errors import EXIT_FAILURE, EXIT_OK, UserError

DEFAULTS = {
    "knn": "evaluation/knn_imagenet_k200_t0.2.yaml",
    "linear": "evaluation/linear_imagenet_lars_b4096_90ep.yaml",
    "roi": "transfer/voc07.yaml",
}
RECIPES = ROOT / "configs"

EXAMPLES = """examples:
  python tools/evaluate.py linear --weights runs/simsiam/backbone.safetensors --data /data/imagenet --num-gpus 8 \\
      --output runs/simsiam/linear
  python tools/evaluate.py knn --weights runs/simsiam/backbone.safetensors --data /data/imagenet
  python tools/evaluate.py linear --config-file configs/evaluation/linear_cifar10_sgd_b256_100ep.yaml \\
      --weights runs/cifar/backbone.safetensors --data /data/cifar10 --output runs/cifar/linear LINEAR.EPOCHS 10
  # weights from elsewhere: first convert them
  python tools/convert.py moco_v2.pth.tar moco_v2.safetensors --to safetensors
  python tools/evaluate.py linear --weights moco_v2.safetensors --pretrain-epochs 200 --name moco_v2 \\
      --data /data/imagenet --output runs/moco_v2/linear
  # objects of a detection task: converted weights, or scratch
  python tools/evaluate.py roi --weights runs/simsiam/backbone.pkl --data datasets/scenes/detection \\
      --config-file configs/transfer/voc07.yaml --overlay cpu --untrained

--data holds the folders train/ and val/ with one folder per class (DATA.TRAIN and DATA.VAL name others); of roi it is
the data root of a task of configs/transfer/. Ctrl-C or SIGTERM saves a linear evaluation, prints the command that
continues and exits with 75; a second Ctrl-C leaves at once. The same command with --resume continues what was stopped
or killed; for a finished one it prints the result.
Every key is explained in docs/reference/keys.md.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, evaluate, print the result."""
    args = _parser().parse_intermixed_args(argv)
    if args.kind == "roi":
        return _probe_rois(args)
    if args.untrained:
        raise UserError("--untrained belongs to roi")
    from pretrain.evaluation.config import load_evaluation_config
    from pretrain.evaluation.result import EvaluationRequest

    file = args.config_file or RECIPES / DEFAULTS[args.kind]
    cfg, sources = load_evaluation_config(file, args.kind, args.overlay, args.overrides)
    if args.print_config:
        print(explain_config(cfg, sources))
        return EXIT_OK
    if args.kind == "linear" and args.output is None:
        raise UserError("a linear evaluation needs --output DIR for its checkpoints and its result")
    request = EvaluationRequest(
        kind=args.kind,
        recipe=Path(file).stem,
        weights=args.weights,
        data=args.data,
        output=args.output,
        resume=args.resume,
        name=args.name,
        epochs=args.pretrain_epochs,
    )
    from pretrain.evaluation.evaluate_backbone import evaluate_backbone, read_finished

    result = read_finished(request, cfg)
    if result:
        return _print_result(f"{args.output} holds this evaluation, finished", result)
    from ssl_transfer.training.distributed import launch

    result = launch(evaluate_backbone, (request, cfg), args.num_gpus, cfg.MONITOR.COLLECTIVE_SECONDS) or read_finished(
        request, cfg
    )
    return _print_result("finished", result) if result else EXIT_OK


def _probe_rois(args: argparse.Namespace) -> int:
    ignore_torch_warnings()
    from transfer.engine.config import load_config
    from transfer.engine.prepare import TrialRequest
    from transfer.engine.roi_probe import probe_rois

    file = args.config_file or RECIPES / DEFAULTS["roi"]
    if args.print_config:
        loaded = load_config(file, args.overlay, args.overrides, runs_here=False)
        print(explain_config(loaded.cfg, loaded.sources))
        return EXIT_OK
    for option, default in (("resume", False), ("num_gpus", 1), ("pretrain_epochs", None)):
        if getattr(args, option) != default:
            raise UserError(f"--{option.replace('_', '-')}: the roi probe has no such option; remove it")
    trial = TrialRequest(
        config_file=file,
        weights=args.weights,
        seed=0,
        output=Path(args.output or "."),
        overlay=args.overlay,
        overrides=("TRANSFER.DATA_ROOT", args.data, *args.overrides),
    )
    result = probe_rois(trial, write=args.output is not None, name=args.name, untrained=args.untrained)
    return _print_result("finished", result.as_dict())


def _parser() -> Parser:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("kind", choices=tuple(DEFAULTS), help="which evaluation")
    parser.add_argument("--weights", required=True, metavar="W", help="a backbone file; of roi, a converted .pkl")
    parser.add_argument("--data", required=True, metavar="D", help="the labelled set's folder; of roi, the data root")
    parser.add_argument("--output", metavar="DIR", help="the evaluation's folder; optional but for linear")
    recipe = "the recipe: a file, or a name of configs/evaluation/ (default: ImageNet's); of roi, the task (voc07)"
    overlay = "a file whose evaluate section (of roi: transfer) overrides the recipe, or cpu"
    parser.add_configs("evaluation", "transfer", help=recipe, overlay=overlay)
    parser.add_argument("--resume", action="store_true", help="continue the evaluation in --output, if there is one")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes: one per GPU, gloo on a CPU")
    parser.add_argument("--name", metavar="NAME", help="name of the weights; by default their file's name")
    parser.add_argument(
        "--pretrain-epochs", type=_positive, metavar="E", help="epochs of pre-training, if not in the file"
    )
    parser.add_argument("--untrained", action="store_true", help="roi: probe untrained weights, too, as a yardstick")
    parser.add_print_config()
    parser.add_quiet()
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="single keys, override everything else")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of epochs")
    return value


def _print_result(how: str, result: dict[str, Any]) -> int:
    weights, metrics = result["weights"], result["metrics"]
    if metrics is None:
        where = result["divergence"]
        what = f"{where['what']} at iteration {where['iteration']}, learning rate {where['lr']:.6g}"
        print(f"diverged: {what}; the result records it; name another --output to start again", file=sys.stderr)
        return EXIT_FAILURE
    numbers = ", ".join(f"{name} {value:.2f} %" for name, value in metrics.items())
    print(f"{how}: {result['kind']} of {weights['name']} ({weights['arch']}): {numbers}{_caveat(result)}")
    return EXIT_OK


def _caveat(result: dict[str, Any]) -> str:
    if result["toy"]:
        return ", toy"
    reasons = result["comparable"]["reasons"] if "comparable" in result else []
    return f"; not comparable with published numbers: {'; '.join(reasons[:2])}" if reasons else ""


if __name__ == "__main__":
    run_main(main)
