"""What a cluster's limits do to a submission: no room, small arrays, a busy controller; with a fake sbatch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssl_transfer.errors import UserError
from ssl_transfer.formats.job import SlurmSubmission
from tests.transfer.experiment.small_world import World
from transfer.experiment import slurm_queue
from transfer.experiment.graph import Job
from transfer.experiment.slurm import executor, staging
from transfer.experiment.slurm.executor import SbatchRequest, script_text, submit_to_slurm
from transfer.experiment.slurm.setup import check_resources, choose_partition, parse_partition, site_text
from transfer.experiment.spec import Resources, StageResources, format_hours, resources_for

BUSY = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
FAKES = {
    # `answers`: one line a call: busy, lost (submitted all the same), refused; `room`: how many jobs still fit.
    "sbatch": f"""\
case "$*" in *--test-only*) exit 0;; esac
echo x >> calls; answer=$(head -n 1 answers); sed -i 1d answers
[ "$answer" != busy ] || {{ echo "{BUSY}" >&2; exit 1; }}
[ "$answer" != refused ] || {{ echo "sbatch: error: Invalid account" >&2; exit 1; }}
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1"); room=$(( $(cat room) - ${{last:-0}} - 1 ))
[ $room -ge 0 ] || {{ echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }}
echo $room > room; n=$(( $(cat number) + 1 )); echo $n > number; echo "$n|$1" >> queue; cp "$1" $n.sh
[ "$answer" != lost ] || {{ echo "{BUSY}" >&2; exit 1; }}
echo "Submitted batch job $n"
""",
    "squeue": """\
case "$*" in
    *%F*) cat queue;;
    *--states=all*--format=%T\\ *) tail -n 1 cancelled | grep -q "${*##*=}" && echo CANCELLED;;
    *--jobs=*JobArrayID*) for id in $(cut -d'|' -f1 queue); do
        echo "$id|PENDING|Dependency||0"; for n in 0 1 2 3 4; do echo "${id}_$n|PENDING|Priority||0"; done; done;;
esac
""",
    "scontrol": 'case "$*" in *config*) echo "MaxArraySize            = $(cat size)";; *) echo "$@" >> updates;; esac',
    "scancel": 'echo "$@" >> cancelled; echo $(( $(cat room) + 1 )) > room',
    "srun": "exit 1",
    "sinfo": "exit 0",
}


class FakeSlurm:
    """Commands of Slurm that write down what they are asked; its folder is `base`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        base.mkdir()
        for name, text in FAKES.items():
            (base / name).write_text(f"#!/bin/sh\ncd {base}\n{text}\n")
            (base / name).chmod(0o755)
        self.set(answers="", room="1000", number="100", queue="", size="1001", calls="", cancelled="", updates="")

    def set(self, **files: str) -> None:
        for name, text in files.items():
            (self.base / name).write_text(text)

    def lines(self, name: str) -> list[str]:
        return (self.base / name).read_text().splitlines()

    def scripts(self) -> dict[str, str]:
        """Name → options of every submission, in order."""
        files = sorted(self.base.glob("*.sh"), key=lambda path: int(path.stem))
        texts = [file.read_text() for file in files]
        names = [re.findall(r"job-name=small\.(\S+)", text)[0] for text in texts]
        return {f"{name} {n}": text for n, (name, text) in enumerate(zip(names, texts, strict=True), start=101)}

    def options(self, option: str) -> dict[str, str]:
        found = {name: re.findall(rf"--{option}=(\S+)", text) for name, text in self.scripts().items()}
        return {name: values[0] for name, values in found.items() if values}


