"""Experiments: a table's rows × tasks as one graph of jobs (pretrain → convert → fine-tune → table).

Asking again is always safe: what is done is not run again, what was killed goes on from its last checkpoint, and a job
whose settings changed gets a new folder beside the old one.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.console import Parser, megabytes, run
from common.errors import EXIT_FAILURE, EXIT_OK, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from transfer.experiment.commands import Tools
    from transfer.experiment.executors import Outcome
    from transfer.experiment.graph import Graph
    from transfer.experiment.service import Opened
    from transfer.experiment.store import Store

EXAMPLES = """examples:
  python tools/launch.py init                                          once on a cluster: a site file and a check job
  python tools/launch.py plan configs/experiments/demo.yaml            what would run, and why; touches nothing
  python tools/launch.py submit configs/experiments/demo.yaml          run it on this machine; prints the table
  python tools/launch.py submit configs/experiments/small_real.yaml \\
      --set data.images=DIR --set data.detection=DIR --set local.slots=2
  python tools/launch.py status configs/experiments/demo.yaml --watch
  python tools/launch.py logs configs/experiments/demo.yaml finetune.scratch.voc07.s1 --follow
  python tools/launch.py retry configs/experiments/demo.yaml           what failed or was killed, and what waits for it
  python tools/launch.py cancel configs/experiments/demo.yaml
  python tools/launch.py submit configs/experiments/table5.yaml --cluster slurm   file all in the queue and return

