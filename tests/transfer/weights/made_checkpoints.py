"""Checkpoints for tests: complete ResNets with random weights. The files are small, because tensors share memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from transfer.weights.resnet import COUNTER, tensor_shapes


def resnet(arch: str = "resnet50", seed: int = 0, counters: bool = True) -> dict[str, torch.Tensor]:
    """A ResNet's tensors by torchvision's names; convolutions are views into one block of normal numbers.

    torch.save writes shared memory once: the file of a ResNet-50 is 10 MB, not 98.
    """
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(2_600_000, generator=generator) * 0.03
    found: dict[str, torch.Tensor] = {}
    for index, (name, shape) in enumerate(tensor_shapes(arch).items()):
        size = math.prod(shape)
        if len(shape) == 4:
            start = (index * 997) % (block.numel() - size)
            found[name] = block[start : start + size].view(shape)
        else:
            found[name] = _norm(name, size, generator)
        if counters and name.endswith("running_var"):
            found[name.replace("running_var", COUNTER)] = torch.tensor(1000)
    return found


def _norm(name: str, size: int, generator: torch.Generator) -> torch.Tensor:
    if name.endswith(("weight", "running_var")):
        return torch.rand(size, generator=generator) + 0.5
    return torch.randn(size, generator=generator) * 0.1


def bare(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without counters: exactly a backbone's tensors."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}


def prefixed(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Every name with a prefix."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def heads(*names: str) -> dict[str, torch.Tensor]:
    """Small tensors that stand for heads."""
    return {name: torch.full((4, 4), 0.5) for name in names}


def save(path: Path, content: Any) -> Path:
    """Write with torch.save."""
    torch.save(content, path)
    return path


def simsiam(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """A released SimSiam checkpoint around an encoder."""
    extra = heads("module.encoder.fc.0.weight", "module.encoder.fc.6.bias", "module.predictor.0.weight")
    return {"epoch": 100, "arch": "resnet50", "state_dict": {**prefixed(tensors, "module.encoder."), **extra}}


def moco(query: Mapping[str, torch.Tensor], key: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """A MoCo v2 checkpoint around two encoders."""
    extra = heads("module.encoder_q.fc.0.weight", "module.encoder_k.fc.0.weight", "module.queue", "module.queue_ptr")
    both = {**prefixed(query, "module.encoder_q."), **prefixed(key, "module.encoder_k.")}
    return {"epoch": 200, "arch": "resnet50", "state_dict": {**both, **extra}}


def same(got: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    """Equal bit for bit, name by name."""
    return got.keys() == wanted.keys() and all(
        torch.equal(got[name].view(torch.int32), wanted[name].contiguous().view(torch.int32)) for name in wanted
    )
