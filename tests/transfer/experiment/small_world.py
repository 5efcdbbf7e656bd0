"""A small experiment whose tools are trivial scripts, so that graphs run in fractions of a second."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from ssl_transfer.console import call_main
from ssl_transfer.formats.job import JobState
from tools import launch
from transfer.experiment.commands import Tools
from transfer.experiment.decide import Decision, decide
from transfer.experiment.service import OpenExperiment, open_experiment

ROOT = Path(__file__).resolve().parents[3]
FAKES = Path(__file__).parent / "fake_tools"

EXPERIMENT = """\
name: small
run_dir: {base}/run
rows:
  scratch: {{label: from scratch, scratch: true}}
  simsiam:
    label: SimSiam
    pretrain: {{config: {base}/configs/simsiam.yaml}}
tasks:
  voc07: {{config: {base}/configs/voc07.yaml, trials: 2}}
  coco: {{config: {base}/configs/coco.yaml}}
data: {{images: {base}/images, detection: {base}/detection}}
local: {{slots: 2}}
"""


NO_FLOCK_C = """
#include <errno.h>
int flock(int fd, int op) { errno = ENOSYS; return -1; }
"""


def build_no_flock(folder: Path) -> Path:
    """A library for LD_PRELOAD: a file system without flock. Needs gcc."""
    (folder / "none.c").write_text(NO_FLOCK_C)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "none.so", folder / "none.c"], check=True)
    return folder / "none.so"


@dataclass
class World:
    """A folder with an experiment, its config files, its data folders and its run folder."""

    base: Path
    tools: Tools

    @property
    def file(self) -> Path:
        return self.base / "experiment.yaml"

    @property
    def run_dir(self) -> Path:
        return self.base / "run"

    def edit(self, **changes: object) -> None:
        """Lay values over the experiment file's top level; None removes a key."""
        content = {**yaml.safe_load(self.file.read_text()), **changes}
        content = {key: value for key, value in content.items() if value is not None}
        self.file.write_text(yaml.safe_dump(content, sort_keys=False))

    def order(self, **orders: dict) -> None:
        """What fake tools do, by a part of their output's name (`__` stands for a dot)."""
        named = {name.replace("__", "."): value for name, value in orders.items()}
        (self.base / "orders.json").write_text(json.dumps(named))

    def launch(self, verb: str, *words: str) -> int:
        """The command line, in this process."""
        return call_main(lambda argv: launch.main(argv, self.tools), [verb, str(self.file), *words])

    def open(self, *sets: str) -> OpenExperiment:
        return open_experiment(str(self.file), sets, self.tools)

    def decisions(self, *sets: str) -> dict[str, Decision]:
        opened = self.open(*sets)
        return decide(opened.graph, opened.snapshot())

    def actions(self, *sets: str) -> dict[str, str]:
        return {name: one.action for name, one in self.decisions(*sets).items()}

    def statuses(self, *sets: str) -> dict[str, str]:
        return {name: view.status for name, view in self.open(*sets).snapshot().views.items()}

    def state(self, name: str) -> JobState:
        opened = self.open()
        state = opened.store.read(opened.graph[name])
        assert state is not None
        return state

    def is_locked(self, name: str) -> bool:
        return self.open().snapshot().views[name].is_locked

    def events(self) -> list[list[str]]:
        """Words of every event: time, start or end, the job (its fingerprint cut off), perhaps an exit code."""
        path = self.base / "events"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [[at, what, name.rsplit("-", 1)[0], *rest] for at, what, name, *rest in lines]

    def started(self) -> list[str]:
        return [name for _, what, name, *_ in self.events() if what == "start"]

    def forget(self) -> None:
        (self.base / "events").unlink(missing_ok=True)

    def spawn(self, verb: str = "submit", *words: str) -> subprocess.Popen[str]:
        """The command line as a process that leads a group of its own."""
        code = (
            "import sys; from pathlib import Path; from ssl_transfer.console import call_main; "
            "from tools import launch; "
            "from transfer.experiment.commands import Tools; "
            f"tools = Tools(Path({str(FAKES)!r}), {self.tools.python!r}); "
            "sys.exit(call_main(lambda argv: launch.main(argv, tools), sys.argv[1:]))"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, verb, str(self.file), *words],
            cwd=ROOT,
            env={**os.environ, "FAKE_DIR": str(self.base)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Where the tests were started in the background, a shell has made SIGINT nothing to them and to this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def wait_for(self, *event: str, seconds: float = 20.0) -> None:
        """Wait until a fake tool has reported `event`."""
        deadline = time.monotonic() + seconds
        while list(event) not in [words[1 : 1 + len(event)] for words in self.events()]:
            assert time.monotonic() < deadline, f"no {event} in {self.events()}"
            time.sleep(0.02)

    def kill_group(self, process: subprocess.Popen[str]) -> None:
        """kill -9 of the whole process group; until all of it is gone."""
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        opened = self.open()
        deadline = time.monotonic() + 30
        while any(view.is_locked for view in opened.snapshot().views.values()):
            assert time.monotonic() < deadline, "something survives the group"
            time.sleep(0.01)


def make(base: Path) -> World:
    """A fresh experiment in `base`; nothing has run yet."""
    for folder in ("configs", "images", "detection"):
        (base / folder).mkdir()
    (base / "configs/simsiam.yaml").write_text("SOLVER: {EPOCHS: 3}\n")
    (base / "configs/base.yaml").write_text("SOLVER: {IMS_PER_BATCH: 16, MAX_ITER: 3}\n")
    (base / "configs/voc07.yaml").write_text("_BASE_: base.yaml\n")
    (base / "configs/coco.yaml").write_text("_BASE_: base.yaml\nMODEL: {MASK_ON: true}\n")
    (base / "experiment.yaml").write_text(EXPERIMENT.format(base=base))
    # The fake tools need nothing that is installed: without site-packages Python starts in a third of the time.
    (base / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    (base / "python").chmod(0o755)
    return World(base, Tools(FAKES, str(base / "python")))
