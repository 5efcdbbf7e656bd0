"""What the processes of a Slurm job run, and what its batch script runs after them.

The first process of a job starts the job's commands and writes `job.json`; the others run the same commands beside it
(the tools form one distributed run). If a process is killed outright (out of memory, a node's failure), only the batch
script is left: its last line runs `main`, which writes down how the job ended and requeues what was killed. The script
exits with 0 if the job has its result; the jobs behind it wait for that.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ssl_transfer.console import run_main
from ssl_transfer.errors import EXIT_REQUEUE, UserError
from ssl_transfer.files import write_text
from ssl_transfer.formats.graph import GRAPH_FILE
from ssl_transfer.formats.heartbeat import attempt_name, find_hang
from ssl_transfer.formats.job import STATE_FILE, JobState, SlurmSubmission
from ssl_transfer.locks import SILENT_SECONDS
from transfer.experiment.commands import Command, Tools
from transfer.experiment.executors import (
    FolderDeleted,
    JobAttempt,
    RunContext,
    describe_exit,
    next_attempt,
    start_command,
)
from transfer.experiment.graph import Job, read_graph
from transfer.experiment.slurm.endings import (
    END_OF_START,
    describe_stop,
    final_state,
    read_process_ends,
    read_slurm_log,
    state_after_hang,
    write_process_end,
)
from transfer.experiment.slurm.staging import check_gpu, stage_data
from transfer.experiment.store import ENDED_WELL, Store, write_state

HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
EXIT_ENDED_BY_SLURM, EXIT_RECORDED = EXIT_REQUEUE + 1, EXIT_REQUEUE + 2
"""`main`: Slurm is ending the job already (preempted, cancelled, requeued by hand); the job has no result."""
EXCLUDED_FILE = "excluded_node"
"""In the job's folder: the node that the script keeps the requeued job from, after a second hang; else empty."""
LEFTOVER_TIMEOUT = 60.0 + SILENT_SECONDS
"""Seconds that processes of the job's former start may take to exit, or the lock of a dead node to be free."""


@dataclass(frozen=True)
class SlurmProcess:
    """A process of a Slurm job: the job's id as squeue shows it, its requeues so far, and the process's rank."""

    id: str
    restarts: int = 0
    rank: int = 0

    @property
    def run(self) -> str:
        return f"{self.id}.{self.restarts}"

    @classmethod
    def current(cls) -> SlurmProcess:
        """This process, by submitit's reading of Slurm's environment variables."""
        from submitit.slurm.slurm import SlurmJobEnvironment

        here = SlurmJobEnvironment()
        return cls(here.job_id, int(os.environ.get("SLURM_RESTART_COUNT") or 0), here.global_rank)


@dataclass
class SlurmTask:
    """The callable that submitit pickles and runs in every process of the job.

    Attributes:
        run_dir: the run folder.
        job: the job.
        tools: make its command lines.
        environment: variables of its commands.
        max_resumes: how often a command that exits with 75 by itself is restarted.
        requeues: how often the job may be requeued.
        grace: seconds that a command has to save a checkpoint before the time limit.
        gpus: the GPUs of the job, on all nodes; each process must be able to use one.
        copy_data_to: a folder of the node that the data root is copied to first.
    """

    run_dir: str
    job: Job
    tools: Tools
    environment: Mapping[str, str]
    max_resumes: int
    requeues: int
    grace: float
    gpus: int = 0
    copy_data_to: str | None = None
    _leader: Leader | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_leader": None}

    @property
    def store(self) -> Store:
        return Store(Path(self.run_dir))

    def __call__(self) -> str:
        """Run the job to its end; exit with 1 if it has no result yet."""
        process = SlurmProcess.current()
        if process.rank:
            return Worker(self, process).run()
        self._leader = Leader(self, process)
        return self._leader.run()

    def checkpoint(self) -> Any:
        """Called by submitit in the first process, in its signal handler, before the time limit.

        Returns:
            What runs when Slurm starts the job again; None if it has ended or was requeued too often.
        """
        from submitit.helpers import DelayedSubmission

        assert self._leader is not None, "submitit calls it in the first process only"
        try:
            is_requested = self._leader.request_requeue()
        except FolderDeleted as error:
            sys.exit(str(error))
        # submitit calls scontrol; where there is none, as in many containers, the batch script requeues the job.
        return DelayedSubmission(self) if is_requested and shutil.which("scontrol") else None

    def commands(self) -> list[Command]:
        """The job's command lines on this node: with this Python, and with the copy of its data root if requested."""
        if self.gpus:
            check_gpu(self.gpus)
        data = self.job.data
        copy = stage_data(data, self.copy_data_to) if self.copy_data_to and data else None
        return self.job.commands(replace(self.tools, python=sys.executable), data=copy)


