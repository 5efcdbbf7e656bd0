"""`launch.py init`: writes a site file from what sinfo shows, and submits a job that checks it."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ssl_transfer import environment
from ssl_transfer.environment import host_name
from ssl_transfer.errors import UserError, nearest
from ssl_transfer.files import expect_shape, read_json_object, write_json, write_text
from transfer.experiment.load import read_site, site_file
from transfer.experiment.slurm.executor import SbatchRequest, refused_by_sbatch, submit_to_slurm
from transfer.experiment.slurm.staging import check_gpu
from transfer.experiment.slurm_queue import query_jobs, run_slurm
from transfer.experiment.spec import (
    SINGLE_PROCESS,
    SMALL,
    Resources,
    StageResources,
    format_hours,
    parse_hours,
    resources_for,
)

MAX_HOURS = 24.0
"""The time limit if the partition allows more: a job that needs longer is requeued and continues."""
CHECK_HOURS = 0.25
"""The time limit of the check job: libraries come slowly from a network file system that has not read them yet."""
FINDINGS = "check.json"


@dataclass(frozen=True)
class Partition:
    """A partition: its time limit in hours (None without one), its nodes, and what one node has."""

    name: str
    is_default: bool
    is_up: bool
    hours: float | None
    nodes: int
    cpus: int
    memory_gb: float
    gpus: int
    gpu_type: str

    def describe(self) -> str:
        gpus = f"{self.gpus} GPUs{f' ({self.gpu_type})' if self.gpu_type else ''}" if self.gpus else "no GPU"
        limit = f"{format_hours(self.hours)} (h:mm)" if self.hours else "no time limit"
        star = " (default)" if self.is_default else ""
        size = f"{self.nodes} nodes of {self.cpus} CPUs, {self.memory_gb:.0f} GB, {gpus}"
        return f"{self.name}{star}{'' if self.is_up else ', down'}: {limit}, {size}"


def find_partitions() -> list[Partition]:
    """The cluster's partitions.

    Raises:
        UserError: there is no sinfo here, it fails, or shows none.
    """
    done = run_slurm(["sinfo", "--noheader", "--format=%P|%a|%l|%D|%c|%m|%G"])
    if done.returncode:
        raise UserError(f"sinfo failed: {' '.join(done.stderr.split())[:200]}; run this on a login node")
    found = [parse_partition(line) for line in done.stdout.splitlines() if line.count("|") == 6]
    if not found:
        raise UserError("sinfo shows no partition that you may use; ask the cluster's staff for one")
    return found


def parse_partition(line: str) -> Partition:
    """A line of sinfo: partition, availability, time limit, nodes, CPUs, memory in MB, gres."""
    name, up, limit, nodes, cpus, memory, gres = line.strip().split("|")
    gpu = re.search(r"gpu:(?:([^:,()]+):)?(\d+)", gres)
    return Partition(
        name=name.rstrip("*"),
        is_default=name.endswith("*"),
        is_up=up == "up",
        hours=parse_hours(limit),
        nodes=int(nodes),
        cpus=int(cpus.rstrip("+")),
        memory_gb=int(memory.rstrip("+")) / 1024,
        gpus=int(gpu[2]) if gpu else 0,
        gpu_type=(gpu[1] or "") if gpu else "",
    )


def choose_partition(partitions: Sequence[Partition], name: str | None = None) -> Partition:
    """The partition to train in: the named one; else one with GPUs, the default before others, then the most GPUs.

    Raises:
        UserError: there is none of that name, or none is up.
    """
    if name is not None:
        named = [one for one in partitions if one.name == name]
        if not named:
            raise UserError(f"--partition {name}: {nearest(name, [one.name for one in partitions])}")
        partitions = named
    usable = [one for one in partitions if one.is_up]
    if not usable:
        raise UserError("no partition is up; ask the cluster's staff")
    return max(usable, key=lambda one: (one.gpus > 0, one.is_default, one.gpus, one.memory_gb))


def site_text(chosen: Partition, partitions: Sequence[Partition]) -> str:
    """The site file: whole nodes of the chosen partition, one process per GPU; the other partitions as comments."""
    processes = max(chosen.gpus, 1)
    limit = min(chosen.hours or MAX_HOURS, MAX_HOURS)
    hours = max(math.floor(round(limit * 60, 3)), 1) / 60
    signal = min(SMALL.signal_seconds or 60, math.floor(limit * 900))  # a quarter of the limit at most
    lines = [
        "# What applies to this cluster; an experiment's own `resources` override it (docs/guides/slurm.md).",
        f"# Written by `launch.py init` on {datetime.now():%Y-%m-%d} from what sinfo showed; edit it freely.",
        *(f"#   {one.describe()}" for one in partitions),
        "resources:",
        "  default:",
        f"    partition: {chosen.name}",
        f"    gpus: {chosen.gpus}",
    ]
    if chosen.gpu_type:
        lines.append(f"    gres: gpu:{chosen.gpu_type}:{chosen.gpus}")
    memory = max(math.floor(chosen.memory_gb * 0.9), 1)
    lines += [
        f"    cpus: {max(chosen.cpus // processes, 1)} # per process",
        f"    memory_gb: {memory} # per node: nine tenths of what it has",
        f"    hours: {format_hours(hours)}:00",
        f"    signal_seconds: {signal}",
        "    # account: …   qos: …   constraint: …   setup: [module load …]   container: …   copy_data_to: $TMPDIR",
    ]
    assert SMALL.hours and SMALL.cpus and SMALL.memory_gb
    if limit < SMALL.hours or chosen.cpus < SMALL.cpus or memory < SMALL.memory_gb:  # they take no size from default
        small = f"hours: {format_hours(min(hours, SMALL.hours))}:00, signal_seconds: {signal}"
        small += f", cpus: {min(chosen.cpus, SMALL.cpus)}, memory_gb: {min(memory, SMALL.memory_gb):g}"
        lines += [f"  {kind}: {{{small}}}" for kind in SINGLE_PROCESS]
    return "\n".join(lines) + "\n"


def write_site(partition: str | None = None) -> Path:
    """Write the user's site file.

    Raises:
        UserError: there is one already, or no Slurm here.
    """
    file = site_file()
    if file.exists():
        raise UserError(f"{file} exists; edit it, or move it away and run this again")
    found = find_partitions()
    write_text(file, site_text(choose_partition(found, partition), found))
    return file


@dataclass(frozen=True)
class CheckJob:
    """The callable of the check job: every process uses its GPU, and all of them all-reduce.

    The first writes `check.json` into `folder`; one that fails writes an error record.
    """

    folder: str
    gpus: int

    def __call__(self) -> None:
        from ssl_transfer.training.distributed import launch

        rank = int(os.environ.get("SLURM_PROCID", 0))
        try:
            mine = {"host": host_name()}
            mine |= {"gpu": check_gpu(self.gpus)} if self.gpus else {}
            processes = launch(_all_reduce, (mine,))
        except Exception as error:
            text = f"process {rank} on {host_name()}: {str(error) or type(error).__name__}"
            write_json(Path(self.folder) / f"error.rank{rank}.json", {"error": text})
            sys.exit(1)
        if rank == 0:
            findings = {"python": sys.executable, **environment.describe(), "processes": processes}
            write_json(Path(self.folder) / FINDINGS, findings)


def _all_reduce(mine: dict[str, str]) -> list[dict[str, str]]:
    """What every process found of itself, after an all-reduce over the devices that the trainers would use.

    Raises:
        UserError: two processes have one GPU, or the sum is wrong.
    """
    import detectron2  # noqa: F401  (as the tools do)
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return [mine]
    total = torch.ones(1, device="cuda" if torch.cuda.is_available() else "cpu")
    dist.all_reduce(total)
    if total.item() != dist.get_world_size():
        raise UserError(f"an all-reduce over {dist.get_world_size()} processes gave {total.item():g}")
    found: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    [(most, count)] = Counter((one["host"], one.get("gpu")) for one in found).most_common(1)
    if most[1] and count > 1:
        raise UserError(f"{count} processes on {most[0]} have the same GPU, {most[1]}")
    return found


def check_resources(site: StageResources) -> Resources:
    """What the check job gets: as much as the site's largest stage, for a short time."""
    stages = [resources_for(kind, (site,)) for kind in ("finetune", "evaluate", "pretrain")]
    real = max(stages, key=lambda one: (one.nodes or 1) * one.tasks_per_node)
    return Resources(hours=min(real.hours or CHECK_HOURS, CHECK_HOURS), signal_seconds=10, copy_data_to=None).over(real)


