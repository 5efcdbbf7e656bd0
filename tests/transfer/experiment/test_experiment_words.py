"""What an experiment file says is data: secrets, control characters, odd records and clocks."""

from __future__ import annotations

import json
import pickle
from datetime import datetime, timedelta, timezone

import pytest

from ssl_transfer.errors import UserError
from tests.transfer.experiment.small_world import World
from transfer.experiment.executors import RunPlan
from transfer.experiment.load import load_experiment
from transfer.experiment.service import open_submitted
from transfer.experiment.slurm import executor
from transfer.experiment.slurm.executor import ClusterExecutor
from transfer.experiment.spec import SiteConfig
from transfer.experiment.views import LineReporter, status_lines

TOKEN = "hunter2"


def lines_of(world: World) -> str:
    opened = world.open()
    return "\n".join(status_lines(opened.graph, opened.store, opened.snapshot()))


def test_tokens_reach_the_jobs_and_no_file_that_others_may_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    world.edit(environment={"WANDB_API_KEY": TOKEN}, notes=f"from https://me:{TOKEN}@example.org/x")
    assert world.launch("submit") == 0
    found = [file for file in world.run_dir.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
    assert not found, "local: a variable of the process alone"
    _, _, is_unchanged = open_submitted(str(world.file))
    assert is_unchanged
    opened = world.open(f"environment.OTHER={TOKEN}")
    assert TOKEN not in "".join(opened.source.sets)

    sent = []
    monkeypatch.setattr(
        executor, "submit_to_slurm", lambda request, folder, tasks: sent.extend(tasks) or ["1"] * len(tasks)
    )
    plan = RunPlan(
        experiment=opened.experiment,
        graph=opened.graph,
        decisions=all_to_run(world),
        store=opened.store,
        tools=opened.tools,
        snapshot=opened.snapshot(),
    )
    ClusterExecutor(SiteConfig()).run(plan, LineReporter(Console(quiet=True)))
    assert sent and pickle.loads(pickle.dumps(sent[0])).environment["WANDB_API_KEY"] == TOKEN
    assert (world.run_dir / "slurm").stat().st_mode & 0o077 == 0


def all_to_run(world: World) -> dict:
    """Everything to run, as if nothing had."""
    for file in world.run_dir.glob("jobs/*/job.json"):
        file.unlink()
    return world.decisions()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"run_dir": "runs/a\nb"}, "run_dir"),
        ({"resources": {"default": {"account": "a\n#SBATCH --uid=0"}}}, "account"),
        ({"resources": {"default": {"partition": "\x1b[31m"}}}, "partition"),
        ({"data": {"images": "i\x07"}}, "images"),
    ],
)
def test_a_control_character_in_a_path_or_an_option_is_refused(world: World, change: dict, key: str) -> None:
    world.edit(**change)
    with pytest.raises(UserError, match=f"{key} holds the control character"):
        load_experiment(world.file)


@pytest.mark.parametrize(
    ("text", "hours"),
    [("12:00:00", 12), ("1-12:00:00", 36), ("0:30:00", 0.5), ("1.5", 1.5), ("1:30", None), ("43200", None)],
)
def test_hours_may_be_slurm_s_clock(world: World, text: str, hours: float | None) -> None:
    world.file.write_text(world.file.read_text() + f"resources: {{finetune: {{hours: {text}}}}}\n")
    if hours is None:
        with pytest.raises(UserError, match=r"experiment.yaml, line \d+: resources.finetune.hours"):
            load_experiment(world.file)
    else:
        assert load_experiment(world.file)[0].resources.finetune.hours == hours


def test_plain_words_of_yaml_are_what_they_say(world: World) -> None:
    text = world.file.read_text().replace("label: SimSiam", "label: no").replace("scratch: true", "scratch: yes")
    more = (
        "environment: {A: 010, B: 1e-4, C: on, D: 2020-13-45, E: 1.50}\n"
        "resources: {default: {sbatch: {exclusive: yes}}}\n"
    )
    world.file.write_text(text + more)
    experiment, _ = load_experiment(world.file)
    assert experiment.rows["simsiam"].label == "no" and experiment.rows["scratch"].scratch is True
    assert experiment.environment == {"A": "010", "B": "1e-4", "C": "on", "D": "2020-13-45", "E": "1.50"}
    assert experiment.resources.default.sbatch == {"exclusive": True}


