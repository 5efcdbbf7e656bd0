"""A Slurm cluster of one's own on this machine: munged, slurmctld and two slurmd in a folder, stopped with the test."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
HOW = "a private Slurm needs root and: apt-get install --no-install-recommends slurm-wlm munge"
NODES = ("127.0.0.1", "127.0.0.2")
"""Nodes are named by addresses of the loopback, which resolve anywhere without touching /etc/hosts."""

HELD = 120
"""Seconds that Slurm holds a requeued job."""

CONF = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={base}/state
SlurmctldPidFile={base}/slurmctld.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdPidFile={base}/slurmd.%n.pid
SlurmdLogFile={base}/slurmd.%n.log
SlurmdSpoolDir={base}/spool.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
SchedulerType=sched/builtin
MinJobAge=300
KillWait=5
InactiveLimit=0
SlurmctldTimeout=60
SlurmdTimeout=60
MaxArraySize=2000
SlurmdParameters=config_overrides
NodeName={nodes[0]} NodeHostname={host} NodeAddr={nodes[0]} Port={ports[1]} CPUs=16 RealMemory=64000
NodeName={nodes[1]} NodeHostname={host} NodeAddr={nodes[1]} Port={ports[2]} CPUs=16 RealMemory=64000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> str | None:
    """Why there can be no private cluster here; None when there can."""
    absent = [name for name in PROGRAMS if _which(name) is None]
    if absent:
        return f"no {', '.join(absent)}; {HOW}"
    return None if os.geteuid() == 0 else HOW


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _end_with_the_tests() -> None:
    """In a daemon: be killed when the tests are, however they end (prctl's PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@dataclass
class PrivateCluster:
    """A running cluster; its commands need `environment`."""

    base: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.base / "slurm.conf"), "GLOO_SOCKET_IFNAME": "lo"}

    def start(self) -> None:
        """Start all; returns when both nodes are idle."""
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (self.base / name).mkdir(parents=True)
        self.base.chmod(0o755)
        host = socket.gethostname().partition(".")[0]
        text = CONF.format(base=self.base, host=host, ports=_free_ports(3), nodes=NODES)
        (self.base / "slurm.conf").write_text(text)
        key = self.base / "munge.key"
        subprocess.run([_which("mungekey") or "", "--create", f"--keyfile={key}"], check=True)
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        words = [f"--{option}={self.base}/munge.{name}" for option, name in files.items()]
        self._spawn("munged", "--foreground", "--force", f"--key-file={key}", *words)
        self._wait(lambda: (self.base / "munge.socket").exists(), "munged does not listen")
        self._spawn("slurmctld", "-D", "-f", str(self.base / "slurm.conf"))
        for node in NODES:
            self._spawn("slurmd", "-D", "-N", node, "-f", str(self.base / "slurm.conf"))
        self._wait(
            lambda: self.run("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"], "the nodes do not come up"
        )

    def _spawn(self, name: str, *words: str) -> None:
        with open(self.base / f"{name}.out", "ab") as log:
            self.daemons.append(
                subprocess.Popen(
                    [_which(name) or name, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self.environment},
                    start_new_session=True,
                    preexec_fn=_end_with_the_tests,
                )
            )

    def _wait(self, is_so, what: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            gone = [" ".join(map(str, one.args)) for one in self.daemons if one.poll() is not None]
            if gone or time.monotonic() > deadline:
                logs = "\n".join(
                    f"{p.name}: {p.read_text(errors='replace')[-2000:]}"
                    for p in self.base.glob("*.*")
                    if p.suffix in (".log", ".out")
                )
                raise RuntimeError(f"{what}; ended: {gone}\n{logs}")
            time.sleep(0.1)

    def run(self, *words: str, check: bool = False) -> str:
        """A command's stdout."""
        done = subprocess.run(
            list(words), capture_output=True, text=True, env={**os.environ, **self.environment}, check=check
        )
        return done.stdout

    def hurry(self) -> None:
        """Let requeued jobs start soon.

        Slurm holds them for two minutes, because news of the former start's end may yet come and would count for the
        new one. Here it comes within seconds.
        """
        for line in self.run("squeue", "-h", "-r", "-o", "%i|%T|%r|%S").splitlines():
            id_, state, reason, start = line.split("|")
            if state != "PENDING" or reason != "BeginTime" or start == "N/A":
                continue
            if (datetime.fromisoformat(start) - datetime.now()).total_seconds() < HELD - 8:
                self.run("scontrol", "update", f"JobId={id_}", "StartTime=now")

    def empty(self) -> None:
        """End every job; returns when the queue is empty."""
        self.run("scancel", "-u", "root")
        self._wait(lambda: not self.run("squeue", "-h"), "jobs do not end")

    def stop(self) -> None:
        """End every job, every daemon, and whatever of them is left."""
        self.run("scancel", "-u", "root")
        deadline = time.monotonic() + 20
        while self.run("squeue", "-h") and time.monotonic() < deadline:
            self.run("scancel", "--signal=KILL", "--full", "-u", "root")
            time.sleep(0.5)
        for daemon in reversed(self.daemons):
            if daemon.poll() is None:
                daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Processes of this cluster: their environment, folder or open files name its folder."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                mine = str(self.base).encode() in (entry / "environ").read_bytes()
                links = [entry / "cwd", *(entry / "fd").iterdir()]
                mine = mine or any(str(link.readlink()).startswith(f"{self.base}/") for link in links)
            except OSError:
                continue
            if mine and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        return found
