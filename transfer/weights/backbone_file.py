"""The metadata of a backbone file (docs/reference/formats.md), as safetensors and our `.pth` carry it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from common.errors import UserError
from transfer.weights.canonical import Preprocessing

FORMAT = "backbone/1"


def metadata(manifest: Mapping[str, Any]) -> dict[str, str]:
    """A converted backbone's metadata: the backbone file's keys, and the manifest."""
    found = {
        "format": FORMAT,
        "arch": manifest["arch"],
        "branch": manifest["source"]["branch"],
        "preprocessing": json.dumps(manifest["preprocessing"]),
        "manifest": json.dumps(manifest),
    }
    if manifest["origin"] is not None:
        found["origin"] = json.dumps(manifest["origin"])
    return found


def is_backbone(held: Mapping[str, str]) -> bool:
    """Whether these are a backbone file's metadata."""
    return held.get("format") == FORMAT


def parsed(held: Mapping[str, str], key: str, where: str) -> Any:
    """One JSON value of the metadata; None when the key is not there.

    Raises:
        UserError: it is not JSON.
    """
    if key not in held:
        return None
    try:
        return json.loads(held[key])
    except ValueError as error:
        raise UserError(f"{where}: metadata {key} is not JSON; write the file again") from error


def branch_of(held: Mapping[str, str], where: str) -> str:
    """The encoder the file holds.

    Raises:
        UserError: neither `online` nor `target`.
    """
    branch = held.get("branch", "")
    if branch not in ("online", "target"):
        raise UserError(f"{where}: metadata branch must be online or target, not {branch!r}")
    return branch


def preprocessing_of(held: Mapping[str, str], where: str) -> Preprocessing:
    """The preprocessing block.

    Raises:
        UserError: it is missing or not one.
    """
    return Preprocessing.from_dict(parsed(held, "preprocessing", where), where)
