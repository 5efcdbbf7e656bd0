"""The config keys that say how a stage runs and not what it computes: the only list of them. No torch.

Five places follow it. A changed run-only key is accepted by `--resume` of pre-training, of an evaluation and of a
trial, opens no new job folder (`transfer/experiment`), and does not keep trials apart that are averaged
(`transfer/report`).
"""

from __future__ import annotations

from functools import lru_cache

from ssl_transfer.config import is_within

STAGES = ("pretrain", "evaluate", "transfer")
"""The stages that have a configuration, named as the sections of an overlay."""

RUN_ONLY: dict[str, tuple[str, ...]] = {
    "pretrain": (
        *("DATA.INDEX_CACHE", "DATA.UNREADABLE", "DATA.WORKERS", "ENGINE.READ_LATE"),
        *("CHECKPOINT", "LOG", "MONITOR"),
    ),
    "evaluate": ("DATA.WORKERS", "CHECKPOINT", "MONITOR"),
    "transfer": (
        "DATALOADER.NUM_WORKERS",
        "SOLVER.CHECKPOINT_PERIOD",
        "TRANSFER.CHECK_IMAGES",
        "TRANSFER.COLLECTIVE_SECONDS",
        "TRANSFER.HANG_SECONDS",
        "TRANSFER.KEEP_CHECKPOINTS",
        "TRANSFER.KEEP_MASKS",
        "TRANSFER.PREDICTIONS",
        "TRANSFER.STRICT",
        "VERSION",
        "VIS_PERIOD",
    ),
}
"""Keys, and sections with all their keys, of each stage.

- `DATA.UNREADABLE` ends the run or replaces the image: up to there both are the same run, which `replace` continues.
- `MONITOR` measures a pre-training and may stop it; the weights of a run that continues are the same. A finished run
  keeps the measurements that it was made with.
- `TRANSFER.CHECK_IMAGES` reads the images before the first step, `VIS_PERIOD` draws training images: neither draws a
  random number.
- `TRANSFER.STRICT` refuses sets; one that it accepts is read equally without it.
- `TRANSFER.EVALUATOR` is *not* run-only: it does not change the detector, but the reported AP (a tie between two
  detections of the same score is resolved differently), so it opens a new job folder, `--resume` refuses it, and
  trials of two evaluators are not averaged. `--eval-only` takes any evaluator.
"""

LOCATIONS: dict[str, tuple[str, ...]] = {
    "pretrain": ("DATA.LIST_ROOT", "DATA.ROOT"),
    "evaluate": (),
    "transfer": ("MODEL.WEIGHTS", "OUTPUT_DIR", "TRANSFER.DATA_ROOT"),
}
"""Keys that say where something lies. `--resume` accepts another path, because the tool compares the content itself
(the images' fingerprint, the weights' digest). A job's fingerprint holds the path, because the launcher reads no data.
"""

RESULT_SETTINGS = ("num_processes", "num_workers", "reference_gpus")
"""Settings in a trial's `result.json` that are no config keys and do not keep trials apart: another number of
processes with the same total batch is the same recipe. (`--resume` refuses it: the images' order would change.)"""


FORMER_RUN_ONLY: dict[str, tuple[str, ...]] = {
    "pretrain": ("CHECKPOINT", "DATA.INDEX_CACHE", "DATA.WORKERS", "LOG"),
    "evaluate": ("CHECKPOINT", "DATA.WORKERS"),
    "transfer": (
        "DATALOADER.NUM_WORKERS",
        "SOLVER.CHECKPOINT_PERIOD",
        "TRANSFER.KEEP_CHECKPOINTS",
        "TRANSFER.PREDICTIONS",
    ),
}
"""What the fingerprints of commit 54cff5b and earlier left out; their folders are found by it."""


@lru_cache(maxsize=4096)
def is_run_only(stage: str, key: str) -> bool:
    """Whether a dotted config key says only how the stage runs."""
    return is_within(key, RUN_ONLY[stage])


def was_run_only(stage: str, key: str) -> bool:
    """Whether the fingerprints of commit 54cff5b left a key out, by its name of that time."""
    return is_within(key, FORMER_RUN_ONLY[stage])


def may_change_on_resume(stage: str, key: str) -> bool:
    """Whether a folder that was begun with another value of the key may be resumed."""
    return is_run_only(stage, key) or is_within(key, LOCATIONS[stage])


def may_differ_in_average(name: str) -> bool:
    """Whether results that differ in this setting may be averaged.

    Args:
        name: a key of `settings` in the `result.json` of a trial (its own names) or of an evaluation (config keys).
    """
    return name in RESULT_SETTINGS or any(may_change_on_resume(stage, name) for stage in ("evaluate", "transfer"))
