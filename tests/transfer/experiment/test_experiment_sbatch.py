"""What sbatch is handed, as literal text: one node of 8 GPUs, four nodes, arrays, dependencies, what a site adds."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from ssl_transfer import environment
from tests.transfer.experiment.small_world import World
from transfer.experiment.commands import Arguments, Tools, spell_overrides
from transfer.experiment.decide import decide
from transfer.experiment.executors import RunPlan
from transfer.experiment.slurm.executor import (
    ClusterExecutor,
    SbatchRequest,
    job_arrays,
    sbatch_parameters,
    script_text,
)
from transfer.experiment.slurm.staging import STAGED, copy_code, stage_data
from transfer.experiment.spec import Resources

EIGHT = Resources(nodes=1, gpus=8, cpus=8, memory_gb=400, hours=24, signal_seconds=120)
START, RECORD = (
    '-c "import sys; sys.path[:] = filter(None, sys.path); import runpy; '
    f"runpy.run_module('{module}', run_name='__main__', alter_sys=True)\""
    for module in ("submitit.core._submit", "transfer.experiment.slurm.job_processes")
)


def text(request: SbatchRequest, count: int = 1) -> str:
    return script_text(request, Path("/r/slurm"), count)


def request(resources: Resources, **changes: object) -> SbatchRequest:
    plain = SbatchRequest(
        "table5.pretrain.simsiam", resources, [Path("/r/jobs/a-1")], "", 20, 64, "/venv/python", Path("/c")
    )
    return dataclasses.replace(plain, **changes)


END_JOB = """\
    trap - ERR
    job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    for _ in 1 2 3; do state=$(squeue --noheader --jobs="$job" --format=%T) && break; sleep 2; done
    record_end --code "$1" --state "$state"; code=$?
    if [ $code = 75 ]; then
        folders=(/r/jobs/a-1)
        node=$(cat "${folders[${SLURM_ARRAY_TASK_ID:-0}]}/excluded_node" 2>/dev/null)
        [ -z "$node" ] || trap "" TERM
        said=$(scontrol requeue "$job" 2>&1) || { record_end --code "$1" --not-requeued "$said"; exit 1; }
        [ -z "$node" ] || exclude_node
    fi
    case $code in 75|76) sleep 120;; esac
    [ $code != 77 ] || exit 1
    exit $code
}
"""


@pytest.mark.parametrize("nodes", [1, 4])
def test_nodes_of_eight_gpus(nodes: int) -> None:
    assert text(request(EIGHT.model_copy(update={"nodes": nodes}))) == (
        f"""\
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --error=/r/slurm/%j_0_log.err
#SBATCH --gpus-per-node=8
#SBATCH --job-name=table5.pretrain.simsiam
#SBATCH --mem=409600M
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/r/slurm/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
record_end() {{
    PYTHONPATH=/c${{PYTHONPATH:+:$PYTHONPATH}} /venv/python {RECORD} --requeues 20 \
"$@" /r/jobs/a-1
}}
exclude_node() {{
    others=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -o %N | sort -u | grep -cvx "$node")
    [ "$others" -lt "$SLURM_JOB_NUM_NODES" ] || scontrol update "JobId=$job" "ExcNodeList=$node"
}}
end_job() {{
{END_JOB}\
export PYTHONPATH=/c${{PYTHONPATH:+:$PYTHONPATH}}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /r/slurm/%j_%t_log.out --error /r/slurm/%j_%t_log.err --kill-on-bad-exit=1 --export=ALL \
--cpus-per-task=8 /venv/python -u {START} /r/slurm


# teardown
end_job $?"""
    )


def test_four_nodes_by_gres_with_every_site_option() -> None:
    resources = Resources(
        nodes=4,
        gpus=8,
        cpus=12,
        memory_gb=0.5,
        hours=0.01,
        signal_seconds=300,
        partition="gpu",
        account="lab",
        qos="high",
        constraint="a100",
        gres="gpu:a100:8",
        sbatch={"exclusive": True, "mail-type": "FAIL,END"},
        setup=["module load cuda/12.4"],
        environment={"NCCL_SOCKET_IFNAME": "ib0 ib1"},
        container="apptainer exec --nv /i/torch.sif",
        python="python3",
    )
    lines = text(request(resources)).splitlines()
    assert [line for line in lines if line.startswith("#SBATCH")] == [
        "#SBATCH --account=lab",
        "#SBATCH --constraint=a100",
        "#SBATCH --cpus-per-task=12",
        "#SBATCH --error=/r/slurm/%j_0_log.err",
        "#SBATCH --exclusive",
        "#SBATCH --gres=gpu:a100:8",
        "#SBATCH --job-name=table5.pretrain.simsiam",
        "#SBATCH --mail-type=FAIL,END",
        "#SBATCH --mem=512M",
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=/r/slurm/%j_0_log.out",
        "#SBATCH --partition=gpu",
        "#SBATCH --qos=high",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@300",
        "#SBATCH --time=1",
    ]
    setup = lines[lines.index("    exit $code") + 2 : lines.index("# command") - 1]
    assert setup[0].startswith("trap ") and setup[0].endswith(" ERR")
    assert setup[1:] == [
        "module load cuda/12.4",
        "trap - ERR",
        "export NCCL_SOCKET_IFNAME='ib0 ib1'",
        "export PYTHONPATH=/c${PYTHONPATH:+:$PYTHONPATH}",
    ]
    own, fallback = lines[lines.index("record_end() {") + 1 :][:2]
    assert f" apptainer exec --nv /i/torch.sif python3 {RECORD} " in own
    assert own.endswith('; code=$?; case $code in 0|75|76|77) echo "$said" >&2; return $code;; esac')
    assert f" /venv/python {RECORD} " in fallback, "where that one cannot start"
    [command] = [line for line in lines if line.startswith("srun ")]
    assert command.endswith(f" apptainer exec --nv /i/torch.sif python3 -u {START} /r/slurm")


def test_modules_of_the_user_in_the_folder_that_submits_are_not_imported(tmp_path: Path) -> None:
    """A script of one's own named transfer.py is likely where transfers are run."""
    commands = {"srun": f'while [ "$1" != {sys.executable} ]; do shift; done; exec "$@"', "squeue": "echo RUNNING"}
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("transfer", "ssl_transfer", "submitit", "runpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('NOT OURS')\n")
    DelayedSubmission(spell_overrides, {}).dump(tmp_path / "7_submitted.pkl")
    (tmp_path / "job").mkdir()
    script = script_text(SbatchRequest("x", Resources(), [tmp_path / "job"]), tmp_path)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    slurm |= {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node"}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, cwd=tmp_path, env=os.environ | slurm | {"PATH": f"{tmp_path}:/bin"}
    )
    assert b"NOT OURS" not in done.stdout + done.stderr, (done.stdout + done.stderr).decode()
    assert pickle.loads((tmp_path / "7_0_result.pkl").read_bytes()) == ("success", {})


def test_an_array_waits_for_its_weights_and_is_cancelled_without_them() -> None:
    folders = [Path(f"/r/jobs/s{n}") for n in range(5)]
    lines = text(request(EIGHT, folders=folders, dependency="afterok:12", parallelism=2), count=5).splitlines()
    assert "#SBATCH --array=0-4%2" in lines
    assert "#SBATCH --dependency=afterok:12" in lines
    assert "#SBATCH --kill-on-invalid-dep=yes" in lines
    assert "#SBATCH --output=/r/slurm/%A_%a_0_log.out" in lines
    end = lines[lines.index("record_end() {") + 1]
    assert end.endswith('"$@" /r/jobs/s0 /r/jobs/s1 /r/jobs/s2 /r/jobs/s3 /r/jobs/s4')


def test_without_gpus_no_gpu_option_is_set() -> None:
    found = sbatch_parameters(request(Resources(nodes=2, gpus=0, tasks=4, hours=1)))
    assert (found["nodes"], found["ntasks_per_node"]) == (2, 4)
    assert found["gpus_per_node"] is found["gres"] is found["mem"] is None


def test_the_whole_graph_s_dependencies(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.base))
    opened = world.open("lr_search={grid: [0.02, 0.1], select_on: test, rows: [simsiam], tasks: [voc07]}")
    snapshot = opened.snapshot()
    plan = RunPlan(
        experiment=opened.experiment,
        graph=opened.graph,
        decisions=decide(opened.graph, snapshot),
        store=opened.store,
        tools=opened.tools,
        snapshot=snapshot,
    )
    submitted: dict[str, str] = {}
    found = {}
    for number, array in enumerate(job_arrays(plan), start=1):
        found[array.name] = (number, len(array.jobs), array.dependency(submitted))
        ids = [str(number)] if len(array.jobs) == 1 else [f"{number}_{index}" for index in range(len(array.jobs))]
        submitted.update(zip((job.name for job in array.jobs), ids, strict=True))
    assert found == {
        "finetune.scratch.voc07": (1, 2, ""),
        "finetune.scratch.coco.s1": (2, 1, ""),
        "pretrain.simsiam": (3, 1, ""),
        "convert.simsiam": (4, 1, "afterok:3"),
        "search.simsiam.voc07": (5, 2, "afterok:4"),
        "choose.simsiam.voc07": (6, 1, "afterany:5"),
        "finetune.simsiam.voc07": (7, 2, "afterok:4:6"),
        "finetune.simsiam.coco.s1": (8, 1, "afterok:4"),
        "table": (9, 1, "afterany:1:2:3:6:7:8"),
    }


def test_the_experiment_overrides_the_site_file(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.base))
    site = world.base / "ssl-detection-transfer/site.yaml"
    site.parent.mkdir()
    site.write_text("resources: {default: {partition: gpu, gpus: 4}}\n")
    opened = world.open("resources={pretrain: {gpus: 8}}", "rows.simsiam.resources={pretrain: {nodes: 4}}")
    executor = ClusterExecutor()
    found = {job.name: executor.resources(job, opened.experiment) for job in opened.graph}
    pretrain = found["pretrain.simsiam"]
    assert (pretrain.nodes, pretrain.gpus, pretrain.partition) == (4, 8, "gpu")
    tuned = [found[f"finetune.{row}.voc07.s1"] for row in ("scratch", "simsiam")]
    assert [(one.nodes, one.gpus) for one in tuned] == [(1, 4), (1, 4)]
    assert found["table"].partition == "gpu"
    site.write_text("resources:\n  default: {partitoin: gpu}\n")
    assert world.launch("submit", "--cluster", "slurm") == 2
    err = capsys.readouterr().err
    assert f"{site}, line 2: resources.default.partitoin: unknown key; did you mean partition?" in err


