# PYTHON_ARGCOMPLETE_OK
"""Experiments: a table's rows × tasks as one graph of jobs (pretrain → convert → fine-tune → table).

A second `submit` is always safe: jobs that are done do not run again, killed jobs continue from their last checkpoint,
and a job whose settings changed gets a new folder beside the old one.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(p) for p in Path(__file__).resolve().parents[1:2] if (p / "ssl_transfer").is_dir()]
    __import__("ssl_transfer.errors").errors.exit_on_interrupt()

import codecs
import functools
import io
import os
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssl_transfer.console import Parser, as_typed, megabytes, run_main, verb_examples
from ssl_transfer.errors import EXIT_FAILURE, EXIT_OK, UserError, abbreviate, printable

if TYPE_CHECKING:
    from rich.console import Console

    from transfer.experiment.commands import Tools
    from transfer.experiment.executors import RunOutcome
    from transfer.experiment.graph import Graph
    from transfer.experiment.service import OpenExperiment
    from transfer.experiment.store import JobView, Snapshot, Store

EXAMPLES = """examples:
  # once on a cluster: a site file and a check job
  python tools/launch.py init
  # what would run, and why; touches nothing
  python tools/launch.py plan configs/experiments/demo.yaml
  python tools/launch.py plan configs/experiments/demo.yaml --set rows.simsiam.pretrain.overrides.SOLVER.EPOCHS=20
  # run it on this machine; prints the table
  python tools/launch.py submit configs/experiments/demo.yaml
  python tools/launch.py submit configs/experiments/small_real.yaml \\
      --set data.images=DIR --set data.detection=DIR --set local.slots=2
  # submit all to Slurm and return; then the batch scripts alone
  python tools/launch.py submit configs/experiments/table5.yaml --cluster slurm
  python tools/launch.py submit configs/experiments/table5.yaml --cluster slurm --dry-run
  python tools/launch.py status configs/experiments/demo.yaml --watch
  python tools/launch.py logs configs/experiments/demo.yaml finetune.scratch.voc07_fpn.s1 --follow
  # what failed or was killed, and what waits for it
  python tools/launch.py retry configs/experiments/demo.yaml
  python tools/launch.py cancel configs/experiments/demo.yaml

