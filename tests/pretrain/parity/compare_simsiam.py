"""Run facebookresearch/simsiam's trainer and ours side by side at full width, in float32 on the CPU.

    python tests/pretrain/parity/compare_simsiam.py CHECKOUT IMAGES [--steps 10] [KEY VALUE ...]

CHECKOUT is a clone of the original at a7bc1772896d0dad0806c51f0bb6f3b16d290468 (its files are checked), IMAGES what
DATA.ROOT may be. Both start from the same weights and get the same batches. The original's own `SimSiam`, `train` and
`adjust_learning_rate` do its steps, with the optimiser that its `main_worker` builds for --fix-pred-lr; ours are done
by the trainer of tools/pretrain.py. KEY VALUE changes ours alone, to see that a difference shows.

Exits 1 where a loss differs by more than 1e-5 of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[0] = str(ROOT)

import torch  # noqa: E402
import torchvision  # noqa: E402
from detectron2.engine.train_loop import HookBase  # noqa: E402
from fvcore.common.config import CfgNode  # noqa: E402

from pretrain.config import load_config  # noqa: E402
from pretrain.data.augment import augmentation_config  # noqa: E402
from pretrain.data.dataset import Batch, MultiViewDataset  # noqa: E402
from pretrain.data.index import find_images  # noqa: E402
from pretrain.data.loader import BatchLoader  # noqa: E402
from pretrain.data.sampler import ResumableBatchSampler  # noqa: E402
from pretrain.engine.step_hooks import LearningRates  # noqa: E402
from pretrain.engine.trainer import Trainer  # noqa: E402
from pretrain.methods import build_method  # noqa: E402
from pretrain.optim.optimizer import build_sgd  # noqa: E402
from pretrain.optim.schedule import build_schedule, peak_lr  # noqa: E402
from tests.pretrain.golden.make_simsiam import SOURCES, recorder  # noqa: E402
from tests.pretrain.golden.narrow import canonical  # noqa: E402

CONFIG = ROOT / "configs/pretrain/simsiam_r50_b256_100ep_base.yaml"
LIMIT = 1e-5


class _Losses(HookBase):
    trainer: Trainer

    def __init__(self) -> None:
        self.values: list[float] = []

    def after_step(self) -> None:
        self.values.append(self.trainer.latest["loss"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run both, print a line a step, say whether they agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("images")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--steps-per-epoch", type=int, default=4, help="so that the schedule is a part of it")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=100, help="how long the cosine is")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args(argv)
    common = ["DATA.ROOT", args.images, "DATA.SIZE", str(args.size), "DATA.WORKERS", "0"]
    common += ["SOLVER.BATCH_SIZE", str(args.batch), "SOLVER.EPOCHS", str(args.epochs)]
    cfg, changed = load_config(CONFIG, None, common), load_config(CONFIG, None, [*common, *args.overrides])
    original = _original(args.checkout)
    torch.manual_seed(cfg.SEED)
    method = build_method(changed)
    start = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    batches = _record(cfg, args.steps)
    theirs, their_end = _run_original(original, cfg, start, batches, args.steps_per_epoch)
    ours = _run_ours(changed, method, batches, args.steps_per_epoch)
    return _report(ours, theirs, method.state_dict(), their_end)


def _original(checkout: Path) -> ModuleType:
    """The original's main_simsiam, where the checkout holds the files that the golden values were made with."""
    known = json.loads((ROOT / "tests/pretrain/golden/simsiam.json").read_text())["original"]["sha256"]
    for name in SOURCES:
        if hashlib.sha256((checkout / name).read_bytes()).hexdigest() != known[name]:
            raise SystemExit(f"{checkout / name} is not the file of commit a7bc177")
    sys.path.insert(1, str(checkout))
    import main_simsiam

    return main_simsiam


def _record(cfg: CfgNode, steps: int) -> list[Batch]:
    index = find_images(cfg.DATA.ROOT)
    sampler = ResumableBatchSampler(len(index), cfg.SOLVER.BATCH_SIZE, cfg.SEED, start=0, stop=steps)
    return list(
        BatchLoader(MultiViewDataset(index, augmentation_config(cfg), cfg.SEED), sampler, 0, torch.device("cpu"))
    )


def _run_original(
    original: ModuleType, cfg: CfgNode, start: dict[str, torch.Tensor], batches: list[Batch], per_epoch: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = original.simsiam.builder.SimSiam(torchvision.models.resnet50, cfg.MODEL.DIM, cfg.MODEL.PRED_DIM)
    model.load_state_dict({name: start[canonical(name)] for name in model.state_dict()})
    groups: list[dict[str, Any]] = [
        {"params": model.encoder.parameters(), "fix_lr": False},
        {"params": model.predictor.parameters(), "fix_lr": True},
    ]
    peak = cfg.SOLVER.BASE_LR * cfg.SOLVER.BATCH_SIZE / 256
    optimizer = torch.optim.SGD(groups, peak, momentum=cfg.SOLVER.MOMENTUM, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    losses: list[float] = []
    original.AverageMeter = recorder(original.AverageMeter, losses)
    args = SimpleNamespace(epochs=cfg.SOLVER.EPOCHS, gpu=None, print_freq=10**9)
    for epoch, first in enumerate(range(0, len(batches), per_epoch)):
        original.adjust_learning_rate(optimizer, peak, epoch, args)
        loader = [(list(batch.views), None) for batch in batches[first : first + per_epoch]]
        original.train(loader, model, torch.nn.CosineSimilarity(dim=1), optimizer, epoch, args)
    return losses, {canonical(name): tensor for name, tensor in model.state_dict().items()}


def _run_ours(cfg: CfgNode, method: Any, batches: list[Batch], per_epoch: int) -> list[float]:
    trainer, losses = Trainer(method, build_sgd(method, cfg), iter(batches)), _Losses()
    trainer.register_hooks([LearningRates(build_schedule(cfg, per_epoch)), losses])
    trainer.train(0, len(batches))
    _say(f"ours: {cfg.MODEL.ARCH}, peak learning rate {peak_lr(cfg):g}")
    return losses.values


def _report(
    ours: list[float], theirs: list[float], our_end: dict[str, torch.Tensor], their_end: dict[str, torch.Tensor]
) -> int:
    _say("step  original's loss   our loss          relative difference")
    worst = 0.0
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        relative = abs(a - b) / max(abs(b), 1e-3)
        worst = max(worst, relative)
        _say(f"{step:4d}  {b:+.9f}      {a:+.9f}      {relative:.2e}")
    apart = max(float((our_end[name].double() - their_end[name].double()).abs().max()) for name in their_end)
    _say(f"{len(their_end)} tensors at the end, greatest difference {apart:.2e}")
    verdict = "equal" if worst <= LIMIT else "DIFFERS"
    _say(f"{verdict}: greatest relative difference of a loss {worst:.2e}, limit {LIMIT:g}")
    return 0 if worst <= LIMIT else 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
