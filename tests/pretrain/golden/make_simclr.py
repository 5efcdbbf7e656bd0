"""Make simclr.json: NT-Xent's value and gradient in float64 on fixed tensors, by two other implementations.

    python tests/pretrain/golden/make_simclr.py LIGHTLY SOLO

Both compute their own losses. (The original, google-research/simclr, needs TensorFlow 1.) solo-learn's loss is loaded
without its package, whose other parts need more than is installed; its `gather` then returns its argument, as in one
process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.pretrain.golden import narrow_contrast as fixed  # noqa: E402
from tests.pretrain.golden.harness import load_module, write_golden_values  # noqa: E402

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


ORIGINALS = {
    "lightly-ai/lightly": "e8d317fc5a87f4387a85a35e689869039ec249ee",
    "vturrisi/solo-learn": "9187ea39c2c3f43c455ab06664d2b019a9802954",
}


def files(clones: Sequence[Path]) -> dict[str, Path]:
    """The originals' files."""
    lightly, solo = clones
    return {"lightly": lightly / "lightly/loss/ntx_ent_loss.py", "solo-learn": solo / "solo/losses/simclr.py"}


def values(clones: Sequence[Path], files: Mapping[str, Path]) -> dict[str, Any]:
    """All golden values."""
    losses = {"lightly": lightly_loss(clones[0]), "solo-learn": solo_loss(files["solo-learn"])}
    return {"torch": torch.__version__, "nt_xent": {name: measured(loss) for name, loss in losses.items()}}


def lightly_loss(checkout: Path) -> Loss:
    """lightly's NTXentLoss, of two views."""
    sys.path.insert(0, str(checkout))
    from lightly.loss.ntx_ent_loss import NTXentLoss

    loss: Loss = NTXentLoss(temperature=fixed.TEMPERATURE)
    return loss


def solo_loss(file: Path) -> Loss:
    """solo-learn's simclr_loss_func, which takes the views one below the other and whose image each row is."""
    alone = ModuleType("solo.utils.misc")
    alone.gather, alone.get_rank = (lambda x: x), (lambda: 0)  # type: ignore[attr-defined]
    sys.modules.update({"solo": ModuleType("solo"), "solo.utils": ModuleType("solo.utils"), "solo.utils.misc": alone})
    module = load_module(file)

    def loss(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        images = torch.arange(len(z1)).repeat(2)
        value: torch.Tensor = module.simclr_loss_func(torch.cat([z1, z2]), images, fixed.TEMPERATURE)
        return value

    return loss


def measured(loss: Loss) -> dict[str, Any]:
    """The loss of the fixed outputs and its gradients by both views'."""
    z1, z2 = fixed.outputs()
    value = loss(z1, z2)
    value.backward()
    assert z1.grad is not None and z2.grad is not None
    return {"loss": value.item(), "gradients": [z1.grad.tolist(), z2.grad.tolist()]}


if __name__ == "__main__":
    write_golden_values("simclr", __doc__, ORIGINALS, files, values)
