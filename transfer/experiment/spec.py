"""The experiment file: rows × tasks, checked by pydantic; a mistake is one line that names file, line and key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from common.errors import nearest
from transfer.experiment.resources import EnvironmentValue, Stages, Strict

Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]*$")]
"""A name that becomes a part of job and folder names, where dots separate."""


def _expanded(path: str) -> str:
    return os.path.expandvars(Path(path).expanduser())


PathText = Annotated[str, StringConstraints(min_length=1), AfterValidator(_expanded)]
"""A path as written; `~` and `$VARIABLE` are expanded, nothing else is done to it (see `paths`)."""


def _dotted(overrides: dict[str, Any]) -> dict[str, Any]:
    for key, value in overrides.items():
        if isinstance(value, dict) and "." not in key:
            inner = next(iter(value), "KEY")
            raise ValueError(f"overrides are dotted keys: write {key}.{inner}: …, not {key}: {{{inner}: …}}")
    return overrides


Overrides = Annotated[dict[str, Any], AfterValidator(_dotted)]
"""Dotted config keys and their values: what `KEY VALUE` is on a command line."""


class Recipe(Strict):
    """A config file and what is changed in it.

    Attributes:
        config: the config file.
        overrides: keys laid over it, after the experiment's overlay.
    """

    config: PathText
    overrides: Overrides = Field(default_factory=dict)


class Task(Recipe):
    """A column of the table: a fine-tuning config and how often it is run.

    Attributes:
        trials: how many seeds.
    """

    trials: int = Field(default=1, ge=1)


class Evaluation(Strict):
    """An evaluation of the weights themselves, without fine-tuning: a cell of Table 4.

    Attributes:
        kind: `linear` or `knn`.
        config: the recipe; ImageNet's of configs/evaluation/ unless told.
        overrides: keys laid over it.
    """

    kind: Literal["linear", "knn"] = "linear"
    config: PathText | None = None
    overrides: Overrides = Field(default_factory=dict)


class Row(Strict):
    """A row of the table: where its weights come from, which is exactly one of `pretrain`, `weights`, `scratch`.

    Attributes:
        label: what the table calls it; the row's key unless told.
        expected: the row of `configs/expected/*.yaml` it is compared with.
        pretrain: a pre-training recipe.
        weights: a ResNet-50 checkpoint of any known layout, or `zoo:NAME`, which `submit` downloads; it is converted.
        scratch: no weights.
        source: the checkpoint's layout, where it cannot be told from its content (`convert.py --source`).
        branch: which of two encoders (`convert.py --branch`).
        trust: let the checkpoint's own pickle run code (`convert.py --trust-checkpoint`).
        finetune: overrides for this row's fine-tuning alone, over the task's.
        part_of: the row of the table that its results stand in, where several runs fill one (Table 4: one run for each
            number of epochs); its own unless told.
        epochs: how long `weights` were trained, which no recipe here says; Table 4's column.
        resources: what this row's jobs ask the cluster for, over the experiment's.
    """

    label: str | None = None
    expected: str | None = None
    pretrain: Recipe | None = None
    weights: PathText | None = None
    scratch: bool = False
    source: str | None = None
    branch: str | None = None
    trust: bool = False
    finetune: Overrides = Field(default_factory=dict)
    part_of: Key | None = None
    epochs: int | None = Field(default=None, ge=1)
    resources: Stages = Field(default_factory=Stages)

    @model_validator(mode="after")
    def _one_origin(self) -> Row:
        given = [name for name in ("pretrain", "weights", "scratch") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"a row has exactly one of pretrain, weights, scratch; this one has {found}")
        if self.scratch and (self.source or self.branch or self.trust):
            raise ValueError("a scratch row converts nothing; remove source, branch and trust")
        if self.epochs and not self.weights:
            raise ValueError("epochs says how long given weights were trained; a recipe says so itself: remove it")
        return self


class Data(Strict):
    """Where the images lie.

    Attributes:
        images: the ImageFolder that rows with `pretrain` learn from and evaluations measure on.
        detection: the folder that holds VOC2007/, VOC2012/ and coco/.
    """

    images: PathText | None = None
    detection: PathText | None = None


class Local(Strict):
    """What `--cluster local` may use of this machine.

    Attributes:
        slots: how many jobs run side by side.
        threads: OMP_NUM_THREADS of each.
        gpus: GPUs of each slot, one process each: the machine's first ones, or those that CUDA_VISIBLE_DEVICES names;
            0: says nothing about GPUs.
    """

    slots: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    gpus: int = Field(default=0, ge=0)


class LrSearch(Strict):
    """A search of the fine-tuning learning rate, for every row on every task, before the reported trials.

    Attributes:
        grid: the learning rates to try.
        select_on: what a point is measured on: `test`, as the paper did, or `heldout`, a part of the training images.
        seed: the points' seed; none of the reported trials'.
        metric: what is to be as high as possible.
        rows: the rows it is made for; all unless told. The others keep their task's learning rate.
        tasks: likewise.
    """

    grid: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    select_on: Literal["test", "heldout"]
    seed: int = Field(default=1000, ge=0)
    metric: str = "bbox/AP"
    rows: list[str] | None = None
    tasks: list[str] | None = None

    def covers(self, row: str, task: str) -> bool:
        """Whether the lr of a row on a task is searched."""
        return (self.rows is None or row in self.rows) and (self.tasks is None or task in self.tasks)


class Slurm(Strict):
    """How `--cluster slurm` files jobs.

    Attributes:
        array_parallelism: how many trials of one array run at a time.
        requeues: how often a job is put back into the queue (time limit, preemption, a node or process that died)
            before it counts as failed.
        snapshot: copy the code when the jobs are filed, and run the copy: later edits change nothing.
    """

    array_parallelism: int = Field(default=64, ge=1)
    requeues: int = Field(default=20, ge=0)
    snapshot: bool = False


class Experiment(Strict):
    """The whole file.

    Attributes:
        name: the experiment's name.
        notes: a word to whoever reads it; `plan` shows it.
        run_dir: where everything is written; `runs/<name>` unless told.
        rows: the table's rows by key, in order.
        tasks: the table's columns by key, in order; `{}` for an experiment that only pre-trains or evaluates.
        evaluations: linear or kNN evaluations of every row's weights (not of scratch).
        lr_search: how the fine-tuning learning rate is found; none: each task's own.
        seeds: the trials' seeds; the first n are used by a task with n trials; 1, 2, 3, … unless told.
        overlay: a file that makes every stage fit a small machine.
        data: data roots.
        environment: variables set for every job; they say how a job runs, not what it computes, and are no part of a
            fingerprint.
        local: slots and threads for `--cluster local`.
        slurm: how `--cluster slurm` files jobs.
        resources: what a job of each stage asks the cluster for, over the site's.
        continues: how often a job that stopped itself after a checkpoint (exit 75) is asked again in one submit.
    """

    name: Key
    notes: str | None = None
    run_dir: PathText | None = None
    rows: dict[Key, Row] = Field(min_length=1)
    tasks: dict[Key, Task]
    evaluations: dict[Key, Evaluation] = Field(default_factory=dict)
    lr_search: LrSearch | None = None
    seeds: list[int] | None = None
    overlay: PathText | None = None
    data: Data = Field(default_factory=Data)
    environment: dict[str, EnvironmentValue] = Field(default_factory=dict)
    local: Local = Field(default_factory=Local)
    slurm: Slurm = Field(default_factory=Slurm)
    resources: Stages = Field(default_factory=Stages)
    continues: int = Field(default=20, ge=0)

    @model_validator(mode="after")
    def _something_to_do(self) -> Experiment:
        if not (self.tasks or self.evaluations or any(row.pretrain for row in self.rows.values())):
            raise ValueError("there is nothing to run: give tasks, evaluations, or a row with pretrain")
        return self

    @model_validator(mode="after")
    def _parts_of_rows(self) -> Experiment:
        for key, row in self.rows.items():
            if row.part_of and (whole := self.rows.get(row.part_of)) and whole.part_of not in (None, row.part_of):
                raise ValueError(f"rows.{key}.part_of: {row.part_of} is itself part of {whole.part_of}; name that one")
        return self

    @model_validator(mode="after")
    def _enough_seeds(self) -> Experiment:
        if self.seeds is None:
            return self
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} names a seed twice")
        for key, task in self.tasks.items():
            if task.trials > len(self.seeds):
                raise ValueError(f"tasks.{key}.trials is {task.trials} but seeds has {len(self.seeds)}; add seeds")
        return self

    @model_validator(mode="after")
    def _search_of_what_there_is(self) -> Experiment:
        search = self.lr_search
        if search is None:
            return self
        for what, named, known in (("rows", search.rows, self.rows), ("tasks", search.tasks, self.tasks)):
            for key in named or ():
                if key not in known:
                    raise ValueError(f"lr_search.{what} names {key!r}; {nearest(key, known)}")
        if len(set(search.grid)) != len(search.grid):
            raise ValueError(f"lr_search.grid {search.grid} names a learning rate twice")
        if search.seed in [self.seed(trial) for task in self.tasks.values() for trial in range(task.trials)]:
            raise ValueError(f"lr_search.seed {search.seed} is a reported trial's; the lr is chosen apart from those")
        return self

    def seed(self, trial: int) -> int:
        """The seed of a task's trial (counted from 0)."""
        return trial + 1 if self.seeds is None else self.seeds[trial]