def test_without_slurm_it_is_one_line(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(world.base))
    assert world.launch("submit", "--cluster", "slurm") == 2
    err = capsys.readouterr().err
    assert "no sbatch, squeue, srun, scancel on this machine; " in err and err.count("\n") == 1
    assert not world.run_dir.exists()


def test_the_snapshot_holds_the_code_and_its_commit(world: World) -> None:
    code = copy_code(world.run_dir)
    assert copy_code(world.run_dir) == code
    assert (code / "tools/transfer.py").read_bytes() == (environment.ROOT / "tools/transfer.py").read_bytes()
    assert (code / environment.COMMIT_FILE).read_text().strip() == environment.commit()
    arguments = Arguments(
        ("/data",),
        config=environment.ROOT / "configs/transfer/voc07.yaml",
        overlay=environment.ROOT / "tests/not_copied.yaml",
        options={"data": "/data", "seed": "1"},
        overrides={"DATA.ROOT": "/data"},
        data="data",
    )
    tools = Tools().with_code(code)
    assert tools.command("evaluate", arguments, data="/local/copy") == (
        *(sys.executable, f"{code}/tools/evaluate.py", "/data"),
        *("--config-file", f"{code}/configs/transfer/voc07.yaml"),
        *("--overlay", f"{environment.ROOT}/tests/not_copied.yaml"),
        *("--data", "/local/copy", "--seed", "1", "DATA.ROOT", "/data"),
    )
    by_key = dataclasses.replace(arguments, data="DATA.ROOT")
    assert tools.command("pretrain", by_key, data="/local/copy")[-2:] == ("DATA.ROOT", "/local/copy")


