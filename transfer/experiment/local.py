"""`--cluster local`: the graph on this machine, in dependency order, a number of jobs side by side."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from transfer.experiment.attempt import Attempt, Means
from transfer.experiment.decide import Decision
from transfer.experiment.executors import Agenda, Listener, Outcome, Work, in_queue
from transfer.experiment.graph import Job
from transfer.experiment.spec import Experiment

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def job_environment(experiment: Experiment) -> dict[str, str]:
    """The variables of every job: its share of threads, then what the experiment file says."""
    return {"OMP_NUM_THREADS": str(experiment.local.threads), **experiment.environment}


def visible_gpus(slot: int, count: int) -> dict[str, str]:
    """The variable that shows a slot its own GPUs alone; empty where nothing is said about GPUs."""
    if not count:
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(number) for number in range((slot + 1) * count)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices[slot * count : (slot + 1) * count])}


def with_gpus(job: Job, count: int) -> Job:
    """The job with its tool told to start one process a GPU, where it trains or evaluates."""
    if count < 2 or job.kind not in ("pretrain", "evaluate", "search", "finetune"):
        return job
    told = tuple((*words[:2], "--num-gpus", str(count), *words[2:]) for words in job.commands)
    return replace(job, commands=told)


class Local:
    """Runs jobs as children of this process, in its process group: whoever kills the group kills all.

    Args:
        poll: seconds between looks.
        grace: seconds a job has to write a checkpoint when the work is stopped, before it is killed.
    """

    name = "local"

    def __init__(self, poll: float = 0.05, grace: float = 60.0) -> None:
        self.poll, self.grace = poll, grace

    def refusal(self, experiment: Experiment, decisions: Mapping[str, Decision]) -> str | None:
        """Not beside a cluster that works in the same folder."""
        return in_queue(decisions)

    def run(self, work: Work, listener: Listener) -> Outcome:
        """Run to the end, or until SIGINT, SIGTERM or SIGHUP; a second signal kills what still runs."""
        outcome = Outcome()
        agenda = Agenda(work, outcome)
        means = Means(self.name, job_environment(work.experiment), work.experiment.continues)
        round_ = _Round(work, agenda, means, listener)
        listener.begin(work, work.experiment.local.slots)
        try:
            with _signals() as received:
                while round_.running or (agenda.waiting and not received):
                    if not received:
                        round_.start_ready()
                    self._stop(received, round_)
                    round_.look()
                    time.sleep(self.poll)
                outcome.stopped = received[0] if received else None
        finally:
            round_.kill()
            listener.end()
        return outcome

    def _stop(self, received: list[int], round_: _Round) -> None:
        if not received:
            return
        round_.stop(signal.Signals(received[0]).name)
        if len(received) > 1 or time.monotonic() > round_.stopped_at + self.grace:
            round_.kill()


class _Round:
    """The jobs that run now."""

    def __init__(self, work: Work, agenda: Agenda, means: Means, listener: Listener) -> None:
        self.work, self.agenda, self.means, self.listener = work, agenda, means, listener
        self.running: dict[str, Attempt] = {}
        self.slots: dict[str, int] = {}
        self.held: set[str] = set()
        self.stopped_at = 0.0

    def start_ready(self) -> None:
        """Start what may start while there are slots; a job that a process left behind still works on takes a slot."""
        for job in self.agenda.newly_blocked():
            self.listener.blocked(job, self.agenda.outcome.blocked[job.name])
        self.held.intersection_update(job.name for job in self.agenda.ready())
        for job in self.agenda.ready():
            busy = len(self.running) + len(self.held - {job.name})
            if busy >= self.work.experiment.local.slots:
                return
            self._start(job)

    def _start(self, job: Job) -> None:
        settings = self.work.experiment.local
        slot = min(set(range(settings.slots)) - set(self.slots.values()))
        means = replace(self.means, environment={**self.means.environment, **visible_gpus(slot, settings.gpus)})
        attempt = Attempt.start(with_gpus(job, settings.gpus), self.work.graph, self.work.store, means)
        if attempt is not None:
            self.held.discard(job.name)
            self.agenda.take(job)
            self.running[job.name] = attempt
            self.slots[job.name] = slot
            self.listener.started(job, attempt.state)
        elif job.name not in self.held:
            self.held.add(job.name)
            self.listener.waiting(job, self.work.store.read(job))

    def look(self) -> None:
        """See which jobs have ended."""
        for name, attempt in list(self.running.items()):
            state = attempt.poll()
            if state is not None:
                del self.running[name], self.slots[name]
                self.agenda.settle(attempt.job, state)
                self.listener.ended(attempt.job, state)
        self.listener.tick({name: attempt.state for name, attempt in self.running.items()})

    def stop(self, why: str) -> None:
        """Ask every job to leave, once."""
        if not self.stopped_at:
            self.stopped_at = time.monotonic()
            for attempt in self.running.values():
                attempt.stop(why)

    def kill(self) -> None:
        """End every job now."""
        for attempt in self.running.values():
            attempt.kill()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the signals that ask this process to leave; what is ignored (by nohup) stays ignored."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
