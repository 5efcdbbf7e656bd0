"""What would run and why; planning touches nothing and imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.transfer.experiment.small_world import ROOT, World

SIMSIAM = ["pretrain.simsiam", "convert.simsiam"]


def whys(world: World, *sets: str) -> dict[str, str]:
    return {name: one.why for name, one in world.decisions(*sets).items()}


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.name != "events"}


def test_everything_runs_at_first_and_nothing_after(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(world.base)
    assert world.launch("plan") == 0
    assert tree(world.base) == before
    assert set(world.actions().values()) == {"run"}
    assert world.launch("submit") == 0
    after = tree(world.base)
    assert world.launch("plan") == 0
    assert tree(world.base) == after
    assert set(world.actions().values()) == {"done"}
    first, second = capsys.readouterr().out.split("small → ")[1:]
    assert "9 jobs, 9 to run, 0 done" in first
    assert "9 jobs, 0 to run, 9 done" in second


def test_plan_is_a_tree_with_reasons(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.order(convert__simsiam={"exit": 1, "say": "disk is full"})
    world.launch("submit")
    capsys.readouterr()
    world.launch("plan")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].rstrip() == "from scratch"
    assert lines[2].startswith("├─ finetune.scratch.voc07.s1         done ")
    assert lines[6].startswith("└─ pretrain.simsiam                  done ")
    assert lines[7].startswith("   └─ convert.simsiam                run       failed: error: disk is full")
    assert lines[8].startswith("      ├─ finetune.simsiam.voc07.s1   run       has not run yet")
    assert lines[11].startswith("table ")


def test_plan_shows_commands(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.launch("plan", "--commands")
    shown = [line.strip() for line in capsys.readouterr().out.splitlines() if "$ " in line]
    assert len(shown) == 10  # nine jobs, the table's two formats
    assert any("convert.py" in line and line.endswith("/simsiam.pkl") for line in shown)


def test_changed_settings_name_the_former_folder(world: World) -> None:
    world.launch("submit")
    former = world.open().graph["finetune.scratch.coco.s1"].dir
    (world.base / "configs/coco.yaml").write_text("_BASE_: base.yaml\nMODEL: {MASK_ON: false}\n")
    why = whys(world)
    assert why["finetune.scratch.coco.s1"] == f"its settings or inputs changed (before: {Path(former).name})"
    assert world.actions()["finetune.scratch.voc07.s1"] == "done"
    assert world.actions()["table"] == "run"


def test_a_lost_output_is_made_again_with_its_inputs(world: World) -> None:
    world.launch("submit")
    graph = world.open().graph
    (world.run_dir / graph["finetune.simsiam.coco.s1"].outputs[0]).unlink()
    (world.run_dir / graph["convert.simsiam"].outputs[0]).unlink()
    assert {n for n, a in world.actions().items() if a == "run"} == {
        "convert.simsiam",
        "finetune.simsiam.coco.s1",
        "table",
    }
    assert whys(world)["convert.simsiam"].startswith("its output jobs/convert.simsiam-")


def test_an_unneeded_stage_does_not_run(world: World) -> None:
    world.launch("submit")
    graph = world.open().graph
    for name in SIMSIAM:
        (world.run_dir / graph[name].outputs[0]).unlink()
    assert [world.actions()[name] for name in SIMSIAM] == ["skip", "skip"]
    assert whys(world)["pretrain.simsiam"] == "not needed: all that uses it is done"
    assert "table" not in {n for n, a in world.actions().items() if a == "run"}


def test_more_trials_run_only_the_new_ones(world: World) -> None:
    world.launch("submit")
    runs = {n for n, a in world.actions("tasks.voc07.trials=3").items() if a == "run"}
    assert runs == {"finetune.scratch.voc07.s3", "finetune.simsiam.voc07.s3", "table"}


def test_plan_names_what_submit_would_refuse(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.base / "detection").rmdir()
    assert world.launch("plan") == 0
    assert "submit would refuse: " in capsys.readouterr().err


def test_plan_and_status_import_nothing_heavy(world: World) -> None:
    world.launch("submit")
    code = (
        "import sys; sys.argv[0]='launch'; from tools import launch; from ssl_transfer.console import call_main\n"
        "code = call_main(launch.main, sys.argv[1:])\n"
        "heavy = {'torch', 'detectron2', 'numpy', 'matplotlib', 'submitit', 'fvcore'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    for verb in ("plan", "status"):
        done = subprocess.run(
            [sys.executable, "-c", code, verb, str(world.file)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
