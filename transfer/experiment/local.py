"""`--cluster local` and `--cluster debug`: run the graph on this machine, in dependency order."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, UserError
from ssl_transfer.formats.graph import GRAPH_FILE
from ssl_transfer.formats.job import JobState
from ssl_transfer.locks import process_id
from transfer.experiment.commands import Command
from transfer.experiment.executors import (
    Executor,
    FolderDeleted,
    JobAttempt,
    ReadyQueue,
    RunContext,
    RunListener,
    RunOutcome,
    RunPlan,
    job_environment,
    next_attempt,
    open_log,
    state_after_success,
    write_banner,
)
from transfer.experiment.graph import Job

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def visible_gpus(slot: int, count: int) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES with a slot's own GPUs; empty if `count` is 0."""
    if not count:
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(number) for number in range((slot + 1) * count)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices[slot * count : (slot + 1) * count])}


class LocalExecutor(Executor):
    """Runs jobs side by side as children of this process, in its process group: killing the group kills all.

    A stopped job has `grace` seconds to save a checkpoint before it is killed.
    """

    name = "local"

    def __init__(self, poll: float = 0.05, grace: float = 60.0) -> None:
        self.poll, self.grace = poll, grace

    def run(self, plan: RunPlan, listener: RunListener) -> RunOutcome:
        """Run to the end, or until SIGINT, SIGTERM or SIGHUP; a second signal kills what still runs."""
        outcome = RunOutcome()
        queue = ReadyQueue(plan, outcome)
        jobs = _RunningJobs(plan, queue, listener)
        listener.begin(plan, plan.experiment.local.slots)
        try:
            with _received_signals() as received:
                while jobs.running or (queue.waiting and not received):
                    if not received:
                        jobs.start_ready()
                    self._stop(received, jobs)
                    jobs.poll()
                    time.sleep(self.poll)
                outcome.stopped = received[0] if received else None
        finally:
            jobs.kill()
            listener.end()
        return outcome

    def _stop(self, received: list[int], jobs: _RunningJobs) -> None:
        if not received:
            return
        jobs.stop(signal.Signals(received[0]).name, self.grace)
        if len(received) > 1 or time.monotonic() > jobs.stopped_at + self.grace:
            jobs.kill()


class _RunningJobs:
    """The jobs that run now."""

    def __init__(self, plan: RunPlan, queue: ReadyQueue, listener: RunListener) -> None:
        self.plan, self.queue, self.listener = plan, queue, listener
        self.settings = plan.experiment.local
        self.context = RunContext(
            LocalExecutor.name, job_environment(plan.experiment), plan.experiment.max_resumes, gpus=self.settings.gpus
        )
        self.running: dict[str, JobAttempt] = {}
        self.slots: dict[str, int] = {}
        self.locked: set[str] = set()
        self.stopped_at = 0.0

    def start_ready(self) -> None:
        """Start jobs while there are free slots; a job that an earlier submit's process works on takes one."""
        for job in self.queue.pop_blocked():
            self.listener.blocked(job, self.queue.outcome.blocked[job.name])
        self.locked.intersection_update(job.name for job in self.queue.ready())
        for job in self.queue.ready():
            busy = len(self.running) + len(self.locked - {job.name})
            if busy >= self.settings.slots:
                return
            self._start(job)

    def _check_run_folder(self) -> None:
        """Raise UserError, which ends all jobs, if the run folder was deleted."""
        if not (self.plan.store.run_dir / GRAPH_FILE).exists():
            raise UserError(f"{self.plan.store.run_dir} was deleted while its jobs ran; they were ended")

    def _start(self, job: Job) -> None:
        self._check_run_folder()
        slot = min(set(range(self.settings.slots)) - set(self.slots.values()))
        gpus = self.settings.gpus
        context = replace(self.context, environment={**self.context.environment, **visible_gpus(slot, gpus)})
        commands = job.commands(self.plan.tools, num_gpus=gpus)
        attempt = JobAttempt.start(job, commands, self.plan.graph, self.plan.store, context)
        if attempt is not None:
            self.locked.discard(job.name)
            self.queue.start(job)
            self.running[job.name] = attempt
            self.slots[job.name] = slot
            self.listener.started(job, attempt.state)
        elif job.name not in self.locked:
            self.locked.add(job.name)
            self.listener.waiting(job, self.plan.store.read(job))

    def poll(self) -> None:
        for name, attempt in list(self.running.items()):
            try:
                state = attempt.poll()
            except FolderDeleted as error:
                if not (self.plan.store.run_dir / GRAPH_FILE).exists():
                    raise UserError(
                        f"{self.plan.store.run_dir} was deleted while its jobs ran; they were ended"
                    ) from error
                state = attempt.state.finish("failed", error=str(error))
            if state is not None:
                del self.running[name], self.slots[name]
                self.queue.finish(attempt.job, state)
                self.listener.ended(attempt.job, state)
        self.listener.tick({name: attempt.state for name, attempt in self.running.items()})

    def stop(self, reason: str, grace: float) -> None:
        """Ask every job to save a checkpoint and exit, once."""
        if not self.stopped_at:
            self.listener.stopping(list(self.running), grace)
            self.stopped_at = time.monotonic()
            for attempt in self.running.values():
                attempt.stop(reason)

    def kill(self) -> None:
        for attempt in self.running.values():
            attempt.kill()


