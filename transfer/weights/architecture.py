"""The tensors of a bottleneck ResNet, derived from its depth: names as torchvision gives them, with their shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]

BLOCKS: dict[str, Shape] = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
"""Bottleneck blocks in each of the four stages (He et al., arXiv 1512.03385, Table 1)."""

EXPANSION = 4
COUNTER = "num_batches_tracked"
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


def depth_of(arch: str) -> int:
    """The depth in an architecture's name: 50 for `resnet50`."""
    return int(arch.removeprefix("resnet"))


def shapes(arch: str) -> dict[str, Shape]:
    """Every tensor of the backbone, stem to the fourth stage, without classifier and counters, in forward order.

    Args:
        arch: one of `BLOCKS`.

    Returns:
        name → shape; 265 tensors for `resnet50` (53 convolutions and 53 norms).
    """
    found: dict[str, Shape] = {}
    _conv_and_norm(found, "conv1", "bn1", (64, 3, 7, 7))
    channels = 64
    for stage, blocks in enumerate(BLOCKS[arch], start=1):
        width = 64 * 2 ** (stage - 1)
        for block in range(blocks):
            at = f"layer{stage}.{block}."
            _conv_and_norm(found, at + "conv1", at + "bn1", (width, channels, 1, 1))
            _conv_and_norm(found, at + "conv2", at + "bn2", (width, width, 3, 3))
            _conv_and_norm(found, at + "conv3", at + "bn3", (width * EXPANSION, width, 1, 1))
            if block == 0:
                _conv_and_norm(found, at + "downsample.0", at + "downsample.1", (width * EXPANSION, channels, 1, 1))
            channels = width * EXPANSION
    return found


def _conv_and_norm(into: dict[str, Shape], conv: str, norm: str, shape: Shape) -> None:
    into[f"{conv}.weight"] = shape
    into.update({f"{norm}.{part}": shape[:1] for part in NORM_PARTS})


def counters(arch: str) -> list[str]:
    """The names of the norms' `num_batches_tracked`: 53 for `resnet50`."""
    return [name.replace("running_var", COUNTER) for name in shapes(arch) if name.endswith("running_var")]


def guess(names: Iterable[str]) -> str | None:
    """The architecture with as many blocks in its third stage as the names say; None when no depth has that many."""
    blocks = {name.split(".")[1] for name in names if name.startswith("layer3.") and name.count(".") > 1}
    return next((arch for arch, counts in BLOCKS.items() if counts[2] == len(blocks)), None)


def why_not(tensors: Mapping[str, Shape]) -> str | None:
    """What kind of ResNet these tensors are when they are not one of `BLOCKS`; None when nothing speaks against it.

    Args:
        tensors: torchvision name → shape.
    """
    if "conv1.0.weight" in tensors or "stem.0.weight" in tensors:
        return "a ResNet with a deep stem (resnet50d and its kin: conv1.0.weight is there)"
    if any(name.endswith((".se.fc1.weight", ".attn.fc1.weight", ".se_module.fc1.weight")) for name in tensors):
        return "a ResNet with squeeze-and-excitation"
    stem = tensors.get("conv1.weight")
    small_stem = stem is not None and stem[2:] == (3, 3)
    if "layer1.0.conv1.weight" in tensors and "layer1.0.conv3.weight" not in tensors:
        third = len({name.split(".")[1] for name in tensors if name.startswith("layer3.")})
        depth = {2: "ResNet-18", 6: "ResNet-34"}.get(third, "ResNet of basic blocks")
        return f"a {depth}{' with a CIFAR stem' if small_stem else ''} (no layer1.0.conv3)"
    if small_stem:
        return "a ResNet with a CIFAR stem (conv1 is 3×3)"
    return _odd_width(tensors)


def _odd_width(tensors: Mapping[str, Shape]) -> str | None:
    middle = tensors.get("layer1.0.conv2.weight")
    if middle is None or len(middle) != 4 or middle == (64, 64, 3, 3):
        return None
    if middle[1] < middle[0]:
        return f"a ResNeXt (grouped convolution: layer1.0.conv2.weight is {list(middle)})"
    if middle[0] > 64:
        return f"a wide ResNet (layer1.0.conv2.weight is {list(middle)}, not [64, 64, 3, 3])"
    return None
