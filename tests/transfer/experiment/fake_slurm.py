"""Commands of a Slurm that only keeps a queue: what is asked of it is counted, nothing runs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PROGRAM = """\
import json, re, sys
from pathlib import Path
base, name, words = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
file = base / "queue.json"
queue = json.loads(file.read_text()) if file.exists() else {}
with open(base / "calls", "a") as calls:
    calls.write(json.dumps([name, *words]) + "\\n")
if name == "sbatch" and "--test-only" not in words:
    text = Path(words[-1]).read_text()
    number = 1 + max((int(id_.split("_")[0]) for id_ in queue), default=0)
    size = re.search(r"--array=0-(\\d+)", text)
    ids = [f"{number}_{i}" for i in range(int(size[1]) + 1)] if size else [str(number)]
    title = re.search(r"--job-name=(.*)", text)[1]
    queue.update({id_: {"state": "PENDING", "name": title, "script": words[-1]} for id_ in ids})
    print(f"Submitted batch job {number}")
if name == "squeue":
    for id_, one in queue.items():
        if "--me" in words and one["state"] in ("PENDING", "RUNNING"):
            print("|".join([id_, one["state"], one["name"], one["script"]]))
        elif "--me" not in words:
            print(f"{id_}|{one['state']}|None|")
if name == "scancel":
    for id_ in words:
        if id_ in queue and not ("--signal=USR2" in words and queue[id_]["state"] == "PENDING"):
            queue[id_]["state"] = "CANCELLED"
file.write_text(json.dumps(queue))
"""


@dataclass
class FakeSlurm:
    """The queue and the calls of the fake commands."""

    base: Path

    @property
    def bin(self) -> Path:
        """Where the commands are."""
        return self.base / "slurm_bin"

    @property
    def queue(self) -> dict[str, str]:
        """The state of every job by its id."""
        file = self.base / "queue.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        return {id_: one["state"] for id_, one in found.items()}

    def start(self, *ids: str) -> None:
        """These jobs run now."""
        file = self.base / "queue.json"
        found = json.loads(file.read_text())
        for id_ in ids:
            found[id_]["state"] = "RUNNING"
        file.write_text(json.dumps(found))

    def calls(self) -> list[list[str]]:
        """Every call's words since the last time this was asked."""
        file = self.base / "calls"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return found

    def counts(self) -> Counter[str]:
        """How often each command was called since the last time; `sbatch --test-only` is a command of its own."""
        return Counter("test-only" if "--test-only" in words else words[0] for words in self.calls())


def make_fake_slurm(base: Path) -> FakeSlurm:
    """The commands in a folder of their own, and an empty queue."""
    made = FakeSlurm(base)
    made.bin.mkdir()
    (made.bin / "fake.py").write_text(PROGRAM)
    for name in ("sbatch", "squeue", "scancel", "srun", "sinfo", "sacct", "scontrol"):
        start = f"{sys.executable} -I -S {made.bin}/fake.py {base} {name}"
        (made.bin / name).write_text(f'#!/bin/sh\nexec {start} "$@"\n')
        (made.bin / name).chmod(0o755)
    return made
