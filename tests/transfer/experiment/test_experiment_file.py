"""The experiment file: what is right is read, what is wrong is one line with file, line and key."""

from __future__ import annotations

import pytest

from ssl_transfer.errors import UserError
from tests.transfer.experiment.small_world import World
from transfer.experiment.load import load_experiment

GOOD = """\
name: one
rows:
  scratch: {scratch: true}
  mine:
    label: My weights
    weights: $WEIGHTS/mine.pth
    branch: target
    expected: simsiam_base
tasks:
  voc07: {config: a.yaml, trials: 2, overrides: {SOLVER.BASE_LR: 0.1}}
seeds: [7, 9]
environment: {NCCL_DEBUG: INFO, WORKERS: 4}
"""


def refusal(world: World, text: str, *sets: str) -> str:
    world.file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_experiment(world.file, sets)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(world.file), "FILE")


def test_good_file_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTS", "/w")
    world.file.write_text(GOOD)
    experiment, source = load_experiment(world.file)
    assert list(experiment.rows) == ["scratch", "mine"]
    assert experiment.rows["mine"].weights == "/w/mine.pth"
    assert experiment.tasks["voc07"].overrides == {"SOLVER.BASE_LR": 0.1}
    assert [experiment.seed(trial) for trial in range(2)] == [7, 9]
    assert experiment.environment == {"NCCL_DEBUG": "INFO", "WORKERS": "4"}
    assert (experiment.local.slots, experiment.local.threads) == (1, 1)
    assert source.text == GOOD.replace("INFO, WORKERS: 4", '"***", WORKERS: "***"'), "graph.json records no token"


def test_seeds_count_from_one_by_default(world: World) -> None:
    experiment, _ = load_experiment(world.file)
    assert [experiment.seed(trial) for trial in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: one", "nam: one", "FILE, line 1: nam: unknown key; did you mean name? (and 1 more)"),
        ("weights: $", "wieghts: $", "FILE, line 6: rows.mine.wieghts: unknown key; did you mean weights?"),
        ("trials: 2", "trails: 2", "FILE, line 10: tasks.voc07.trails: unknown key; did you mean trials?"),
        ("trials: 2", "trials: two", "FILE, line 10: tasks.voc07.trials: must be a integer, not 'two'"),
        ("trials: 2", "trials: 0", "FILE, line 10: tasks.voc07.trials: must be greater than or equal to 1, not 0"),
        ("trials: 2", "trials: 3", "FILE: tasks.voc07.trials is 3 but seeds has 2; add seeds"),
        ("[7, 9]", "[7, 7]", "FILE: seeds [7, 7] names a seed twice"),
        (
            "scratch: {scratch",
            "a.b: {scratch",
            "FILE, line 3: rows.a.b: 'a.b' is no name; use letters, digits, '-', '_'",
        ),
        ("{scratch: true}", "{}", "FILE, line 3: rows.scratch: a row has exactly one of pretrain, weights, scratch; "),
        ("branch: target", "scratch: true", "this one has weights and scratch"),
        ("  mine:", "  scratch:", "FILE, line 4: not YAML (the key 'scratch'"),
        ("SOLVER.BASE_LR: 0.1", "SOLVER: {BASE_LR: 1}", "overrides are dotted keys: write SOLVER.BASE_LR: …"),
        ("rows:", "rows: [", "FILE, line "),
        ("INFO", "[1]", "FILE, line 12: environment.NCCL_DEBUG: must be a string"),
    ],
)
def test_mistakes_are_one_line(world: World, old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert message in refusal(world, GOOD.replace(old, new, 1))


def test_missing_parts_are_named(world: World) -> None:
    assert "rows: is missing" in refusal(world, "name: a\ntasks: {voc07: {config: a}}\n")
    assert "FILE: holds a list, not keys and values" in refusal(world, "[1, 2]\n")


def test_missing_file() -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_experiment("nowhere.yaml")


def test_set_takes_config_keys_with_their_dots(world: World) -> None:
    words = ["rows.simsiam.pretrain.overrides.MONITOR.KNN.PERIOD=1", "rows.simsiam.finetune.SOLVER.BASE_LR=0.5"]
    row = load_experiment(world.file, words)[0].rows["simsiam"]
    assert row.pretrain is not None and row.pretrain.overrides["MONITOR.KNN.PERIOD"] == 1
    assert row.finetune["SOLVER.BASE_LR"] == 0.5


def test_set_lays_values_over_the_file(world: World) -> None:
    experiment, source = load_experiment(
        world.file, ["local.slots=3", "tasks.voc07.trials=4", "data.images=/x y", "seeds=[5,6,7,8]"]
    )
    assert (experiment.local.slots, experiment.tasks["voc07"].trials, experiment.data.images) == (3, 4, "/x y")
    assert experiment.seed(3) == 8
    assert source.sets[0] == "local.slots=3"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("local.slts=3", "--set local.slts=3: local.slts: unknown key; did you mean slots?"),
        ("local.slots=many", "--set local.slots=many: local.slots: must be a integer, not 'many'"),
        ("local=3", "--set local=3: local: "),
        ("slots", "--set slots: write key=value"),
        ("a..b=1", "--set a..b=1: write key=value"),
        ("name=[", "--set name=[: the value is not YAML"),
    ],
)
def test_mistakes_in_set_are_named(world: World, word: str, message: str) -> None:
    assert message in refusal(world, world.file.read_text(), word)


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("continues", "max_resumes", 3),
        ("rows.simsiam.part_of", "rows.simsiam.table_row", "both"),
        ("resources.finetune.stage_to", "resources.finetune.copy_data_to", "/scratch"),
    ],
)
def test_renamed_keys_are_read_and_the_new_name_is_named(
    world: World, caplog: pytest.LogCaptureFixture, old: str, new: str, value: object
) -> None:
    experiment, _ = load_experiment(world.file, [f"{old}={value}"])
    found = experiment.model_dump()
    for part in new.split("."):
        found = found[part]
    assert found == value
    assert old.rpartition(".")[2] in caplog.text and new.rpartition(".")[2] in caplog.text
    assert new.rpartition(".")[2] in refusal(world, world.file.read_text(), f"{old}={value}", f"{new}={value}")
