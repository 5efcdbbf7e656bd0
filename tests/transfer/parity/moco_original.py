"""The original beside which ours is run: facebookresearch/moco's detection code, from a checkout that is nobody's here.

Its `train_net.py` registers a head of the same name as ours, so the two never share a process.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from detectron2.engine import HookBase

REPOSITORY = "facebookresearch/moco"
COMMIT = "132aea9da9bb995a411c915c0420be3db62052f3"
SHA256 = {
    "train_net.py": "aad86593f1ba6271756e8633cf219ffdb826f9137a681accd14191748a313aa3",
    "configs/Base-RCNN-C4-BN.yaml": "5a7c95a366f18eb8d4daaf7c63bfe8bf388529a5d8eb5b50d4641c530390e2e3",
    "configs/pascal_voc_R_50_C4_24k.yaml": "aff65a6b7465137b4d0bcff1fde4f1b7af7c72311ea1a8b7031db06d2b644722",
    "configs/pascal_voc_R_50_C4_24k_moco.yaml": "1422dfc436881beda81a338616a6c6f80fd050a25f922638ea391d230d811957",
    "configs/coco_R_50_C4_2x.yaml": "a99a7511dbbcdf1d220203e273652744703fd75330e91c97704a6cdd6a7a78c1",
    "configs/coco_R_50_C4_2x_moco.yaml": "6642c39be84c00644de4a4747a1c3d36b0141f952cb6f603427c0a22bd850e0a",
}
"""Of the files under `detection/` at COMMIT, as `git show COMMIT:detection/FILE | sha256sum` gives them."""
DENSECL_COMMIT = "b64bbb6e267f729d16ca558233b0ef3028857381"
CONFIGS = {"voc0712_trainval": "pascal_voc_R_50_C4_24k_moco.yaml", "coco_2x": "coco_R_50_C4_2x_moco.yaml"}
"""Our task: the original's config of the same protocol, for weights of MoCo's kind."""
DENSECL = {
    "train_net.py": "759a2015c8714e9b9f32750b6e57085579b4fd37eaa5ff0381464addb4359d80",
    "configs/Base-RCNN-C4-BN.yaml": "4e0d460b1517c9e462fdf2539e2533d5eac021dd3996e1ec250a6222892bd250",
    "configs/pascal_voc_R_50_C4_24k.yaml": "aff65a6b7465137b4d0bcff1fde4f1b7af7c72311ea1a8b7031db06d2b644722",
    "configs/pascal_voc_R_50_C4_24k_moco.yaml": "1422dfc436881beda81a338616a6c6f80fd050a25f922638ea391d230d811957",
    "configs/Base-RCNN-FPN.yaml": "3a94b02a7fb8f63988e263140c88fab4c1d43b9d10ef58178f03d0d28fb0fcd5",
    "configs/R_50_FPN_1x.yaml": "f1d988f202f1422407108e4a22524469e1fe7ba8df2f6870afaec4a82536b31f",
    "configs/R_50_FPN_1x_infomin.yaml": "8660322beb14cf90693c69d97ad7f2abf5839ecf8dbdac2c772934ccd094208b",
}
"""The same of WXinlong/DenseCL at b64bbb6, under `benchmarks/detection/`."""
ORIGINALS = {
    "moco": ("detection", SHA256, CONFIGS),
    "densecl": (
        "benchmarks/detection",
        DENSECL,
        {"voc0712_trainval": "pascal_voc_R_50_C4_24k_moco.yaml", "coco_fpn": "R_50_FPN_1x_infomin.yaml"},
    ),
}
"""Folder of the detection code, digests of its files, and configs by our tasks."""


def load(checkout: Path, original: str = "moco") -> ModuleType:
    """The original's `train_net`, after a look at what it is; exits where a file is another."""
    folder, digests, _ = ORIGINALS[original]
    for name, expected in digests.items():
        found = hashlib.sha256((checkout / folder / name).read_bytes()).hexdigest()
        if found != expected:
            sys.exit(f"{checkout / folder / name} is not that of the recorded commit: sha256 {found}")
    spec = importlib.util.spec_from_file_location(f"{original}_train_net", checkout / folder / "train_net.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_file(checkout: Path, task: str, original: str = "moco") -> Path:
    """The original's YAML of one of our tasks."""
    folder, _, configs = ORIGINALS[original]
    return checkout / folder / "configs" / configs[task]


class Enough(Exception):
    """As many steps as were wanted are done."""


class Record(HookBase):
    """Notes each step's losses and learning rate, and ends the run after the last wanted one.

    Args:
        steps: how many are wanted.
        lr: reads the rate that the step is made with.
        seed: seeds torch for a step; None where the trainer does so itself.
    """

    def __init__(self, steps: int, lr: Callable[[], float], seed: Callable[[int], None] | None = None) -> None:
        self.steps, self.lr, self.seed = steps, lr, seed
        self.rows: list[dict[str, float]] = []

    def before_step(self) -> None:
        if self.seed is not None:
            self.seed(self.trainer.iter)
        self.rows.append({"lr": self.lr()})

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        self.rows[-1] |= {name: float(value[0]) for name, value in latest.items() if "loss" in name}
        if len(self.rows) == self.steps:
            raise Enough


def train_original(trainer: Any, batches: Sequence[Any], seed: Callable[[int], None]) -> list[dict[str, float]]:
    """The original's own loop, with all of its hooks, over recorded batches; each step's losses."""
    trainer._trainer.data_loader = batches
    trainer._trainer._data_loader_iter_obj = None
    record = Record(len(batches), lambda: float(trainer.optimizer.param_groups[0]["lr"]), seed)
    trainer.register_hooks([record])
    try:
        trainer.train()
    except Enough:
        return record.rows
    raise AssertionError("the run ended before the recorded batches did")


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict, without the prefix of a wrapper."""
    return {name.removeprefix("module."): value.detach().clone() for name, value in model.state_dict().items()}
