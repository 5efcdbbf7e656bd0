"""A trial's folder: its checkpoints, and whether it belongs to the trial that is requested.

Two runs are the same trial when every setting that changes its numbers is the same; `trial.json` records them.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from ssl_transfer.config import flatten_config, list_changes, load_yaml
from ssl_transfer.errors import UserError, abbreviate
from ssl_transfer.files import read_json, write_json
from ssl_transfer.formats.results import FINAL_CHECKPOINT, RESULT_FILE
from ssl_transfer.formats.run_only import may_change_on_resume
from ssl_transfer.training.checkpoint import LAST, CheckpointFolder, load_checkpoint
from transfer.engine.config import ORDER_KEY, ORDER_OF_WORKERS, defaults

logger = logging.getLogger(__name__)

IDENTITY_FILE, CONFIG_FILE, EVALUATION_FILE = "trial.json", "config.yaml", "evaluation.json"
"""The first two are written when a trial begins, the last by `--eval-only`."""
FORMAT = "trial/1"
EVALUATOR_KEY = "TRANSFER.EVALUATOR"
"""Recorded only where it is set; `--eval-only` takes any."""
TRAINING = (
    "SOLVER.",
    "MODEL.RESNETS.NORM",
    "DATALOADER.",
    "TEST.EVAL_PERIOD",
    "TRANSFER.CHANNELS_LAST",
    "TRANSFER.ROI_ALIGN",
)
"""Keys, or their beginnings, that describe training and not what is measured. The norm's name is one of them: in
evaluation every norm uses its running statistics."""


class TrialCheckpoints(CheckpointFolder):
    """The checkpoints of one trial. Names and the `model` entry are Detectron2's, so its tools load these files.

    Args:
        folder: the trial's folder.
        keep: number of numbered checkpoints that are kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        super().__init__(folder, "model")
        self.keep = keep

    def candidates(self) -> list[Path]:
        """The one that `last_checkpoint` names, which may be the final one, then the numbered ones, newest first."""
        last = self.last()
        return [] if last is None else [last, *(path for path in super().candidates() if path != last)]

    def save(self, model: dict[str, Any], trainer: dict[str, Any], iteration: int) -> None:
        """Write a checkpoint to resume from, then remove the oldest.

        Args:
            model: the detector's state dict.
            trainer: state of optimizer, schedule and hooks.
            iteration: the iteration just done, counted from 0.
        """
        self._save(self.path(iteration).name, {"model": model, "trainer": trainer, "iteration": iteration})
        if comm.is_main_process():
            for old in self.files()[: -self.keep]:
                old.unlink()

    def save_final(self, model: dict[str, Any], iteration: int) -> None:
        """Write the trained detector, without the trainer's state: all that evaluation needs."""
        self._save(FINAL_CHECKPOINT, {"model": model, "iteration": iteration})

    def _save(self, name: str, content: dict[str, Any]) -> None:
        if comm.is_main_process():
            logger.info("wrote checkpoint %s", self.write(name, content))

    @staticmethod
    def load(path: Path) -> dict[str, Any]:
        """Read a checkpoint; tensors are on the CPU.

        Raises:
            UserError: it is no checkpoint of a trial.
        """

        def reject(content: dict[str, Any]) -> str | None:
            return None if {"model", "iteration"} <= content.keys() else "it is not a checkpoint of a trial"

        return load_checkpoint(path, reject, "remove it to start over, or choose another --output")


def trial_identity(cfg: CfgNode, weights_sha256: str | None, processes: int) -> dict[str, Any]:
    """The trial's identity as plain JSON types: resolved settings, digest of the weights, number of processes."""
    settings: dict[str, Any] = {}
    for key, value in flatten_config(cfg).items():
        if key == "TRANSFER.CHANNELS_LAST":
            settings[ORDER_KEY] = ORDER_OF_WORKERS  # where it stood as a key: the file's bytes stay the same
        if not may_change_on_resume("transfer", key) and (key != EVALUATOR_KEY or value):
            settings[key] = value
    return {"format": FORMAT, "settings": settings, "weights": weights_sha256 or "scratch", "processes": processes}


