"""Make simclr.json: NT-Xent's value and gradient in float64 on fixed tensors, by two other implementations.

    python tests/pretrain/golden/make_simclr.py LIGHTLY SOLO --commit e8d317fc5a87f4387a85a35e689869039ec249ee \\
        --solo-commit 9187ea39c2c3f43c455ab06664d2b019a9802954

LIGHTLY is a clone of lightly-ai/lightly, SOLO one of vturrisi/solo-learn, each at that commit. Their own losses do the
work. (The original, google-research/simclr, needs TensorFlow 1.) solo-learn's loss is loaded without its package, whose
other parts need more than is installed; its `gather` is then that of one process, which gives back what it gets.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.pretrain.golden import narrow_contrast as fixed  # noqa: E402

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lightly", type=Path)
    parser.add_argument("solo", type=Path)
    parser.add_argument("--commit", required=True, help="lightly's commit, for the record")
    parser.add_argument("--solo-commit", required=True, help="solo-learn's commit, for the record")
    parser.add_argument("--output", type=Path, default=HERE / "simclr.json")
    args = parser.parse_args()
    files = {
        "lightly": args.lightly / "lightly" / "loss" / "ntx_ent_loss.py",
        "solo-learn": args.solo / "solo" / "losses" / "simclr.py",
    }
    values: dict[str, Any] = {
        "original": {
            "repositories": {"lightly-ai/lightly": args.commit, "vturrisi/solo-learn": args.solo_commit},
            "sha256": {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()},
        },
        "torch": torch.__version__,
        "nt_xent": {
            "lightly": measured(lightly_loss(args.lightly)),
            "solo-learn": measured(solo_loss(files["solo-learn"])),
        },
    }
    args.output.write_text(json.dumps(values, indent=1) + "\n")


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
    spec = importlib.util.spec_from_file_location("solo_simclr", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

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
    main()
