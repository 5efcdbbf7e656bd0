"""Run facebookresearch/simsiam's trainer and ours side by side at full width, in float32 on the CPU.

    python tests/parity/compare_simsiam.py CHECKOUT IMAGES [--steps 10] [--bn-momentum M] [KEY VALUE ...]

CHECKOUT is a clone of the original at a7bc1772896d0dad0806c51f0bb6f3b16d290468 (its files are checked), IMAGES what
DATA.ROOT may be. Both start from the same weights and get the same batches. The original's own `SimSiam`, `train` and
`adjust_learning_rate` do its steps, with the optimiser that its `main_worker` builds for --fix-pred-lr; ours are done
by the trainer of tools/pretrain.py. KEY VALUE and --bn-momentum change ours only, to see that a difference shows.

Exits 1 where a loss, a weight, a buffer or a momentum differs by more than 1e-5 (of the loss, of the tensor's largest
value).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
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
from pretrain.optim.schedule import build_schedule  # noqa: E402
from tests.parity.compare_table import Check, close, close_values, momenta_of, set_bn_momentum  # noqa: E402
from tests.pretrain.golden.harness import recording_meter  # noqa: E402
from tests.pretrain.golden.make_simsiam import files  # noqa: E402
from tests.pretrain.golden.narrow import canonical  # noqa: E402

CONFIG = ROOT / "configs/pretrain/simsiam_r50_b256_100ep_base.yaml"
LIMIT = 1e-5


@dataclass(frozen=True)
class End:
    """What a run has shown: each step's loss, and the tensors after the last step, by our names."""

    losses: list[float]
    state: dict[str, torch.Tensor]
    momenta: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """How long and how large the runs are; the config's own values are for a day of eight GPUs."""

    steps: int = 10
    per_epoch: int = 4
    batch: int = 16
    size: int = 112
    epochs: int = 100


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
    parser.add_argument("--bn-momentum", type=float, help="of ours only")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args(argv)
    sizes = Sizes(args.steps, args.steps_per_epoch, args.batch, args.size, args.epochs)
    start, batches = prepare(args.images, sizes)
    theirs = run_original(args.checkout, start, batches, sizes)
    ours = run_ours(start, batches, sizes, tuple(args.overrides), args.bn_momentum)
    _say("step  original's loss   our loss")
    for step, (a, b) in enumerate(zip(ours.losses, theirs.losses, strict=True), start=1):
        _say(f"{step:4d}  {b:+.9f}      {a:+.9f}")
    checks = compare(ours, theirs)
    _say("\n".join(map(str, checks)))
    return 0 if all(check.ok for check in checks) else 1


def config(sizes: Sizes, *overrides: str) -> CfgNode:
    """The recipe of SimSiam's base row at these sizes."""
    words = ["DATA.SIZE", str(sizes.size), "DATA.WORKERS", "0", "SOLVER.EPOCHS", str(sizes.epochs)]
    return load_config(CONFIG, None, [*words, "SOLVER.BATCH_SIZE", str(sizes.batch), *overrides])


def prepare(images: str, sizes: Sizes) -> tuple[dict[str, torch.Tensor], list[Batch]]:
    """The initial state of both, by our names, and the batches."""
    cfg = config(sizes, "DATA.ROOT", images)
    torch.manual_seed(cfg.SEED)
    start = {name: tensor.clone() for name, tensor in build_method(cfg).state_dict().items()}
    index = find_images(images)
    sampler = ResumableBatchSampler(len(index), sizes.batch, cfg.SEED, start=0, stop=sizes.steps)
    dataset = MultiViewDataset(index, augmentation_config(cfg), cfg.SEED)
    return start, list(BatchLoader(dataset, sampler, 0, torch.device("cpu")))


def compare(ours: End, theirs: End) -> list[Check]:
    """All that must be equal."""
    return [
        close_values("losses", {"loss": ours.losses}, {"loss": theirs.losses}, LIMIT),
        close("weights and buffers after the last step", ours.state, theirs.state, LIMIT),
        close("momenta after the last step", ours.momenta, theirs.momenta, LIMIT),
    ]


def load_original(checkout: Path) -> ModuleType:
    """The original's main_simsiam, where the checkout holds the files that the golden values were made with."""
    known = json.loads((ROOT / "tests/pretrain/golden/simsiam.json").read_text())["original"]["sha256"]
    for name, file in files([checkout]).items():
        if hashlib.sha256(file.read_bytes()).hexdigest() != known[name]:
            raise SystemExit(f"{file} is not the file of commit a7bc177")
    sys.path.insert(1, str(checkout))
    import main_simsiam

    return main_simsiam


def run_original(checkout: Path, start: dict[str, torch.Tensor], batches: list[Batch], sizes: Sizes) -> End:
    """The original's own steps."""
    original, cfg = load_original(checkout), config(sizes)
    model = original.simsiam.builder.SimSiam(torchvision.models.resnet50, cfg.MODEL.DIM, cfg.MODEL.PRED_DIM)
    model.load_state_dict({name: start[canonical(name)] for name in model.state_dict()})
    groups: list[dict[str, Any]] = [
        {"params": model.encoder.parameters(), "fix_lr": False},
        {"params": model.predictor.parameters(), "fix_lr": True},
    ]
    peak = cfg.SOLVER.BASE_LR * cfg.SOLVER.BATCH_SIZE / 256
    optimizer = torch.optim.SGD(groups, peak, momentum=cfg.SOLVER.MOMENTUM, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    losses: list[float] = []
    original.AverageMeter = recording_meter(original.AverageMeter, losses, lambda meter, _n: meter.name == "Loss")
    args = SimpleNamespace(epochs=cfg.SOLVER.EPOCHS, gpu=None, print_freq=10**9)
    for epoch, first in enumerate(range(0, len(batches), sizes.per_epoch)):
        original.adjust_learning_rate(optimizer, peak, epoch, args)
        loader = [(list(batch.views), None) for batch in batches[first : first + sizes.per_epoch]]
        original.train(loader, model, torch.nn.CosineSimilarity(dim=1), optimizer, epoch, args)
    state, momenta = model.state_dict(), momenta_of(model, optimizer)
    return End(losses, *({canonical(name): tensor for name, tensor in end.items()} for end in (state, momenta)))


def run_ours(
    start: dict[str, torch.Tensor],
    batches: list[Batch],
    sizes: Sizes,
    overrides: tuple[str, ...] = (),
    bn_momentum: float | None = None,
) -> End:
    """The steps of our trainer, changed by `overrides` and `bn_momentum`."""
    cfg = config(sizes, *overrides)
    method = build_method(cfg)
    method.load_state_dict(start)
    set_bn_momentum(method, bn_momentum)
    trainer, losses = Trainer(method, build_sgd(method, cfg), iter(batches)), _Losses()
    trainer.register_hooks([LearningRates(build_schedule(cfg, sizes.per_epoch)), losses])
    trainer.train(0, len(batches))
    return End(losses.values, dict(method.state_dict()), momenta_of(method, trainer.optimizer))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
