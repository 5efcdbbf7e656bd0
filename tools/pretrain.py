# PYTHON_ARGCOMPLETE_OK
"""Pre-train a backbone without labels: from a folder of images to backbone.safetensors."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(p) for p in Path(__file__).resolve().parents[1:2] if (p / "ssl_transfer").is_dir()]
    __import__("ssl_transfer.errors").errors.exit_on_interrupt()

from collections.abc import Sequence

from ssl_transfer.config import explain_config
from ssl_transfer.console import Parser, ignore_torch_warnings, run_main
from ssl_transfer.errors import EXIT_FAILURE, EXIT_OK
from ssl_transfer.files import expect_shape
from ssl_transfer.profiling import add_option

EXAMPLES = """examples:
  python tools/pretrain.py --config-file configs/pretrain/simsiam_r50_b256_200ep_base.yaml --num-gpus 8 \\
      --output runs/simsiam_base DATA.ROOT /data/imagenet
  python tools/pretrain.py --config-file configs/pretrain/simsiam_r50_b256_200ep_base.yaml \\
      --overlay configs/overlays/cpu.yaml --output runs/toy DATA.ROOT datasets/toy/photos
  # on two machines, each with its own number in $NODE and the first one's name in $HOST
  torchrun --nnodes 2 --node-rank "$NODE" --nproc-per-node 8 --master-addr "$HOST" --master-port 29500 \\
      tools/pretrain.py --config-file configs/pretrain/simsiam_r50_b256_200ep_base.yaml \\
      --resume --output /shared/runs/simsiam_base DATA.ROOT /data/imagenet
  srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 \\
      python tools/pretrain.py --config-file configs/pretrain/simsiam_r50_b256_200ep_base.yaml \\
      --resume --output /shared/runs/simsiam_base DATA.ROOT /data/imagenet

Ctrl-C or SIGTERM saves a checkpoint, prints the command that continues and exits with 75; a second Ctrl-C leaves at
once. The same command with --resume continues a run that was stopped or killed exactly from its newest checkpoint; for
a finished run it prints the result. Every key is explained in docs/reference/keys.md.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, pre-train, print the result."""
    args = _parser().parse_intermixed_args(argv)
    from pretrain.config import load_config_with_sources
    from pretrain.engine.run_folder import RunFolder

    cfg, sources = load_config_with_sources(args.config_file, args.overlay, args.overrides)
    if args.print_config:
        print(explain_config(cfg, sources))
        return EXIT_OK
    folder = RunFolder(args.output)
    result = folder.finished(cfg)
    if result:
        print(f"{folder.path} holds this run, finished: {_summary(result, folder.result)}")
        return EXIT_OK
    ignore_torch_warnings()
    from pretrain.engine.run import run_pretraining
    from ssl_transfer.training.distributed import launch

    words = (cfg, Path(args.config_file).stem, args.output, args.resume, args.profile)
    launch(run_pretraining, words, args.num_gpus, cfg.MONITOR.COLLECTIVE_SECONDS)
    what = folder.diverged()
    if what:
        print(f"diverged: {what}; the last good checkpoint is in {folder.path}", file=sys.stderr)
        return EXIT_FAILURE
    result = folder.finished(cfg)
    if result:
        print(f"finished: {folder.backbone}: {_summary(result, folder.result)}")
    return EXIT_OK


def _parser() -> Parser:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    overlay = "a file whose pretrain section overrides the recipe, or a name of configs/overlays/"
    recipe = "the recipe: a file, or a name of configs/pretrain/"
    parser.add_configs("pretrain", help=recipe, required=True, overlay=overlay)
    parser.add_argument("--resume", action="store_true", help="continue the run in --output, if there is one")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes: one per GPU, gloo on a CPU")
    parser.add_argument("--output", required=True, metavar="DIR", help="the run's folder")
    parser.add_print_config()
    parser.add_quiet()
    add_option(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="single keys, override everything else")
    return parser


def _summary(result: dict, file: Path) -> str:
    with expect_shape(file, "remove it and run the command again"):
        last = result["final"]
        healthy = result["dim"] ** -0.5
        return (
            f"{result['method']} {result['arch']}, {result['epochs']} epochs, {result['iterations']} iterations, "
            f"loss {last['loss']:.4f}, std {last['std']:.4f} ({last['std'] / healthy:.2f} of 1/√{result['dim']})"
            f"{', toy' if result['toy'] else ''}"
        )


if __name__ == "__main__":
    run_main(main)
