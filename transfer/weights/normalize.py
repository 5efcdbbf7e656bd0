"""Read any checkpoint as a `Backbone`: recognise the layout, choose the branch, check and normalise its tensors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from ssl_transfer.errors import UserError, abbreviate, nearest
from ssl_transfer.formats.backbone import TORCHVISION, Branch
from ssl_transfer.formats.manifest import DroppedTensor, SourceFile
from transfer.weights import resnet
from transfer.weights.containers import CheckpointFile, read_checkpoint
from transfer.weights.find_resnets import find_resnets, find_state_dicts, unwrapped_views
from transfer.weights.hugging_face import hub_address
from transfer.weights.match import Match, Tensors
from transfer.weights.readers import LAYOUTS, LAYOUTS_BY_NAME, hugging_face_config
from transfer.weights.readers.any import choices, match_prefix
from transfer.weights.readers.openmmlab import apply_config
from transfer.weights.resnet import Backbone, Shape, guess_arch

HALF_TYPES = (torch.float16, torch.bfloat16)
AVERAGE = re.compile(r"(^|[._])(ema|swa|teacher|momentum|target|averaged?|shadow|key|k)([._]|$)", re.IGNORECASE)
"""In the place of a ResNet that is the moving average of another."""

SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+")
SUPPORTED = f"detectors are built on {', '.join(resnet.BLOCKS)}"


def read_backbone(
    path: str | Path,
    source: str = "auto",
    branch: str | None = None,
    trust: bool = False,
    prefix: str | None = None,
) -> Backbone:
    """Read a checkpoint of any known layout.

    Args:
        path: the file.
        source: a layout's name, or `auto` to recognise it by the file's content.
        branch: `online` or `target`; by default the layout's own default.
        trust: let the file's pickle run code.
        prefix: where in the file the ResNet is, instead of a layout.

    Raises:
        UserError: no layout or several fit, the branch is missing, or the tensors are not a complete backbone.
    """
    checkpoint = read_checkpoint(path, trust)
    match = find_layout(checkpoint, source, prefix, branch)
    chosen = choose_branch(match, branch, checkpoint.path)
    try:
        return normalize_state_dict(checkpoint, match, chosen)
    except UserError as error:
        others = list(_other_options(checkpoint, source, chosen)) if prefix is None else []
        way = f"read another ResNet of it with {' or '.join(others)}" if others else "no option converts this file"
        raise UserError(f"{error}; {_shard_hint(checkpoint.path) or way}") from error


def _other_options(checkpoint: CheckpointFile, source: str, chosen: str) -> Iterator[str]:
    """The options that read another ResNet of the file; each is tried."""
    options: list[tuple[str, str, str | None, str]]
    options = [(f"--branch {branch}", source, None, branch) for branch in ("online", "target") if branch != chosen]
    options += [(f"--prefix {found.place}", "any", found.place, "online") for found in find_resnets(checkpoint)[:4]]
    for option, layout, prefix, branch in options:
        with contextlib.suppress(UserError):
            match = find_layout(checkpoint, layout, prefix)
            normalize_state_dict(checkpoint, match, choose_branch(match, branch, checkpoint.path))
            yield option


def find_layout(
    checkpoint: CheckpointFile, source: str = "auto", prefix: str | None = None, branch: str | None = None
) -> Match:
    """Recognise the file's layout, as it is or without the wrappers in its tensors' names.

    Args:
        checkpoint: the file.
        source: a layout's name, or `auto`.
        prefix: where in the file the ResNet is, instead of a layout.
        branch: what the encoder under `prefix` is to be called.

    Raises:
        UserError: none or several fit, or the one that `source` or `prefix` names does not.
    """
    if source not in LAYOUTS_BY_NAME and source != "auto":
        raise UserError(f"--source {source}: unknown layout; {nearest(source, [*LAYOUTS_BY_NAME, 'auto'])}")
    if prefix is not None and source not in ("auto", "any"):
        raise UserError(f"--prefix {prefix} and --source {source}: give one of them")
    for view, removed in unwrapped_views(checkpoint):
        match = _match_view(view, source, prefix, branch)
        if match is not None:
            match = hugging_face_config.apply_config(view, match)
            return _add_companions(view, replace(match, rule=match.rule + removed) if removed else match)
    contains = f"it contains {_describe_content(checkpoint)}; {_hint(checkpoint)}"
    if prefix is not None:
        raise UserError(f"{checkpoint.path} has no ResNet at --prefix {prefix}; {contains}")
    if source != "auto":
        wanted = LAYOUTS_BY_NAME[source].describe()
        raise UserError(f"{checkpoint.path} is not of layout {source}: no {wanted}; {contains}")
    raise UserError(f"{checkpoint.path} has no known layout; {contains}")


def _match_view(checkpoint: CheckpointFile, source: str, prefix: str | None, branch: str | None) -> Match | None:
    own = LAYOUTS["own"].match(checkpoint) if source == "auto" and prefix is None else None
    if own is not None:  # the file names its format: nothing to guess
        return own
    if prefix is not None:
        matches = [match_prefix(checkpoint, prefix, branch)]
    else:
        layouts = LAYOUTS.values() if source == "auto" else [LAYOUTS_BY_NAME[source]]
        matches = [layout.match(checkpoint) for layout in layouts]
    found = [match for match in matches if match is not None]
    if len(found) > 1:
        rules = "; ".join(f"--source {m.layout} ({m.rule})" for m in found)
        raise UserError(f"{checkpoint.path} fits {len(found)} layouts; choose one: {rules}")
    if not found:
        return None
    stated = found[0].preprocessing != TORCHVISION or found[0].layout in ("openmmlab", "detectron2")
    return found[0] if stated or checkpoint.at("meta") is None else apply_config(checkpoint, found[0])


def _add_companions(checkpoint: CheckpointFile, match: Match) -> Match:
    """Name the file's other ResNets: the only complete moving average becomes the target branch, others are dropped."""
    known = {tensors["conv1.weight"].data_ptr() for tensors in match.branches.values() if "conv1.weight" in tensors}
    others = [
        resnet
        for resnet in find_resnets(checkpoint, complete=False)
        if resnet.tensors["conv1.weight"].data_ptr() not in known
        and not any(item.name == f"{resnet.prefix}*" for item in match.dropped)
    ]
    averages = [resnet for resnet in others if resnet.arch and AVERAGE.search(resnet.place)]
    branches, rule = dict(match.branches), match.rule
    if len(averages) == 1 and set(branches) == {"online"} and guess_arch(branches["online"]) == averages[0].arch:
        branches["target"] = averages[0].tensors
        rule += f"; target: {averages[0].where}"
    rest = [resnet for resnet in others if branches.get("target") is not resnet.tensors]
    beside = [r for r in others if any(v.data_ptr() in known for v in checkpoint.tensors(*r.container).values())]
    inside = tuple(resnet.prefix for resnet in beside if resnet.prefix)
    dropped = [item for item in match.dropped if not item.name.startswith(inside)]
    dropped += [
        DroppedTensor(
            name=f"{resnet.place}.*",
            why=f"another {resnet.arch}; --prefix {resnet.place} reads it"
            if resnet.arch
            else "a ResNet that is incomplete or of another kind",
        )
        for resnet in rest
    ]
    dropped += [
        DroppedTensor(name=place or "the file", why=f"object of {name} with {count} tensors, not opened")
        for place, (name, count) in checkpoint.foreign.items()
        if count
    ]
    return replace(match, branches=branches, rule=rule, dropped=tuple(dropped))