exit codes: 0 done (slurm: submitted), 1 a job has no result, 2 wrong use, 130/143 stopped by Ctrl-C/SIGTERM (submit
again to continue)
"""
INIT = "write the site file from what sinfo shows, and submit a check job of the size of a real one"
RUN_DIR = "where experiments will write (runs)"
JOBS = "names of jobs, rows, tasks or stages, or patterns such as 'moco*'"
LOG_PIECE = 1 << 20
"""Bytes at the end of a log that `logs` prints, and that it holds at a time."""
ROOM = "where Slurm takes no more jobs of yours, stay and submit the rest as jobs end"
CLUSTERS = ("local", "slurm", "debug")


def main(argv: Sequence[str] | None = None, tools: Tools | None = None) -> int:
    """Parse the arguments and run the verb.

    Args:
        argv: the arguments after the program's name.
        tools: make the jobs' command lines; by default the checkout's tools (tests give their own).
    """
    parser = _parser()
    parser.complete()
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "jobs") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes no JOB after an option
        args.jobs = [*args.jobs, *rest]
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
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_list_configs("experiments")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, help_: str) -> Parser:
        sub: Parser = verbs.add_parser(name, help=help_, description=help_, epilog=verb_examples(EXAMPLES, name))
        sub.add_argument("experiment", metavar="EXPERIMENT.yaml", help="a file, or a name of configs/experiments/")
        sub.add_list_configs("experiments")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            dest="sets",
            help="a setting laid over the file, such as data.detection=DIR; may be repeated",
        )
        return sub

    init = verbs.add_parser("init", help=INIT, description=INIT, epilog=verb_examples(EXAMPLES, "init"))
    init.add_argument("--partition", metavar="P", help="where to train; by default one with GPUs")
    init.add_argument("--run-dir", type=Path, default=Path("runs"), metavar="DIR", help=RUN_DIR)
    init.add_argument("--wait", type=float, default=120, metavar="S", help="seconds to wait for the check job (120)")
    plan = verb("plan", "show what would run and why; touches nothing")
    plan.add_argument("--commands", action="store_true", help="show the jobs' command lines as well")
    plan.add_print_config()
    submit = verb("submit", "run all that is missing, then print the table")
    retry = verb("retry", "run what failed, was cancelled or was killed, and what waits for it")
    for sub in (submit, retry):
        sub.add_argument(
            "--cluster",
            choices=CLUSTERS,
            help="slurm: submit all to the queue and return (default where `init` wrote a site file); local: side by "
            "side on this machine (default elsewhere); debug: in this process, one after another",
        )
        sub.add_quiet()
        sub.add_argument("--dry-run", action="store_true", help="print the batch scripts or commands; write nothing")
        sub.add_argument("--wait-for-room", action="store_true", help=ROOM)
        sub.add_argument(
            "--superseded",
            choices=("ask", "cancel", "keep"),
            default="ask",
            help="what still runs or waits for earlier settings of the file: ask on a terminal and keep it elsewhere "
            "(default), cancel it first, or keep it",
        )
    status = verb("status", "show every job's state, progress and last message, from the run folder")
    status.add_argument("--watch", action="store_true", help="refresh until nothing runs any more")
    status.add_argument("jobs", metavar="JOB", nargs="*", help=f"show only these: {JOBS}")
    logs = verb("logs", "print a job's output")
    logs.add_argument("--follow", "-f", action="store_true", help="continue until the job has ended")
    logs.add_argument("--all", action="store_true", help="print the whole log; by default its last MiB")
    logs.add_argument("job", metavar="JOB", help="the job's name, as `status` shows it, or a word that names it alone")
    cancel = verb("cancel", "ask running jobs to save a checkpoint and exit")
    cancel.add_argument("--superseded", action="store_true", help="only jobs of earlier settings of the file")
    retry.add_argument("jobs", metavar="JOB", nargs="*", help=f"run these, by default all that failed: {JOBS}")
    cancel.add_argument("jobs", metavar="JOB", nargs="*", help=f"stop these, by default all: {JOBS}")
    return parser


def _init(args: Namespace, _: Tools | None) -> int:
    from transfer.experiment.slurm.setup import describe_findings, submit_check_job, wait_for_findings, write_site

    file = write_site(args.partition)
    print(f"wrote {file}:\n\n{file.read_text(encoding='utf-8')}")
    id_, folder = submit_check_job(args.run_dir)
    print(f"submitted the check job as {id_}")

    def report(state: str) -> None:
        print(f"check job {id_}: {state}", file=sys.stderr)

    found = wait_for_findings(id_, folder, args.wait, report)
    if found is None:
        print(f"it has not ended yet; squeue --job {id_} shows it, {folder}/check.json will hold what it found")
        return EXIT_OK
    print("\n".join(describe_findings(found)))
    return EXIT_OK


def _plan(args: Namespace, tools: Tools | None) -> int:
    from transfer.experiment.decide import decide
    from transfer.experiment.load import explain_experiment, read_site, read_step_times
    from transfer.experiment.service import open_experiment
    from transfer.experiment.slurm.executor import ClusterExecutor
    from transfer.experiment.views import plan_lines, superseded_lines

    if args.print_config:
        print(explain_experiment(args.experiment, args.sets))
        return EXIT_OK
    opened = open_experiment(args.experiment, args.sets, tools)
    snapshot = opened.snapshot()
    decisions = decide(opened.graph, snapshot)
    executor = ClusterExecutor()
    resources = {job.name: executor.resources(job, opened.experiment) for job in opened.graph}
    lines = plan_lines(
        opened.graph,
        decisions,
        opened.store,
        tools=opened.tools if args.commands else None,
        step_times=[*read_site().seconds, *read_step_times()],
        gpus={name: max((one.nodes or 1) * (one.gpus or 0), 1) for name, one in resources.items()},
        notes=opened.experiment.notes,
    )
    out = _console(stderr=False)
    for line in lines:
        out.print(line, soft_wrap=True)
    for key, name in opened.downloads():
        print(f"submit would first download {name} (row {key}), which needs a network here", file=sys.stderr)
    for text in superseded_lines(snapshot.superseded, args.experiment):
        print(text, file=sys.stderr)
    for problem in opened.problems() or opened.data_problems(decisions):
        print(f"submit would refuse: {problem}", file=sys.stderr)
    return EXIT_OK


def _submit(args: Namespace, tools: Tools | None) -> int:
    from transfer.experiment.load import site_file
    from transfer.experiment.service import EXECUTORS, dry_run, open_experiment, submit
    from transfer.experiment.slurm.executor import ClusterExecutor
    from transfer.experiment.views import reporter_for

    cluster = args.cluster or ("slurm" if site_file().exists() else "local")
    if args.wait_for_room and cluster != "slurm":
        raise UserError(f"--wait-for-room is for Slurm's queue, and this runs with --cluster {cluster}; leave it out")
    executor = ClusterExecutor(wait_for_room=True) if args.wait_for_room else EXECUTORS[cluster]()
    retry = args.jobs if args.verb == "retry" else None
    if args.dry_run:
        for text in dry_run(open_experiment(args.experiment, args.sets, tools), executor, retry):
            print(text)
        return EXIT_OK
    console = _console(stderr=True)
    if not args.cluster and cluster == "slurm":
        message = f"submits to Slurm, because {site_file()} exists; --cluster local runs on this machine"
        console.print(message, soft_wrap=True, markup=False)
    opened = open_experiment(args.experiment, args.sets, tools, megabytes)
    outcome = submit(opened, executor, reporter_for(console), retry, functools.partial(_may_cancel, args))
    return _report_submitted(args, outcome) if cluster == "slurm" else _report(opened, outcome, console)


def _report_submitted(args: Namespace, outcome: RunOutcome) -> int:
    before = f"; {outcome.already_queued} were in the queue already" if outcome.already_queued else ""
    print(f"submitted {len(outcome.submitted)} jobs{before}")
    status = as_typed(f"python tools/launch.py status {args.experiment} --watch")
    print(f"{status}   shows their state; you may close this shell")
    for name, by in outcome.blocked.items():
        print(f"not submitted: {name}: needs {by}, which has no result", file=sys.stderr)
    if outcome.left:
        shown = " ".join(outcome.left)
        print(f"not submitted, the queue takes no more ({outcome.no_room}): {shown}", file=sys.stderr)
        command = as_typed(f"python tools/launch.py {args.verb} {args.experiment}")
        print(f"{command} --wait-for-room   submits these {len(outcome.left)} as jobs end", file=sys.stderr)
    return EXIT_FAILURE if outcome.left or outcome.blocked else EXIT_OK


def _may_cancel(args: Namespace, superseded: Sequence[JobView]) -> bool:
    """Name what still runs or waits for earlier settings; whether to cancel it."""
    from transfer.experiment.views import superseded_lines

    names, remedy = superseded_lines(superseded, args.experiment)
    print(names, file=sys.stderr)
    if args.superseded == "ask" and sys.stdin.isatty() and sys.stderr.isatty():
        print("cancel them? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    if args.superseded != "cancel":
        print(remedy, file=sys.stderr)
    return bool(args.superseded == "cancel")


def _report(opened: OpenExperiment, outcome: RunOutcome, console: Console) -> int:
    """Print the table to stdout and the jobs without a result to stderr; the exit code."""
    from ssl_transfer.files import read_text
    from transfer.experiment.decide import blocked_jobs, decide, is_current

    if outcome.stopped is not None:
        console.print("stopped; the same command continues from the last checkpoints", soft_wrap=True)
        return 128 + outcome.stopped
    snapshot = opened.snapshot()
    decisions = decide(opened.graph, snapshot)
    missing = {name: one.why for name, one in decisions.items() if one.action == "run"}
    if is_current(decisions["table"], snapshot):
        print(read_text(opened.store.run_dir / "table.md"), end="")
        missing.pop("table", None)  # it is made again once one of the others is
    for name in outcome.without_result:
        if name in outcome.ran:  # also if the jobs that use it could do without
            missing.setdefault(name, f"{outcome.ran[name].status}: {outcome.ran[name].error}")
    blocked = blocked_jobs(opened.graph, snapshot)
    for name, why in missing.items():
        reason = f"blocked by {blocked[name]}" if name in blocked else why
        console.print(printable(f"no result: {name}: {reason}"), soft_wrap=True, markup=False)
    return EXIT_FAILURE if missing else EXIT_OK


def _status(args: Namespace, _: Tools | None) -> int:
    from transfer.experiment.service import open_submitted
    from transfer.experiment.views import superseded_lines

    graph, store, is_unchanged = open_submitted(args.experiment, args.sets)
    if not is_unchanged:
        print(f"{args.experiment} has changed since it was submitted; this is what was submitted", file=sys.stderr)
    snapshot = store.snapshot(graph)
    if snapshot.queue_error:
        print(f"the queue cannot be queried: {snapshot.queue_error}", file=sys.stderr)
    for line in superseded_lines(snapshot.superseded, args.experiment):
        print(line, file=sys.stderr)
    show = _show_table if sys.stdout.isatty() else _print_lines
    show(graph, store, snapshot if args.watch else snapshot.with_accounting(), args)
    return EXIT_OK


def _show_table(graph: Graph, store: Store, snapshot: Snapshot, args: Namespace) -> None:
    """Show the state on a terminal, fitted to it; with `watch` until no job runs or waits."""
    from rich.constrain import Constrain
    from rich.live import Live

    from transfer.experiment.views import status_table

    console = _console(stderr=False)
    if not args.watch:
        console.print(status_table(graph, store, snapshot, words=args.jobs))
        return
    first = Constrain(status_table(graph, store, snapshot, console.height, args.jobs), console.width - 2)  # ^C fits
    with Live(first, console=console, auto_refresh=False) as live:
        while snapshot.has_active:
            time.sleep(5.0 if snapshot.queue else 2.0)  # Slurm's controller serves many users
            snapshot = store.snapshot(graph)
            table = status_table(graph, store, snapshot, console.height, args.jobs)
            live.update(Constrain(table, console.width - 2), refresh=True)


def _print_lines(graph: Graph, store: Store, snapshot: Snapshot, args: Namespace) -> None:
    """Print the state into a pipe, nothing cut off, without importing a terminal library."""
    from transfer.experiment.views import status_lines

    print("\n".join(status_lines(graph, store, snapshot, args.jobs)))
    while args.watch and snapshot.has_active:
        time.sleep(10.0)
        snapshot = store.snapshot(graph)
        print("\n".join(status_lines(graph, store, snapshot, args.jobs)))


def _logs(args: Namespace, _: Tools | None) -> int:
    from transfer.experiment.graph import select_jobs
    from transfer.experiment.service import open_submitted

    graph, store, _is_unchanged = open_submitted(args.experiment, args.sets)
    jobs = select_jobs(graph, [args.job])
    if len(jobs) > 1:
        names = abbreviate([job.name for job in jobs], 6)
        raise UserError(f"{args.job} names {len(jobs)} jobs; name one of {names}")
    job = jobs[0]
    from ssl_transfer.files import open_input

    path = store.log(job)
    if not path.exists():
        raise UserError(f"{job.name} has not started yet; it would write {path}")
    with open_input(path) as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(0 if args.all else max(0, size - LOG_PIECE))
        if log.tell():
            log.readline(LOG_PIECE)  # its beginning is cut off
            print(f"{path}: the last MiB of {size / 2**20:,.0f}; --all prints everything", file=sys.stderr)
        # A terminal shows control characters and does not obey them; a pipe or a file gets the log unchanged.
        is_terminal = sys.stdout.isatty()
        show = printable if is_terminal else str
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        decode = io.IncrementalNewlineDecoder(utf8, translate=is_terminal).decode
        while True:
            is_active = store.snapshot([job]).has_active  # before the rest is read: nothing is missed
            while piece := log.read(LOG_PIECE):
                sys.stdout.write(show(decode(piece)))
            sys.stdout.flush()
            if not (args.follow and is_active):
                return EXIT_OK
            time.sleep(0.5)


def _cancel(args: Namespace, _: Tools | None) -> int:
    from transfer.experiment.service import cancel, cancel_deleted, open_submitted

    if cancelled := cancel_deleted(args.experiment, args.sets, args.jobs):
        print(f"the run folder was deleted; cancelling what Slurm still has of it: {', '.join(cancelled)}")
        return EXIT_OK
    graph, store, _is_unchanged = open_submitted(args.experiment, args.sets)
    cancelled = cancel(graph, store, args.jobs, args.superseded)
    print("cancelling " + ", ".join(cancelled) if cancelled else "nothing is running")
    return EXIT_OK


def _console(stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


if __name__ == "__main__":
    run_main(main)
