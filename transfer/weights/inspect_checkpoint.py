"""Describe a checkpoint's content and how it would be converted, for `tools/convert.py --inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import torch

from ssl_transfer.errors import UserError, abbreviate
from transfer.weights.containers import CheckpointFile
from transfer.weights.find_resnets import find_resnets, find_state_dicts
from transfer.weights.match import Match, Tensors
from transfer.weights.normalize import choose_branch, find_layout, normalize_state_dict
from transfer.weights.resnet import COUNTER

MAX_LISTED = 20


def describe_checkpoint(
    checkpoint: CheckpointFile, source: str = "auto", branch: str | None = None, prefix: str | None = None
) -> list[str]:
    """Lines about the file's content and its conversion. A file that cannot be converted is described, too."""
    lines = [
        f"file: {checkpoint.path} ({checkpoint.kind}, {checkpoint.bytes / 1e6:.1f} MB, sha256 {checkpoint.sha256})",
        *_top_level_values(checkpoint),
        *_count_by_dtype(checkpoint),
        *(
            f"ResNet: {resnet.where} ({resnet.arch or 'incomplete, or of another kind'})"
            for resnet in find_resnets(checkpoint, complete=False)
        ),
        *(
            f"not opened: {place or 'the file'} (object of {name}, {count} tensors)"
            for place, (name, count) in list(checkpoint.foreign.items())[:MAX_LISTED]
        ),
    ]
    try:
        match = find_layout(checkpoint, source, prefix, branch)
    except UserError as error:
        return [*lines, f"layout: none ({error})"]
    lines.append(f"layout: {match.layout} ({match.rule})")
    lines += [f"branch: {name}, {_count_tensors(match.branches[name])}" for name in match.branches]
    return lines + _describe_conversion(checkpoint, match, branch)


def _top_level_values(checkpoint: CheckpointFile) -> Iterator[str]:
    """Plain values at the top level, such as epoch and arch; and the names of the others."""
    top = checkpoint.at() or {}
    for key, value in top.items():
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            yield f"{key}: {str(value)[:80]}"
    meta = top.get("meta")
    if isinstance(meta, Mapping) and isinstance(meta.get("epoch"), int):
        yield f"epoch: {meta['epoch']}"
    rest = [str(k) for k, v in top.items() if not isinstance(v, (str, int, float, torch.Tensor))]
    if rest:
        yield f"contains: {abbreviate(rest, 12)}"
    for key in ("format", "arch", "branch"):
        if key in checkpoint.metadata:
            yield f"metadata {key}: {checkpoint.metadata[key]}"


def _count_by_dtype(checkpoint: CheckpointFile) -> Iterator[str]:
    for container in find_state_dicts(checkpoint.tree):
        tensors = checkpoint.tensors(*container)
        kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
        dtypes = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        yield f"tensors in {'.'.join(container) or 'the file'}: {len(tensors)} ({dtypes})"


def _count_tensors(tensors: Tensors) -> str:
    counters = sum(name.endswith(COUNTER) for name in tensors)
    return f"{len(tensors) - counters} tensors and {counters} counters"


def _describe_conversion(checkpoint: CheckpointFile, match: Match, branch: str | None) -> list[str]:
    try:
        backbone = normalize_state_dict(checkpoint, match, choose_branch(match, branch, checkpoint.path))
    except UserError as error:
        return [f"would not convert: {error}"]
    order = backbone.preprocessing.channel_order
    stride = "1×1" if backbone.preprocessing.stride_in_1x1 else "3×3"
    lines = [f"dropped: {item.name} ({item.why})" for item in backbone.dropped]
    lines += [f"converted up to float32: {len(backbone.converted_up)} tensors"] if backbone.converted_up else []
    lines += [f"warning: {warning}" for warning in backbone.warnings]
    total = len(backbone.tensors)
    return [
        *lines,
        f"would convert: {backbone.source.branch} branch, {backbone.arch}, {total}/{total} tensors, {order}, "
        f"stride on the {stride}",
    ]
