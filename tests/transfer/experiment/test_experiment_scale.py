"""What a plan of many jobs costs, as counts: files read, values compared, jobs looked at."""

from __future__ import annotations

import io
import json
import sys
import tracemalloc
from collections import Counter
from typing import Any

import pytest

from ssl_transfer.formats import defaults
from ssl_transfer.formats.job import JobState, utc_now
from tests.file_reads import file_reads
from tests.transfer.experiment.fake_slurm import FakeSlurm
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


def test_slurm_is_asked_as_often_for_many_jobs_as_for_few(
    world: World, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sbatch an array, one squeue a status, two calls of scancel for what waits and one for what runs."""
    config = f"{world.base}/configs/simsiam.yaml"
    world.edit(
        rows={f"r{i}": {"label": f"row {i}", "pretrain": {"config": config}} for i in range(3)},
        tasks={"voc07": {"config": f"{world.base}/configs/voc07.yaml", "trials": 40}},
    )
    assert world.launch("submit", "--cluster", "slurm") == 0
    jobs = len(world.open().graph.jobs)
    counts = slurm.counts()
    assert jobs == len(slurm.queue) == 127
    assert counts["sbatch"] == 3 * 3 + 1 and counts["test-only"] <= 3 and counts["squeue"] <= 2
    assert world.launch("status") == 0
    assert slurm.counts()["squeue"] == 1
    assert world.launch("plan") == 0
    assert slurm.counts()["squeue"] == 1
    slurm.start(*[id_ for id_ in slurm.queue if id_.endswith(("_1", "_2"))])
    assert world.launch("cancel") == 0
    calls = slurm.calls()
    ended = [words for words in calls if words[0] == "scancel"]
    assert len(ended) == 3 and sum(words[0] == "squeue" for words in calls) == 2
    assert ended[0][1:] == [str(max(int(id_.split("_")[0]) for id_ in slurm.queue))]  # the table leaves first
    assert [words[1] == "--signal=USR2" for words in ended] == [False, False, True]
    assert set(slurm.queue.values()) == {"CANCELLED"}


@pytest.mark.parametrize("options", [[], ["--all"]])
def test_logs_shows_the_end_of_a_large_log_and_never_holds_it_whole(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    opened = world.open()
    opened.graph.write(opened.store.run_dir, opened.tools)
    log = opened.store.log(opened.graph["table"])
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {i:06} {'ä' * 200}\n" for i in range(30_000)))
    shown = world.base / "shown"
    with open(shown, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        tracemalloc.start()
        assert world.launch("logs", "table", *options) == 0
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        monkeypatch.undo()
    lines = shown.read_text().splitlines()
    assert log.stat().st_size > 12e6 and peak < 7e6
    assert lines[-1].startswith("line 029999 ") and {len(line) for line in lines} == {212}
    if options:
        assert len(lines) == 30_000
    else:
        assert 2000 < len(lines) < 3000
        assert "--all" in capsys.readouterr().err


@pytest.mark.parametrize("is_terminal", [True, False])
def test_logs_shows_control_characters_on_a_terminal_and_passes_them_on_elsewhere(
    world: World, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    """A label may set the window's title or answer for the user; a progress bar returns to the line's start."""
    opened = world.open()
    opened.graph.write(opened.store.run_dir, opened.tools)
    log = opened.store.log(opened.graph["table"])
    log.parent.mkdir(parents=True)
    text = "\x1b]0;owned\a\x9b31m labels \u00e4\t1\r 10 %\r 20 %\r\nend\n"
    log.write_bytes(text.encode())
    out = io.StringIO()
    out.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", out)
    assert world.launch("logs", "table") == 0
    shown = "\\x1b]0;owned\\x07\\x9b31m labels ä\t1\n 10 %\n 20 %\nend\n"
    assert out.getvalue() == (shown if is_terminal else text)