@pytest.mark.parametrize("name", ["job.json", "filed.json"])
@pytest.mark.parametrize("content", [b"{", b"[" * 10_000])
def test_a_damaged_record_costs_its_own_job(world: World, name: str, content: bytes) -> None:
    assert world.launch("submit") == 0
    folder = next(world.run_dir.glob("jobs/finetune.scratch.voc07.s1-*"))
    (folder / "filed.json").write_bytes(b"{")  # of a job that has ended: nobody needs it
    assert set(world.statuses().values()) == {"done"}
    (folder / "filed.json").unlink()
    (folder / "job.json").unlink()
    (folder / name).write_bytes(content)
    statuses = world.statuses()
    assert statuses.pop("finetune.scratch.voc07.s1") == "damaged" and set(statuses.values()) == {"done"}
    assert f"{folder / name}" in lines_of(world)
    world.forget()
    assert world.launch("retry") == 0
    assert {name for name in world.started() if "table" not in name} == {"finetune.scratch.voc07.s1"}
    assert set(world.statuses().values()) == {"done"}


def test_a_record_of_another_shape_is_damaged(world: World) -> None:
    assert world.launch("submit") == 0
    file = next(world.run_dir.glob("jobs/finetune.scratch.voc07.s1-*/job.json"))
    content = json.loads(file.read_text())
    for changes in ({"fingerprint": "0" * 64}, {"started": "yesterday"}, {"ended": "2026-01-01"}, {"process": [1]}):
        file.write_text(json.dumps({**content, **changes}))
        assert world.statuses()["finetune.scratch.voc07.s1"] == "damaged", changes


def test_a_time_in_the_future_is_shown_as_such(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.launch("submit") == 0
    file = next(world.run_dir.glob("jobs/finetune.scratch.voc07.s1-*/job.json"))
    later = (datetime.now(timezone.utc) + timedelta(days=2)).isoformat()
    file.write_text(json.dumps({**json.loads(file.read_text()), "started": later, "ended": later}))
    capsys.readouterr()
    assert world.launch("plan") == 0
    assert capsys.readouterr().out.count("in the future") == 1


def test_retry_without_a_failure_says_what_is_missing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.launch("retry") == 2
    err = capsys.readouterr().err
    assert "nothing failed" in err and "(pending)" in err and "submit" in err
    assert world.launch("submit") == 0
    assert world.launch("retry") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {"a": {"scratch": True, "expected": "mocov2"}}}, "rows.a.expected: .*did you mean moco"),
        ({"overlay": "configs/overlays/cpus.yaml"}, "overlay: .*did you mean cpu"),
        ({"tasks": {"t": {"config": "configs/transfer/voc7.yaml"}}}, "tasks.t.config: .*did you mean voc07"),
        ({"tasks": {"t": {"config": "configs"}}}, "tasks.t.config: .*is a folder"),
        ({"rows": {"a": {"weights": "zoo:simsaim"}}}, "zoo:simsaim: no such"),
    ],
)
def test_a_misspelt_name_is_refused_at_plan(world: World, change: dict, message: str) -> None:
    world.edit(**change)
    with pytest.raises(UserError, match=message):
        world.open()


def test_a_misspelt_key_of_a_config_is_refused_at_plan(world: World) -> None:
    (world.base / "configs/base.yaml").write_text("SOLVER:\n  IMS_PER_BATCH: 16\n  MAX_ITERS: 3\n")
    with pytest.raises(
        UserError, match=r"base.yaml, line 3: unknown key 'SOLVER.MAX_ITERS'; did you mean SOLVER.MAX_ITER"
    ):
        world.open()
    (world.base / "configs/base.yaml").write_text("SOLVER: {IMS_PER_BATCH: 16, MAX_ITER: 010}\n")
    with pytest.raises(UserError, match=r"base.yaml, line 1: SOLVER.MAX_ITER must be of type int"):
        world.open()
    (world.base / "configs/base.yaml").write_text("SOLVER: {IMS_PER_BATCH: 16, MAX_ITER: 3}\n")
    world.edit(tasks={"t": {"config": str(world.base / "configs/voc07.yaml"), "overrides": {"SOLVER.BASE_LT": 0.1}}})
    with pytest.raises(
        UserError, match=r"overrides of voc07.yaml: unknown key 'SOLVER.BASE_LT'; did you mean SOLVER.BASE_LR"
    ):
        world.open()
