"""Rename a ResNet's tensors between torchvision, Detectron2, transformers, numbered children and Caffe2."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TO_DETECTRON2 = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
_TO_TORCHVISION = (
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    (r"^res(\d)\.", lambda m: f"layer{int(m[1]) - 1}."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
)


def to_detectron2(name: str) -> str:
    """`layer1.0.bn1.weight` → `res2.0.conv1.norm.weight`."""
    for pattern, new in _TO_DETECTRON2:
        name = re.sub(pattern, new, name)
    return name


def to_torchvision(name: str) -> str:
    """`res2.0.conv1.norm.weight` → `layer1.0.bn1.weight`."""
    for pattern, new in _TO_TORCHVISION:
        name = re.sub(pattern, new, name)
    return name


FPN_PREFIX = "backbone.bottom_up."


def in_detector(name: str, fpn: bool = False) -> str:
    """A ResNet's tensor in a detector: all of it is in FPN's bottom-up; in C4 the RoI heads have res5."""
    if fpn:
        return FPN_PREFIX + name
    return f"roi_heads.{name}" if name.startswith("res5.") else f"backbone.{name}"


def has_fpn(names: Iterable[str]) -> bool:
    """Whether these are an FPN detector's tensors."""
    return any(name.startswith(FPN_PREFIX) for name in names)


_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4", "9": "fc"}
"""A ResNet's children in order, as `nn.Sequential(*resnet.children())` numbers them; 2, 3 and 8 have no tensors."""


def from_children(name: str) -> str | None:
    """`4.0.conv1.weight` → `layer1.0.conv1.weight`; a name that does not begin with a number is unchanged."""
    first, _, rest = name.partition(".")
    if not first.isdigit():
        return name
    return f"{_CHILDREN[first]}.{rest}" if first in _CHILDREN else None


_CAFFE2_NORM = {
    "s": "weight",
    "gamma": "weight",
    "b": "bias",
    "beta": "bias",
    "rm": "running_mean",
    "running_mean": "running_mean",
    "riv": "running_var",
    "running_var": "running_var",
}
_CAFFE2_LAYER = {"branch1": "downsample.{}", "branch2a": "{}1", "branch2b": "{}2", "branch2c": "{}3"}
_CAFFE2 = re.compile(
    r"^(?:(?:res_)?conv1|res(?P<stage>[2-5])_(?P<block>\d+)_(?P<layer>branch1|branch2[abc]))_(?P<part>.+)$"
)


def from_caffe2(name: str) -> str | None:
    """`res2_0_branch2a_bn_gamma` → `layer1.0.bn1.weight`, `conv1_w` → `conv1.weight`; None for any other name."""
    match = _CAFFE2.match(name)
    if match is None:
        return None
    part = match["part"]
    norm = _CAFFE2_NORM.get(part.removeprefix("bn_")) if part.startswith("bn_") else None
    if norm is None and part != "w":
        return None
    kind, tensor = ("bn", norm) if norm else ("conv", "weight")
    if match["stage"] is None:
        return f"{kind}1.{tensor}"
    pattern = _CAFFE2_LAYER[match["layer"]]
    module = pattern.format("1" if norm else "0") if match["layer"] == "branch1" else pattern.format(kind)
    return f"layer{int(match['stage']) - 1}.{int(match['block'])}.{module}.{tensor}"


_TRANSFORMERS = (
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d)\.layers\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
)


def from_transformers(name: str) -> str | None:
    """`encoder.stages.0.layers.0.layer.0.convolution.weight` → `layer1.0.conv1.weight`; None for any other name."""
    if not name.startswith(("embedder.embedder.", "encoder.stages.")):
        return None
    for pattern, new in _TRANSFORMERS:
        name = re.sub(pattern, new, name)
    return name


_TRANSPARENT = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""What torch.compile, FSDP, activation checkpointing and Lightning put into names."""

WRAPPERS = (*_TRANSPARENT, "module", "model")


def unwrap(name: str, parallel: bool = False) -> str:
    """The name without wrappers; with `parallel` also without `module` anywhere and `model` at its beginning."""
    parts = [part for part in name.split(".") if part not in _TRANSPARENT and not (parallel and part == "module")]
    while parallel and len(parts) > 1 and parts[0] == "model":
        parts = parts[1:]
    return ".".join(parts)
