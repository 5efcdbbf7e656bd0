"""One table of run-only keys: its five readers agree on every key, and the defaults as data are the code's."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import defaults as pretrain_defaults
from pretrain.config import differences as pretrain_differences
from pretrain.evaluation.config import defaults as evaluate_defaults
from pretrain.evaluation.result import EvaluationFolder
from ssl_transfer.config import KeyChanges, dotted_keys, value_of
from ssl_transfer.errors import UserError
from ssl_transfer.formats import defaults as data
from ssl_transfer.formats import run_only
from ssl_transfer.formats.defaults import DEFAULTS_FILE, decisive_settings, default_values, plain_value
from ssl_transfer.formats.run_only import (
    LOCATIONS,
    RESULT_SETTINGS,
    RUN_ONLY,
    STAGES,
    is_run_only,
    may_change_on_resume,
)
from tests.ssl_transfer.formats import write_defaults
from transfer.engine.config import defaults as transfer_defaults
from transfer.engine.trial_folder import TrialCheckpoints, check_folder, trial_identity
from transfer.engine.trial_folder import differences as trial_differences
from transfer.experiment.fingerprints import ConfigReader
from transfer.report.collection import Trial

DEFAULTS = {"pretrain": pretrain_defaults, "evaluate": evaluate_defaults, "transfer": transfer_defaults}
KEYS = [(stage, key) for stage, make in DEFAULTS.items() for key in dotted_keys(make())]


def another(value: Any) -> Any:
    """A value of the same type that is not this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    return [*value, 1] if isinstance(value, (list, tuple)) else {"A": 1} if isinstance(value, dict) else 1


def changed(stage: str, key: str) -> Any:
    """The stage's defaults with another value of a key."""
    cfg = DEFAULTS[stage]()
    *sections, leaf = key.split(".")
    node = cfg
    for name in sections:
        node = node[name]
    value = another(node[leaf])
    kind = type(node) if isinstance(value, dict) else type(node[leaf]) if isinstance(node[leaf], tuple) else None
    node[leaf] = kind(value) if kind else value
    return cfg


def values(cfg: Any) -> dict[str, Any]:
    return {key: plain_value(value_of(cfg, key)) for key in dotted_keys(cfg)}


def resumes(stage: str, key: str, tmp_path: Path) -> bool:
    """Whether `--resume` accepts another value: by the code of each tool."""
    before, now = DEFAULTS[stage](), changed(stage, key)
    if stage == "pretrain":
        return not pretrain_differences(json.loads(json.dumps(before)), now)
    if stage == "transfer":
        return not trial_differences(trial_identity(before, None, 1), trial_identity(now, None, 1))
    folder, settings = EvaluationFolder(tmp_path), {"kind": "linear", "weights_sha256": "0", "images": []}
    folder.claim({**settings, "config": values(before)}, resume=False)
    try:
        folder.claim({**settings, "config": values(now)}, resume=True)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("stage", STAGES)
def test_the_five_readers_of_the_table_agree_on_every_key(stage: str, tmp_path: Path) -> None:
    apart = {}
    for number, key in enumerate(dotted_keys(DEFAULTS[stage]())):
        mine = is_run_only(stage, key)
        accepted = resumes(stage, key, tmp_path / str(number))
        same_job = job_print(stage, changed(stage, key)) == job_print(stage, DEFAULTS[stage]())
        may = may_change_on_resume(stage, key)
        averaged = may if stage == "pretrain" else key not in facts(key)  # a pre-training is in no average
        if (accepted, same_job, averaged) != (may, mine, may):
            apart[key] = {"resume": accepted, "same job": same_job, "averaged": averaged, "table": mine}
    assert apart == {}


def job_print(stage: str, cfg: Any) -> str:
    return ConfigReader().fingerprint("job", stage, values(cfg), data=Path("/d"), needs=(), kind=stage)


def facts(name: str) -> str:
    """What of a result's setting keeps trials apart."""
    trial = Trial(Path("a"), "row", "task", "done", 1, {}, settings={name: 1})
    return " ".join(trial.facts)


@pytest.mark.parametrize("name", RESULT_SETTINGS)
def test_where_a_trial_ran_keeps_no_trials_apart(name: str) -> None:
    assert name not in facts(name) and "lr" in facts("lr")


@pytest.mark.parametrize("stage", STAGES)
def test_every_entry_of_the_table_is_a_key_or_a_section(stage: str) -> None:
    keys = [*dotted_keys(DEFAULTS[stage]()), *GONE.get(stage, ())]
    for name in (*RUN_ONLY[stage], *LOCATIONS[stage]):
        assert any(key == name or key.startswith(f"{name}.") for key in keys), name


GONE = {"pretrain": ("ENGINE.READ_LATE",)}
"""Keys of earlier releases, which their configs still hold."""


def test_the_issues_keys_train_nothing_again() -> None:
    run_only_keys = {
        "pretrain": "MONITOR.KNN.PERIOD MONITOR.STD_ALARM LOG.PERIOD DATA.WORKERS CHECKPOINT.PERIOD ENGINE.READ_LATE",
        "evaluate": "DATA.WORKERS CHECKPOINT.PERIOD",
        "transfer": "DATALOADER.NUM_WORKERS SOLVER.CHECKPOINT_PERIOD TRANSFER.CHECK_IMAGES VIS_PERIOD",
    }
    for stage, keys in run_only_keys.items():
        assert [key for key in keys.split() if not is_run_only(stage, key)] == []
    assert not may_change_on_resume("transfer", "TRANSFER.EVALUATOR")


