"""What is in a checkpoint, and what would be converted: for `tools/convert.py --inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import torch

from common.errors import UserError
from transfer.weights import architecture
from transfer.weights.canonicalise import canonicalise, some
from transfer.weights.containers import Content
from transfer.weights.match import Match
from transfer.weights.read import choose, find
from transfer.weights.survey import state_dicts, survey


def describe_file(content: Content, source: str = "auto", branch: str | None = None) -> list[str]:
    """Lines that say what the file holds and what converting it would do; bad files are described, not refused."""
    lines = [
        f"file: {content.path} ({content.kind}, {content.bytes / 1e6:.1f} MB, sha256 {content.sha256})",
        *_facts(content),
        *_state_dicts(content),
        *(f"ResNet: {item.where} ({item.arch or 'not whole, or of another kind'})" for item in survey(content, False)),
    ]
    try:
        match = find(content, source)
    except UserError as error:
        return [*lines, f"layout: none ({error})"]
    lines.append(f"layout: {match.layout} ({match.rule})")
    lines += [f"branch: {name}, {_counts(match.branches[name])}" for name in match.branches]
    return lines + _outcome(content, match, branch)


def _facts(content: Content) -> Iterator[str]:
    """Plain values at the top level: epoch, arch, author, …; and the names of the rest."""
    top = content.at() or {}
    for key, value in top.items():
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            yield f"{key}: {str(value)[:80]}"
    meta = top.get("meta")
    if isinstance(meta, Mapping) and isinstance(meta.get("epoch"), int):
        yield f"epoch: {meta['epoch']}"
    rest = [str(k) for k, v in top.items() if not isinstance(v, (str, int, float, torch.Tensor))]
    if rest:
        yield f"holds: {some(rest, 12)}"
    for key in ("format", "arch", "branch"):
        if key in content.metadata:
            yield f"metadata {key}: {content.metadata[key]}"


def _state_dicts(content: Content) -> Iterator[str]:
    for container in state_dicts(content.tree):
        tensors = content.tensors(*container)
        kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
        dtypes = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        yield f"tensors in {'.'.join(container) or 'the file'}: {len(tensors)} ({dtypes})"


def _counts(tensors: Mapping[str, torch.Tensor]) -> str:
    counters = sum(name.endswith(architecture.COUNTER) for name in tensors)
    return f"{len(tensors) - counters} tensors and {counters} counters"


def _outcome(content: Content, match: Match, branch: str | None) -> list[str]:
    try:
        backbone = canonicalise(content, match, choose(match, branch, content.path))
    except UserError as error:
        return [f"would not convert: {error}"]
    order = backbone.preprocessing.channel_order
    stride = "1×1" if backbone.preprocessing.stride_in_1x1 else "3×3"
    lines = [f"left out: {item.name} ({item.why})" for item in backbone.left_out]
    lines += [f"converted up to float32: {len(backbone.converted_up)} tensors"] if backbone.converted_up else []
    lines += [f"warning: {warning}" for warning in backbone.warnings]
    total = len(backbone.tensors)
    return [
        *lines,
        f"would convert: {backbone.source.branch} branch, {backbone.arch}, {total}/{total} tensors, {order}, "
        f"stride on the {stride}",
    ]
