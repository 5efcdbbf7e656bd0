"""What a result is held against: a shipped task's protocol, whoever names it; and the rows' fine-tuning rates."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ssl_transfer.config import flatten_config
from transfer.engine.config import LoadedConfig, defaults, load_config
from transfer.engine.guards import resolve_norm
from transfer.engine.result import comparable, metric, settings
from transfer.report.published import load_expected as published

CPU = ("MODEL.DEVICE", "cpu")
TASKS = ("voc07", "voc07_vissl", "voc0712", "voc0712_trainval", "coco", "coco_2x")


def own(root: Path, folder: Path, content: dict[str, object]) -> LoadedConfig:
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump({"_BASE_": str(root / "configs/transfer/voc07.yaml"), **content}))
    return load_config(file, overrides=CPU)


def reasons(found: LoadedConfig) -> list[str]:
    resolve_norm(found.cfg, 8)
    return list(comparable(found.cfg, found.protocol, 8)["reasons"])


def test_a_user_file_named_voc07_is_compared_with_voc07(root: Path, tmp_path: Path) -> None:
    assert reasons(own(root, tmp_path, {})) == []
    assert reasons(own(root, tmp_path, {"SOLVER": {"BASE_LR": 0.1}})) == []  # searched for each method
    (changed,) = reasons(own(root, tmp_path, {"SOLVER": {"MAX_ITER": 10}}))
    assert changed == "the task's protocol was changed: SOLVER.MAX_ITER is 10, not 9000"
    splits = {"mine": {"LAYOUT": "voc", "FOLDER": "x", "IMAGE_SET": "test"}}
    (changed,) = reasons(own(root, tmp_path, {"DATASETS": {"TEST": ["mine"]}, "TRANSFER": {"SPLITS": splits}}))
    assert "DATASETS.TEST is ['mine'], not ['voc_2007_test']" in changed and "TRANSFER.SPLITS" in changed


def test_a_task_of_another_name_is_its_own_protocol(root: Path, tmp_path: Path) -> None:
    assert reasons(own(root, tmp_path, {"TRANSFER": {"TASK": "mine"}, "SOLVER": {"MAX_ITER": 10}})) == []


def test_the_result_names_the_definition_of_ap(root: Path, tmp_path: Path) -> None:
    kinds = {task: metric(load_config(root / f"configs/transfer/{task}.yaml", overrides=CPU).cfg) for task in TASKS}
    assert kinds == {task: "coco" if task.startswith("coco") else "voc2007" for task in TASKS}
    splits = {"mine": {"LAYOUT": "voc", "FOLDER": "x", "IMAGE_SET": "test", "YEAR": 2012}}
    content = {"DATASETS": {"TEST": ["mine"]}, "TRANSFER": {"TASK": "mine", "SPLITS": splits}}
    assert settings(own(root, tmp_path, content).cfg, 8, "exact")["metric"] == "voc2012"


# PROTOCOL, section 2: "MoCo and supervised 0.02; SimCLR/SwAV 0.10 with warm-up 1000 and factor 0.333; BYOL 0.1".
FINETUNE = {
    "supervised": {"SOLVER.BASE_LR": 0.02},
    "moco_v2": {"SOLVER.BASE_LR": 0.02},
    "simclr": {"SOLVER.BASE_LR": 0.1, "SOLVER.WARMUP_ITERS": 1000, "SOLVER.WARMUP_FACTOR": 0.333},
    "swav": {"SOLVER.BASE_LR": 0.1, "SOLVER.WARMUP_ITERS": 1000, "SOLVER.WARMUP_FACTOR": 0.333},
    "byol": {"SOLVER.BASE_LR": 0.1},
}


def test_each_row_with_a_source_has_a_file(root: Path) -> None:
    assert {file.stem for file in (root / "configs/transfer/finetune").glob("*.yaml")} == set(FINETUNE)
    assert set(FINETUNE) <= set(published("table5").row_by_key)


@pytest.mark.parametrize("row", FINETUNE)
@pytest.mark.parametrize("task", TASKS)
def test_a_row_file_changes_only_lr_and_warm_up(root: Path, row: str, task: str) -> None:
    file = root / f"configs/transfer/{task}.yaml"
    overlay = root / f"configs/transfer/finetune/{row}.yaml"
    plain, found = (load_config(file, which, CPU) for which in (None, overlay))
    assert flatten_config(found.cfg) == {**flatten_config(plain.cfg), **FINETUNE[row]}
    assert reasons(found) == [] and not found.cfg.TRANSFER.TOY


def test_an_evaluation_may_use_another_number_of_processes_but_no_other_task() -> None:
    """A detector trained on eight GPUs is measured on one; there its synchronised norm is plain BN."""
    from transfer.engine.trial_folder import FORMAT, differences

    trained = {"MODEL.RESNETS.NORM": "naiveSyncBN", "SOLVER.BASE_LR": 0.02, "DATASETS.TEST": ["a"]}
    theirs = {"format": FORMAT, "weights": "w", "processes": 8, "settings": trained}
    alone = {**theirs, "processes": 1, "settings": {**trained, "MODEL.RESNETS.NORM": "BN"}}
    assert len(differences(theirs, alone)) == 2 and differences(theirs, alone, trains=False) == []
    for change in ({"weights": "v"}, {"settings": {**trained, "DATASETS.TEST": ["b"]}}):
        assert len(differences(theirs, {**theirs, **change}, trains=False)) == 1


@pytest.mark.parametrize(("key", "other"), [("CHANNELS_LAST", True), ("ROI_ALIGN", "separable")])
def test_layout_keys_are_part_of_a_training_not_of_an_evaluation(key: str, other: object) -> None:
    from transfer.engine.trial_folder import FORMAT, differences

    settings = flatten_config(defaults())
    theirs = {"format": FORMAT, "weights": "w", "processes": 1, "settings": settings}
    mine = {**theirs, "settings": {**settings, f"TRANSFER.{key}": other}}
    (said,) = differences(theirs, mine)
    assert all(word in said for word in (f"TRANSFER.{key}", repr(settings[f"TRANSFER.{key}"]), repr(other)))
    assert differences(theirs, mine, trains=False) == []
    del settings[f"TRANSFER.{key}"]  # begun before there was such a key
    assert differences(theirs, mine) == [said]


def test_a_trial_from_before_a_key_existed_resumes_with_its_default() -> None:
    from transfer.engine.trial_folder import FORMAT, differences

    old = {"SOLVER.BASE_LR": 0.02, "TRANSFER.PRECISE_BN": "fvcore"}
    theirs = {"format": FORMAT, "weights": "w", "processes": 1, "settings": old}
    now = {**old, "TRANSFER.CHANNELS_LAST": False}
    assert differences(theirs, {**theirs, "settings": now}) == []
    (said,) = differences(theirs, {**theirs, "settings": {**now, "TRANSFER.CHANNELS_LAST": True}})
    assert said.startswith("TRANSFER.CHANNELS_LAST is False")
    assert len(differences(theirs, {**theirs, "settings": {**now, "TRANSFER.PRECISE_BN": "synchronised"}})) == 1
