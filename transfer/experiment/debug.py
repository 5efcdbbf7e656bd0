"""`--cluster debug`: the graph in this very process, one job after the other, so that a debugger sees everything."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from common.console import call
from common.errors import EXIT_INTERRUPTED, EXIT_REQUEUE
from transfer.experiment import processes
from transfer.experiment.attempt import begin, write_banner
from transfer.experiment.commands import Command
from transfer.experiment.decide import Decision
from transfer.experiment.executors import Agenda, Listener, Outcome, Work, in_queue
from transfer.experiment.graph import Job
from transfer.experiment.local import job_environment
from transfer.experiment.spec import Experiment
from transfer.experiment.store import State, ended


class Debug:
    """Calls the tools' `main` here; output goes to the terminal, an exception keeps its traceback and ends the work.

    `python -m pdb tools/launch.py submit EXPERIMENT.yaml --cluster debug` stops where it breaks.
    """

    name = "debug"

    def refusal(self, experiment: Experiment, decisions: Mapping[str, Decision]) -> str | None:
        """Not beside a cluster that works in the same folder."""
        return in_queue(decisions)

    def run(self, work: Work, listener: Listener) -> Outcome:
        """Run to the end or to the first exception, which is raised again once the job's state is written."""
        outcome = Outcome()
        agenda = Agenda(work, outcome)
        listener.begin(work, 1)
        try:
            while agenda.waiting:
                for job in agenda.newly_blocked():
                    listener.blocked(job, outcome.blocked[job.name])
                for job in agenda.ready()[:1]:
                    agenda.take(job)
                    state = self._one(job, work, listener)
                    agenda.settle(job, state)
                    listener.ended(job, state)
        finally:
            listener.end()
        return outcome

    def _one(self, job: Job, work: Work, listener: Listener) -> State:
        lock = work.store.lock(job)
        while not lock.acquire(patience=5.0):
            listener.waiting(job, work.store.read(job))
        with lock, _environment(job_environment(work.experiment)):
            state = begin(job, work.graph, work.store, self.name)
            try:
                work.store.write(job, replace(state, process=processes.this()))
                listener.started(job, state)
                state = self._commands(job, work, state)
            except BaseException as error:
                state = ended(state, "failed", error=f"{type(error).__name__}: {error}"[:300])
                raise
            finally:
                work.store.write(job, state)
        return state

    def _commands(self, job: Job, work: Work, state: State) -> State:
        for command in job.commands:
            with open(work.store.log(job), "ab") as log:
                write_banner(log, state.attempts, command)
                log.write(b"runs in the process of `submit --cluster debug`: its output went to that terminal\n")
            code = _call(command, work.experiment.continues)
            if code == EXIT_INTERRUPTED:
                raise KeyboardInterrupt
            if code:
                error = f"exited with {code}; what it said is on the terminal of the submit"
                return ended(state, "failed", exit_code=code, error=error)
        missing = work.store.missing(job)
        if missing:
            return ended(state, "failed", exit_code=0, error=f"exited with 0 but wrote no {missing[0]}")
        return ended(state, work.store.result_status(job), exit_code=0)


def _call(command: Command, continues: int) -> int:
    """The exit code of a tool's `main` called here with the command's words; 75 is asked again."""
    main = _load(Path(command[1])).main
    code = call(main, list(command[2:]))
    while code == EXIT_REQUEUE and continues:
        continues -= 1
        code = call(main, list(command[2:]))
    return code


def _load(path: Path) -> ModuleType:
    """A tool's file as a module under a name of its own: `pretrain` and `transfer` are packages."""
    name = f"debugged_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
