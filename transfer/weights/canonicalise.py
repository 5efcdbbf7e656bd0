"""From one branch of a checkpoint to a backbone: exactly the expected tensors, each of the right shape and type."""

from __future__ import annotations

import torch

from common.errors import UserError
from transfer.weights import architecture
from transfer.weights.architecture import COUNTER
from transfer.weights.canonical import Backbone, LeftOut, Source
from transfer.weights.containers import Content
from transfer.weights.match import Match, Tensors

UP = (torch.float16, torch.bfloat16)


def canonicalise(content: Content, match: Match, branch: str) -> Backbone:
    """Check one branch and bring it to the canonical form.

    Args:
        content: the file.
        match: the layout found in it.
        branch: the encoder to take; must be in `match.branches`.

    Raises:
        UserError: not a ResNet-50, -101 or -152, a tensor too many or too few, a wrong shape or type, NaN or Inf, a
            negative variance; the message names the tensors.
    """
    where = f"{content.path} ({match.layout}, {branch})"
    raw = match.branches[branch]
    arch = _architecture(raw, match.arch, where)
    backbone = Backbone(
        arch,
        {},
        match.preprocessing,
        Source(content.path, content.sha256, content.bytes, match.layout, match.rule, branch),
        match.origin,
        [*match.left_out, *_other_branches(match, branch), *_inside(raw, arch, where)],
        warnings=list(match.warnings),
    )
    for name, shape in architecture.shapes(arch).items():
        backbone.tensors[name] = _settled(backbone, name, raw[name], shape, where)
    return backbone


def _other_branches(match: Match, branch: str) -> list[LeftOut]:
    why = {"online": "online branch", "target": "momentum branch"}
    return [LeftOut(f"{other} encoder", why[other]) for other in match.branches if other != branch]


def _architecture(raw: Tensors, stated: str | None, where: str) -> str:
    """The architecture these tensors make, every name accounted for."""
    odd = architecture.why_not({name: tuple(tensor.shape) for name, tensor in raw.items()})
    if odd is not None:
        raise UserError(f"{where} is {odd}; the C4 detector takes resnet50, resnet101 and resnet152")
    if stated is not None and stated not in architecture.BLOCKS:
        raise UserError(f"{where} says it is a {stated}; the C4 detector takes resnet50, resnet101 and resnet152")
    arch = stated or architecture.guess(raw)
    expected = set(architecture.shapes(arch)) if arch else set()
    if arch is None or expected - raw.keys():
        arch = arch or "resnet50"
        missing = [name for name in architecture.shapes(arch) if name not in raw]
        total = len(architecture.shapes(arch))
        raise UserError(
            f"{where}: {total - len(missing)} of {total} tensors of a {arch}; "
            f"{len(missing)} are missing: {some(missing)}"
        )
    return arch


def _inside(raw: Tensors, arch: str, where: str) -> list[LeftOut]:
    """What the branch holds besides the backbone: all counters or none, heads, nothing that looks like a backbone."""
    expected, counters = architecture.shapes(arch), architecture.counters(arch)
    rest = [name for name in raw if name not in expected]
    present = [name for name in counters if name in raw]
    if present and len(present) != len(counters):
        missing = [name for name in counters if name not in raw]
        raise UserError(
            f"{where}: {len(expected) + len(present)} tensors, neither {len(expected)} nor (with {COUNTER}) "
            f"{len(expected) + len(counters)}; missing: {some(missing)}"
        )
    for name in present:
        if raw[name].numel() != 1 or raw[name].is_floating_point():
            raise UserError(f"{where}: {name} must be one whole number, not {_kind(raw[name])}")
    heads = [name for name in rest if name not in set(counters)]
    extra = [name for name in heads if name.split(".")[0].rstrip("0123456789") in ("conv", "bn", "layer", "downsample")]
    if extra:
        raise UserError(f"{where}: {len(extra)} tensors more than a {arch} has: {some(extra)}")
    groups = {f"{name.rsplit('.', 1)[0]}.*" if "." in name else name: None for name in heads}
    return [LeftOut(name, "not of the backbone") for name in groups] + (
        [LeftOut(f"*.{COUNTER}", "counter, not used by the detector")] if present else []
    )


def _settled(backbone: Backbone, name: str, tensor: torch.Tensor, shape: tuple[int, ...], where: str) -> torch.Tensor:
    """One tensor as contiguous float32, checked; remarks go to the backbone."""
    if tuple(tensor.shape) != shape:
        raise UserError(f"{where}: {name} has shape {list(tensor.shape)}, a {backbone.arch} has {list(shape)}")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or not tensor.is_floating_point():
        raise UserError(f"{where}: {name} is {_kind(tensor)}; weights must be plain floating-point numbers")
    if tensor.dtype in UP:
        backbone.converted_up.append(name)
    elif tensor.dtype != torch.float32:
        backbone.warnings.append(f"{name} is {_kind(tensor)}: rounded to float32")
    settled = tensor.detach().to(torch.float32).contiguous()
    if not torch.isfinite(settled).all():
        raise UserError(f"{where}: {name} holds NaN or Inf: its run has diverged; take an earlier checkpoint")
    if name.endswith("running_var"):
        _check_variance(backbone, name, settled, where)
    return settled


def _check_variance(backbone: Backbone, name: str, tensor: torch.Tensor, where: str) -> None:
    """A negative variance is damage; zero is a dead channel, or a whole norm that never saw an image."""
    lowest = float(tensor.min())
    dead = int((tensor == 0).sum())
    if lowest < 0:
        raise UserError(f"{where}: {name} holds a negative variance ({lowest:.3g}); the file is damaged")
    if dead == tensor.numel():
        raise UserError(f"{where}: {name} is zero in every channel: this norm has no statistics")
    if dead:
        backbone.warnings.append(f"{name}: variance 0 in {dead} of {tensor.numel()} channels (dead channels)")


def _kind(tensor: torch.Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind} of shape {list(tensor.shape)}" + (" on the meta device" if tensor.is_meta else "")


def some(names: list[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