class TestStaging:
    """Data on a node's own disk."""

    def test_copied_once_links_followed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real/a.jpg").write_text("a")
        (tmp_path / "data").mkdir()
        (tmp_path / "data/train").symlink_to(tmp_path / "real")
        monkeypatch.setenv("SCRATCH", f"{tmp_path}/scratch")
        copy = Path(stage_data(f"{tmp_path}/data", "$SCRATCH/sets"))
        assert copy.parent == tmp_path / "scratch/sets" and (copy / "train/a.jpg").read_text() == "a"
        (tmp_path / "real/a.jpg").write_text("changed meanwhile")
        assert stage_data(f"{tmp_path}/data", "$SCRATCH/sets") == str(copy)
        assert (copy / "train/a.jpg").read_text() == "a"

    def test_an_interrupted_copy_is_continued(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        for name in ("a", "b"):
            (tmp_path / "data" / name).write_text(name)
        copy = Path(stage_data(f"{tmp_path}/data", f"{tmp_path}/scratch"))
        (copy / STAGED).unlink()
        (copy / "b").write_text("half")
        kept = (copy / "a").stat().st_ino
        stage_data(f"{tmp_path}/data", f"{tmp_path}/scratch")
        assert (copy / "b").read_text() == "b" and (copy / "a").stat().st_ino == kept
