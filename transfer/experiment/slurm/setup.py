"""`launch.py init`: writes a site file from what sinfo shows, and submits a one-minute job that checks it."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from common import environment
from common.errors import UserError, nearest
from common.files import expect_shape, read_json_object, write_json, write_text
from transfer.experiment.load import read_site, site_file
from transfer.experiment.slurm.executor import SbatchRequest, refused_by_sbatch, submit_to_slurm
from transfer.experiment.slurm_queue import query_jobs, run_slurm
from transfer.experiment.spec import Resources, resources_for

MAX_HOURS = 24.0
"""The time limit if the partition allows more: a job that needs longer is requeued and continues."""
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
        limit = f"{self.hours:g} h" if self.hours else "no time limit"
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


def parse_hours(limit: str) -> float | None:
    """The hours of a time limit such as `30:00`, `12:00:00` or `2-00:00:00`; None for `infinite`."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", limit):
        return None
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # days-hours[:minutes[:seconds]]
        parts += [0] * (3 - len(parts))
    elif len(parts) == 1:  # minutes
        parts = [0, *parts, 0]
    elif len(parts) == 2:  # minutes:seconds
        parts = [0, *parts]
    return 24 * int(days or 0) + parts[0] + parts[1] / 60 + parts[2] / 3600


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
    lines += [
        f"    cpus: {max(chosen.cpus // processes, 1)} # per process",
        f"    memory_gb: {max(math.floor(chosen.memory_gb * 0.9), 1)} # per node: nine tenths of what it has",
        f"    hours: {limit:g}",
        "    # account: …   qos: …   constraint: …   setup: [module load …]   container: …   copy_data_to: $TMPDIR",
    ]
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
    """The callable of the check job; writes `check.json` into `folder`."""

    folder: str

    def __call__(self) -> None:
        findings = {"python": sys.executable, **environment.describe(), "gpus": _list_gpus()}
        write_json(Path(self.folder) / FINDINGS, findings)


def _list_gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def submit_check_job() -> tuple[str, Path]:
    """Submit a one-minute job with the site's resources, one GPU at most; its Slurm id and the folder it writes to.

    Raises:
        UserError: sbatch refuses it.
    """
    site = resources_for("finetune", (read_site().resources,))
    small: dict[str, Any] = {"nodes": 1, "gpus": min(site.gpus or 0, 1), "tasks": 1, "hours": 1 / 60}
    small |= {"gres": None, "memory_gb": 2.0, "cpus": 1, "signal_seconds": 10, "copy_data_to": None}
    if site.gres and small["gpus"]:
        small["gres"] = site.gres.rpartition(":")[0] + ":1"
    resources = Resources(**{**site.model_dump(), **small})
    refused = refused_by_sbatch({"default": resources})
    if refused:
        raise UserError(f"{refused}; correct {site_file()}")
    folder = site_file().parent / "check"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return submit_to_slurm(SbatchRequest("check", resources), folder, [CheckJob(str(folder))])[0], folder


def wait_for_findings(
    job_id: str, folder: Path, timeout: float, report: Callable[[str], None]
) -> dict[str, Any] | None:
    """Wait for what the check job found; None if it has not ended in `timeout` seconds.

    Raises:
        UserError: the job ended without findings.
    """
    deadline, last, polls_after_end = time.monotonic() + timeout, "", 0
    while time.monotonic() < deadline:
        if (folder / FINDINGS).exists():
            return read_json_object(folder / FINDINGS)
        entry = query_jobs([job_id]).get(job_id)
        state = f"{entry.state} {entry.reason}" if entry else "gone"
        if state != last:
            report(state)
        last = state
        polls_after_end += entry is None or not entry.is_active
        if polls_after_end > 3:  # a shared file system may show the file a little later
            raise UserError(f"the check job {job_id} ended as {state}; its output is in {folder}")
        time.sleep(1.0)
    return None


def describe_findings(found: dict[str, Any]) -> list[str]:
    with expect_shape(FINDINGS, "run `init` again"):
        versions = ", ".join(f"{name} {found[name]}" for name in ("torch", "torchvision", "detectron2"))
        return [
            f"host {found['host']}, {found['python']}",
            f"{versions}; commit {found['commit']}",
            f"GPUs: {', '.join(found['gpus']) or 'none'}",
        ]
