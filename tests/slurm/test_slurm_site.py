"""`init`, snapshot, staging and a whole table's size on the private cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.slurm.slurm_world import SlurmWorld
from tools import launch
from transfer.experiment.load import read_site

pytestmark = pytest.mark.slow


def test_init_writes_a_valid_site_file(world: SlurmWorld, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["init", "--run-dir", f"{world.base}/runs"]) == 0
    out = capsys.readouterr().out
    assert "partition: main" in out and "GPUs: none" in out and "torch " in out
    site = read_site().resources.default
    assert (site.partition, site.gpus, site.cpus, site.memory_gb, site.hours) == ("main", 0, 16, 56, 24)
    assert world.run_verb("init") == 2
    assert "site.yaml exists; edit it, or move it away" in capsys.readouterr().err


def test_init_with_an_unknown_partition(world: SlurmWorld, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run_verb("init", "--partition", "mian") == 2
    assert "--partition mian: did you mean main?" in capsys.readouterr().err


def test_jobs_run_the_snapshot_on_staged_data(world: SlurmWorld) -> None:
    (world.base / "detection/a.jpg").write_text("a")
    scratch = world.base / "scratch"
    sets = [
        "slurm.snapshot=true",
        f"resources.finetune.copy_data_to={scratch}",
        "resources.finetune.environment={MARK: x}",
    ]
    assert world.submit(*(word for one in sets for word in ("--set", one))) == 0
    assert set(world.wait_until_over().values()) == {"done"}
    [copy] = scratch.glob("detection-????????")
    assert (copy / "a.jpg").read_text() == "a"
    job = world.open().graph["finetune.scratch.coco.s1"]
    log = (world.run_dir / job.dir / "stdout.log").read_text()
    assert f"TRANSFER.DATA_ROOT {copy}" in log and "threads 1 marked x" in log
    [code] = world.run_dir.glob("code-????????")
    [script] = [p for p in world.run_dir.glob("slurm/*_submission.sh") if "small" not in p.name][:1]
    assert f"export PYTHONPATH={code}${{PYTHONPATH" in script.read_text()


def test_a_missing_container_is_named_as_the_reason(world: SlurmWorld) -> None:
    assert world.submit("--set", "resources.finetune.container=/no/such/apptainer exec x.sif") == 0
    statuses = world.wait_until_over()
    assert {word for name, word in statuses.items() if name.startswith("finetune")} == {"failed"}
    assert statuses["table"] == statuses["convert.simsiam"] == "done"
    error = str(world.state("finetune.scratch.coco.s1").error)
    assert "execve(): /no/such/apptainer: No such file or directory" in error and "slurm/" in error


def whole_table(world: SlurmWorld) -> None:
    """All of Table 5 with trivial payloads: 8 rows, 3 tasks (4 groups of columns), 5 trials of VOC, a grid of 4 lrs."""
    pretrained = ("supervised", "simclr", "moco_v2", "byol", "swav", "simsiam_base", "simsiam_optimal")
    recipe = {"config": f"{world.base}/configs/simsiam.yaml"}
    content = {
        **yaml.safe_load(world.file.read_text()),
        "rows": {
            "scratch": {"scratch": True},
            **{row: {"pretrain": {**recipe, "overrides": {"SEED": n}}} for n, row in enumerate(pretrained)},
        },
        "tasks": {
            "voc07": {"config": f"{world.base}/configs/voc07.yaml", "trials": 5},
            "voc0712": {"config": f"{world.base}/configs/voc07.yaml", "trials": 5, "overrides": {"SOLVER.MAX_ITER": 4}},
            "coco": {"config": f"{world.base}/configs/coco.yaml"},
        },
        "lr_search": {"grid": [0.02, 0.05, 0.1, 0.2], "select_on": "test"},
    }
    world.file.write_text(yaml.safe_dump(content, sort_keys=False))


def test_the_whole_table_is_planned_and_submitted(world: SlurmWorld, capsys: pytest.CaptureFixture[str]) -> None:
    whole_table(world)
    assert world.launch("plan") == 0
    jobs = 7 * 2 + 8 * (11 + 3 * 5) + 1
    assert f"{jobs} jobs, {jobs} to run" in capsys.readouterr().out
    assert world.submit() == 0
    assert f"{jobs} jobs" in capsys.readouterr().out
    assert len(world.submitted_ids()) == jobs
    assert world.launch("status") == 0


def test_the_table_shows_a_failed_candidate_and_a_diverged_trial(world: SlurmWorld) -> None:
    world.order(lr0__1={"exit": 1}, finetune__simsiam__voc07__s2={"diverge": True})
    search = "lr_search={grid: [0.02, 0.1], select_on: test, rows: [simsiam], tasks: [voc07]}"
    assert world.submit("--set", search) == 0

    world.wait(lambda: not {"running", "queued"} & set(world.statuses(search).values()), "never over")
    words = world.statuses(search)
    assert words.pop("search.simsiam.voc07.lr0.1") == "failed"
    assert words.pop("finetune.simsiam.voc07.s2") == "diverged"
    assert set(words.values()) == {"done"}
    table = (world.run_dir / "table.md").read_text()
    assert '"status": "diverged"' in table and '"lr": 0.02' in table and "missing" not in table


def test_bad_input_submits_nothing(world: SlurmWorld, capsys: pytest.CaptureFixture[str]) -> None:
    """Mistakes in the file and missing folders are found before sbatch is called."""
    Path(world.base / "in_the_way").write_text("a file")
    for sets, message in (
        (f"run_dir={world.base}/in_the_way/run", "cannot be written"),
        (f"data.images={world.base}/gone", "is not a folder"),
        ("rows.simsiam.pretrain.config=gone.yaml", "rows.simsiam.pretrain.config: "),
        ("rows.simsiam.table_row=scratch.x", "is no name"),
        ("lr_search={grid: [0.1], select_on: test, rows: [gone]}", "lr_search.rows names 'gone'"),
    ):
        assert world.submit("--set", sets) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    assert world.submitted_ids() == [] and not world.run_dir.exists()
