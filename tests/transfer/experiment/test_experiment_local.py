"""`--cluster local`: order, slots, failures, stops, kills; a second submit changes nothing."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_transfer.locks import FileLock, is_held
from tests.transfer.experiment.small_world import World
from transfer.experiment.local import visible_gpus

FINETUNES = {
    f"finetune.{row}.{trial}" for row in ("scratch", "simsiam") for trial in ("voc07.s1", "voc07.s2", "coco.s1")
}


def results(world: World) -> dict[str, str]:
    """Every job's result and the tables, without the times."""
    graph = world.open().graph
    files = [output for job in graph for output in job.outputs]
    return {file: (world.run_dir / file).read_text() for file in files}


def interval(world: World, name: str) -> tuple[float, float]:
    at = {what: float(when) for when, what, who, *_ in world.events() if who == name}
    return at["start"], at["end"]


def test_dependency_order_and_table_on_stdout(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.launch("submit") == 0
    spans = {name: interval(world, name) for name in set(world.started())}
    assert spans["pretrain.simsiam"][1] < spans["convert.simsiam"][0]
    assert spans["convert.simsiam"][1] < min(spans[n][0] for n in FINETUNES if "simsiam" in n)
    assert max(spans[n][1] for n in FINETUNES) < spans["table.md"][0] < spans["table.html"][0]
    out, err = capsys.readouterr()
    assert err.splitlines()[1] == "start   pretrain.simsiam", "the longest chain starts first"
    assert out == (world.run_dir / "table.md").read_text()
    assert out.count("weights of simsiam") == 3


@pytest.mark.parametrize("slots", [1, 3])
def test_no_more_jobs_than_slots(world: World, slots: int) -> None:
    world.order(finetune={"steps": 1 if slots == 1 else 60})
    assert world.launch("submit", "--set", f"local.slots={slots}") == 0
    running = most = 0
    for _, what, *_ in world.events():
        running += {"start": 1, "end": -1}.get(what, 0)
        most = max(most, running)
    assert (slots + 1) // 2 <= most <= slots  # on a busy machine one may end before the last has started


def test_each_slot_has_gpus_of_its_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.order(finetune={"steps": 30})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert world.launch("submit", "--set", "local={slots: 2, gpus: 2}") == 0
    seen = [words for words in world.events() if words[1] == "gpus"]
    assert {tuple(words[3:]) for words in seen} == {("4,5", "--num-gpus", "2"), ("6,7", "--num-gpus", "2")}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [visible_gpus(slot, 4) for slot in (0, 1)] == [
        {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
        {"CUDA_VISIBLE_DEVICES": "4,5,6,7"},
    ]
    assert visible_gpus(1, 0) == {}


def test_a_second_submit_runs_nothing(world: World) -> None:
    world.launch("submit")
    before = results(world)
    world.forget()
    assert world.launch("submit") == 0
    assert world.events() == []
    assert results(world) == before


def test_plain_lines_report_the_run(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.launch("submit", "--set", "local.slots=1")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("small: 9 jobs to run, 1 at a time, into ")
    assert lines[1] == "start   pretrain.simsiam"
    assert re.fullmatch(r"done    pretrain\.simsiam in 0:0\d · loss -0\.9 · std 0\.02  \[1/9\]", lines[2])
    assert re.fullmatch(r"done    table in 0:0\d  \[9/9\]", lines[-1])


def test_environment_reaches_the_jobs(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.launch("submit", "--set", "local.threads=3", "--set", "environment.MARK=here")
    capsys.readouterr()
    assert world.launch("logs", "finetune.scratch.coco.s1") == 0
    out = capsys.readouterr().out
    assert "threads 3 marked here" in out
    assert out.startswith("== attempt 1 · ")


def test_a_failure_is_named_and_its_dependents_do_not_run(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(convert__simsiam={"exit": 2, "say": "not a checkpoint"})
    assert world.launch("submit") == 1
    assert set(world.started()).isdisjoint(n for n in FINETUNES if "simsiam" in n)
    assert {"table.md", "table.html", "finetune.scratch.coco.s1"} <= set(world.started())
    captured = capsys.readouterr()
    assert "no result: convert.simsiam: failed: error: not a checkpoint" in captured.err
    assert "no result: finetune.simsiam.coco.s1: blocked by convert.simsiam" in captured.err
    assert "finetune.simsiam.coco.s1: missing" in captured.out
    assert world.launch("status") == 0
    status = capsys.readouterr().out
    assert re.search(r"convert\.simsiam +failed .* error: not a checkpoint", status)
    assert re.search(r"finetune\.simsiam\.coco\.s1 +blocked .* waits for convert\.simsiam", status)


def test_traceback_s_last_line_is_the_reason(world: World) -> None:
    world.order(pretrain__simsiam={"raise": "shapes do not fit"})
    assert world.launch("submit") == 1
    state = world.state("pretrain.simsiam")
    assert (state.status, state.exit_code, state.error) == ("failed", 1, "RuntimeError: shapes do not fit")


def test_a_corrected_failure_and_its_dependents_run_again(world: World) -> None:
    world.order(convert__simsiam={"exit": 1})
    world.launch("submit")
    world.order()
    world.forget()
    assert world.launch("submit") == 0
    assert set(world.started()) == {"convert.simsiam", "table.md", "table.html"} | {
        n for n in FINETUNES if "simsiam" in n
    }


def test_retry_runs_failed_jobs_and_their_dependents(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(s1={"once": {"exit": 1}})
    world.launch("submit", "--set", "local.slots=3")
    failed = {name for name, status in world.statuses().items() if status == "failed"}
    assert len(failed) == 4
    world.forget()
    assert world.launch("retry", "finetune.simsiam.coco.s1") == 1
    assert set(world.started()) == {"finetune.simsiam.coco.s1", "table.md", "table.html"}
    assert world.launch("retry") == 0
    assert set(world.statuses().values()) == {"done"}
    world.forget()
    assert world.launch("retry") == 0
    assert world.events() == []
    assert world.launch("retry", "finetune.simsiam.coco.s1") == 2
    assert "is done; there is nothing to retry" in capsys.readouterr().err


def test_a_diverged_trial_is_a_result(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(finetune__scratch__voc07__s1={"diverge": True})
    assert world.launch("submit") == 0
    assert world.statuses()["finetune.scratch.voc07.s1"] == "diverged"
    assert "diverged at iteration 2: loss is NaN" in capsys.readouterr().err
    world.forget()
    assert world.launch("submit") == 0
    assert world.events() == []
    assert world.launch("retry", "finetune.scratch.voc07.s1") == 2


def test_exit_75_restarts_up_to_max_resumes(world: World) -> None:
    world.order(pretrain__simsiam={"again": 2}, finetune__scratch__coco={"again": 9})
    assert world.launch("submit", "--set", "max_resumes=3") == 1
    assert world.started().count("pretrain.simsiam") == 3
    assert world.started().count("finetune.scratch.coco.s1") == 4
    assert {n for n, s in world.statuses().items() if s == "failed"} == {"finetune.scratch.coco.s1"}


def test_success_without_output_is_a_failure(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(pretrain__simsiam={"silent": True})
    assert world.launch("submit") == 1
    assert re.search(r"exited with 0 but wrote no jobs/pretrain\.simsiam-\w{8}/result\.json", capsys.readouterr().err)


def test_the_table_is_made_again_when_an_input_s_state_changes(world: World) -> None:
    world.order(finetune__scratch__coco={"exit": 1})
    world.launch("submit")
    assert "finetune.scratch.coco.s1: missing" in (world.run_dir / "table.md").read_text()
    world.order()
    world.forget()
    assert world.launch("submit") == 0
    assert world.started() == ["finetune.scratch.coco.s1", "table.md", "table.html"]
    assert "missing" not in (world.run_dir / "table.md").read_text()


def test_a_changed_config_gets_a_new_folder_and_keeps_the_old(world: World) -> None:
    world.launch("submit")
    before = results(world)
    (world.base / "configs/simsiam.yaml").write_text("SOLVER: {EPOCHS: 4}\n")
    world.forget()
    assert world.launch("submit") == 0
    assert {n for n in world.started() if "scratch" in n} == set()
    assert len(list(world.run_dir.glob("jobs/pretrain.simsiam-*"))) == 2
    for file, text in before.items():
        if file.startswith("jobs/"):
            assert (world.run_dir / file).read_text() == text


def test_kill_9_of_the_group_at_any_moment_gives_the_same_end(world: World) -> None:
    world.order(pretrain={"steps": 20}, finetune={"steps": 12})
    rng = random.Random(20)
    for _ in range(5):
        process = world.spawn()
        known, wanted = len(world.events()), rng.randint(0, 3)
        while process.poll() is None and len(world.events()) < known + wanted:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        assert process.poll() is None, "it was to be killed on its way"
        world.kill_group(process)
    process = world.spawn()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert set(world.statuses().values()) == {"done"}
    assert out == (world.run_dir / "table.md").read_text()
    assert "missing" not in out
    assert out.count("weights of simsiam") == 3
    graph = world.open().graph
    for job in graph:  # the checkpoints were taken up: no step was done twice but those that a kill cut off
        if job.kind in ("pretrain", "finetune"):
            lines = (world.run_dir / job.dir / "metrics.json").read_text().splitlines()
            steps = 20 if job.kind == "pretrain" else 12
            assert len(set(lines)) == steps
            assert len(lines) <= steps + 5


def test_a_killed_job_is_interrupted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(pretrain={"hang": True})
    process = world.spawn()
    world.wait_for("hang", "pretrain.simsiam")
    assert world.statuses()["pretrain.simsiam"] == "running"
    world.kill_group(process)
    assert world.statuses()["pretrain.simsiam"] == "interrupted"
    assert world.launch("status") == 0
    assert re.search(r"pretrain\.simsiam +interrupted .* killed while it ran", capsys.readouterr().out)
    world.order()
    assert world.launch("submit") == 0
    state = world.state("pretrain.simsiam")
    assert state.attempts == 2


def test_status_and_logs_after_the_shell_is_gone(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(finetune__simsiam={"hang": True})
    process = world.spawn()
    world.wait_for("hang", "finetune.simsiam.voc07.s1")
    world.kill_group(process)
    world.file.write_text(world.file.read_text() + "\n# edited since\n")
    assert world.launch("status") == 0
    captured = capsys.readouterr()
    assert re.search(r"pretrain\.simsiam +done", captured.out)
    assert re.search(r"finetune\.simsiam\.voc07\.s1 +interrupted", captured.out)
    assert "has changed since it was submitted" in captured.err
    assert world.launch("logs", "convert.simsiam") == 0
    assert "convert.py" in capsys.readouterr().out


def test_an_orphaned_job_is_waited_for_and_not_started_twice(world: World) -> None:
    """Only the submit is killed: its child works on, and the next submit must not run a second one beside it."""
    world.order(pretrain={"steps": 150})
    process = world.spawn()
    world.wait_for("start", "pretrain.simsiam")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert world.is_locked("pretrain.simsiam")
    again = world.spawn()
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert "wait    pretrain.simsiam: a process of an earlier submit still works on it (process " in err
    mine = [(what, when) for when, what, who, *_ in world.events() if who == "pretrain.simsiam"]
    assert [what for what, _ in mine] == ["start", "end", "start", "end"]
    lines = (world.run_dir / world.open().graph["pretrain.simsiam"].dir / "metrics.json").read_text().splitlines()
    assert len(lines) == 150


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_jobs_after_a_checkpoint(world: World, number: int) -> None:
    world.order(finetune__scratch={"hang": True})
    process = world.spawn()
    world.wait_for("hang", "finetune.scratch.voc07.s1")
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as Ctrl-C does
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "the same command continues from the last checkpoints" in err
    (stopping,) = (line for line in err.splitlines() if line.startswith("stopping: "))
    assert "finetune.scratch.voc07.s1" in stopping
    state = world.state("finetune.scratch.voc07.s1")
    assert (state.status, state.exit_code) == ("cancelled", 75), "it saved a checkpoint and was not killed"
    assert "table.md" not in world.started()
    world.order()
    assert world.launch("submit") == 0
    assert set(world.statuses().values()) == {"done"}


def test_a_second_submit_beside_the_first_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(pretrain={"hang": True})
    first = world.spawn()
    world.wait_for("hang", "pretrain.simsiam")
    assert world.launch("submit") == 2
    err = capsys.readouterr().err
    assert f"another submit (process {first.pid} on " in err
    assert err.count("\n") == 1
    world.kill_group(first)
    world.order()
    assert world.launch("submit") == 0


def test_cancel_ends_the_submit_and_its_jobs(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(pretrain={"hang": True})
    process = world.spawn()
    world.wait_for("hang", "pretrain.simsiam")
    assert world.launch("cancel") == 0
    assert capsys.readouterr().out == f"cancelling the submit (process {process.pid})\n"
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert world.statuses()["pretrain.simsiam"] == "cancelled"
    assert world.launch("cancel") == 0
    assert capsys.readouterr().out == "nothing is running\n"


def test_cancel_of_one_job_leaves_the_others(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(pretrain={"hang": True})
    process = world.spawn()
    world.wait_for("hang", "pretrain.simsiam")
    assert world.launch("cancel", "finetune.simsiam.coco.s1") == 2
    assert "finetune.simsiam.coco.s1 is not running" in capsys.readouterr().err
    assert world.launch("cancel", "pretrain.simsiam") == 0
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "no result: pretrain.simsiam: was cancelled" in err
    assert "no result: finetune.simsiam.coco.s1: blocked by pretrain.simsiam" in err
    statuses = world.statuses()
    assert statuses["pretrain.simsiam"] == "cancelled"
    assert statuses["finetune.scratch.coco.s1"] == "done"


def test_cancel_reaches_an_orphaned_job(world: World) -> None:
    world.order(pretrain={"hang": True})
    process = world.spawn()
    world.wait_for("hang", "pretrain.simsiam")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert world.launch("cancel") == 0
    job = world.open().graph["pretrain.simsiam"]
    deadline = time.monotonic() + 60
    while world.is_locked(job.name):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert world.statuses()["pretrain.simsiam"] == "interrupted"


def test_nothing_is_written_if_no_job_could_start(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.base / "images").rmdir()
    assert world.launch("submit") == 2
    assert "data.images: " in capsys.readouterr().err
    assert not world.run_dir.exists()


def test_a_refused_submit_removes_the_folders_it_made_for_its_lock(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transfer.experiment.local.LocalExecutor.refusal", lambda *_: "not today")
    assert world.launch("submit", "--set", f"run_dir={world.base}/a/b") == 2
    assert not (world.base / "a").exists()


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_on_the_new_file(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    waiting = threading.Thread(target=lambda: second.acquire(timeout=30.0))
    waiting.start()
    time.sleep(0.1)  # it waits for the first file, most likely; the outcome is the same if it does not
    (tmp_path / "lock").unlink()
    first.release()
    waiting.join()
    assert is_held(tmp_path / "lock")
    second.release()
    assert not is_held(tmp_path / "lock")


def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}M", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    yield from mounted(tmp_path / "disk", 1)


def test_a_full_disk_is_the_reason_even_if_nothing_can_be_written(
    world: World, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tool cannot say so in its log, and `job.json` has room only where it lies."""
    world.order(finetune__scratch__coco={"fill": str(small_disk / "filler")})
    sets = ("--set", f"run_dir={small_disk}/run")
    world.edit(rows={"scratch": {"scratch": True}}, tasks={"coco": {"config": f"{world.base}/configs/coco.yaml"}})
    assert world.launch("submit", *sets) == 1  # not even the table's job can begin
    assert "job.json: No space left on device; " in capsys.readouterr().err
    opened = world.open(f"run_dir={small_disk}/run")
    state = opened.store.read(opened.graph["finetune.scratch.coco.s1"])
    assert state is not None and state.status == "failed"
    assert f"the disk of {opened.store.run_dir}/jobs/finetune.scratch.coco.s1" in str(state.error)
    assert "No space left on device" in str(state.error)
    (small_disk / "filler").unlink()
    world.order()
    assert world.launch("retry", *sets) == 0