exit codes: 0 done (slurm: filed), 1 a job has no result, 2 wrong use, 130/143 stopped by Ctrl-C/SIGTERM (submit again
to go on)
"""
INIT = "write the site file from what sinfo shows, and file a check job of one minute"
CLUSTERS = ("local", "slurm", "debug")


def main(argv: Sequence[str] | None = None, tools: Tools | None = None) -> int:
    """Parse and hand over to the verb.

    Args:
        argv: the words after the program's name.
        tools: who builds the jobs' command lines; the checkout's tools unless told (tests give their own).
    """
    args = _parser().parse_args(argv)
    verbs = {
        "init": _init,
        "plan": _plan,
        "submit": _submit,
        "retry": _submit,
        "status": _status,
        "logs": _logs,
        "cancel": _cancel,
    }
    return verbs[args.verb](args, tools)


def _parser() -> Parser:
    parser = Parser(prog="launch.py", description=__doc__, epilog=EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, help_: str) -> Parser:
        sub: Parser = verbs.add_parser(name, help=help_, description=help_, epilog=EXAMPLES)
        sub.add_argument("experiment", metavar="EXPERIMENT.yaml", help="the experiment file")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            dest="sets",
            help="a setting laid over the file, such as data.detection=DIR; give it again for more",
        )
        return sub

    init = verbs.add_parser("init", help=INIT, description=INIT, epilog=EXAMPLES)
    init.add_argument("--partition", metavar="P", help="where to train; by default one with GPUs")
    init.add_argument("--wait", type=float, default=120, metavar="S", help="seconds to wait for the check job (120)")
    verb("plan", "show what would run and why; touches nothing").add_argument(
        "--commands", action="store_true", help="show the jobs' command lines as well"
    )
    submit = verb("submit", "run all that is missing, then print the table")
    retry = verb("retry", "run what failed, was cancelled or was killed, and what waits for it")
    for sub in (submit, retry):
        sub.add_argument(
            "--cluster",
            choices=CLUSTERS,
            default="local",
            help="local: side by side on this machine (default); slurm: file all in the queue and return; "
            "debug: in this process, one by one",
        )
    status = verb("status", "show every job's state, progress and last word, from what lies on disk")
    status.add_argument("--watch", action="store_true", help="renew until nothing runs any more")
    logs = verb("logs", "print what a job printed")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until the job has ended")
    logs.add_argument("job", metavar="JOB", help="the job's name, as `status` shows it")
    cancel = verb("cancel", "ask running jobs to write a checkpoint and leave")
    retry.add_argument("jobs", metavar="JOB", nargs="*", help="jobs to run; all that failed when none is named")
    cancel.add_argument("jobs", metavar="JOB", nargs="*", help="jobs to stop; all when none is named")
    return parser


def _init(args: Namespace, _: Tools | None) -> int:
    from transfer.experiment.slurm.check_job import lines
    from transfer.experiment.slurm.init import file_check, findings, write_site

    file = write_site(args.partition)
    print(f"wrote {file}:\n\n{file.read_text(encoding='utf-8')}")
    id_, folder = file_check()
    print(f"filed the check job as {id_}")
    found = findings(id_, folder, args.wait, lambda state: print(f"check job {id_}: {state}", file=sys.stderr))
    if found is None:
        print(f"it is not over yet; squeue --job {id_} shows it, {folder}/check.json will say what it found")
        return EXIT_OK
    print("\n".join(lines(found)))
    return EXIT_OK


def _plan(args: Namespace, tools: Tools | None) -> int:
    from transfer.experiment.costs import shipped
    from transfer.experiment.service import open_experiment
    from transfer.experiment.site import read_site
    from transfer.experiment.views import plan_lines

    opened = open_experiment(args.experiment, args.sets, tools)
    seconds = [*read_site().seconds, *shipped()]
    out = _console(stderr=False)
    decisions, notes = opened.decisions(), opened.experiment.notes
    for line in plan_lines(opened.graph, decisions, opened.store.run_dir, args.commands, seconds, notes):
        out.print(line, soft_wrap=True)
    for key, name in opened.downloads():
        print(f"submit would first download {name} (row {key}), which needs a network here", file=sys.stderr)
    for problem in opened.problems():
        print(f"submit would refuse: {problem}", file=sys.stderr)
    return EXIT_OK


def _submit(args: Namespace, tools: Tools | None) -> int:
    from transfer.experiment.listeners import listener_for
    from transfer.experiment.service import EXECUTORS, download_weights, open_experiment, submit, to_retry

    download_weights(args.experiment, args.sets, megabytes)
    opened = open_experiment(args.experiment, args.sets, tools)
    names = to_retry(opened.graph, opened.store, args.jobs) if args.verb == "retry" else None
    console = _console(stderr=True)
    outcome = submit(opened, EXECUTORS[args.cluster](), listener_for(console), names)
    if args.cluster == "slurm":
        return _filed(outcome, args.experiment)
    return _report(opened, outcome, console)


def _filed(outcome: Outcome, file: str) -> int:
    """How many jobs were filed, how many were there before, and how to see what becomes of them."""
    before = f"; {outcome.held} were in the queue already" if outcome.held else ""
    print(f"filed {len(outcome.filed)} jobs{before}")
    print(f"python tools/launch.py status {file} --watch   shows what becomes of them; this shell may be closed")
    return EXIT_OK


def _report(opened: Opened, outcome: Outcome, console: Console) -> int:
    """The table on stdout; what has no result on stderr; the exit code."""
    from transfer.experiment.decide import is_current
    from transfer.experiment.status import blocked_by

    if outcome.stopped is not None:
        console.print("stopped; the same command goes on from the last checkpoints", soft_wrap=True)
        return 128 + outcome.stopped
    decisions = opened.decisions()
    bad = {name: one.why for name, one in decisions.items() if one.action == "run"}
    if is_current(decisions["table"], opened.graph, opened.store):
        print((opened.store.run_dir / "table.md").read_text(encoding="utf-8"), end="")
        bad.pop("table", None)  # it is made again when one of the others is
    for name, state in outcome.ran.items():
        if name in outcome.bad and name not in bad:  # what used it could do without
            bad[name] = f"{state.status}: {state.error}"
    blocked = blocked_by(opened.graph, opened.store)
    for name, why in bad.items():
        reason = f"blocked by {blocked[name]}" if name in blocked else why
        console.print(f"no result: {name}: {reason}", soft_wrap=True, markup=False)
    return EXIT_FAILURE if bad else EXIT_OK


def _status(args: Namespace, _: Tools | None) -> int:
    from transfer.experiment.service import submitted

    graph, store, same = submitted(args.experiment, args.sets)
    if not same:
        print(f"{args.experiment} has changed since it was submitted; this is what was submitted", file=sys.stderr)
    asked = store.asked(graph)
    if asked.deaf:
        print(f"the queue cannot be asked: {asked.deaf}", file=sys.stderr)
    if sys.stdout.isatty():
        _show(graph, asked, args.watch)
    else:
        _print_lines(graph, asked, args.watch)
    return EXIT_OK


def _show(graph: Graph, asked: Store, watch: bool) -> None:
    """The state on a terminal, fitted to it; watched, as long as something is still to come."""
    from rich.live import Live

    from transfer.experiment.views import status_table

    console = _console(stderr=False)
    if not watch:
        console.print(status_table(graph, asked))
        return
    with Live(status_table(graph, asked, console.height), console=console, auto_refresh=False) as live:
        while _lives(graph, asked):
            time.sleep(5.0 if asked.queue else 2.0)  # a controller serves many
            asked = asked.asked(graph)
            live.update(status_table(graph, asked, console.height), refresh=True)


def _print_lines(graph: Graph, asked: Store, watch: bool) -> None:
    """The same into a pipe: every word of every line, without a terminal's library, whose tables take long."""
    from transfer.experiment.status import status_lines

    print("\n".join(status_lines(graph, asked)))
    while watch and _lives(graph, asked):
        time.sleep(10.0)
        asked = asked.asked(graph)
        print("\n".join(status_lines(graph, asked)))


def _lives(graph: Graph, asked: Store) -> bool:
    return any(asked.active(job) for job in graph)


def _logs(args: Namespace, _: Tools | None) -> int:
    from transfer.experiment.service import submitted

    graph, store, _same = submitted(args.experiment, args.sets)
    job = graph[args.job]
    path = store.log(job)
    if not path.exists():
        raise UserError(f"{job.name} has not started yet; it would write {path}")
    with open(path, "rb") as log:
        while True:
            lives = store.asked(graph).active(job)  # asked before the rest is read: nothing is missed
            sys.stdout.write(log.read().decode(errors="replace"))
            sys.stdout.flush()
            if not (args.follow and lives):
                return EXIT_OK
            time.sleep(0.5)


def _cancel(args: Namespace, _: Tools | None) -> int:
    from transfer.experiment.service import cancel, submitted

    graph, store, _same = submitted(args.experiment, args.sets)
    told = cancel(graph, store, args.jobs)
    print("asked to leave: " + ", ".join(told) if told else "nothing is running")
    return EXIT_OK


def _console(stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


if __name__ == "__main__":
    run(main)