def submit_check_job(run_dir: Path) -> tuple[str, Path]:
    """Submit a short job of the size of a real one; its Slurm id and the folder it writes to.

    Args:
        run_dir: where experiments write; every node must see it.

    Raises:
        UserError: sbatch refuses it.
    """
    resources = check_resources(read_site().resources)
    refused = refused_by_sbatch({"default": resources})
    if refused:
        raise UserError(f"{refused}; correct {site_file()}")
    folder = run_dir.absolute() / "site-check"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    nodes, path = resources.nodes or 1, shlex.quote(str(folder))
    blind = f'test -w {path} || {{ echo "error: $SLURMD_NODENAME does not see "{path} >&2; exit 1; }}'
    step = f"srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --export=ALL sh -c {shlex.quote(blind)}"
    request = SbatchRequest("check", resources.model_copy(update={"setup": [*resources.setup, step]}))
    return submit_to_slurm(request, folder, [CheckJob(str(folder), resources.gpus or 0)])[0], folder


def wait_for_findings(
    job_id: str, folder: Path, timeout: float, report: Callable[[str], None]
) -> dict[str, Any] | None:
    """Wait for what the check job found; None if it has not ended in `timeout` seconds.

    Raises:
        UserError: the job failed, or ended without findings; names the reason.
    """
    deadline, last, polls_after_end = time.monotonic() + timeout, "", 0
    while time.monotonic() < deadline:
        if (folder / FINDINGS).exists():
            return read_json_object(folder / FINDINGS)
        entry = query_jobs([job_id]).get(job_id)
        state = f"{entry.state} {entry.reason}".replace(" None", "") if entry else "gone"
        if state != last:
            report(state)
        last = state
        polls_after_end += entry is None or not entry.is_active
        if polls_after_end > 3:  # a shared file system may show the file a little later
            where = entry.nodes if entry else "the job's first node"
            raise UserError(f"the check job {job_id} ended as {state}: {_why_failed(folder, where)}; see {folder}")
        time.sleep(1.0)
    return None


def _why_failed(folder: Path, where: str) -> str:
    records = sorted(folder.glob("error.rank*.json"))
    if records:
        return str(read_json_object(records[0]).get("error"))
    lines = [line for log in sorted(folder.glob("*_log.err")) for line in log.read_text(errors="replace").splitlines()]
    causes = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
    if causes:
        return causes[0].removeprefix("error: ")[:300]
    return f"it wrote nothing; does {where} see {folder}? give --run-dir a folder that all nodes share"


def describe_findings(found: dict[str, Any]) -> list[str]:
    with expect_shape(FINDINGS, "run `init` again"):
        versions = ", ".join(f"{name} {found[name]}" for name in ("torch", "torchvision", "detectron2"))
        hosts = Counter(one["host"] for one in found["processes"])
        gpus = Counter(one["gpu"].rpartition(" ")[0] for one in found["processes"] if "gpu" in one)
        names = ", ".join(f"{count} × {name}" for name, count in gpus.items())
        return [
            f"host {found['host']}, {found['python']}",
            f"{versions}; commit {found['commit']}",
            f"{sum(hosts.values())} processes all-reduced on {len(hosts)} nodes: {', '.join(hosts)}",
            f"GPUs: {names or 'none'}",
        ]
