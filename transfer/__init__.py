"""How pre-trained weights come to a detector, are fine-tuned, evaluated and reported.

The five functions here do what `ssl-transfer convert`, `transfer` and `table` do, with arguments in place of options:

    from transfer import convert, fine_tune, inspect, read_results, table

They import torch and Detectron2 when they are called. Wrong input raises `ssl_transfer.errors.UserError`, whose message
is one line. docs/reference/api.md has an example of each.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssl_transfer import __version__ as __version__

if TYPE_CHECKING:
    from ssl_transfer.formats.manifest import Manifest

__all__ = ["convert", "fine_tune", "inspect", "read_results", "table"]

PathLike = str | os.PathLike[str]


def convert(
    checkpoint: PathLike,
    output: PathLike,
    *,
    source: str = "auto",
    branch: str | None = None,
    prefix: str | None = None,
    to: str | None = None,
    verify: bool = True,
    trust_checkpoint: bool = False,
) -> Manifest:
    """Convert any ResNet checkpoint of a known layout for Detectron2's C4 and FPN detectors, and verify it.

    Args:
        checkpoint: a file, the folder of a training, or `zoo:NAME` or `hf-hub:ORG/NAME`, which is downloaded once.
        output: the file to write; its manifest is written beside it. Nothing is written if anything fails.
        source: a layout's name; `auto` recognises it by the content.
        branch: `online` or `target`, if there are two encoders; None for the layout's default.
        prefix: where in the file the ResNet is, instead of a layout.
        to: `detectron2`, `torchvision` or `safetensors`; None for what the ending of `output` says.
        verify: load the output into detectors and compare it with the checkpoint, tensors and features.
        trust_checkpoint: let the checkpoint's pickle run its own code.

    Returns:
        The manifest: what was read, left out and written, and the proof (None without `verify`).

    Raises:
        UserError: the input or an argument is wrong, or the verification failed.
    """
    from transfer.weights import conversion
    from transfer.weights.public import resolve_source

    path, source, branch = resolve_source(os.fspath(checkpoint), source, branch, prefix)
    how: dict[str, Any] = {"source": source, "branch": branch, "prefix": prefix, "to": to}
    return conversion.convert(path, os.fspath(output), verify=verify, trust=trust_checkpoint, **how)


def inspect(
    checkpoint: PathLike,
    *,
    source: str = "auto",
    branch: str | None = None,
    prefix: str | None = None,
    trust_checkpoint: bool = False,
) -> list[str]:
    """Describe a checkpoint and what `convert` would read from it, in lines. The arguments are those of `convert`.

    Raises:
        UserError: the file cannot be read at all.
    """
    from transfer.weights.containers import read_checkpoint
    from transfer.weights.inspect_checkpoint import describe_checkpoint
    from transfer.weights.public import resolve_source

    path, source, branch = resolve_source(os.fspath(checkpoint), source, branch, prefix)
    return describe_checkpoint(read_checkpoint(path, trust_checkpoint), source, branch, prefix)


def fine_tune(
    config_file: PathLike,
    weights: PathLike,
    output: PathLike,
    *,
    seed: int,
    overlay: PathLike | None = None,
    overrides: Mapping[str, Any] | None = None,
    num_gpus: int = 1,
    reference_gpus: int | None = None,
    lr_from: PathLike | None = None,
    resume: bool = False,
    eval_only: bool = False,
) -> dict[str, Any]:
    """Run one trial: fine-tune a detector from weights, evaluate it, and record the result.

    With several GPUs the calling script needs `if __name__ == "__main__":`, because processes are spawned.

    Args:
        config_file: the task: a file, or a name such as `voc07`.
        weights: what `convert` wrote, or `scratch`.
        output: the trial's folder. If the trial has ended there before, nothing runs and its result is returned.
        seed: of the trial, 0 or more.
        overlay: merged after the task: a file, or a name such as `cpu`.
        overrides: config keys and their values, merged last, such as `{"SOLVER.MAX_ITER": 100}`.
        num_gpus: processes to start on this machine.
        reference_gpus: GPUs that the task's batch, lr and schedule are for; all are scaled to `num_gpus`. None: never.
        lr_from: the record of `ssl-transfer lr-search choose`, whose lr is used.
        resume: continue from the newest checkpoint in `output`, if there is one.
        eval_only: evaluate the newest checkpoint in `output` and train nothing; returns `evaluation.json`.

    Returns:
        The content of `result.json` (docs/reference/formats.md); its `status` is `done` or `diverged`.

    Raises:
        UserError: anything about the request is wrong; nothing was trained.
        Preempted: stopped by SIGTERM, after a checkpoint.
    """
    from pathlib import Path

    from ssl_transfer.config_files import find_config
    from transfer.engine.prepare import TrialRequest
    from transfer.engine.trial import run_trial
    from transfer.experiment.commands import spell_overrides

    request = TrialRequest(
        config_file=find_config(config_file, "transfer"),
        weights=os.fspath(weights),
        output=Path(output),
        seed=seed,
        overlay=None if overlay is None else find_config(overlay, "overlays"),
        overrides=tuple(word for pair in spell_overrides(overrides or {}).items() for word in pair),
        num_gpus=num_gpus,
        reference_gpus=reference_gpus,
        lr_from=None if lr_from is None else Path(lr_from),
        resume=resume,
        eval_only=eval_only,
    )
    return run_trial(request).content


def read_results(*folders: PathLike) -> list[dict[str, Any]]:
    """Every trial and linear evaluation below folders, one flat dict each: `pandas.DataFrame(read_results("runs"))`.

    Keys: `row`, `task`, `seed`, `status`, `toy`, `comparable`, `reasons`, `altered`, `source` (the result file), then
    metrics in per cent as `bbox/AP50` and settings as `settings/lr`. A key that a trial lacks is not in its dict.
    Files that cannot be used are logged as warnings.

    Args:
        folders: experiments' run folders, or any folders with results below them.

    Raises:
        UserError: a folder does not exist.
    """
    from pathlib import Path

    from transfer.report.collect import collect

    found = collect(map(Path, folders))
    for skipped in found.skipped:
        logging.getLogger(__name__).warning("skipped %s: %s", skipped.path, skipped.reason)
    return [
        {
            **{key: getattr(trial, key) for key in ("row", "task", "seed", "status", "toy")},
            "comparable": not trial.reasons and not trial.toy,
            "reasons": "; ".join(trial.reasons),
            "altered": trial.altered,
            "source": str(trial.source),
            **{f"{branch}/{name}": value for branch, each in trial.metrics.items() for name, value in each.items()},
            **{f"settings/{key}": value for key, value in trial.settings.items()},
        }
        for trial in found.trials
    ]


def table(
    *folders: PathLike,
    format: str = "md",
    layout: str = "auto",
    published: str = "beside",
    allow_toy: bool = False,
    against: str | None = "auto",
    expect: Mapping[str, str] | None = None,
    sort: str | None = None,
) -> str:
    """Tabulate results beside the published numbers.

    Args:
        folders: experiments' run folders, or any folders with results; none for the published rows alone.
        format: `md`, `csv`, `long` (one figure a line), `latex`, `json` or `html`.
        layout: `table5`, `table4` or `ablations`; `auto` for all that have results.
        published: published numbers `beside` the means, as `rows` too, or `none`.
        allow_toy: show toy results beside real or published ones, flagged.
        against: the row to compare with; `auto` takes supervised or scratch; None compares nothing.
        expect: row to the published row (a key of configs/expected) that it is compared with.
        sort: `COLUMN.METRIC` to sort rows by, best first, such as `voc07.bbox.AP`.

    Raises:
        UserError: a folder does not exist, toys beside real results, or an unknown row, column or format.
    """
    from pathlib import Path

    from transfer.report.collect import collect
    from transfer.report.render import render_as
    from transfer.report.tables import Options, build_report

    options = Options(layout, published if folders else "rows", allow_toy, against, expect or {}, sort)
    return render_as(build_report(collect(map(Path, folders)), options), format)