def test_the_defaults_as_data_are_the_codes() -> None:
    """`python tests/ssl_transfer/formats/write_defaults.py` writes the file anew."""
    assert write_defaults.tables() == json.loads(DEFAULTS_FILE.read_text())
    assert default_values("pretrain")["SOLVER.EPOCHS"] == 100


def test_reading_them_needs_no_torch() -> None:
    code = "import sys; from ssl_transfer.formats import defaults; defaults.default_values('transfer'); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(data.__file__).parents[2])


@pytest.mark.parametrize(
    ("written", "decisive"),
    [
        ({"SEED": 0, "SOLVER.WEIGHT_DECAY": "1e-4", "AUGMENT.CROP_SCALE": [0.2, 1]}, {}),
        ({"SEED": 1, "SOLVER.BASE_LR": 1}, {"SEED": 1, "SOLVER.BASE_LR": 1}),
        ({"SOLVER.BASE_LR": "1e-1", "MODEL.SYNC_BN": False}, {"SOLVER.BASE_LR": 0.1, "MODEL.SYNC_BN": False}),
        ({"MONITOR.KNN.PERIOD": 5, "DATA.WORKERS": 1, "OWN.KEY": 3.0}, {"OWN.KEY": 3}),
    ],
)
def test_only_what_differs_from_the_default_is_decisive(written: dict[str, Any], decisive: dict[str, Any]) -> None:
    assert decisive_settings("pretrain", written) == decisive


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A small schema in place of the file's."""
    table: dict[str, Any] = {"defaults": {"A": 1, "B": "x", "C": 0.5}, "first": {}, "names": {}, "removed": {}}
    monkeypatch.setattr(data, "_tables", lambda: {"pretrain": table})
    data._schema.cache_clear()
    yield table
    data._schema.cache_clear()


def test_defaults_names_and_keys_may_change_without_running_anything_again(old: dict[str, Any]) -> None:
    before = [decisive_settings("pretrain", values) for values in ({}, {"A": 2}, {"C": 7})]
    changes = KeyChanges(renamed={"C": "D.C"})
    new = write_defaults.updated(old, {"A": 1, "D.C": 0.5, "E": True}, changes)
    assert new["names"] == {"D.C": ["C"]} and new["removed"] == {"B": "x"} and new["first"] == {}
    old.clear()
    old.update(new)
    data._schema.cache_clear()
    now = [decisive_settings("pretrain", values) for values in ({"E": True}, {"A": 2}, {"D.C": 7.0})]
    assert now == before
    assert decisive_settings("pretrain", {"A": 1, "B": "x", "C": 0.5}, recorded=True) == {}
    assert decisive_settings("pretrain", {"A": 1, "B": "y", "C": 0.5}, recorded=True) == {"B": "y"}
    newer = write_defaults.updated(new, {"A": 3, "D.C": 0.5, "E": True}, KeyChanges())
    assert newer["first"] == {"A": 1} and newer["names"] == {"D.C": ["C"]}
    old.update(newer)
    data._schema.cache_clear()
    assert decisive_settings("pretrain", {}) == {"A": 3} and decisive_settings("pretrain", {"A": 1}) == {}


def test_there_is_no_other_list() -> None:
    root = Path(run_only.__file__).parents[2]
    files = [path for top in ("ssl_transfer", "pretrain", "transfer") for path in (root / top).rglob("*.py")]
    for name in ("FREE_ON_RESUME", "NEUTRAL =", "HARMLESS", "HOW =", "FREE ="):
        assert [path for path in files if f"\n{name}" in path.read_text()] == [], name


def test_an_evaluator_is_decisive_for_a_trial_but_not_for_eval_only() -> None:
    before = trial_identity(transfer_defaults(), None, 1)
    now = trial_identity(changed("transfer", "TRANSFER.EVALUATOR"), None, 1)
    assert "TRANSFER.EVALUATOR" not in before["settings"]  # trial.json keeps its bytes
    assert len(trial_differences(before, now)) == 1 and len(trial_differences(now, before)) == 1
    assert trial_differences(before, now, trains=False) == []


@pytest.mark.parametrize(("recorded", "refused"), [("pycocotools", False), ("", True), ("hotcoco", True)])
def test_the_evaluator_of_a_trial_of_an_earlier_release_is_in_its_config(
    tmp_path: Path, recorded: str, refused: bool
) -> None:
    cfg = transfer_defaults()
    (tmp_path / "trial.json").write_text(json.dumps(trial_identity(cfg, None, 1)))
    cfg.TRANSFER.EVALUATOR = recorded
    (tmp_path / "config.yaml").write_text(cfg.dump())
    cfg.TRANSFER.EVALUATOR = "pycocotools"
    check = partial(check_folder, TrialCheckpoints(tmp_path, 1), trial_identity(cfg, None, 1))
    if refused:
        with pytest.raises(UserError, match=r"TRANSFER\.EVALUATOR"):
            check(resume=True, eval_only=False, writes=True)
    else:
        check(resume=True, eval_only=False, writes=True)
