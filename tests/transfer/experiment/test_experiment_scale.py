"""What a plan of many jobs costs, as counts: files read, values compared, jobs looked at."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from common.formats import defaults
from common.formats.job import JobState, utc_now
from tests.file_reads import file_reads
from tests.transfer.experiment.small_world import World
from transfer.experiment import fingerprints
from transfer.experiment.graph import Graph

ROWS, TRIALS = 6, 5


@pytest.fixture
def many(world: World) -> World:
    """Rows × two tasks × trials, all done: each trial with the record of its settings."""
    config = f"{world.base}/configs/simsiam.yaml"
    rows = {
        f"r{i}": {"label": f"row {i}", "pretrain": {"config": config, "overrides": {"SEED": i}}} for i in range(ROWS)
    }
    tasks = {name: {"config": f"{world.base}/configs/{name}.yaml", "trials": TRIALS} for name in ("voc07", "coco")}
    world.edit(rows=rows, tasks=tasks)
    opened = world.open()
    opened.graph.write(opened.store.run_dir, opened.tools)
    record = {"processes": 1, "settings": {"SOLVER.MAX_ITER": 3, "SOLVER.IMS_PER_BATCH": 16}}
    for job in opened.graph:
        state = JobState(name=job.name, fingerprint=job.fingerprint, status="done", executor="local", attempts=1,
                         started=utc_now(), ended=utc_now(), exit_code=0)  # fmt: skip
        opened.store.write(job, state)
        if job.kind == "finetune":
            (opened.store.folder(job) / "trial.json").write_text(json.dumps(record))
        for output in job.outputs:
            (world.run_dir / output).parent.mkdir(parents=True, exist_ok=True)
            (world.run_dir / output).write_text("{}")
    return world


def test_a_plan_after_an_edit_reads_each_record_once_and_none_as_yaml(
    many: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of records: PyYAML takes 80 ms for one, which JSON reads in 0.2 ms."""
    tasks = {name: {"config": f"{many.base}/configs/{name}.yaml", "trials": TRIALS} for name in ("voc07", "coco")}
    many.edit(tasks={name: {**task, "overrides": {"SOLVER.GAMMA": 0.5}} for name, task in tasks.items()})
    monkeypatch.setattr(fingerprints, "load_yaml", lambda path: pytest.fail(f"{path} is read as YAML"))
    with file_reads(many.run_dir / "jobs") as reads:
        actions = Counter(many.actions().values())
    assert actions["run"] >= 2 * ROWS * TRIALS
    records = {path: count for path, count in reads.items() if path.endswith("trial.json")}
    assert len(records) == 2 * ROWS * TRIALS and set(records.values()) == {1}


def test_a_fingerprint_costs_the_settings_that_are_written_not_all_that_there_are(
    many: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults._schema("transfer"), defaults._schema("pretrain")
    calls: Counter[str] = Counter()
    plain_value = defaults.plain_value

    def counted(value: Any, like: Any = None) -> Any:
        calls["values"] += 1
        return plain_value(value, like)

    monkeypatch.setattr(defaults, "plain_value", counted)
    jobs = len(many.open().graph.jobs)
    assert len(defaults.default_values("transfer")) > 150
    assert calls["values"] < 20 * jobs


def test_the_users_of_all_jobs_are_found_in_one_pass(many: World) -> None:
    graph = many.open().graph
    passes: Counter[str] = Counter()

    class Counted(dict):
        def values(self) -> Any:
            passes["jobs"] += 1
            return super().values()

    counted = Graph(graph.experiment, graph.source, graph.sets, graph.rows, graph.tasks, Counted(graph.jobs))
    found = {job.name: [user.name for user in counted.users(job.name)] for job in graph}
    assert passes["jobs"] == 1
    assert found == {job.name: [user.name for user in graph if job.name in user.needs] for job in graph}