def _hint(checkpoint: CheckpointFile) -> str:
    """What the user can do about a file of no known layout."""
    for view, _ in unwrapped_views(checkpoint):
        found = find_resnets(view)
        if found:
            places = ", ".join(f"a complete {item.arch} in {item.where}" for item in found)
            options = choices(found) if len(found) > 1 else f"read it with --prefix {found[0].place} or --source any"
            return f"there is {places}; {options}"
    return (
        _shard_hint(checkpoint.path)
        or _explain_foreign(checkpoint)
        or "no option converts it; --inspect shows what it holds"
    )


def _shard_hint(where: str) -> str:
    return "it is one of several shards: name the .index.json beside it" if SHARD.search(where) else ""


def _explain_foreign(checkpoint: CheckpointFile) -> str:
    """Why objects of foreign classes were not opened, and what opens those that hold tensors."""
    if not checkpoint.foreign:
        return ""
    listed = [f"{place or 'the file'} ({name})" for place, (name, _) in checkpoint.foreign.items()]
    text = f"objects of foreign classes are not opened: {abbreviate(listed)}"
    if any(name.split(".")[0] in ("haiku", "jax", "jaxlib", "optax") for name, _ in checkpoint.foreign.values()):
        return f"{text} (a JAX checkpoint: trained with SAME padding, which torch's ResNet does not have)"
    count = sum(count for _, count in checkpoint.foreign.values())
    if not count:
        return f"{text}; they hold no tensors, so no option converts this file"
    return f"{text}; they hold {count} tensors: if you trust the file's source, add --trust-checkpoint"


