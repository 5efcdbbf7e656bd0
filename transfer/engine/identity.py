"""What makes two runs the same trial: every setting that changes its numbers, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from common.config import dotted_keys, value_of
from common.errors import UserError
from common.files import read_json, write_json
from transfer.engine.config import defaults

FILE = "trial.json"
FORMAT = "trial/1"
NEUTRAL = (
    "OUTPUT_DIR",
    "MODEL.WEIGHTS",  # the weights' digest stands for their path
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TRANSFER.KEEP_CHECKPOINTS",
    "TRANSFER.DATA_ROOT",
    "TRANSFER.CHECK_IMAGES",
    "TRANSFER.EVALUATOR",
    "TRANSFER.PREDICTIONS",
    "VIS_PERIOD",
    "VERSION",
)
"""Keys that may differ between two runs of one trial."""


def identity(cfg: CfgNode, weights_sha256: str | None, processes: int) -> dict[str, Any]:
    """The trial's identity as plain JSON types: resolved settings, digest of the weights, number of processes."""
    settings = {key: _plain(value_of(cfg, key)) for key in dotted_keys(cfg) if key not in NEUTRAL}
    return {"format": FORMAT, "settings": settings, "weights": weights_sha256 or "scratch", "processes": processes}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


TRAINING = (
    "SOLVER.",
    "MODEL.RESNETS.NORM",
    "DATALOADER.",
    "TEST.EVAL_PERIOD",
    "TRANSFER.CHANNELS_LAST",
    "TRANSFER.ROI_ALIGN",
)
"""Keys (or their beginnings) that say how a trial was trained, not what is measured: a norm's name is one, for in
evaluation each uses its running statistics."""


def claim(folder: Path, mine: dict[str, Any], write: bool = True, trains: bool = True) -> None:
    """Make `folder` this trial's, or find that it is already.

    Args:
        folder: the trial's folder.
        mine: `identity`.
        write: write the file where it is missing (rank 0).
        trains: False for an evaluation alone, which any number of processes may do.

    Raises:
        UserError: another trial lives there; names the first settings that differ.
    """
    file = folder / FILE
    if not file.exists():
        if (folder / "last_checkpoint").exists():
            raise UserError(f"{folder} holds checkpoints of something else (it has no {FILE}); choose another --output")
        if write:
            write_json(file, mine)
        return
    theirs = read_json(file)
    differing = differences(theirs, mine, trains)
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(f"{folder} holds another trial: {'; '.join(differing[:3])}{more}; choose another --output")


def _ours_by_default(settings: dict[str, Any]) -> dict[str, Any]:
    """The defaults of those TRANSFER keys: a trial that was begun before a key existed ran with its default."""
    usual = defaults()
    known = {key for key in dotted_keys(usual) if key.startswith("TRANSFER.")}
    return {key: _plain(value_of(usual, key)) for key in settings if key in known}


def differences(theirs: Any, mine: dict[str, Any], trains: bool = True) -> list[str]:
    """Where two identities differ, in words; without what only training depends on, unless it `trains`."""
    if not isinstance(theirs, dict) or theirs.get("format") != FORMAT or not isinstance(theirs.get("settings"), dict):
        return [f"{FILE} is not of format {FORMAT}"]
    found = []
    for key in ("weights", "processes") if trains else ("weights",):
        if theirs.get(key) != mine[key]:
            found.append(f"{key} {theirs.get(key)} there, {mine[key]} asked for")
    now = mine["settings"]
    before = {**_ours_by_default(now), **theirs["settings"]}
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key) and (trains or not key.startswith(TRAINING)):
            found.append(f"{key} {before.get(key)} there, {now.get(key)} asked for")
    return found