@contextmanager
def _received_signals() -> Iterator[list[int]]:
    """Collects the signals that ask this process to stop; what is ignored (by nohup) stays ignored."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    handled = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class DebugExecutor(Executor):
    """Calls the tools' `main` in this process, one job after another, so that a debugger sees everything.

    Output goes to the terminal; an exception keeps its traceback and ends the run.
    `python -m pdb tools/launch.py submit EXPERIMENT.yaml --cluster debug` stops at the error.
    """

    name = "debug"

    def run(self, plan: RunPlan, listener: RunListener) -> RunOutcome:
        """Run to the end or to the first exception, which is raised again once the job's state is written."""
        outcome = RunOutcome()
        queue = ReadyQueue(plan, outcome)
        listener.begin(plan, 1)
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, lambda *_: _interrupt())  # a tool does not save and go on, but ends
        try:
            while queue.waiting:
                for job in queue.pop_blocked():
                    listener.blocked(job, outcome.blocked[job.name])
                for job in queue.ready()[:1]:
                    queue.start(job)
                    state = self._run_job(job, plan, listener)
                    queue.finish(job, state)
                    listener.ended(job, state)
        finally:
            signal.signal(signal.SIGINT, before)
            listener.end()
        return outcome

    def _run_job(self, job: Job, plan: RunPlan, listener: RunListener) -> JobState:
        lock = plan.store.lock(job)
        while not lock.acquire(timeout=5.0):
            listener.waiting(job, plan.store.read(job))
        with lock, _environment(job_environment(plan.experiment)):
            plan.store.remove_partial(job)
            state = next_attempt(job, plan.graph, plan.store, RunContext(self.name))
            try:
                plan.store.write(job, state.replace(process=process_id()))
                listener.started(job, state)
                state = self._run_commands(job, plan, state)
            except BaseException as error:
                state = state.finish("failed", error=f"{type(error).__name__}: {error}"[:300])
                raise
            finally:
                plan.store.write(job, state)
        return state

    def _run_commands(self, job: Job, plan: RunPlan, state: JobState) -> JobState:
        for command in job.commands(plan.tools):
            with open_log(plan.store.log(job)) as log:
                write_banner(log, state.attempts, command)
                log.write(b"runs in the process of `submit --cluster debug`; see the output on its terminal\n")
            code = _call_tool(command, plan.experiment.max_resumes)
            if code == EXIT_INTERRUPTED:
                raise KeyboardInterrupt
            if code:
                error = f"exited with {code}; its output is on the terminal of the submit"
                return state.finish("failed", exit_code=code, error=error)
        return state_after_success(job, plan.store, state)


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


def _call_tool(command: Command, max_resumes: int) -> int:
    """Call a tool's `main` with the command's arguments, again after exit code 75; the exit code."""
    main = _import_tool(Path(command[1])).main
    code = call_main(main, list(command[2:]))
    while code == EXIT_REQUEUE and max_resumes:
        max_resumes -= 1
        code = call_main(main, list(command[2:]))
    return code


def _import_tool(path: Path) -> ModuleType:
    """Import a tool's file under a name of its own: `pretrain` and `transfer` are packages."""
    name = f"debugged_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
