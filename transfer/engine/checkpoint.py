"""Checkpoints of one trial: whole or not there, the last few kept."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

from common.errors import UserError
from common.files import atomic_write, write_text

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"
"""The file that names the newest checkpoint, as Detectron2 calls it."""
FINAL = "model_final.pth"
_NUMBERED = re.compile(r"model_(\d{7})\.pth")


class Checkpoints:
    """The checkpoints in one trial's folder. Rank 0 writes, all ranks read.

    Names and the `model` entry are Detectron2's, so its tools load these files.

    Args:
        folder: the trial's folder.
        keep: how many numbered checkpoints stay.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder, self.keep = folder, keep

    def newest(self) -> Path | None:
        """The checkpoint to go on from; None when there is none.

        Raises:
            UserError: `last_checkpoint` names a file that is not there.
        """
        try:
            name = (self.folder / LAST).read_text().strip()
        except FileNotFoundError:
            return None
        path = self.folder / name
        if not path.is_file():
            raise UserError(
                f"{self.folder / LAST} names {name}, which is not there; put it back, or start in another --output"
            )
        return path

    def save(self, model: dict[str, Any], trainer: dict[str, Any], iteration: int) -> None:
        """Write a checkpoint to resume from, then let go of the oldest.

        Args:
            model: the detector's state dict.
            trainer: optimiser, schedule and whatever else the trainer needs.
            iteration: the iteration just done, counted from 0.
        """
        name = f"model_{iteration:07d}.pth"
        self._write(name, {"model": model, "trainer": trainer, "iteration": iteration})
        for old in self._numbered()[: -self.keep]:
            old.unlink()

    def save_final(self, model: dict[str, Any], iteration: int) -> None:
        """Write the trained detector: what evaluation needs, without the optimiser's half."""
        self._write(FINAL, {"model": model, "iteration": iteration})

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if not comm.is_main_process():
            return
        with atomic_write(self.folder / name) as stream:
            torch.save(content, stream)
        write_text(self.folder / LAST, name)
        logger.info("wrote checkpoint %s", self.folder / name)

    def remove_torn(self) -> None:
        """Remove what a killed process left half written (`atomic_write`'s temporary names)."""
        if comm.is_main_process():
            for torn in self.folder.glob(".model_*.pth.*.tmp"):
                torn.unlink(missing_ok=True)

    def _numbered(self) -> list[Path]:
        """Checkpoints this class wrote, oldest first; empty on all ranks but the first, which alone tidies up."""
        if not comm.is_main_process():
            return []
        return sorted(file for file in self.folder.iterdir() if _NUMBERED.fullmatch(file.name))

    @staticmethod
    def load(path: Path) -> dict[str, Any]:
        """Read a checkpoint; tensors lie on the CPU.

        Raises:
            UserError: it is no checkpoint of this project.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises half a dozen types for a file that is not one of its own
            raise UserError(
                f"{path} is not a whole checkpoint ({type(error).__name__}); remove it to start over"
            ) from error
        if not isinstance(content, dict) or not {"model", "iteration"} <= content.keys():
            raise UserError(f"{path} is not a checkpoint of a trial of this project; choose another --output")
        return content
