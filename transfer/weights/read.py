"""Reading any checkpoint: find whose layout it is, take the asked branch, check it."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError, nearest
from transfer.weights import containers
from transfer.weights.canonical import Backbone
from transfer.weights.canonicalise import canonicalise, some
from transfer.weights.containers import Content
from transfer.weights.match import Match
from transfer.weights.readers import by_name, layouts
from transfer.weights.survey import state_dicts, survey


def read_backbone(path: str | Path, source: str = "auto", branch: str | None = None, trust: bool = False) -> Backbone:
    """Read a checkpoint of any known layout as a canonical backbone.

    Args:
        path: the file.
        source: a layout's name, or `auto` to find it by what the file holds.
        branch: `online` or `target`; the layout's own default when None.
        trust: let the file's own pickle run.

    Raises:
        UserError: no layout or several fit, the branch is not there, or the tensors are not a whole backbone.
    """
    content = containers.load(path, trust)
    match = find(content, source)
    return canonicalise(content, match, choose(match, branch, content.path))


def find(content: Content, source: str = "auto") -> Match:
    """The one layout of this file.

    Raises:
        UserError: none or several fit; or the one that was asked for does not.
    """
    if source != "auto":
        return _forced(content, source)
    known = layouts()
    own = known["own"].match(content)
    if own is not None:  # a file that says what it is need not be guessed at
        return own
    matches = [match for layout in known.values() if (match := layout.match(content)) is not None]
    if not matches:
        raise UserError(f"{content.path} is of no known layout; it holds {describe(content)}; {_way_out(content)}")
    if len(matches) > 1:
        rules = "; ".join(f"--source {m.layout} ({m.rule})" for m in matches)
        raise UserError(f"{content.path} could be of {len(matches)} layouts; choose one: {rules}")
    return matches[0]


def _forced(content: Content, source: str) -> Match:
    known = by_name()
    if source not in known:
        raise UserError(f"--source {source}: no such layout; {nearest(source, [*known, 'auto'])}")
    match = known[source].match(content)
    if match is None:
        raise UserError(
            f"{content.path} is not of layout {source}: no {known[source].expects()}; it holds {describe(content)}"
        )
    return match


def _way_out(content: Content) -> str:
    """What the user can do about a file nobody knows."""
    found = survey(content)
    if not found:
        return "--inspect shows more"
    places = ", ".join(f"a whole {item.arch} in {item.where}" for item in found)
    return f"there is {places}" + ("; --source any takes it" if len(found) == 1 else "; save one of them alone")


def choose(match: Match, branch: str | None, path: str) -> str:
    """The branch to take.

    Raises:
        UserError: the file has no such branch, or lacks the one that would be taken by default.
    """
    wanted = branch or match.default
    if wanted in match.branches:
        return wanted
    there = ", ".join(match.branches)
    hint = f"it has only the {there} encoder" + ("" if branch else f"; add --branch {there} to take that")
    raise UserError(f"{path} ({match.layout}) has no {wanted} encoder ({match.rule}); {hint}")


def describe(content: Content) -> str:
    """What the file holds, in a few words: its keys, and the prefixes of its tensors with their counts."""
    for keys in state_dicts(content.tree):
        tensors = content.tensors(*keys)
        if len(tensors) > 5:
            counts: dict[str, int] = {}
            for name in tensors:
                prefix = ".".join(name.split(".")[:2]) + ".*" if name.count(".") > 1 else name
                counts[prefix] = counts.get(prefix, 0) + 1
            listed = [f"{prefix} ({count})" for prefix, count in sorted(counts.items(), key=lambda c: -c[1])]
            return f"{len(tensors)} tensors{' in ' + '.'.join(keys) if keys else ''}: {some(listed, 4)}"
    top = content.at()
    return f"the keys {some([str(k) for k in top], 6)}" if top else f"a {type(content.tree).__name__}"
