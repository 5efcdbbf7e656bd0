"""The lr search in the graph: candidates, choice, then trials at the chosen lr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from tests.transfer.experiment.small_world import World
from tools.evaluate import DEFAULTS
from transfer.experiment.commands import Tools
from transfer.experiment.load import load_experiment
from transfer.experiment.stages import DEFAULT_EVALUATIONS, build_graph

SEARCH = "lr_search={grid: [0.02, 0.1], select_on: heldout, rows: [simsiam], tasks: [voc07]}"
CANDIDATES = ["search.simsiam.voc07.lr0.02", "search.simsiam.voc07.lr0.1"]
TRIALS = ["finetune.simsiam.voc07.s1", "finetune.simsiam.voc07.s2"]


def lr_of(world: World, name: str) -> object:
    graph = world.open(SEARCH).graph
    return json.loads((world.run_dir / graph[name].outputs[0]).read_text()).get("lr")


def test_graph_and_literal_commands(world: World) -> None:
    experiment, source = load_experiment(world.file, [SEARCH])
    graph = build_graph(experiment, source)
    names = [job.name for job in graph]
    start = names.index("convert.simsiam") + 1
    assert names[start : start + 6] == [*CANDIDATES, "choose.simsiam.voc07", *TRIALS, "finetune.simsiam.coco.s1"]
    assert graph[TRIALS[0]].needs == ("convert.simsiam", "choose.simsiam.voc07")
    assert graph["finetune.simsiam.coco.s1"].needs == ("convert.simsiam",)
    assert "choose.simsiam.voc07" in graph["table"].needs and CANDIDATES[0] not in graph["table"].needs
    run, base = world.run_dir, world.base
    dirs = {job.name: f"{run}/{job.dir}" for job in graph}
    weights = f"{dirs['convert.simsiam']}/simsiam.pkl"
    expected = {
        CANDIDATES[
            1
        ]: f"python3 /T/transfer.py --config-file {base}/configs/voc07.yaml --weights {weights} --seed 1000 "
        f"--role lr_search --select-on heldout --resume --output {dirs[CANDIDATES[1]]} "
        f"TRANSFER.DATA_ROOT {base}/detection SOLVER.BASE_LR 0.1",
        "choose.simsiam.voc07": f"python3 /T/lr_search.py choose {dirs[CANDIDATES[0]]} {dirs[CANDIDATES[1]]} "
        "--row simsiam --task voc07 --metric bbox/AP --grid 0.02 0.1 "
        f"--output {dirs['choose.simsiam.voc07']}/lr_search.json",
        TRIALS[0]: f"python3 /T/transfer.py --config-file {base}/configs/voc07.yaml --weights {weights} --seed 1 "
        f"--lr-from {dirs['choose.simsiam.voc07']}/lr_search.json --resume --output {dirs[TRIALS[0]]} "
        f"TRANSFER.DATA_ROOT {base}/detection",
    }
    for name, text in expected.items():
        assert [" ".join(words) for words in graph[name].commands(Tools(Path("/T"), "python3"))] == [text]
    assert (graph[CANDIDATES[0]].kind, graph[CANDIDATES[0]].role) == ("search", "lr_search")


def test_a_plan_shows_every_trial_that_waits_for_a_choice_once(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = SEARCH.replace(", rows: [simsiam]", "")
    world.launch("plan", "--set", everything)
    shown = capsys.readouterr().out
    trials = [job.name for job in world.open(everything).graph if job.kind == "finetune"]
    assert len(trials) == 6 and all(shown.count(f"{name} ") == 1 for name in trials)


def test_trials_run_at_the_chosen_lr_and_only_once(world: World) -> None:
    assert world.launch("submit", "--set", SEARCH) == 0
    assert [lr_of(world, name) for name in TRIALS] == [0.1, 0.1]
    world.forget()
    assert world.launch("submit", "--set", SEARCH) == 0
    assert world.events() == []


def test_a_choice_is_made_without_failed_and_diverged_candidates(world: World) -> None:
    world.order(lr0__1={"exit": 1}, lr0__05={"diverge": True})
    wide = SEARCH.replace("0.02,", "0.02, 0.05,")
    assert world.launch("submit", "--set", wide) == 1
    graph = world.open(wide).graph
    record = json.loads((world.run_dir / graph["choose.simsiam.voc07"].outputs[0]).read_text())
    assert record == {"chosen": 0.02, "missing": 1}
    assert json.loads((world.run_dir / graph[TRIALS[0]].outputs[0]).read_text())["lr"] == 0.02
    world.forget()  # the choice stands: the failed candidate is not needed
    assert world.launch("submit", "--set", wide) == 0
    assert world.events() == []


def test_without_candidates_the_trials_are_blocked_and_the_table_is_made(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.order(search={"exit": 1})
    assert world.launch("submit", "--set", SEARCH) == 1
    words = world.statuses(SEARCH)
    assert words["choose.simsiam.voc07"] == "failed" and words["table"] == "done"
    assert {words[name] for name in TRIALS} == {"pending"}
    assert "no result: finetune.simsiam.voc07.s1: blocked by choose.simsiam.voc07" in capsys.readouterr().err
    world.order()
    assert world.launch("retry", "--set", SEARCH) == 0
    assert set(world.statuses(SEARCH).values()) == {"done"}


def test_the_choice_counts_for_the_trials_it_is_made_for(world: World) -> None:
    before = {job.name: job.fingerprint for job in world.open(SEARCH).graph}
    after = {job.name: job.fingerprint for job in world.open(SEARCH.replace("0.1]", "0.1, 0.5]")).graph}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"choose.simsiam.voc07", *TRIALS, "table"}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("lr_search={grid: [0.1], select_on: test, rows: [simsam]}", "lr_search.rows names 'simsam'; did you mean"),
        ("lr_search={grid: [0.1], select_on: test, tasks: [voc]}", "lr_search.tasks names 'voc'; "),
        ("lr_search={grid: [0.1, 0.1], select_on: test}", "names a learning rate twice"),
        ("lr_search={grid: [0.1], select_on: test, seed: 1}", "lr_search.seed 1 is a reported trial's"),
        ("lr_search={grid: [], select_on: test}", "lr_search.grid: "),
        ("lr_search={grid: [-0.1], select_on: test}", "lr_search.grid.0: must be greater than 0"),
        ("lr_search={grid: [0.1]}", "lr_search.select_on: is missing"),
    ],
)
def test_mistakes_are_one_line(world: World, sets: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment(world.file, [sets])
    assert message in str(caught.value)


def test_a_given_lr_and_a_search_contradict_each_other(world: World) -> None:
    with pytest.raises(UserError, match=r"rows\.simsiam\.finetune sets SOLVER\.BASE_LR, which lr_search looks for"):
        world.open(SEARCH, "rows.simsiam.finetune={SOLVER.BASE_LR: 0.1}")


def test_the_evaluations_recipes_are_the_tool_s_own() -> None:
    assert {kind: Path(file).name for kind, file in DEFAULT_EVALUATIONS.items()} == {
        kind: Path(DEFAULTS[kind]).name for kind in ("knn", "linear")
    }