@pytest.fixture
def slurm(world: World, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(world.base / "bin")
    monkeypatch.setenv("PATH", f"{fake.base}:/usr/bin:/bin")
    monkeypatch.setattr(slurm_queue, "BACKOFF", (0.0, 0.0, 0.0))
    monkeypatch.setattr(slurm_queue, "time", SimpleNamespace(sleep=lambda _: None))
    return fake


def submitted(world: World) -> dict[str, str]:
    opened = world.open()
    found = {job.name: SlurmSubmission.read_from(opened.store.folder(job)) for job in opened.graph}
    return {name: one.id for name, one in found.items() if one is not None}


def submit(world: World, *words: str) -> int:
    return world.launch("submit", "--cluster", "slurm", *words)


def with_trials(world: World, trials: int) -> dict[str, object]:
    config = f"{world.base}/configs"
    return {"voc07": {"config": f"{config}/voc07.yaml", "trials": trials}, "coco": {"config": f"{config}/coco.yaml"}}


class TestBusyController:
    """sbatch fails although nothing is wrong with the job."""

    def test_tried_again(self, world: World, slurm: FakeSlurm) -> None:
        slurm.set(answers="ok\nbusy\nbusy\nok\n")
        assert submit(world) == 0
        assert len(slurm.lines("calls")) == 9 and len(slurm.lines("queue")) == 7
        assert len(submitted(world)) == 9

    def test_a_lost_answer_is_recognised(self, world: World, slurm: FakeSlurm) -> None:
        slurm.set(answers="lost\nok\nlost\n")
        assert submit(world) == 0
        assert len(slurm.lines("calls")) == len(slurm.lines("queue")) == 7
        assert submitted(world)["finetune.scratch.voc07.s2"] == "101_1"
        assert submitted(world)["pretrain.simsiam"] == "103"

    def test_never_answered_is_one_line_and_the_next_submit_continues(
        self, world: World, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        slurm.set(answers="ok\n" + "busy\n" * 4)
        assert submit(world) == 2
        err = capsys.readouterr().err
        assert "finetune.scratch.coco.s1: Batch job submission failed: Socket timed out" in err
        assert list(submitted(world)) == ["finetune.scratch.voc07.s1", "finetune.scratch.voc07.s2"]
        assert not list((world.run_dir / "slurm").glob("*file*")), "scripts that were not submitted are removed"
        assert submit(world) == 0
        assert len(submitted(world)) == 9 and len(slurm.lines("queue")) == 7

    def test_a_refusal_is_not_tried_again(self, world: World, slurm: FakeSlurm) -> None:
        slurm.set(answers="refused\n")
        assert submit(world) == 2
        assert len(slurm.lines("calls")) == 1


def test_arrays_are_cut_to_what_slurm_allows(world: World, slurm: FakeSlurm) -> None:
    slurm.set(size="2")
    world.edit(slurm={"array_parallelism": 3}, tasks=with_trials(world, 5))
    assert submit(world) == 0
    arrays = slurm.options("array")
    assert list(arrays.values()) == ["0-1%1", "0-1%1"] * 2, "3 of 5 at a time are 1 of each 2"
    assert submitted(world)["finetune.scratch.voc07.s5"] == "103"
    table = slurm.options("dependency")["table 111"]
    assert table == "afterany:101:102:103:104:105:107:108:109:110"


class TestNoRoom:
    """A limit of submitted jobs, such as a QOS's MaxSubmitJobsPerUser."""

    def test_what_is_left_is_named_and_the_table_is_in_the_queue(
        self, world: World, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        slurm.set(room="4")
        assert submit(world) == 1
        out, err = capsys.readouterr()
        left = "convert.simsiam finetune.simsiam.voc07.s1 finetune.simsiam.voc07.s2 finetune.simsiam.coco.s1"
        assert "submitted 4 jobs" in out
        assert f"(QOSMaxSubmitJobPerUserLimit): pretrain.simsiam {left}" in err
        assert f"python tools/launch.py submit {world.file} --wait-for-room" in err
        assert set(submitted(world)) >= {"finetune.scratch.coco.s1", "table"} and len(submitted(world)) == 4
        assert slurm.lines("cancelled") == ["--state=PENDING 103"], "pretrain made room for the table"
        table = submitted(world)["table"]
        assert slurm.options("dependency")[f"table {table}"] == "afterany:101:102"
        slurm.set(room="5")
        assert submit(world) == 0
        assert submitted(world)["table"] == table, "it waits for more and keeps its place"
        assert slurm.lines("updates")[-1] == f"update JobId={table} Dependency=afterany:101:102:105:107:108"
        assert len(slurm.lines("cancelled")) == 1

    def test_an_array_is_cut_to_the_room(self, world: World, slurm: FakeSlurm) -> None:
        slurm.set(room="4")
        world.edit(tasks=with_trials(world, 9))
        assert submit(world) == 1
        names = [name for name in submitted(world) if name.startswith("finetune.scratch.voc07")]
        assert len(names) == 3 and "table" in submitted(world)

    def test_wait_for_room_submits_the_rest(
        self, world: World, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        slurm.set(room="3")
        monkeypatch.setattr(executor, "time", SimpleNamespace(sleep=lambda _: slurm.set(room="2")))
        assert submit(world, "--wait-for-room") == 0
        assert len(submitted(world)) == 9 and len(set(submitted(world).values())) == 9
        assert "jobs are left, such as " in capsys.readouterr().err
        assert len(slurm.lines("updates")[-1].split("afterany:")[1].split(":")) == 6, "the table waits for all"

    def test_a_job_whose_input_failed_meanwhile_is_blocked(
        self, world: World, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        slurm.set(room="5")

        def fail(_: float) -> None:
            opened = world.open()
            job: Job = opened.graph["pretrain.simsiam"]
            now = opened.store.read(job)
            if now is None:
                number = submitted(world)["pretrain.simsiam"]
                slurm.set(queue="".join(f"{line}\n" for line in slurm.lines("queue") if not line.startswith(number)))
                state = executor_state(opened.graph, opened.store, job, number)
                opened.store.write(job, state)
            slurm.set(room="9")

        monkeypatch.setattr(executor, "time", SimpleNamespace(sleep=fail))
        assert submit(world, "--wait-for-room") == 1
        err = capsys.readouterr().err
        assert "not submitted: convert.simsiam: needs pretrain.simsiam, which has no result" in err
        assert "convert.simsiam" not in submitted(world)


def executor_state(graph: object, store: object, job: Job, number: str) -> object:
    from transfer.experiment.executors import RunContext, next_attempt

    context = RunContext("slurm", {}, 0, number)
    return next_attempt(job, graph, store, context).finish("failed", error="boom")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "is_room"),
    [
        ("error: QOSMaxSubmitJobPerUserLimit error: Job violates accounting/QOS policy (job submit limit, …)", True),
        ("error: AssocMaxSubmitJobLimit", True),
        ("error: AssocGrpSubmitJobsLimit", True),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", True),
        ("QOSMaxWallDurationPerJobLimit Job violates accounting/QOS policy (job submit limit, user's size …)", False),
        ("QOSMaxGRESPerUser", False),
        ("Invalid account or account/partition combination specified", False),
    ],
)
def test_which_refusals_mean_a_full_queue(said: str, is_room: bool) -> None:
    assert slurm_queue.is_out_of_room(said) == is_room


class TestDryRun:
    """The scripts, and nothing else."""

    def test_slurm(self, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("PATH", str(world.base))  # no Slurm is needed
        before = sorted(world.base.rglob("*"))
        assert submit(world, "--dry-run") == 0
        out = capsys.readouterr().out
        assert out.count("#!/bin/bash") == 7
        assert "##### finetune.scratch.voc07.s1 finetune.scratch.voc07.s2\n" in out
        assert "#SBATCH --array=0-1%2" in out and "#SBATCH --dependency='afterok:<pretrain.simsiam>'" in out
        assert sorted(world.base.rglob("*")) == before

    def test_local(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        assert world.launch("submit", "--dry-run") == 0
        out = capsys.readouterr().out
        assert out.count("# finetune.") == 6 and "/transfer.py --config-file" in out
        assert not world.run_dir.exists()

    def test_contradicting_resources(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        assert submit(world, "--dry-run", "--set", "resources.pretrain.sbatch={gpus-per-task: 2}") == 2
        assert "resources.pretrain: sbatch.gpus-per-task 2 does not fit gpus 1 " in capsys.readouterr().err


def test_a_site_file_makes_slurm_the_default(
    world: World, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    site = world.base / "ssl-detection-transfer/site.yaml"
    site.parent.mkdir()
    site.write_text("resources: {default: {gpus: 0}}\n")
    assert world.launch("submit") == 0
    assert "submitted 9 jobs" in capsys.readouterr().out
    assert world.launch("submit", "--cluster", "local") == 2, "they are in Slurm's queue"
    site.unlink()
    assert world.launch("submit", "--wait-for-room") == 2
    assert "--wait-for-room" in capsys.readouterr().err


class TestResources:
    """Spellings of GPUs, unset defaults, what belongs to the graph."""

    SITE = Resources(gpus=8, gres="gpu:a100:8", memory_gb=400, sbatch={"exclusive": True}, setup=["module load a"])

    @pytest.mark.parametrize(
        ("own", "gpus", "gres"),
        [
            ({"gpus": 4}, 4, "gpu:a100:4"),
            ({"gpus": 0}, 0, None),
            ({"gres": "gpu:2"}, 2, "gpu:2"),
            ({"gres": "gpu:h100"}, 1, "gpu:h100"),
            ({"gres": "gres/gpu:h100:3(S:0,1)"}, 3, "gres/gpu:h100:3(S:0,1)"),
            ({"gres": "nvme:1,gpu=2"}, 2, "nvme:1,gpu=2"),
            ({"gres": "shard:4"}, 8, "shard:4"),
            ({"gres": None}, 8, None),
            ({}, 8, "gpu:a100:8"),
        ],
    )
    def test_gres_and_gpus_never_contradict(self, own: dict[str, object], gpus: int, gres: str | None) -> None:
        found = Resources(**own).over(self.SITE)
        assert (found.gpus, found.gres, found.tasks_per_node) == (gpus, gres, gpus or 1)

    def test_any_default_can_be_unset(self) -> None:
        names = ("cpus", "memory_gb", "hours", "gres", "gpus", "nodes", "signal_seconds")
        layers = [
            StageResources(default=self.SITE),
            StageResources(default=Resources(**dict.fromkeys(names), sbatch={"exclusive": False}, setup=[])),
        ]
        found = resources_for("finetune", layers)
        assert {name: getattr(found, name) for name in names} == dict.fromkeys(names)
        lines = script_text(SbatchRequest("x", found), Path("/r")).splitlines()
        assert [line for line in lines if line.startswith("#SBATCH")] == [
            "#SBATCH --error=/r/%j_0_log.err",
            "#SBATCH --job-name=x",
            "#SBATCH --ntasks-per-node=1",
            "#SBATCH --open-mode=append",
            "#SBATCH --output=/r/%j_0_log.out",
            "#SBATCH --requeue",
            "#SBATCH --signal=USR2@60",
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("sbatch: {dependency: afterok:1}", "'dependency' is set by the graph"),
            ("sbatch: {array: 0-3}", "'array' is set by the graph"),
            ("sbatch: {depend: singleton}", "'depend' is set by the graph"),
            ("sbatch: {no-requeue: true}", "'no-requeue' is set by the graph"),
            ("sbatch: {time: 60}", "'time' is set by the key hours"),
            ("sbatch: {nodes: 2}", "'nodes' is set by the key nodes"),
            ("{gpus: 4, gres: 'gpu:8'}", "gres gpu:8 requests 8 GPUs and gpus says 4"),
        ],
    )
    def test_refused(self, world: World, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
        value = text if text.startswith("{") else f"{{{text}}}"
        assert world.launch("plan", "--set", f"resources.default={value}") == 2
        err = capsys.readouterr().err
        assert message in err and "--set resources.default" in err

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"gpus-per-task": "a100:1"}, ["--gpus-per-task=a100:1", "--mem=10240M"]),
            ({"gpus": 8}, ["--gpus=8", "--mem=10240M"]),
            ({"mem-per-gpu": "40G"}, ["--gpus-per-node=4", "--mem-per-gpu=40G"]),
            ({"mem": 0}, ["--gpus-per-node=4", "--mem=0"]),
        ],
    )
    def test_other_spellings(self, options: dict[str, object], expected: list[str]) -> None:
        resources = Resources(nodes=2, gpus=4, memory_gb=10, sbatch=options)
        assert resources.contradiction() is None
        lines = script_text(SbatchRequest("x", resources), Path("/r")).splitlines()
        found = [line.removeprefix("#SBATCH ") for line in lines if re.match("#SBATCH --(gpus|mem)", line)]
        assert found == expected

    def test_single_processes_take_no_gpus_from_the_default(self) -> None:
        default = Resources(gpus=8, gres="gpu:8", sbatch={"gpus-per-task": 1, "mem": 0, "mail-type": "FAIL"})
        found = resources_for("convert", [StageResources(default=default)])
        assert (found.gpus, found.gres, found.sbatch) == (0, None, {"mail-type": "FAIL"})

    def test_the_signal_comes_before_the_limit(self) -> None:
        assert "signal_seconds 120" in str(Resources(hours=1 / 30, signal_seconds=120).contradiction())
        assert Resources(hours=1 / 30, signal_seconds=60).contradiction() is None


@pytest.mark.parametrize("line", ["short|up|2:00|2|16|64000|(null)", "tiny|up|infinite|1|1|2000|gpu:a100:4"])
def test_every_stage_fits_the_partition_of_the_site_file(world: World, line: str) -> None:
    partition = parse_partition(line)
    site = world.base / "site.yaml"
    site.write_text(site_text(choose_partition([partition]), [partition]))
    from transfer.experiment.load import read_site

    for kind in ("pretrain", "convert", "finetune", "choose", "table"):
        found = resources_for(kind, [read_site(site).resources])
        assert found.hours and found.hours <= (partition.hours or 24) and found.contradiction() is None
        assert (found.cpus or 0) * found.tasks_per_node <= max(partition.cpus, found.tasks_per_node)
        assert (found.memory_gb or 0) <= max(partition.memory_gb, 1)
    assert f"hours: {format_hours(partition.hours or 24)}:00" in site.read_text()


def test_the_check_job_has_the_size_of_the_largest_stage() -> None:
    site = StageResources(
        default=Resources(gpus=4, cpus=8, memory_gb=100, copy_data_to="/x", setup=["module load a"]),
        pretrain=Resources(nodes=4, gpus=8),
    )
    found = check_resources(site)
    assert (found.nodes, found.gpus, found.cpus, found.memory_gb) == (4, 8, 8, 100)
    assert (found.setup, found.copy_data_to) == (["module load a"], None)


def test_words_for_srun_are_those_of_every_step(tmp_path: Path) -> None:
    words = ["--container-image=/i/torch.sqsh", "--container-mounts=$SCRATCH:/data"]
    resources = Resources(nodes=1, gpus=8, srun=words, python="python3")
    text = script_text(SbatchRequest("x", resources, [Path("/r/jobs/a")], code=Path("/c")), Path("/r"))
    image = "--container-image=/i/torch.sqsh --container-mounts=$SCRATCH:/data python3"
    [start] = [line for line in text.splitlines() if "'submitit.core._submit'" in line]
    assert f"--kill-on-bad-exit=1 --export=ALL {image} -u -c " in start and start.endswith('" /r')
    step = "srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --export=ALL"
    [record, _] = [line for line in text.splitlines() if "'transfer.experiment.slurm.job_processes'" in line]
    assert f" {step} {image} -c " in record and ' --requeues 0 "$@" /r/jobs/a ' in record


@pytest.mark.parametrize(
    ("lines", "failed"),
    [
        (["true", "module() { return 3; }", "module load cuda/12"], "exit code 3: module load cuda/12;"),
        (["[ -f /no/such ] && echo x", "if false; then", "true", "fi", "no_such_command || true"], None),
        (["source {base}/rc"], None),
        (["source /no/such/file"], "exit code 1: source /no/such/file;"),
    ],
)
def test_a_failing_set_up_line_ends_the_job_and_is_named(tmp_path: Path, lines: list[str], failed: str | None) -> None:
    (tmp_path / "rc").write_text("false\ntrue\n")  # what a file does inside is its own affair
    for name, text in {"srun": "echo started", "squeue": "echo RUNNING", "python": 'echo "$@"; exit 77'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    setup = [line.format(base=tmp_path) for line in lines] if "{base}" in lines[0] else lines
    request = SbatchRequest("x", Resources(setup=setup), [Path("/r/jobs/a")], python=str(tmp_path / "python"))
    (tmp_path / "job.sh").write_text(script_text(request, Path("/r")))
    environment = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", tmp_path / "job.sh"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert ("started" in done.stdout) == (failed is None)
    module = "'transfer.experiment.slurm.job_processes', run_name='__main__', alter_sys=True)"
    assert f"{module} --requeues 0 --code" in done.stdout
    assert failed is None or f"set-up line failed with {failed}" in done.stderr


def test_a_gpu_that_was_requested_and_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "PROBE", "import sys; sys.exit('torch finds none')")
    with pytest.raises(UserError, match=r"8 GPUs were requested and .* usable: torch finds none; .*doctor\.py"):
        staging.check_gpu(8)
    monkeypatch.setattr(staging, "PROBE", "print('H200 GPU-1')")
    assert staging.check_gpu(8) == "H200 GPU-1"


def test_a_submission_is_removed_whole_where_sbatch_is_killed(
    world: World, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executor, "submit_script", interrupt)
    with pytest.raises(KeyboardInterrupt):
        submit_to_slurm(SbatchRequest("x", Resources()), world.base / "slurm", [sys.exit])
    assert list((world.base / "slurm").iterdir()) == []


def test_plan_shows_the_total_and_the_longest_chain(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.base / "configs/coco.yaml").write_text("TRANSFER: {TASK: coco}\nSOLVER: {MAX_ITER: 90000}\n")
    (world.base / "configs/simsiam_r50_b256_200ep_base.yaml").write_text("SOLVER: {EPOCHS: 9}\n")
    recipe = f"rows.simsiam.pretrain.config={world.base}/configs/simsiam_r50_b256_200ep_base.yaml"
    sets = ["--set", recipe, "--set", "resources={default: {gpus: 2}, pretrain: {nodes: 2, gpus: 4}}"]
    assert world.launch("plan", *sets) == 0
    out = capsys.readouterr().out
    assert "pretrain: 1 jobs, 8.0 GPU-hours on H200 (estimate) (docs/notes/performance.md" in out
    assert "total: 7 jobs, 241.6 GPU-hours: 233.6 on V100 and 8.0 on H200 (estimate), 4 unknown" in out
    chain = "row simsiam: pretrain on 8 GPUs → finetune coco on 2 GPUs"
    assert f"longest chain: 59:25 (h:mm), {chain}" in out, "8.0 / 8 + 116.8 / 2 hours"


def test_a_wheel_needs_no_python_path() -> None:
    """Its site-packages before those of another interpreter (`python` of the resources) would mix their packages."""
    installed, checkout = (
        SbatchRequest("x", Resources(), [Path("/r/jobs/a")], code=code) for code in (None, Path("/c"))
    )
    assert "PYTHONPATH" not in script_text(installed, Path("/r"))
    assert script_text(checkout, Path("/r")).count("PYTHONPATH=/c") >= 2
