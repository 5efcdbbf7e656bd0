"""Writes `moco_state_dict.json`: names and shapes of the detectors that MoCo's own detection code builds.

Run once, by hand, with a checkout of facebookresearch/moco at 132aea9:
    python tests/transfer/modeling/make_golden.py MOCO_CHECKOUT
It registers MoCo's head from its train_net.py and builds it from its YAML files with Detectron2, nothing of this
project.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

CONFIGS = {"voc0712_trainval": "pascal_voc_R_50_C4_24k_moco.yaml", "coco_2x": "coco_R_50_C4_2x_moco.yaml"}
OUT = Path(__file__).with_name("moco_state_dict.json")


def main(checkout: Path) -> None:
    """Build MoCo's two detectors and write down what they hold."""
    detection = checkout / "detection"
    spec = importlib.util.spec_from_file_location("moco_train_net", detection / "train_net.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    found = {}
    for task, name in CONFIGS.items():
        cfg = get_cfg()
        cfg.merge_from_file(str(detection / "configs" / name))
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            model = build_model(cfg)
        found[task] = {key: list(value.shape) for key, value in model.state_dict().items()}
    lines = ",\n".join(f'"{task}": {json.dumps(shapes)}' for task, shapes in found.items())
    OUT.write_text(f"{{{lines}}}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
