"""Checkpoint files: written atomically, numbered by iteration, the newest ones kept, damaged ones set aside."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ssl_transfer.errors import UserError
from ssl_transfer.files import atomic_write, damaged_record, remove_partial_files, write_text
from ssl_transfer.training.collectives import run_on_main_process

LAST = "last_checkpoint"
"""The file that names the newest checkpoint, as Detectron2 calls it."""
DAMAGED = ".damaged"
"""Ending of a checkpoint that was set aside."""

_log = logging.getLogger(__name__)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` by `torch.save`, atomically: the file is complete or absent."""
    with atomic_write(path) as stream:
        torch.save(content, stream)


def load_checkpoint(path: Path, reject: Callable[[Any], str | None], remedy: str) -> dict[str, Any]:
    """Read a checkpoint that `damaged_record` found whole; tensors are on the CPU. Nothing of it is executed.

    Args:
        path: the file.
        reject: given the content, says why it is not the expected checkpoint, or None.
        remedy: what the user should do; ends the message.

    Raises:
        UserError: the file is something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a file that is not its own
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"checkpoint {path} cannot be used ({reason}); {remedy}") from error
    why = "it holds no keys and values" if not isinstance(content, dict) else reject(content)
    if why:
        raise UserError(f"checkpoint {path} cannot be used ({why}); {remedy}")
    return dict(content)


def set_aside_if_damaged(path: Path) -> bool:
    """Rename a checkpoint whose records do not have their checksums to `NAME.damaged`, and log it; it is never deleted.

    Returns:
        Whether it was damaged.
    """
    reason = damaged_record(path) or _unreadable_archive(path)
    if reason is not None:
        set_aside(path, reason)
    return reason is not None


def set_aside(path: Path, reason: str) -> None:
    """Rename a damaged file to `NAME.damaged`, and log it; it is never deleted."""
    target, number = path.with_name(path.name + DAMAGED), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}{DAMAGED}{number}")
    path.rename(target)
    _log.warning("%s is damaged (%s): set aside as %s", path, reason, target.name)


def _unreadable_archive(path: Path) -> str | None:
    """Why torch's reader refuses a zip that Python's accepts: a few bits of its directory matter to torch alone."""
    try:
        torch._C.PyTorchFileReader(str(path))
    except RuntimeError as error:
        return str(error).partition(". ")[0]
    return None


class CheckpointFolder:
    """The numbered checkpoints of one run, `<prefix>_<number>.pth`. The main process writes and removes.

    Args:
        folder: the run's folder.
        prefix: of the files' names.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder, self.prefix = folder, prefix
        self._name = re.compile(rf"{re.escape(prefix)}_(\d{{7,}})\.pth")

    def path(self, number: int) -> Path:
        return self.folder / f"{self.prefix}_{number:07d}.pth"

    def number(self, name: str) -> int | None:
        """The number in a file's name; None for other files."""
        match = self._name.fullmatch(name)
        return int(match.group(1)) if match else None

    def files(self) -> list[Path]:
        """All numbered checkpoints, oldest first. Each is complete, because it was renamed into place."""
        found = [(self.number(path.name), path) for path in self.folder.glob(f"{self.prefix}_*.pth")]
        return [path for _, path in sorted((number, path) for number, path in found if number is not None)]

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, the same on all processes; every process must call it.

        Damaged ones are set aside. On a shared file system the newest file may not be visible on every node yet: the
        main process decides.
        """
        name = run_on_main_process(self._newest_whole)
        return self.folder / name if name else None

    def _newest_whole(self) -> str | None:
        return next((path.name for path in self.candidates() if not set_aside_if_damaged(path)), None)

    def candidates(self) -> list[Path]:
        """The checkpoints to resume from, the newest first."""
        return self.files()[::-1]

    def write(self, name: str, content: dict[str, Any]) -> Path:
        """Write a checkpoint, and its name to `last_checkpoint`. Called by the main process only."""
        path = self.folder / name
        save_checkpoint(path, content)
        write_text(self.folder / LAST, name + "\n")
        return path

    def last(self) -> Path | None:
        """The checkpoint that `last_checkpoint` names, else the newest numbered one; None when there is neither.

        Raises:
            UserError: it names a file that does not exist, and nothing else is left.
        """
        try:
            name = (self.folder / LAST).read_text(errors="replace").strip()
        except FileNotFoundError:
            return None
        path = self.folder / name
        if path.parent == self.folder and path.is_file():
            return path
        left = self.files()
        if not left and not list(self.folder.glob(f"*{DAMAGED}*")):
            raise UserError(
                f"{self.folder / LAST} names {name}, which does not exist; restore it, or start in another --output"
            )
        found = left[-1] if left else None
        _log.warning("%s names %s, which does not exist: taking %s", self.folder / LAST, name, found or "none")
        return found

    def remove_partial(self) -> None:
        """Remove temporary files of a process that was killed while it wrote. Called by the main process only."""
        remove_partial_files(self.folder, [f"{self.prefix}_*.pth", LAST])


def random_state() -> dict[str, Any]:
    """The state of this process's global random generators: Python's, torch's and the GPU's."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Restore `random_state`; a GPU's state is ignored where there is no GPU now."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
