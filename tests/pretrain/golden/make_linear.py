"""Make linear.json: float64 golden values from the original linear evaluation with apex's LARC, run unchanged.

    python tests/pretrain/golden/make_linear.py SIMSIAM APEX

The commit of apex is the last one that had LARC. `main_lincls.py`'s own `train` and `adjust_learning_rate` and apex's
`LARC` run on the CPU; only the model's width, its weights and the images are ours (narrow.py), and the optimizer is
built with the arguments of `main_worker`.
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
from tests.pretrain.golden import narrow, narrow_linear  # noqa: E402
from tests.pretrain.golden.harness import load_module, recording_meter, write_golden_values  # noqa: E402

ORIGINALS = {
    "facebookresearch/simsiam": "a7bc1772896d0dad0806c51f0bb6f3b16d290468",
    "NVIDIA/apex": "e13873debc4699d39c6861074b9a3b2a02327f92",
}


def files(clones: Sequence[Path]) -> dict[str, Path]:
    """The originals' files."""
    return {name: clone / name for name, clone in zip(("main_lincls.py", "apex/parallel/LARC.py"), clones, strict=True)}


def values(_clones: Sequence[Path], files: Mapping[str, Path]) -> dict[str, Any]:
    """All golden values."""
    original, larc = map(load_module, files.values())
    torch.Tensor.cuda = lambda tensor, *_args, **_kwargs: tensor  # type: ignore[assignment]  # of the labels; no GPU here
    return {"torch": torch.__version__, "runs": {"lars": run(original, larc.LARC), "sgd": run(original, None)}}


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
    original.AverageMeter = recording_meter(original.AverageMeter, losses, lambda meter, _n: meter.name == "Loss")
    args = SimpleNamespace(epochs=narrow.EPOCHS, gpu=None, print_freq=10**9)
    for epoch in range(narrow.EPOCHS):
        original.adjust_learning_rate(optimizer, peak, epoch, args)
        rates.append(optimizer.param_groups[0]["lr"])
        batches = [narrow_linear.batch(epoch * narrow.STEPS_PER_EPOCH + step) for step in range(narrow.STEPS_PER_EPOCH)]
        original.train(batches, model, torch.nn.CrossEntropyLoss(), optimizer, epoch, args)
    return {"losses": losses, "rates": rates, "end": narrow_linear.probes(model.fc), "all": narrow.checksums(model)}


if __name__ == "__main__":
    write_golden_values("linear", __doc__, ORIGINALS, files, values)