class Leader:
    """The first process: runs the attempt, and handles Slurm's signals."""

    def __init__(self, task: SlurmTask, process: SlurmProcess) -> None:
        self.task, self.process, self.store = task, process, task.store
        self.context = RunContext("slurm", task.environment, task.max_resumes, process.id, process.restarts, task.gpus)
        self.attempt: JobAttempt | None = None
        self.was_terminated = False
        self.stops = self._slurm_stops()

    def run(self) -> str:
        self._wait_for_ownership()
        signal.signal(signal.SIGTERM, self._on_term)
        try:
            commands = self.task.commands()
            with _blocked_signals():
                self.attempt = self._start(commands)
            while (state := self._poll()) is None:
                time.sleep(0.1)
        except FolderDeleted as error:
            sys.exit(str(error))
        except (UserError, OSError) as error:
            self._fail(str(error))
            raise
        if self.was_terminated and state.status == "requeued":
            state = self._find_reason(state)
        if state.status not in ENDED_WELL:
            sys.exit(f"{self.task.job.name}: {state.status}: {state.error}")
        return state.status

    def _wait_for_ownership(self) -> None:
        """Wait until the job's folder names this Slurm job; exit if it names another, or if nothing is left to do."""
        folder = self.store.folder(self.task.job)
        deadline = time.monotonic() + 60
        while (submission := SlurmSubmission.read_from(folder)) is None or submission.id != self.process.id:
            if not (self.store.run_dir / GRAPH_FILE).exists():
                sys.exit(f"{self.store.run_dir} was deleted; {self.task.job.name} ends")
            if time.monotonic() > deadline:
                owner = submission.id if submission else "nothing"
                sys.exit(f"{folder} was submitted as {owner}, not {self.process.id}")
            time.sleep(0.2)  # submit writes it as soon as sbatch has answered
        state = self.store.read(self.task.job)
        if state is not None and state.job_id == self.process.id and state.status in ENDED_WELL:
            sys.exit(0)  # a finished job was requeued by hand
        if self.process.restarts > self.task.requeues:
            self._fail(f"was requeued {self.task.requeues} times without finishing")
            sys.exit(1)

    def _start(self, commands: Sequence[Command]) -> JobAttempt:
        task = self.task
        graph = read_graph(self.store.run_dir)
        attempt = JobAttempt.start(task.job, commands, graph, self.store, self.context, timeout=LEFTOVER_TIMEOUT)
        if attempt is None:
            worked = f"another process has been working on {task.job.name} for {LEFTOVER_TIMEOUT:.0f} s"
            raise UserError(f"{worked}; retry later")
        return attempt

    def _poll(self) -> JobState | None:
        assert self.attempt is not None
        with _blocked_signals():  # a handler would find the attempt between two states
            return self.attempt.poll()

    def _on_term(self, _number: int, _frame: object) -> None:
        """Slurm ends the job, or srun this step as another process failed; the command was signalled as well."""
        self.was_terminated = True
        if self.attempt is None:
            sys.exit(128 + signal.SIGTERM)  # nothing runs yet
        if self.attempt.state.ended is None:
            self.attempt.stop("SIGTERM", "requeued", send=False)

    def _find_reason(self, state: JobState) -> JobState:
        """Preempted, requeued by hand or cancelled: slurmstepd prints it when it sends the signal."""
        deadline = time.monotonic() + 1.0
        while not (stops := self._slurm_stops() - self.stops) and time.monotonic() < deadline:
            time.sleep(0.2)
        if stops:
            state = describe_stop(state, max(stops)[1])
            self.store.write(self.task.job, state)
        return state

    def _slurm_stops(self) -> set[tuple[str, str]]:
        return set(read_slurm_log(self.store.folder(self.task.job), self.process.id).stops.items())

    def request_requeue(self) -> bool:
        """Save a checkpoint and stop; whether the job is to be requeued."""
        if self.attempt is None:
            return self.process.restarts < self.task.requeues
        if self.attempt.state.ended is not None:
            return False
        self.attempt.stop("its time limit was near", "requeued")
        deadline = time.monotonic() + self.task.grace
        while (state := self.attempt.poll()) is None:
            if time.monotonic() > deadline:
                self.attempt.kill()
            time.sleep(0.05)
        if state.status != "requeued":
            return False  # it ended by itself meanwhile, or was cancelled
        if self.process.restarts >= self.task.requeues:
            reason = f"its time limit was near and it was requeued {self.process.restarts} times already"
            remedy = "give it more hours or slurm.requeues, then retry"
            self.store.write(self.task.job, state.replace(status="failed", error=f"{reason}; {remedy}"))
            return False
        self.store.write(self.task.job, state.replace(kills=0, hangs=0))
        return True

    def _fail(self, reason: str) -> None:
        graph = read_graph(self.store.run_dir)
        state = next_attempt(self.task.job, graph, self.store, self.context)
        self.store.write(self.task.job, state.finish("failed", error=reason[:300]))


