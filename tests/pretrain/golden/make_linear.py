"""Make linear.json: float64 golden values from the original linear evaluation with apex's LARC, run as they are.

    python tests/pretrain/golden/make_linear.py SIMSIAM APEX --commit a7bc1772896d0dad0806c51f0bb6f3b16d290468 \\
        --apex-commit e13873debc4699d39c6861074b9a3b2a02327f92

SIMSIAM is a clone of facebookresearch/simsiam at that commit, APEX one of NVIDIA/apex at the last commit that had LARC.
`main_lincls.py`'s own `train` and `adjust_learning_rate` and apex's `LARC` do the work on the CPU; only the model's
width, its weights and the images are ours (narrow.py), and the optimiser is built with the arguments of `main_worker`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.pretrain.golden import narrow, narrow_linear  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("simsiam", type=Path)
    parser.add_argument("apex", type=Path)
    parser.add_argument("--commit", required=True, help="simsiam's commit, for the record")
    parser.add_argument("--apex-commit", required=True, help="apex's commit, for the record")
    parser.add_argument("--output", type=Path, default=HERE / "linear.json")
    args = parser.parse_args()
    files = {"main_lincls.py": args.simsiam, "apex/parallel/LARC.py": args.apex}
    files = {name: checkout / name for name, checkout in files.items()}
    original, larc = (load(name, file) for name, file in zip(("main_lincls", "larc"), files.values(), strict=True))
    torch.Tensor.cuda = lambda tensor, *_args, **_kwargs: tensor  # type: ignore[assignment]  # of the labels; no GPU here
    values = {
        "original": {
            "repositories": {"facebookresearch/simsiam": args.commit, "NVIDIA/apex": args.apex_commit},
            "sha256": {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()},
        },
        "torch": torch.__version__,
        "runs": {"lars": run(original, larc.LARC), "sgd": run(original, None)},
    }
    args.output.write_text(json.dumps(values, indent=1) + "\n")


def load(name: str, file: Path) -> ModuleType:
    """A module from its file, without its package."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(original: ModuleType, larc: Any) -> dict[str, Any]:
    """Train the original for a few epochs and write down every loss, every rate and where the classifier ends."""
    model = narrow_linear.model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in ("fc.weight", "fc.bias")
    peak = narrow_linear.base_lr("lars" if larc else "sgd") * narrow.BATCH / 256
    optimizer: Any = torch.optim.SGD(list(model.fc.parameters()), peak, momentum=0.9, weight_decay=0.0)
    if larc:
        optimizer = larc(optimizer=optimizer, trust_coefficient=0.001, clip=False)
    losses: list[float] = []
    rates: list[float] = []
    base = original.AverageMeter

    class Recorder(base):  # type: ignore[misc, valid-type]
        def update(self, value: Any, n: int = 1) -> None:
            if self.name == "Loss":
                losses.append(value)
            super().update(value, n)

    original.AverageMeter = Recorder
    args = SimpleNamespace(epochs=narrow.EPOCHS, gpu=None, print_freq=10**9)
    for epoch in range(narrow.EPOCHS):
        original.adjust_learning_rate(optimizer, peak, epoch, args)
        rates.append(optimizer.param_groups[0]["lr"])
        batches = [narrow_linear.batch(epoch * narrow.STEPS_PER_EPOCH + step) for step in range(narrow.STEPS_PER_EPOCH)]
        original.train(batches, model, torch.nn.CrossEntropyLoss(), optimizer, epoch, args)
    original.AverageMeter = base
    return {"losses": losses, "rates": rates, "end": narrow_linear.probes(model.fc), "all": narrow.checksums(model)}


if __name__ == "__main__":
    main()
