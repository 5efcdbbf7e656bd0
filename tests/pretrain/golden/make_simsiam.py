"""Make simsiam.json: float64 golden values from the original facebookresearch/simsiam, run as it is.

    python tests/pretrain/golden/make_simsiam.py CHECKOUT --commit a7bc1772896d0dad0806c51f0bb6f3b16d290468

CHECKOUT is a clone of the original at that commit. Its own `SimSiam`, `train` and `adjust_learning_rate` do the work
on the CPU; only the model's width, its initial weights and the images are ours (narrow.py), and the optimiser is built
with the arguments that `main_worker` gives it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import narrow  # noqa: E402

SOURCES = ("simsiam/builder.py", "main_simsiam.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--commit", required=True, help="the checkout's commit, for the record")
    parser.add_argument("--output", type=Path, default=HERE / "simsiam.json")
    args = parser.parse_args()
    sys.path.insert(0, str(args.checkout))
    import main_simsiam

    values = {
        "original": {
            "repository": "facebookresearch/simsiam",
            "commit": args.commit,
            "sha256": {name: hashlib.sha256((args.checkout / name).read_bytes()).hexdigest() for name in SOURCES},
        },
        "torch": torch.__version__,
        "runs": {"fixed predictor lr": run(main_simsiam, True), "decayed predictor lr": run(main_simsiam, False)},
    }
    args.output.write_text(json.dumps(values, indent=1) + "\n")


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
    original.AverageMeter = recorder(original.AverageMeter, losses)
    args = SimpleNamespace(epochs=narrow.EPOCHS, gpu=None, print_freq=10**9)
    for epoch in range(narrow.EPOCHS):
        original.adjust_learning_rate(optimizer, peak, epoch, args)
        rates.append([group["lr"] for group in optimizer.param_groups])
        steps = range(epoch * narrow.STEPS_PER_EPOCH, (epoch + 1) * narrow.STEPS_PER_EPOCH)
        batches = [(narrow.images(step), None) for step in steps]
        original.train(batches, model, torch.nn.CosineSimilarity(dim=1), optimizer, epoch, args)
    return {"start": start, "losses": losses, "rates": rates, "end": narrow.checksums(model)}


def recorder(meter: type, losses: list[float]) -> type:
    """The original's meter, which also writes down the losses that its training loop hands to it."""
    base = getattr(meter, "original", meter)

    class Recorder(base):  # type: ignore[misc, valid-type]
        original = base

        def update(self, value: float, n: int = 1) -> None:
            if self.name == "Loss":
                losses.append(value)
            super().update(value, n)

    return Recorder


if __name__ == "__main__":
    main()
