"""`--cluster debug`: the same graph in this process."""

from __future__ import annotations

import os

import pytest

from tests.transfer.experiment.small_world import World


def test_results_equal_those_of_local(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.launch("submit", "--cluster", "debug") == 0
    assert set(world.statuses().values()) == {"done"}
    assert "weights of simsiam" in (world.run_dir / "table.md").read_text()
    assert f"threads 1 marked {os.environ.get('MARK')}" in capsys.readouterr().out, "output goes to the terminal"
    world.forget()
    assert world.launch("submit", "--cluster", "local") == 0
    assert world.events() == []


def test_an_exception_keeps_its_traceback_and_ends_the_run(world: World) -> None:
    world.order(pretrain={"raise": "look at me"})
    with pytest.raises(RuntimeError, match="look at me"):
        world.launch("submit", "--cluster", "debug")
    opened = world.open()
    state = opened.store.read(opened.graph["pretrain.simsiam"])
    assert state is not None
    assert (state.status, state.error) == ("failed", "RuntimeError: look at me")
    assert world.started() == ["pretrain.simsiam"]
    assert not world.is_locked("pretrain.simsiam")


def test_a_failing_tool_blocks_its_dependents_only(world: World) -> None:
    world.order(convert={"exit": 2})
    assert world.launch("submit", "--cluster", "debug") == 1
    statuses = world.statuses()
    assert statuses["convert.simsiam"] == "failed"
    assert statuses["finetune.simsiam.coco.s1"] == "pending"
    assert statuses["finetune.scratch.coco.s1"] == "done"


def test_exit_75_restarts_the_command(world: World) -> None:
    world.order(pretrain={"again": 2})
    assert world.launch("submit", "--cluster", "debug") == 0
    assert world.started().count("pretrain.simsiam") == 3


def test_environment_variables_are_restored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    world.launch("submit", "--cluster", "debug", "--set", "environment.MARK=x")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MARK" not in os.environ
