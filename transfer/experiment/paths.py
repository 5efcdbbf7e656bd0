"""What a path in an experiment file means.

Config files and overlays: relative to the current folder, else to the checkout (so `configs/…` works from anywhere).
Everything else (run_dir, weights, data roots): relative to the current folder. `~` and `$VARIABLE` are expanded.
No link is followed: on a cluster the same link may lead elsewhere on another host.
"""

from __future__ import annotations

import os
from pathlib import Path

from common import environment


def absolute(path: str) -> Path:
    """The path seen from the current folder."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)


def config_file(path: str) -> Path:
    """The config file or overlay: the current folder's, else the checkout's; it need not exist."""
    here = absolute(path)
    if here.exists() or Path(path).is_absolute():
        return here
    return environment.ROOT / path