class Worker:
    """Any other process: runs the same commands, and writes an error record if one of them fails."""

    def __init__(self, task: SlurmTask, process: SlurmProcess) -> None:
        self.task, self.process = task, process
        self.folder = task.store.folder(task.job)
        self.log = self.folder / f"stdout.rank{process.rank}.log"
        self.stopped = False
        self.child: subprocess.Popen[bytes] | None = None

    def run(self) -> str:
        """Run to the end, or until a signal: then the first process decides what follows."""
        for number in HANDLED_SIGNALS:
            signal.signal(number, self._on_signal)
        try:
            for command in self.task.commands():
                if self._run_command(command):
                    return "stopped"
        except (UserError, OSError) as error:
            self._write_end(str(error), 1)
            raise
        return "done"

    def _run_command(self, command: Command) -> int:
        for _ in range(self.task.max_resumes + 1):
            with _blocked_signals():
                self.child = start_command(command, self.log, self.process.restarts + 1, self.task.environment)
            code = self.child.wait()
            if code == -signal.SIGTERM and not self.stopped:
                time.sleep(1.0)  # Slurm signals all processes of the step, but not at the same instant
            if code == 0 or self.stopped:
                return code
            if code != EXIT_REQUEUE or find_hang(self.folder, attempt_name()):
                break
        self._write_end(describe_exit(code, self.log, self.task.max_resumes), code)
        sys.exit(1)

    def _write_end(self, error: str, code: int) -> None:
        write_process_end(self.folder, self.process.run, self.process.rank, error, code)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.stopped = True
        if number == signal.SIGUSR2 and self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(argv: Sequence[str] | None = None) -> int:
    """The last line of a batch script: write down how the job ended.

    Exits with 0 if the job has its result, EXIT_REQUEUE if the script is to requeue it, EXIT_ENDED_BY_SLURM if Slurm
    is ending it, else EXIT_RECORDED: any other code means that this Python could not run.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--requeues", type=int, required=True)
    parser.add_argument("--code", type=int, required=True)
    parser.add_argument("--state", default="", help="what squeue says of the job")
    parser.add_argument("--not-requeued", help="why `scontrol requeue` failed")
    parser.add_argument("folders", nargs="+", type=Path)
    args = parser.parse_args(argv)
    process = SlurmProcess.current()
    folder: Path = args.folders[int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)]
    submission = SlurmSubmission.read_from(folder)
    if submission is None or submission.id != process.id:
        return EXIT_RECORDED
    path = folder / STATE_FILE
    before = JobState.read_or_none(path)
    if args.not_requeued is not None and before is not None:
        reason = f"could not be requeued ({' '.join(args.not_requeued.split())}); {before.error}"
        write_state(path, before.replace(status="failed", error=reason[:300]))
        return EXIT_RECORDED
    if before is not None and before.job_id == process.id and before.status in (*ENDED_WELL, "cancelled"):
        return 0 if before.status in ENDED_WELL else EXIT_RECORDED
    if args.state not in ("", "RUNNING"):  # requeued, preempted or cancelled
        return EXIT_ENDED_BY_SLURM
    at_end = {"restarts": process.restarts, "code": args.code}
    hang = find_hang(folder, attempt_name())
    if hang and before is not None and before.job_id == process.id:
        state = state_after_hang(before, hang[0], submission, **at_end)
        write_text(folder / EXCLUDED_FILE, hang[1] if state.hangs > 1 else "")
    else:
        state = final_state(before, read_process_ends(folder, process.run), submission, **at_end, folder=folder)
    sys.stderr.write(f"{END_OF_START}{process.run}: {state.status}: {state.error}\n")
    if state != before:
        write_state(path, state)
    return EXIT_REQUEUE if state.status == "requeued" else EXIT_RECORDED


if __name__ == "__main__":
    run_main(main)