def _describe_content(checkpoint: CheckpointFile) -> str:
    """The keys, or the prefixes of the tensors with their counts."""
    for keys in find_state_dicts(checkpoint.tree):
        tensors = checkpoint.tensors(*keys)
        if len(tensors) > 5:
            counts: dict[str, int] = {}
            for name in tensors:
                prefix = ".".join(name.split(".")[:2]) + ".*" if name.count(".") > 1 else name
                counts[prefix] = counts.get(prefix, 0) + 1
            prefixes = [f"{prefix} ({count})" for prefix, count in sorted(counts.items(), key=lambda c: -c[1])]
            return f"{len(tensors)} tensors{' in ' + '.'.join(keys) if keys else ''}: {abbreviate(prefixes, 4)}"
    top = checkpoint.at()
    if top:
        return f"the keys {abbreviate([str(key) for key in top], 6)}"
    return f"one {checkpoint.foreign[''][0] if '' in checkpoint.foreign else type(checkpoint.tree).__name__}"


def choose_branch(match: Match, branch: str | None, path: str) -> Branch:
    """The branch to read: `branch`, or the layout's default.

    Raises:
        UserError: the file does not have it.
    """
    wanted = branch or match.default
    if wanted in match.branches:
        return "target" if wanted == "target" else "online"
    present = ", ".join(match.branches)
    hint = f"it has only the {present} encoder" + ("" if branch else f"; to read that, add --branch {present}")
    raise UserError(f"{path} ({match.layout}) has no {wanted} encoder ({match.rule}); {hint}")


def normalize_state_dict(checkpoint: CheckpointFile, match: Match, branch: Branch) -> Backbone:
    """Check one branch and return it as contiguous float32 tensors, exactly those of its architecture.

    Args:
        checkpoint: the file.
        match: the layout recognised in it.
        branch: the encoder to read; must be in `match.branches`.

    Raises:
        UserError: not one of `resnet.BLOCKS`, a tensor too many or too few, a wrong shape or type, NaN or Inf, a
            negative variance; names the tensors.
    """
    where = f"{checkpoint.path} ({match.layout}, {branch})"
    raw = match.branches[branch]
    arch = _find_arch(raw, match.arch, where)
    backbone = Backbone(
        arch=arch,
        tensors={},
        preprocessing=match.preprocessing,
        source=SourceFile(
            path=checkpoint.path,
            sha256=checkpoint.sha256,
            bytes=checkpoint.bytes,
            layout=match.layout,
            rule=match.rule,
            branch=branch,
            **({"address": address} if (address := hub_address(checkpoint.path)) else {}),
        ),
        origin=match.origin,
        dropped=[*match.dropped, *_other_branches(match, branch), *_list_extra(raw, arch, where)],
        warnings=list(match.warnings),
    )
    for name, shape in resnet.tensor_shapes(arch).items():
        backbone.tensors[name] = _normalize_tensor(backbone, name, raw[name], shape, where)
    return backbone


def _other_branches(match: Match, branch: str) -> list[DroppedTensor]:
    why = {"online": "online branch", "target": "momentum branch"}
    return [DroppedTensor(name=f"{other} encoder", why=why[other]) for other in match.branches if other != branch]


