"""Make moco.json: float64 golden values from MoCo's released code and its authors' notebook, run unchanged.

    python tests/pretrain/golden/make_moco.py MOCO NOTEBOOK

MOCO and NOTEBOOK are clones of facebookresearch/moco; NOTEBOOK is of its branch colab-notebook. `moco.builder.MoCo`
(the asymmetric loss) and the notebook's `ModelMoCo` (the symmetric one) run on the CPU, in one process; only the
encoder's width, the weights, the queue's start and the images are ours (narrow.py).
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.pretrain.golden import narrow, narrow_momentum  # noqa: E402
from tests.pretrain.golden.harness import write_golden_values  # noqa: E402

SIZES = (narrow_momentum.KEYS, narrow_momentum.KEY_MOMENTUM, narrow_momentum.TEMPERATURE)


ORIGINALS = {
    "moco/builder.py": "132aea9da9bb995a411c915c0420be3db62052f3",
    "colab/moco_cifar10_demo.ipynb": "f7364915bc4e9161427d7c6bb4f454fa0f171337",
}
"""Both files are of facebookresearch/moco, at different commits."""


def files(clones: Sequence[Path]) -> dict[str, Path]:
    """The originals' files."""
    return {name: clone / name for name, clone in zip(ORIGINALS, clones, strict=True)}


def values(clones: Sequence[Path], files: Mapping[str, Path]) -> dict[str, Any]:
    """All golden values."""
    sys.path.insert(0, str(clones[0]))
    from moco.builder import MoCo

    notebook = files["colab/moco_cifar10_demo.ipynb"]
    for kind in (torch.Tensor, nn.Module):
        kind.cuda = lambda self, *_args, **_kwargs: self  # type: ignore[assignment, attr-defined]  # no GPU here
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        runs = {"asymmetric": run(released(MoCo)), "symmetric": run(ours_in(notebook_class(notebook)))}
        torch.distributed.destroy_process_group()
    return {"torch": torch.__version__, "runs": runs}


def released(kind: Any) -> nn.Module:
    """The released MoCo with its MLP head, around the narrow encoder."""
    encoder = functools.partial(narrow.NarrowResNet, zero_init_residual=False)
    made: nn.Module = kind(encoder, narrow.DIM, *SIZES, mlp=True)
    return made


def notebook_class(file: Path) -> Any:
    """The notebook's `ModelMoCo`: the code of its cell, up to where it makes a model of the notebook's own size."""
    cells = ["".join(cell["source"]) for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
    (code,) = (cell for cell in cells if "class ModelMoCo" in cell)
    space: dict[str, Any] = {"torch": torch, "nn": nn, "ModelBase": with_head}
    exec(code.split("# create model")[0], space)
    return space["ModelMoCo"]


def with_head(feature_dim: int, arch: str, bn_splits: int) -> nn.Module:
    """What the notebook's model is made around: the narrow encoder with MoCo v2's head."""
    encoder = narrow.NarrowResNet(feature_dim, zero_init_residual=False)
    encoder.fc = nn.Sequential(nn.Linear(narrow.WIDTH, narrow.WIDTH), nn.ReLU(), encoder.fc)
    return encoder


def ours_in(kind: Any) -> nn.Module:
    """The notebook's model at the narrow size."""
    made: nn.Module = kind(narrow.DIM, *SIZES, symmetric=True)
    return made


def run(model: Any) -> dict[str, Any]:
    """Train it for a few steps; every loss, the first gradients, and where weights, queue and pointer end."""
    model.double()
    query, key = (narrow_momentum.under({"encoder": encoder}) for encoder in (model.encoder_q, model.encoder_k))
    narrow.fill(query)
    key.load_state_dict(query.state_dict())
    model.queue = narrow_momentum.queue().T.contiguous()
    optimizer = narrow_momentum.sgd([p for p in model.parameters() if p.requires_grad])
    losses: list[float] = []
    gradients: dict[str, list[float]] = {}
    for step in range(narrow_momentum.STEPS):
        out = model(*narrow.images(step))
        loss = F.cross_entropy(*out) if isinstance(out, tuple) else out
        optimizer.zero_grad()
        loss.backward()
        gradients = gradients or narrow_momentum.gradients(query)
        optimizer.step()
        losses.append(loss.item())
    return {
        "losses": losses,
        "gradients": gradients,
        "online": narrow.checksums(query),
        "target": narrow.checksums(key),
        "queue": {"of keys": model.queue.sum(0).tolist(), "of channels": model.queue.sum(1).tolist()},
        "pointer": int(model.queue_ptr),
    }


if __name__ == "__main__":
    record = {"repository": "facebookresearch/moco", "commits": ORIGINALS}
    write_golden_values("moco", __doc__, ORIGINALS, files, values, record)
