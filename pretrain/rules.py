"""Rules for config values, used by `pretrain.config` and by the methods' own `check`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from fvcore.common.config import CfgNode

from ssl_transfer.config import value_of
from ssl_transfer.errors import UserError, nearest

Rule = tuple[str, Callable[[Any], bool], str]
"""Dotted keys separated by spaces, a test of their values, and a description of valid values."""


def check_choices(cfg: CfgNode, choices: Mapping[str, Collection[str]]) -> None:
    """Raise UserError for the first key whose value is not one of its choices, with the nearest of them."""
    for key, valid in choices.items():
        value = value_of(cfg, key)
        if value not in valid:
            raise UserError(f"{key} is {value!r}, which does not exist; {nearest(value, list(valid))}")


def check_rules(cfg: CfgNode, rules: Iterable[Rule]) -> None:
    """Raise UserError for the first value that fails its rule's test."""
    for keys, test, what in rules:
        for key in keys.split():
            value = value_of(cfg, key)
            if not test(value):
                raise UserError(f"{key} is {value!r}; it must be {what}")


def reject_unused_keys(cfg: CfgNode, keys: Iterable[str], message: str = "") -> None:
    """Raise UserError for the first key that differs from its default, because nothing reads it.

    Args:
        message: replaces the default message, for keys that are read but must not differ; `{default!r}` is filled in.
    """
    from pretrain.keys import defaults

    initial = defaults()
    for key in keys:
        value, default = value_of(cfg, key), value_of(initial, key)
        if value != default:
            text = message or f"METHOD {cfg.METHOD} does not read it: leave it at {default!r}"
            raise UserError(f"{key} is {value!r}; {text.format(default=default)}")