def check_folder(
    checkpoints: TrialCheckpoints, mine: dict[str, Any], *, resume: bool, eval_only: bool, writes: bool
) -> None:
    """Check that the folder is this trial's or unused, and that nothing in it would be lost.

    Args:
        checkpoints: of the trial's folder.
        mine: `trial_identity`.
        resume, eval_only: as requested.
        writes: this process writes `trial.json` where it is missing (rank 0, unless it only evaluates).

    Raises:
        UserError: one line that says what is wrong with the folder.
    """
    folder = checkpoints.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; give a folder")
    if eval_only and not (folder / IDENTITY_FILE).is_file():
        raise UserError(f"--eval-only: {folder} holds no trial; give the --output of one")
    _claim(folder, mine, writes, trains=not eval_only)
    newest = checkpoints.last()
    if eval_only and newest is None:
        raise UserError(f"--eval-only: {folder} has no checkpoint yet; train first")
    if newest is not None and not (resume or eval_only or has_ended(folder)):
        raise UserError(
            f"{folder} holds an unfinished trial ({newest.name}); add --resume to continue it, or give another --output"
        )
    if writes and not os.access(folder, os.W_OK):
        raise UserError(f"--output {folder} cannot be written; choose a folder you may write to")


def has_ended(folder: Path) -> bool:
    """Whether the trial in `folder` has ended."""
    return (folder / RESULT_FILE).is_file()


def _claim(folder: Path, mine: dict[str, Any], writes: bool, trains: bool) -> None:
    """Record this trial's identity, or compare it with the recorded one; any number of processes may evaluate."""
    file = folder / IDENTITY_FILE
    if not file.exists():
        if (folder / LAST).exists():
            raise UserError(
                f"{folder} holds checkpoints of something else (it has no {IDENTITY_FILE}); choose another --output"
            )
        if writes:
            write_json(file, mine)
        return
    differing = differences(_recorded(folder), mine, trains)
    if differing:
        found = abbreviate(differing, separator="; ")
        raise UserError(f"{folder} holds another trial: {found}; choose another --output")


def _recorded(folder: Path) -> Any:
    """`trial.json`; the evaluator, which earlier releases did not record there, from `config.yaml`."""
    found = read_json(folder / IDENTITY_FILE)
    config = folder / CONFIG_FILE
    if isinstance(found, dict) and isinstance(found.get("settings"), dict) and config.is_file():
        evaluator = (load_yaml(config).get("TRANSFER") or {}).get("EVALUATOR")
        if evaluator:
            found["settings"].setdefault(EVALUATOR_KEY, evaluator)
    return found


def differences(theirs: Any, mine: dict[str, Any], trains: bool = True) -> list[str]:
    """Where a recorded identity and this trial's differ, as text.

    Args:
        theirs: content of `trial.json`.
        mine: `trial_identity`.
        trains: False: ignore what only training depends on.
    """
    if not isinstance(theirs, dict) or theirs.get("format") != FORMAT or not isinstance(theirs.get("settings"), dict):
        return [f"{IDENTITY_FILE} is not of format {FORMAT}"]
    now = mine["settings"]
    before = {**_defaults_of(now), **theirs["settings"]}
    compared = [key for key in sorted({*before, *now}) if trains or not key.startswith((*TRAINING, EVALUATOR_KEY))]
    found = list_changes(theirs, mine, ("weights", "processes") if trains else ("weights",))
    return found + list_changes(before, now, compared)


def _defaults_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The defaults of the TRANSFER keys among them: a trial that began before a key existed ran with its default."""
    usual = defaults()
    values = flatten_config({"TRANSFER": usual.TRANSFER})
    values[ORDER_KEY] = ORDER_OF_WORKERS
    return {key: value for key, value in values.items() if key in settings}
