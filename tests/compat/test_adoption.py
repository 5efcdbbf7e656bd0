"""Which jobs of a kept run folder run again when a setting changes: those whose decisive values changed."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ssl_transfer.formats import defaults
from tests.compat.kept import ACTIONS, Kept, words_of
from transfer.experiment.service import open_experiment


def plan(kept: Kept, run: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What would happen to each job."""
    assert kept.launch("plan", run) == 0
    return words_of(capsys.readouterr().out, ACTIONS)


def override(kept: Kept, run: str, path: str, **values: Any) -> None:
    """Lay values over a mapping of the experiment file; a dot in a key is written as two underscores."""
    file = kept.path / f"configs/{run}.yaml"
    content = yaml.safe_load(file.read_text())
    node = content
    for name in path.split("/"):
        node = node.setdefault(name, {})
    node.update({key.replace("__", "."): value for key, value in values.items()})
    file.write_text(yaml.safe_dump(content, sort_keys=False))


SIMSIAM = "rows/simsiam/pretrain/overrides"
RUN_ONLY = {
    "monitor": {"MONITOR__KNN__PERIOD": 1, "MONITOR__KNN__K": 3},
    "alarm": {"MONITOR__STD_ALARM": 0.5, "MONITOR__STD_ALARM_STOP": True},
    "log": {"LOG__PERIOD": 7},
    "workers": {"DATA__WORKERS": 3, "DATA__INDEX_CACHE": "none"},
    "checkpoints": {"CHECKPOINT__PERIOD": 2, "CHECKPOINT__KEEP": 4},
}


@pytest.mark.parametrize("keys", RUN_ONLY)
def test_a_run_only_key_of_pretraining_runs_no_stage_again(
    kept: Kept,
    capsys: pytest.CaptureFixture[str],
    keys: str,
) -> None:
    before = plan(kept, "measures", capsys)
    override(kept, "measures", SIMSIAM, **RUN_ONLY[keys])
    assert plan(kept, "measures", capsys) == before


def test_a_monitor_that_was_written_down_may_change(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder's name stands for the monitor's former value; its record shows that nothing else differs."""
    before = plan(kept, "measures", capsys)
    recipe = kept.path / "configs/supervised.yaml"
    assert "MONITOR" in yaml.safe_load(recipe.read_text())
    recipe.write_text(recipe.read_text().replace("STD_ALARM: 0.0", "STD_ALARM: 0.3"))
    assert plan(kept, "measures", capsys) == before
    assert any("finished" not in line and "pretrain.supervised" in line for line in before)


@pytest.mark.parametrize(
    ("run", "path", "values"),
    [
        ("measures", SIMSIAM, {"SEED": 0, "MODEL__SYNC_BN": True}),
        ("measures", SIMSIAM, {"SOLVER__WEIGHT_DECAY": "1e-4", "AUGMENT__CROP_SCALE": [0.2, 1]}),
        ("measures", "evaluations/linear/overrides", {"LINEAR__MOMENTUM": 0.9, "ENGINE__PRECISION": "fp32"}),
        ("transfers", "tasks/voc07/overrides", {"MODEL__ROI_HEADS__NMS_THRESH_TEST": 0.5, "SOLVER__GAMMA": 0.1}),
        ("transfers", "tasks/coco/overrides", {"TRANSFER__CHECK_IMAGES": False, "VIS_PERIOD": 5}),
        ("transfers", "tasks/voc07/overrides", {"SOLVER__CHECKPOINT_PERIOD": 3, "DATALOADER__NUM_WORKERS": 2}),
    ],
)
def test_a_default_that_is_written_down_runs_nothing_again(
    kept: Kept,
    capsys: pytest.CaptureFixture[str],
    run: str,
    path: str,
    values: dict[str, Any],
) -> None:
    before = plan(kept, run, capsys)
    override(kept, run, path, **values)
    assert plan(kept, run, capsys) == before


@pytest.mark.parametrize(
    ("run", "path", "values", "again"),
    [
        ("measures", SIMSIAM, {"SEED": 2}, "pretrain.simsiam evaluate.simsiam.knn evaluate.simsiam.linear"),
        ("measures", "evaluations/linear/overrides", {"LINEAR__MOMENTUM": 0.8}, "evaluate.simsiam.linear"),
        ("transfers", "rows/high/finetune", {"SOLVER__GAMMA": 0.2}, "finetune.high.voc07.s1 finetune.high.coco.s1"),
        ("transfers", "rows/high/finetune", {"TRANSFER__EVALUATOR": "detectron2"}, "finetune.high.voc07.s2"),
        ("transfers", "tasks/voc07/overrides", {"SOLVER__MAX_ITER": 13}, "search.scratch.voc07.lr0.01"),
    ],
)
def test_a_decisive_value_runs_what_depends_on_it_again(
    kept: Kept,
    capsys: pytest.CaptureFixture[str],
    run: str,
    path: str,
    values: dict[str, Any],
    again: str,
) -> None:
    before = plan(kept, run, capsys)
    override(kept, run, path, **values)
    after = plan(kept, run, capsys)
    assert {before[name] for name in again.split()} <= {"done", "diverged"}
    assert {after[name] for name in again.split()} == {"run"}


@pytest.mark.parametrize(("form", "found"), [("normalized", True), ("weight_norm", False)])
def test_a_swav_run_of_before_its_key_is_found_by_the_form_that_it_had(kept: Kept, form: str, found: bool) -> None:
    override(kept, "measures", "rows/swav/pretrain/overrides", SWAV__PROTOTYPE_NORM=form)
    sets = [f"run_dir={kept.run('measures')}"]
    jobs = {job.name: job for job in open_experiment(str(kept.path / "configs/measures.yaml"), sets).graph}
    assert (kept.job("measures", "pretrain.swav").name[-8:] == jobs["pretrain.swav"].fingerprint[:8]) is found
    assert kept.job("measures", "pretrain.simclr").name[-8:] == jobs["pretrain.simclr"].fingerprint[:8]


def test_another_default_in_the_code_runs_again(
    kept: Kept,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = yaml.safe_load(defaults.DEFAULTS_FILE.read_text())
    tables["pretrain"]["first"]["SEED"], tables["pretrain"]["defaults"]["SEED"] = 0, 3
    defaults._schema.cache_clear()
    monkeypatch.setattr(defaults, "_tables", lambda: tables)
    try:
        assert plan(kept, "measures", capsys)["pretrain.simsiam"] == "run"
        override(kept, "measures", SIMSIAM, SEED=0)
        assert plan(kept, "measures", capsys)["pretrain.simsiam"] == "done"
    finally:
        defaults._schema.cache_clear()
