"""What a Slurm job finds on its node: the code as it was submitted, data on the node's own disk, a usable GPU."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ssl_transfer import environment
from ssl_transfer.environment import host_name
from ssl_transfer.errors import UserError
from ssl_transfer.files import write_text
from ssl_transfer.locks import FileLock

CODE_FOLDERS = ("ssl_transfer", "pretrain", "transfer", "tools", "configs")
STAGED = ".staged"


def copy_code(run_dir: Path) -> Path:
    """Copy the code, so that later edits do not change submitted jobs. A copy with the same content is reused.

    submitit's `RsyncSnapshot` is no replacement: it needs rsync and a git checkout, leaves out files that git does not
    know, and cannot tell whether a copy is complete.

    Returns:
        `RUN_DIR/code-<8 hex>`, which holds the checkout's packages, tools and configs and its commit.
    """
    files = list(_code_files())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file}\0".encode())
        digest.update(hashlib.sha256((environment.ROOT / file).read_bytes()).digest())
    target = run_dir / f"code-{digest.hexdigest()[:8]}"
    if target.exists():
        return target
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    for file in files:
        (part / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(environment.ROOT / file, part / file)
    write_text(part / environment.COMMIT_FILE, environment.commit() + "\n")
    part.rename(target)
    return target


def _code_files() -> Iterator[Path]:
    for part in CODE_FOLDERS:
        for here, folders, names in os.walk(environment.ROOT / part):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(names):
                yield (Path(here) / name).relative_to(environment.ROOT)


def stage_data(source: str, folder: str, timeout: float = 6 * 3600) -> str:
    """Copy a data root below a folder of this node, once per node.

    Links are followed (a data root often consists of links). An interrupted copy is continued: files with the same
    size and time are kept.

    Args:
        source, folder: the data root, and a folder of the node's disk, in which `$VARIABLES` are expanded.
        timeout: seconds to wait for another process of this node that is copying.

    Raises:
        UserError: the folder cannot be written, the disk is full, or the other process takes too long.
    """
    parent = os.path.expandvars(folder)
    if "$" in parent:
        raise UserError(
            f"copy_data_to: {folder}: this node does not set that variable; give a folder that exists there"
        )
    target = Path(parent) / f"{Path(source).name}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    deadline = time.monotonic() + timeout
    while not (target / STAGED).exists():
        if not lock.acquire(timeout=1.0):
            if time.monotonic() > deadline:
                waited = f"another process has been copying to {target} for {timeout:.0f} s"
                raise UserError(f"copy_data_to: {waited}; retry later")
            continue
        with lock:
            if not (target / STAGED).exists():
                _copy_tree(Path(source), target)
                (target / STAGED).touch()
    return str(target)


def _copy_tree(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target, copy_function=_copy_file, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        reason = f"cannot copy {source} to {target}: {str(error)[:200]}"
        raise UserError(f"copy_data_to: {reason}; choose another disk") from error


def _copy_file(source: str, target: str) -> str:
    there, here = Path(source).stat(), Path(target)
    if not (here.exists() and here.stat().st_size == there.st_size and here.stat().st_mtime_ns == there.st_mtime_ns):
        part = f"{target}.part"
        shutil.copyfile(source, part)
        os.utime(part, ns=(there.st_atime_ns, there.st_mtime_ns))
        Path(part).replace(target)
    return target


PROBE = """
import os, sys, torch
count, rank = torch.cuda.device_count(), int(os.environ.get("SLURM_LOCALID", 0))
if not count:
    sys.exit(f"torch {torch.__version__} finds none")
device = f"cuda:{rank if count > 1 else 0}"
assert torch.ones(1, device=device).sum().item() == 1
print(torch.cuda.get_device_name(device), getattr(torch.cuda.get_device_properties(device), "uuid", rank))
"""
"""Of several GPUs that a process sees, it uses that of its rank on the node, as ssl_transfer.training.distributed."""
PROBE_TIMEOUT = 300.0


def check_gpu(gpus: int) -> str:
    """Use this process's GPU once, with this Python's torch, in a process of its own; its name and UUID.

    Raises:
        UserError: torch finds none, or it cannot be used: the job would train on the CPU, or not at all.
    """
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_TIMEOUT)
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        said = f"no answer in {PROBE_TIMEOUT:.0f} s"
    if said:
        host = host_name()
        remedy = f"see `{sys.executable} tools/doctor.py` there, or request gpus: 0"
        raise UserError(f"{gpus} GPUs were requested and {host} has none that is usable: {said[:160]}; {remedy}")
    return done.stdout.strip()
