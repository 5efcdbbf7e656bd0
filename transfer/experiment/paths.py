"""What a path in an experiment file means.

Config files and overlays: relative to the current folder, else to the checkout (so `configs/…` works from anywhere).
Everything else (run_dir, weights, data roots): relative to the current folder. `~` and `$VARIABLE` are expanded.
Weights may also be `zoo:NAME`, a public checkpoint of configs/zoo.yaml.
No link is followed: on a cluster the same link may lead elsewhere on another host.
"""

from __future__ import annotations

import os
from pathlib import Path

from common import environment
from transfer.weights import zoo


def absolute(path: str) -> Path:
    """The path seen from the current folder."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)


def config_file(path: str) -> Path:
    """The config file or overlay: the current folder's, else the checkout's; it need not exist."""
    here = absolute(path)
    if here.exists() or Path(path).is_absolute():
        return here
    return environment.ROOT / path


def checkpoint(weights: str) -> Path:
    """The checkpoint that a row's `weights` names; a zoo's lies where its download goes, and need not exist.

    Raises:
        UserError: `zoo:NAME` with a name that the zoo does not have.
    """
    entry = zoo.find_entry(weights)
    return absolute(weights) if entry is None else entry.file
