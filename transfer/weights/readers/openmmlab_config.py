"""The preprocessing that a config of mmcv or mmengine states; a checkpoint keeps it in `meta`, as text or as a dict."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from ssl_transfer.errors import UserError
from ssl_transfer.formats.backbone import MSRA, TORCHVISION, Preprocessing
from ssl_transfer.yaml_file import YAML_BOOLEANS, parse_yaml
from transfer.weights.inert_pickle import Foreign

MAX_TEXT = 2_000_000
"""Bytes of a config that is read."""


def read_preprocessing(meta: Mapping[Any, Any], path: str) -> Preprocessing | None:
    """The block that `meta.config` (mmcv) or `meta.cfg` (mmengine) states; None if it states none.

    Raises:
        UserError: two different ones, or one that no block can state.
    """
    for key in ("cfg", "config"):
        where = f"{path}: meta.{key}"
        config = parse_config(meta.get(key))
        if config is not None:
            style = _find_style(config)
            found = _find_constants(config, where)
            if style == "caffe" and found is None:
                raise UserError(
                    f"{where}: the backbone's style is caffe, but no mean, std and order of channels are "
                    "given: its preprocessing is not known, and no option converts it"
                )
            if style not in (None, "caffe", "pytorch"):
                raise UserError(f"{where}: the backbone's style {style!r} is unknown; no option converts this file")
            return None if found is None else make_block(*found, stride_in_1x1=style == "caffe", where=where)
    return None


def parse_config(value: Any) -> Mapping[Any, Any] | None:
    """A config as a mapping: a dict, or JSON, Python or YAML as text. Python is parsed, never run."""
    if isinstance(value, (Mapping, Foreign)):
        return _as_mapping(value)
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        return None
    for parse in (json.loads, _parse_python, lambda text: parse_yaml(text, "config").value):
        try:
            parsed = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError, UserError):
            continue
        if isinstance(parsed, Mapping) and parsed:
            return parsed
    return None


def _as_mapping(value: Any, depth: int = 3) -> Mapping[Any, Any] | None:
    """A dict, or the dict inside an object of a config's class (its items, an argument or a part of its state)."""
    if isinstance(value, Foreign) and depth:
        parts = [item for part in value.parts for item in (part if isinstance(part, (list, tuple)) else [part])]
        inner = (_as_mapping(part, depth - 1) for part in parts[:10])
        return value.items or next((mapping for mapping in inner if mapping is not None), None)
    return value if isinstance(value, Mapping) else None


def _parse_python(text: str) -> dict[str, Any]:
    """The assignments of a module that are literals, `dict(...)` or names assigned before."""
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in the config's strings
        module = ast.parse(text)
    for node in module.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = _evaluate(node.value, names)
    return names


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_evaluate(item, names) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {
            _evaluate(k, names): _evaluate(v, names)
            for k, v in zip(node.keys, node.values, strict=True)
            if isinstance(k, ast.Constant)
        }
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        unpacked = [_evaluate(word.value, names) for word in node.keywords if word.arg is None]
        given = {word.arg: _evaluate(word.value, names) for word in node.keywords if word.arg}
        return {**{k: v for one in unpacked if isinstance(one, dict) for k, v in one.items()}, **given}
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _mappings(root: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every mapping in a config with the key that leads to it, each once, outermost first."""
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [("", root)]
    while todo:
        key, value = todo.pop(0)
        mapping = _as_mapping(value)
        if (mapping is None and not isinstance(value, (list, tuple))) or id(value) in seen:
            continue
        seen.add(id(value))
        if mapping is not None:
            yield key, mapping
        inner = value if mapping is None else mapping.items()
        todo += [(key, item) for item in inner] if mapping is None else [(str(k), v) for k, v in inner]


def _find_style(config: Mapping[Any, Any]) -> Any:
    """The `style` of the first backbone; None if none is given (mmcv's default is pytorch)."""
    for key, mapping in _mappings(config):
        if key == "backbone":
            return mapping.get("style")
    return None


def _find_constants(config: Mapping[Any, Any], where: str) -> tuple[list[float], list[float], bool] | None:
    """Mean, std and whether the channels are RGB: those of the data preprocessor, else of the normalisation.

    Raises:
        UserError: several that differ.
    """
    stated: dict[bool, list[tuple[list[float], list[float], bool]]] = {True: [], False: []}
    for key, mapping in _mappings(config):
        mean, std = mapping.get("mean"), mapping.get("std")
        if not is_triple(mean) or not is_triple(std):
            continue
        kind = f"{key} {mapping.get('type')}".lower()
        is_preprocessor = "preprocessor" in kind
        scaled = max(std) < 1  # torchvision's transforms, on a scale of 0 to 1 and in RGB
        factor = 255 if scaled else 1
        default = scaled or not is_preprocessor  # mmcv's Normalize converts to RGB, a data preprocessor does not
        rgb = next((mapping[name] for name in ("to_rgb", "bgr_to_rgb") if name in mapping), default)
        rgb = YAML_BOOLEANS.get(str(rgb).lower(), bool(rgb))
        one = ([value * factor for value in mean], [value * factor for value in std], rgb)
        if one not in stated[is_preprocessor]:
            stated[is_preprocessor].append(one)
    found = stated[True] or stated[False]
    if len(found) > 1:
        shown = " and ".join(f"mean {mean}, std {std}, {'RGB' if rgb else 'BGR'}" for mean, std, rgb in found[:2])
        raise UserError(f"{where} states two preprocessings: {shown}; no option converts this file")
    return found[0] if found else None


def is_triple(value: Any) -> TypeGuard[Sequence[float]]:
    """Whether a config's value is three numbers."""
    return (
        isinstance(value, Sequence)
        and len(value) == 3
        and all(isinstance(v, (int, float)) and not abs(v) > 1e9 for v in value)
    )


def make_block(mean: list[float], std: list[float], rgb: bool, *, stride_in_1x1: bool, where: str) -> Preprocessing:
    """The block of these constants on a scale of 0 to 255; the known ones exactly, though configs round."""
    given = {"channel_order": "RGB" if rgb else "BGR", "stride_in_1x1": stride_in_1x1}
    for known in (TORCHVISION, MSRA):
        close = all(abs(a - b) < 0.01 for a, b in zip((*mean, *std), (*known.mean, *known.std), strict=True))
        if close:
            return known.model_copy(update=given)
    return Preprocessing.parse({**given, "mean": mean, "std": std}, f"{where}, preprocessing")
