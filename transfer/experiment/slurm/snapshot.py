"""A copy of the code, so that what runs is what was submitted, whatever is edited meanwhile."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from common import environment
from common.files import write_text

PARTS = ("common", "pretrain", "transfer", "tools", "configs")


def take(run_dir: Path) -> Path:
    """The copy in the run folder, named by its content; made unless it is there.

    Returns:
        `RUN_DIR/code-<8 hex>`, which holds the checkout's packages, tools and configs and its commit.
    """
    files = list(_files())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file}\0".encode())
        digest.update(hashlib.sha256((environment.ROOT / file).read_bytes()).digest())
    target = run_dir / f"code-{digest.hexdigest()[:8]}"
    if target.exists():
        return target
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    for file in files:
        (part / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(environment.ROOT / file, part / file)
    write_text(part / environment.COMMIT_FILE, environment.commit() + "\n")
    part.rename(target)
    return target


def _files() -> Iterator[Path]:
    for part in PARTS:
        for here, folders, names in os.walk(environment.ROOT / part):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(names):
                yield (Path(here) / name).relative_to(environment.ROOT)
