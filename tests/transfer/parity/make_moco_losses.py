"""Writes `moco_losses.json` or `densecl_losses.json`: ten steps of an original on `parity_world`, in float64.

Run once, by hand, with a checkout of facebookresearch/moco at 132aea9, or of WXinlong/DenseCL at b64bbb6 (its FPN):
    python tests/transfer/parity/make_moco_losses.py MOCO_CHECKOUT
    python tests/transfer/parity/make_moco_losses.py DENSECL_CHECKOUT densecl
Model, head, optimiser, schedule and loop are the original's and Detectron2's; of this project it takes the world and
the numbers that torch is seeded with before each step.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2])]

import moco_original  # noqa: E402
import parity_world  # noqa: E402
import torch  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402

from ssl_transfer.environment import version_of  # noqa: E402
from transfer.engine.seeding import STEP, seed_torch  # noqa: E402

RUNS = {
    "moco": (moco_original.REPOSITORY, moco_original.COMMIT, moco_original.SHA256, list(moco_original.CONFIGS)),
    "densecl": ("WXinlong/DenseCL", moco_original.DENSECL_COMMIT, moco_original.DENSECL, ["coco_fpn"]),
}
"""Repository, commit, digests of its files, and our tasks."""


def run(original: Any, checkout: Path, task: str, name: str) -> dict[str, Any]:
    """Ten steps on one task."""
    cfg = get_cfg()
    cfg.merge_from_file(str(moco_original.config_file(checkout, task, name)))
    cfg.merge_from_list(list(parity_world.narrow(task)))

    class Narrow(original.Trainer):  # type: ignore[misc]
        @classmethod
        def build_train_loader(cls, cfg: Any) -> list[Any]:
            return []  # the batches are recorded ones

        @classmethod
        def build_model(cls, cfg: Any) -> torch.nn.Module:
            model = super().build_model(cfg).double()
            model.load_state_dict(parity_world.initial_state(model))
            return model

    with tempfile.TemporaryDirectory() as folder, parity_world.float64():
        cfg.OUTPUT_DIR = folder
        trainer = Narrow(cfg)
        batches = parity_world.batches(cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.MASK_ON)
        steps = moco_original.train_original(trainer, batches, lambda i: seed_torch(parity_world.SEED, STEP, 0, i))
    return {"steps": steps, "trained": parity_world.digest(trainer.model.state_dict())}


def main(checkout: Path, name: str = "moco") -> None:
    """Run an original's tasks and write the file."""
    original = moco_original.load(checkout, name)
    repository, commit, sha256, tasks = RUNS[name]
    content = {
        "made_by": {
            "repository": repository,
            "commit": commit,
            "sha256": sha256,
            **{package: version_of(package) for package in ("torch", "detectron2", "numpy")},
        },
        **{task: run(original, checkout, task, name) for task in tasks},
    }
    (HERE / f"{name}_losses.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
