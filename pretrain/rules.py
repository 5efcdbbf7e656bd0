"""Rules that values of a configuration keep, for `pretrain.checks` and for the methods' own keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from fvcore.common.config import CfgNode

from common.config import value_of
from common.errors import UserError, nearest

Rule = tuple[str, Callable[[Any], bool], str]
"""Dotted keys with spaces between them, a test of their values, and what the values must be, in words."""


def must_be_named(cfg: CfgNode, names: Mapping[str, Collection[str]]) -> None:
    """Raise UserError for the first key whose value is none of its names, with the nearest of them."""
    for key, valid in names.items():
        value = value_of(cfg, key)
        if value not in valid:
            raise UserError(f"{key} is {value!r}, which there is not; {nearest(value, list(valid))}")


def must_hold(cfg: CfgNode, rules: Iterable[Rule]) -> None:
    """Raise UserError for the first value that fails its rule's test."""
    for keys, test, what in rules:
        for key in keys.split():
            value = value_of(cfg, key)
            if not test(value):
                raise UserError(f"{key} is {value!r}; it must be {what}")


def must_keep_default(cfg: CfgNode, keys: Iterable[str], what: str = "") -> None:
    """Raise UserError for the first key that is not at its default although the method would not read it.

    Args:
        what: said instead, of keys that would be read and must not differ.
    """
    from pretrain.keys import defaults

    usual = defaults()
    for key in keys:
        value, default = value_of(cfg, key), value_of(usual, key)
        if value != default:
            said = what or f"METHOD {cfg.METHOD} does not read it: leave it at {default!r}"
            raise UserError(f"{key} is {value!r}; {said.format(default=default)}")
