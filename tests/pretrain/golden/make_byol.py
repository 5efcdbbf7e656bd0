"""Make byol.json: float64 golden values from BYOL's released code and solo-learn's, run unchanged.

    python tests/pretrain/golden/make_byol.py DEEPMIND SOLO

The loss is `regression_loss` of byol/utils/helpers.py, the target's momentum `target_ema` of byol/utils/schedules.py:
both need JAX for arithmetic only, which torch does here under JAX's names, so that autograd computes their gradients.
The target is updated by solo-learn's `MomentumUpdater`. The order of a step is that of `_update_fn` in
byol/byol_experiment.py: loss, gradient, optimizer, then the target, with the new weights. Networks, weights and images
are ours (narrow.py).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.pretrain.golden import narrow, narrow_momentum  # noqa: E402
from tests.pretrain.golden.harness import load_module, write_golden_values  # noqa: E402

HELPERS, SCHEDULES, UPDATER = "byol/utils/helpers.py", "byol/utils/schedules.py", "solo/utils/momentum.py"
SIMPLIFIED = "solo/losses/byol.py"


ORIGINALS = {
    "google-deepmind/deepmind-research": "f5de0ede8430809180254ee957abf36ed62579ef",
    "vturrisi/solo-learn": "9187ea39c2c3f43c455ab06664d2b019a9802954",
}


def files(clones: Sequence[Path]) -> dict[str, Path]:
    """The originals' files."""
    deepmind, solo = clones
    found = {HELPERS: deepmind, SCHEDULES: deepmind, UPDATER: solo, SIMPLIFIED: solo}
    return {name: clone / name for name, clone in found.items()}


def values(_clones: Sequence[Path], files: Mapping[str, Path]) -> dict[str, Any]:
    """All golden values."""
    name_torch_as_jax()
    original = {name: load_module(file) for name, file in files.items()}
    return {
        "torch": torch.__version__,
        "momentum": {
            f"{base} {total}": [float(original[SCHEDULES].target_ema(as_number(k), base, total)) for k in steps(total)]
            for base, total in ((0.97, 7), (0.99, 31200), (0.996, 249600))
        },
        "loss": loss(original),
        "run": run(original),
    }


def name_torch_as_jax() -> None:
    """Give the originals' imports something to find: torch's functions under jax.numpy's and jax.lax's names."""
    jax, numpy, lax = ModuleType("jax"), ModuleType("jax.numpy"), ModuleType("jax.lax")
    for module, name, value in [
        *((numpy, name, getattr(torch, name)) for name in ("sum", "square", "cos")),
        (numpy, "maximum", lambda x, least: torch.clamp(x, min=least)),
        (numpy, "minimum", lambda x, most: torch.clamp(x, max=most)),
        (numpy, "pi", math.pi),
        (numpy, "ndarray", torch.Tensor),
        (lax, "rsqrt", torch.rsqrt),
        (jax, "numpy", numpy),
        (jax, "lax", lax),
    ]:
        setattr(module, name, value)
    sys.modules.update({"jax": jax, "jax.numpy": numpy, "jax.lax": lax, "absl": ModuleType("absl")})
    sys.modules["absl"].logging = None  # type: ignore[attr-defined]


def as_number(k: int) -> torch.Tensor:
    """A step as float64."""
    return torch.tensor(k, dtype=torch.float64)


def steps(total: int) -> list[int]:
    """The steps at which the momentum is written down."""
    return [0, 1, total // 3, total // 2, total - 1, total]


def loss(original: dict[str, ModuleType]) -> dict[str, Any]:
    """Both codes' loss of a prediction and a target, and its gradient in the prediction."""
    found: dict[str, Any] = {}
    for name, function in {
        "deepmind": lambda p, z: original[HELPERS].regression_loss(p, z).mean(),
        "solo": original[SIMPLIFIED].byol_loss_func,
    }.items():
        p, z = (narrow.normal(kind, (5, narrow.DIM)) for kind in ("prediction", "target"))
        value = function(p.requires_grad_(), z)
        value.backward()
        found[name] = {"value": value.item(), "gradient": p.grad.flatten().tolist() if p.grad is not None else None}
    return found


def head(width: int, hidden: int) -> nn.Sequential:
    """byol/utils/networks.py's MLP: its hidden layer's bias, which batch normalisation takes away again, left out."""
    layers = [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, narrow.DIM, bias=False))


def network() -> nn.ModuleDict:
    """Encoder and projector."""
    encoder = narrow.NarrowResNet(1, zero_init_residual=True)
    encoder.fc = nn.Identity()
    return nn.ModuleDict({"encoder": encoder, "projector": head(narrow.WIDTH, narrow.WIDTH)}).double()


def run(original: dict[str, ModuleType]) -> dict[str, Any]:
    """A few steps: every loss, the first gradients, and where both networks end."""
    online, target = network(), network()
    online["predictor"] = head(narrow.DIM, narrow_momentum.PRED_HIDDEN).double()
    narrow.fill(online)
    narrow.fill(narrow_momentum.under({"target": target}))  # weights of its own, as released
    target.requires_grad_(False)
    optimizer = narrow_momentum.sgd(list(online.parameters()))
    updater = original[UPDATER].MomentumUpdater()
    losses: list[float] = []
    gradients: dict[str, list[float]] = {}
    for step in range(narrow_momentum.STEPS):
        views = narrow.images(step)
        predictions = [online["predictor"](online["projector"](online["encoder"](view))) for view in views]
        targets = [target["projector"](target["encoder"](view)) for view in views]
        regression = original[HELPERS].regression_loss
        value = (regression(predictions[0], targets[1]) + regression(predictions[1], targets[0])).mean()
        optimizer.zero_grad()
        value.backward()
        gradients = gradients or narrow_momentum.gradients(online)
        optimizer.step()
        base, total = narrow_momentum.TARGET_MOMENTUM, narrow_momentum.STEPS
        updater.cur_tau = float(original[SCHEDULES].target_ema(as_number(step), base, total))
        for name in ("encoder", "projector"):
            updater.update(online[name], target[name])
        losses.append(value.item())
    return {
        "losses": losses,
        "gradients": gradients,
        "online": narrow.checksums(online),
        "target": narrow.checksums(target),
    }


if __name__ == "__main__":
    write_golden_values("byol", __doc__, ORIGINALS, files, values)
