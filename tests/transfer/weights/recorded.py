"""Checkpoints with the names and shapes recorded in layouts/, which are those of the originals' own model classes.

Each record names the repository, commit and command of its list. `verified` is `run` (the original's class was run),
`run with stand-ins` (for imports without tensors), `published` (the list is) or `unverified` (named in a document
only).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from tests.transfer.weights.made_checkpoints import bare, resnet
from transfer.weights.tensor_names import in_detector, to_detectron2

FOLDER = Path(__file__).parent / "layouts"
_NUMBERS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
_CAFFE2_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}


def names() -> list[str]:
    """Every recorded layout."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def record(name: str) -> dict[str, Any]:
    """One of them, as stored."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def checkpoint(name: str) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """A checkpoint with the recorded names, and its encoders: `container/prefix` → torchvision-named tensors."""
    stored = record(name)
    content: dict[str, Any] = dict(stored["top"])
    if content.get("args") == "Namespace":
        content["args"] = argparse.Namespace(arch="resnet50")
    encoders: dict[str, dict[str, torch.Tensor]] = {}
    for state in stored["state"]:
        tensors: dict[str, torch.Tensor] = {}
        for prefix, naming in state["encoders"].items():
            made = resnet(seed=len(encoders))
            encoders["/".join(state["container"]) + "/" + prefix] = bare(made)
            made = bare(made) if naming.endswith("without counters") or naming == "caffe2" else made
            tensors.update({prefix + _named(naming.split()[0], key): value for key, value in made.items()})
        tensors.update({key: _filler(key, shape) for key, shape in state["others"].items()})
        content = _placed(content, state["container"], tensors)
    return content, encoders


def _placed(content: dict[str, Any], container: list[str], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    node = content
    for key in container:
        node = node.setdefault(key, {})
    node.update(tensors)
    return content


def _filler(name: str, shape: str) -> torch.Tensor:
    """A head's tensor of its original shape in the memory of one number."""
    if name.startswith("data_preprocessor."):
        values = (123.675, 116.28, 103.53) if name.endswith("mean") else (58.395, 57.12, 57.375)
        return torch.tensor(values).view(3, 1, 1)
    value = torch.tensor(7) if name.endswith(("num_batches_tracked", "queue_ptr", "steps")) else torch.tensor(0.0)
    return value.expand([int(size) for size in shape.split("x")] if shape else [])


def _named(naming: str, name: str) -> str:
    """torchvision's name in another naming."""
    if naming in ("detectron2", "detector"):
        return to_detectron2(name) if naming == "detectron2" else in_detector(to_detectron2(name))
    if naming == "children":
        first, rest = name.split(".", 1)
        return f"{_NUMBERS[first]}.{rest}"
    if naming == "transformers":
        return _transformers(name)
    return _caffe2(name) if naming == "caffe2" else name


def _transformers(name: str) -> str:
    """transformers' names, written out independently of the reader."""
    *path, module, tensor = name.split(".")
    norm = module.startswith("bn") or (module == "1" and path[-1] == "downsample")
    kind = "normalization" if norm else "convolution"
    if not path:
        return f"embedder.embedder.{kind}.{tensor}"
    part = "shortcut" if path[-1] == "downsample" else f"layer.{int(module[-1]) - 1}"
    return f"encoder.stages.{int(path[0][5:]) - 1}.layers.{path[1]}.{part}.{kind}.{tensor}"


def _caffe2(name: str) -> str:
    """Caffe2's blob names, written out independently of the reader."""
    *path, module, tensor = name.split(".")
    norm = module.startswith("bn") or (module == "1" and path[-1] == "downsample")
    part = f"bn_{_CAFFE2_NORM[tensor]}" if norm else "w"
    if not path:
        return f"res_conv1_{part}" if norm else "conv1_w"
    stage, block = int(path[0][5:]) + 1, path[1]
    branch = "branch1" if path[-1] == "downsample" else "branch2" + "abc"[int(module[-1]) - 1]
    return f"res{stage}_{block}_{branch}_{part}"
