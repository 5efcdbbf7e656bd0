"""GPUs, Slurm, cores, memory and disk."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from pathlib import Path

from transfer.doctor.finding import Finding, ok, warning
from transfer.doctor.software import one_line

GIB = 1 << 30
LEAST_MEMORY = 8 * GIB
"""The demo was measured to fit in it."""
LEAST_DISK = 10 * GIB
"""A run folder with a few checkpoints of a ResNet-50 detector."""
CGROUP = Path("/sys/fs/cgroup")
SLURM_TIMEOUT = 20
"""Seconds to wait for the Slurm controller."""


def gpus() -> Finding:
    """List the GPUs that torch can use; explain why it can use none."""
    try:
        torch = importlib.import_module("torch")
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        sizes = [torch.cuda.get_device_properties(index).total_memory // GIB for index in range(len(names))]
    except Exception as error:
        return warning("gpus", f"cannot query torch: {one_line(error)}", "repair torch first (above)")
    if names:
        listed = ", ".join(
            f"{index}: {name} ({size} GiB)" for index, (name, size) in enumerate(zip(names, sizes, strict=True))
        )
        return ok("gpus", listed)
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return warning("gpus", "this torch is a CPU build, but nvidia-smi is here", "install a CUDA build of torch")
    if shutil.which("nvidia-smi"):
        advice = f"run nvidia-smi: the driver may be too old for CUDA {torch.version.cuda}, or CUDA_VISIBLE_DEVICES set"
        return warning("gpus", "nvidia-smi is here, but torch sees no GPU", advice)
    return warning("gpus", "none", "toy and small runs work on the CPU; Table 5 needs GPUs: try a GPU node")


def slurm() -> Finding:
    """Check for Slurm's commands and its controller."""
    absent = [name for name in ("sbatch", "sinfo", "squeue") if shutil.which(name) is None]
    if absent:
        return warning("slurm", f"no {', '.join(absent)}", "launch with --cluster local, or try a login node")
    try:
        words = ["sinfo", "--noheader", "--format", "%P %D %G"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=SLURM_TIMEOUT, check=True)
        version = subprocess.run(
            ["sinfo", "--version"], capture_output=True, text=True, timeout=SLURM_TIMEOUT, check=True
        )
    except subprocess.TimeoutExpired:
        return warning(
            "slurm",
            f"the controller did not answer in {SLURM_TIMEOUT} s",
            "run sinfo yourself; launch with --cluster local meanwhile",
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        return warning("slurm", f"sinfo failed: {said}", "run sinfo yourself; launch with --cluster local meanwhile")
    partitions = sorted({line.split()[0].rstrip("*") for line in done.stdout.splitlines() if line.strip()})
    if not partitions:
        return warning(
            "slurm", f"{version.stdout.strip()}, no partition for you", "request one from the cluster's staff"
        )
    return ok("slurm", f"{version.stdout.strip()}, partitions {', '.join(partitions)}")


def usable_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> Finding:
    """Number of cores that this process may run on, and the container's limit."""
    count = usable_cores()
    quota = cpu_quota(CGROUP)
    found = f"{count}" + (f", limited to {quota:g} by the container" if quota and quota < count else "")
    if min(count, quota or count) < 2:
        return warning("cores", found, "the demo's times are for 2 cores: expect twice as long")
    return ok("cores", found)


def cpu_quota(cgroup: Path) -> float | None:
    """Limit on cores of a control group (version 2); None where it sets none."""
    words = _words(cgroup / "cpu.max")
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else None


def memory() -> Finding:
    """Available memory: the machine's or the container's limit, whichever is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit(CGROUP)
    usable = min(total, limit or total)
    found = f"{usable / GIB:.1f} GiB" + (" (the container's limit)" if usable < total else "")
    if usable < LEAST_MEMORY * 0.95:  # a machine with 8 GiB reports a little less
        return warning("memory", found, "the demo was measured to fit 8 GiB: close other programs")
    return ok("memory", found)


def memory_limit(cgroup: Path) -> int | None:
    """A control group's memory limit in bytes; None where it sets none."""
    words = _words(cgroup / "memory.max")
    return int(words[0]) if words and words[0].isdigit() else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def disk(folder: Path) -> Finding:
    """Free disk space where runs are written."""
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free at {folder}"
    if free < LEAST_DISK:
        return warning("disk", found, "write runs to a larger disk, or free some space for checkpoints")
    if not os.access(folder, os.W_OK):
        return warning("disk", f"{found}, not writable", "run from a writable folder")
    return ok("disk", found)
