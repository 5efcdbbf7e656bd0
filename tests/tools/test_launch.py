"""tools/launch.py: help, wrong use, and the experiment files that are shipped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from pretrain import config as pretrain_config
from ssl_transfer.config_files import find_config
from ssl_transfer.console import call_main
from tools import launch
from transfer.engine.config import load_config
from transfer.engine.trial import build_detector
from transfer.experiment.commands import spell_overrides
from transfer.experiment.load import load_experiment

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "configs/experiments").glob("*.yaml"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (["plant", "x.yaml"], "invalid choice: 'plant'"),
        (["submit", "x.yaml", "--cluster", "moon"], "invalid choice: 'moon'"),
        (["plan", "x.yaml", "--cluster", "local"], "unrecognized arguments: --cluster local"),
        (["plan", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["status", "nowhere.yaml"], "nowhere.yaml does not exist"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(launch.main, words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_experiments_can_be_planned(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # their configs are found in the checkout
    for name in ("images", "detection"):
        (tmp_path / name).mkdir()
    sets = ["--set", "data.images=images", "--set", "data.detection=detection", "--set", f"run_dir={tmp_path}/run"]
    assert call_main(launch.main, ["plan", str(file), *sets]) == 0
    out, err = capsys.readouterr()
    assert all("submit would first download zoo:" in line for line in err.splitlines())
    experiment, _ = load_experiment(str(file))
    for row in experiment.rows:
        assert f".{row}" in out
    assert out.count("finetune.") == len(experiment.rows) * sum(task.trials for task in experiment.tasks.values())
    assert not (tmp_path / "run").exists()


def _experiment(folder: Path, **changes: str) -> Path:
    """A right experiment file, but for `changes`; data and configs beside it."""
    for name in ("images", "detection"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "task.yaml").write_text("SOLVER: {MAX_ITER: 2}\n")
    (folder / "recipe.yaml").write_text("SOLVER: {EPOCHS: 2}\n")
    (folder / "loop.yaml").write_text("_BASE_: loop.yaml\n")
    (folder / "file").write_text("in the way")
    parts = {
        "name": "one",
        "run_dir": f"{folder}/run",
        "rows": "{scratch: {scratch: true}, simsiam: {pretrain: {config: recipe.yaml}}}",
        "tasks": "{voc07: {config: task.yaml}}",
        "data": "{images: images, detection: detection}",
        **changes,
    }
    file = folder / "one.yaml"
    file.write_text("".join(f"{key}: {value}\n" for key, value in parts.items()))
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": "{voc07: {config: gone.yaml}}"}, "tasks.voc07.config: "),
        ({"rows": "{a: {pretrain: {config: gone.yaml}}}"}, "rows.a.pretrain.config: "),
        ({"rows": "{a: {weights: gone.pth}}"}, "rows.a.weights: "),
        ({"rows": "{a: {weights: images}}"}, "rows.a.weights: "),
        ({"overlay": "gone.yaml"}, "overlay: "),
        (
            {"data": "{images: images}"},
            "data.detection is not given; add it to the file or pass --set data.detection=DIR",
        ),
        ({"data": "{images: gone, detection: detection}"}, "data.images: "),
        ({"data": "{images: file, detection: detection}"}, "data.images: "),
        ({"run_dir": "file/run"}, "run_dir: "),
        ({"tasks": "{voc07: {config: loop.yaml}}"}, "_BASE_ leads back to"),
    ],
)
def test_what_is_missing_is_one_line_before_any_job(
    changes: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = _experiment(tmp_path, **changes)
    before = sorted(tmp_path.rglob("*"))
    assert call_main(launch.main, ["submit", str(file)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_folder_has_one_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = _experiment(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/graph.json").write_text('{"format": "graph/1", "experiment": "another"}')
    assert call_main(launch.main, ["submit", str(file)]) == 2
    assert "belongs to experiment 'another'" in capsys.readouterr().err


def test_nothing_was_submitted_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = _experiment(tmp_path)
    for words in (["status"], ["logs"], ["cancel"]):
        job = ["table"] if words == ["logs"] else []
        assert call_main(launch.main, [*words, str(file), *job]) == 2
        assert "nothing was submitted to " in capsys.readouterr().err


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_recipe_of_a_shipped_experiment_loads_and_every_detector_is_built(file: Path) -> None:
    experiment, _ = load_experiment(str(file))
    overlay = find_config(experiment.overlay, "overlays") if experiment.overlay else None
    for row in experiment.rows.values():
        if row.pretrain is not None:
            recipe = find_config(row.pretrain.config, "pretrain")
            cfg = pretrain_config.load_config(recipe, overlay, words_of(row.pretrain.overrides))
            assert cfg.TOY is (overlay is not None)
    for task in experiment.tasks.values():
        words = (*words_of(task.overrides), "MODEL.DEVICE", "meta", "SOLVER.AMP.ENABLED", "False")  # AMP needs a GPU
        cfg = load_config(find_config(task.config, "transfer"), overlay, words).cfg
        with torch.device("meta"):  # shapes without memory
            assert build_detector(cfg).roi_heads is not None and cfg.TRANSFER.TOY is (overlay is not None)


def words_of(overrides: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(word for pair in spell_overrides(overrides).items() for word in map(str, pair))
