"""Make simsiam.json: float64 golden values from the original facebookresearch/simsiam, run unchanged.

    python tests/pretrain/golden/make_simsiam.py SIMSIAM

Its own `SimSiam`, `train` and `adjust_learning_rate` run on the CPU; only the model's width, its initial weights and
the images are ours (narrow.py), and the optimizer is built with the arguments of `main_worker`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.pretrain.golden import narrow  # noqa: E402
from tests.pretrain.golden.harness import recording_meter, write_golden_values  # noqa: E402

ORIGINALS = {"facebookresearch/simsiam": "a7bc1772896d0dad0806c51f0bb6f3b16d290468"}


def files(clones: Sequence[Path]) -> dict[str, Path]:
    """The originals' files."""
    return {name: clones[0] / name for name in ("simsiam/builder.py", "main_simsiam.py")}


def values(clones: Sequence[Path], _files: Mapping[str, Path]) -> dict[str, Any]:
    """All golden values."""
    sys.path.insert(0, str(clones[0]))
    import main_simsiam

    runs = {"fixed predictor lr": run(main_simsiam, True), "decayed predictor lr": run(main_simsiam, False)}
    return {"torch": torch.__version__, "runs": runs}


def run(original: ModuleType, fix_predictor_lr: bool) -> dict[str, Any]:
    """Train the original for a few epochs and write down every loss, every rate and where the weights end."""
    model = original.simsiam.builder.SimSiam(narrow.NarrowResNet, narrow.DIM, narrow.PRED_DIM).double()
    narrow.fill(model)
    start = narrow.checksums(model)
    peak = narrow.BASE_LR * narrow.BATCH / 256
    groups: Any = model.parameters()
    if fix_predictor_lr:
        groups = [
            {"params": model.encoder.parameters(), "fix_lr": False},
            {"params": model.predictor.parameters(), "fix_lr": True},
        ]
    optimizer = torch.optim.SGD(groups, peak, momentum=narrow.MOMENTUM, weight_decay=narrow.WEIGHT_DECAY)
    losses: list[float] = []
    rates: list[list[float]] = []
    original.AverageMeter = recording_meter(original.AverageMeter, losses, lambda meter, _n: meter.name == "Loss")
    args = SimpleNamespace(epochs=narrow.EPOCHS, gpu=None, print_freq=10**9)
    for epoch in range(narrow.EPOCHS):
        original.adjust_learning_rate(optimizer, peak, epoch, args)
        rates.append([group["lr"] for group in optimizer.param_groups])
        steps = range(epoch * narrow.STEPS_PER_EPOCH, (epoch + 1) * narrow.STEPS_PER_EPOCH)
        batches = [(narrow.images(step), None) for step in steps]
        original.train(batches, model, torch.nn.CosineSimilarity(dim=1), optimizer, epoch, args)
    return {"start": start, "losses": losses, "rates": rates, "end": narrow.checksums(model)}


if __name__ == "__main__":
    record = {"repository": "facebookresearch/simsiam", "commit": ORIGINALS["facebookresearch/simsiam"]}
    write_golden_values("simsiam", __doc__, ORIGINALS, files, values, record)
