"""What sinfo shows of a cluster, and a site file made of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from common.errors import UserError, nearest
from transfer.experiment.slurm import check

HOURS = 24.0
"""What is asked for where the partition would give more: a job that needs longer is put back and goes on."""


@dataclass(frozen=True)
class Partition:
    """Nodes of one kind in one partition.

    Attributes:
        name: the partition's.
        default: whether it is the cluster's default.
        up: whether it takes jobs.
        hours: its time limit; None without one.
        nodes: how many there are.
        cpus: of one node.
        memory_gb: of one node.
        gpus: of one node.
        gpu_type: as gres spells it; empty where it says none.
    """

    name: str
    default: bool
    up: bool
    hours: float | None
    nodes: int
    cpus: int
    memory_gb: float
    gpus: int
    gpu_type: str

    def describe(self) -> str:
        """In one line."""
        gpus = f"{self.gpus} GPUs{f' ({self.gpu_type})' if self.gpu_type else ''}" if self.gpus else "no GPU"
        limit = f"{self.hours:g} h" if self.hours else "no time limit"
        star = " (default)" if self.default else ""
        size = f"{self.nodes} nodes of {self.cpus} CPUs, {self.memory_gb:.0f} GB, {gpus}"
        return f"{self.name}{star}{'' if self.up else ', down'}: {limit}, {size}"


def survey() -> list[Partition]:
    """The cluster's partitions.

    Raises:
        UserError: there is no sinfo here, it fails, or shows none.
    """
    done = check.call(["sinfo", "--noheader", "--format=%P|%a|%l|%D|%c|%m|%G"])
    if done.returncode:
        raise UserError(f"sinfo failed: {' '.join(done.stderr.split())[:200]}; ask on a login node")
    found = [partition(line) for line in done.stdout.splitlines() if line.count("|") == 6]
    if not found:
        raise UserError("sinfo shows no partition that you may use; ask the cluster's staff for one")
    return found


def partition(line: str) -> Partition:
    """A line of sinfo: partition, availability, time limit, nodes, CPUs, memory in MB, gres."""
    name, up, limit, nodes, cpus, memory, gres = line.strip().split("|")
    gpu = re.search(r"gpu:(?:([^:,()]+):)?(\d+)", gres)
    return Partition(
        name=name.rstrip("*"),
        default=name.endswith("*"),
        up=up == "up",
        hours=hours(limit),
        nodes=int(nodes),
        cpus=int(cpus.rstrip("+")),
        memory_gb=int(memory.rstrip("+")) / 1024,
        gpus=int(gpu[2]) if gpu else 0,
        gpu_type=(gpu[1] or "") if gpu else "",
    )


def hours(limit: str) -> float | None:
    """A time limit such as `30:00`, `12:00:00`, `2-00:00:00` or `infinite`."""
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


def choose(partitions: Sequence[Partition], named: str | None = None) -> Partition:
    """The partition to train in: the named one; else one with GPUs, the default before others, then the most GPUs.

    Raises:
        UserError: there is none of that name, or none is up.
    """
    if named is not None:
        partitions = [one for one in partitions if one.name == named] or _unknown(named, partitions)
    usable = [one for one in partitions if one.up]
    if not usable:
        raise UserError("no partition is up; ask the cluster's staff")
    return max(usable, key=lambda one: (one.gpus > 0, one.default, one.gpus, one.memory_gb))


def _unknown(named: str, partitions: Sequence[Partition]) -> list[Partition]:
    raise UserError(f"--partition {named}: {nearest(named, [one.name for one in partitions])}")


def site_text(chosen: Partition, partitions: Sequence[Partition]) -> str:
    """The site file: the chosen partition's nodes, whole, one process a GPU; the others as comments."""
    processes = max(chosen.gpus, 1)
    limit = min(chosen.hours or HOURS, HOURS)
    lines = [
        "# What holds on this cluster; an experiment's own `resources` go over it (docs/guides/slurm.md).",
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
        f"    cpus: {max(chosen.cpus // processes, 1)} # a process",
        f"    memory_gb: {max(math.floor(chosen.memory_gb * 0.9), 1)} # a node: nine tenths of what it has",
        f"    hours: {limit:g}",
        "    # account: …   qos: …   constraint: …   setup: [module load …]   container: …   stage_to: $TMPDIR",
    ]
    return "\n".join(lines) + "\n"
