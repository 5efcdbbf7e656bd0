"""The small experiment of the other tests, on the private cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssl_transfer.console import call_main
from ssl_transfer.formats.job import SlurmSubmission
from tests.slurm.private_cluster import PrivateCluster
from tests.transfer.experiment.small_world import World, make
from tools import launch

RESOURCES = """
resources:
  default: {gpus: 0, cpus: 1, memory_gb: 0.5, hours: 0.5, signal_seconds: 30}
  convert: {cpus: 1, memory_gb: 0.5}
  table: {cpus: 1, memory_gb: 0.5}
"""


@dataclass
class SlurmWorld(World):
    """An experiment and the cluster it runs on."""

    cluster: PrivateCluster

    def submit(self, *words: str) -> int:
        return self.launch("submit", "--cluster", "slurm", *words)

    def run_verb(self, *words: str) -> int:
        """A verb that takes no experiment."""
        return call_main(launch.main, list(words))

    def ids(self) -> dict[str, str]:
        """The Slurm id of every submitted job."""
        opened = self.open()
        found = {job.name: SlurmSubmission.read_from(opened.store.folder(job)) for job in opened.graph}
        return {name: one.id for name, one in found.items() if one is not None}

    def submitted_ids(self) -> list[str]:
        """The Slurm ids of all jobs that this experiment ever submitted."""
        lines = [line.split("|") for line in self.cluster.run("squeue", "-hrtall", "-o", "%i|%j").splitlines()]
        return [id_ for id_, name in lines if name.startswith(f"{self.base.name}.")]

    def hangs(self) -> int:
        """How often a tool has come to where it waits for a signal."""
        return sum(words[1] == "hang" for words in self.events())

    def steps(self, name: str) -> int:
        """How many steps a fake tool has done, over all attempts."""
        path = self.run_dir / self.open().graph[name].dir / "metrics.json"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def processes(self, name: str, rank: int = 0) -> list[int]:
        """The processes of a job's task: what Slurm started, then the tool it started."""
        id_ = self.ids()[name]
        array, _, index = id_.partition("_")
        marks = [f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={index}"] if index else [f"SLURM_JOB_ID={array}"]
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                command = (entry / "cmdline").read_bytes().decode().replace("\0", " ")
            except OSError:
                continue
            if {*marks, f"SLURM_PROCID={rank}"} <= set(words) and "python" in command and "srun" not in command:
                found.append((int(entry.name), command))
        submitit = [pid for pid, command in found if "submitit" in command and "bash" not in command]
        return [
            *sorted(submitit),
            *sorted(pid for pid, command in found if "/transfer.py" in command or "/pretrain.py" in command),
        ]

    def wait(self, is_so: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
        """Until it is so; requeued jobs start at once, not in two minutes."""
        deadline = time.monotonic() + seconds
        while not is_so():
            self.cluster.hurry()
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {p}\n{p.read_text()[-1500:]}" for p in self.run_dir.glob("slurm/*log*"))
                raise AssertionError(f"{what}: {self.statuses()}\n{self.cluster.run('squeue', '-r')}\n{logs[-9000:]}")
            time.sleep(0.3)

    def wait_until_over(self, seconds: float = 120.0) -> dict[str, str]:
        """Until nothing runs and nothing waits; the states then."""
        self.wait(lambda: not {"running", "queued"} & set(self.statuses().values()), "never over", seconds)
        return self.statuses()


def make_slurm_world(base: Path, cluster: PrivateCluster) -> SlurmWorld:
    """A fresh experiment in `base`; nothing has run yet."""
    world = make(base)
    world.file.write_text(world.file.read_text().replace("name: small", f"name: {base.name}") + RESOURCES)
    return SlurmWorld(world.base, world.tools, cluster)