def _find_arch(raw: Tensors, stated: str | None, where: str) -> str:
    """The architecture of these tensors, of which none is missing."""
    mismatch = resnet.explain_mismatch({name: tuple(tensor.shape) for name, tensor in raw.items()})
    if mismatch is not None:
        raise UserError(f"{where} is {mismatch}; {SUPPORTED}")
    if stated is not None and stated not in resnet.BLOCKS:
        raise UserError(f"{where}: its metadata name the architecture {stated}; {SUPPORTED}")
    guessed = stated or resnet.guess_arch(raw)
    expected = resnet.tensor_shapes(guessed or "resnet50")
    missing = [name for name in expected if name not in raw]
    if guessed is None or missing:
        raise UserError(
            f"{where}: {len(expected) - len(missing)} of {len(expected)} tensors of a {guessed or 'resnet50'}; "
            f"{len(missing)} are missing: {abbreviate(missing)}"
        )
    return guessed


def _list_extra(raw: Tensors, arch: str, where: str) -> list[DroppedTensor]:
    """Tensors of the branch besides the backbone: either all counters or none, and heads."""
    expected, counters = resnet.tensor_shapes(arch), resnet.counter_names(arch)
    present = [name for name in counters if name in raw]
    if present and len(present) != len(counters):
        missing = [name for name in counters if name not in raw]
        raise UserError(
            f"{where}: {len(expected) + len(present)} tensors, neither {len(expected)} nor (with {resnet.COUNTER}) "
            f"{len(expected) + len(counters)}; missing: {abbreviate(missing)}"
        )
    for name in present:
        if raw[name].numel() != 1 or raw[name].is_floating_point():
            raise UserError(f"{where}: {name} must be one integer, not {_describe_tensor(raw[name])}")
    heads = [name for name in raw if name not in expected and name not in set(counters)]
    extra = [name for name in heads if name.split(".")[0].rstrip("0123456789") in ("conv", "bn", "layer", "downsample")]
    if extra:
        raise UserError(f"{where}: {len(extra)} tensors more than a {arch} has: {abbreviate(extra)}")
    groups = {f"{name.rsplit('.', 1)[0]}.*" if "." in name else name: None for name in heads}
    dropped = [DroppedTensor(name=name, why="not of the backbone") for name in groups]
    if present:
        dropped.append(DroppedTensor(name=f"*.{resnet.COUNTER}", why="counter, not used by the detector"))
    return dropped


def _normalize_tensor(backbone: Backbone, name: str, tensor: torch.Tensor, shape: Shape, where: str) -> torch.Tensor:
    """One tensor as contiguous float32, checked; conversions and warnings are noted in `backbone`."""
    if tuple(tensor.shape) != shape:
        raise UserError(f"{where}: {name} has shape {list(tensor.shape)}, a {backbone.arch} has {list(shape)}")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or not tensor.is_floating_point():
        raise UserError(f"{where}: {name} is {_describe_tensor(tensor)}; weights must be plain floating-point numbers")
    if tensor.dtype in HALF_TYPES:
        backbone.converted_up.append(name)
    elif tensor.dtype != torch.float32:
        backbone.warnings.append(f"{name} is {_describe_tensor(tensor)}: rounded to float32")
    normalized = tensor.detach().to(torch.float32).contiguous()
    if not torch.isfinite(normalized).all():
        raise UserError(f"{where}: {name} contains NaN or Inf: its run has diverged; use an earlier checkpoint")
    if name.endswith("running_var"):
        _check_variance(backbone, name, normalized, where)
    return normalized


def _check_variance(backbone: Backbone, name: str, tensor: torch.Tensor, where: str) -> None:
    """A negative variance is damage; zero is a dead channel, or a whole norm that has never seen an image."""
    lowest = float(tensor.min())
    dead = int((tensor == 0).sum())
    if lowest < 0:
        raise UserError(f"{where}: {name} contains a negative variance ({lowest:.3g}); the file is damaged")
    if dead == tensor.numel():
        raise UserError(f"{where}: {name} is zero in every channel: this norm has no statistics")
    if dead:
        backbone.warnings.append(f"{name}: variance 0 in {dead} of {tensor.numel()} channels (dead channels)")


def _describe_tensor(tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} of shape {list(tensor.shape)}" + (" on the meta device" if tensor.is_meta else "")
