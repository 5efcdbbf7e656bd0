"""What the fake tools share: steps with a checkpoint, a log of events, and orders from the test.

`$FAKE_DIR/events` gets a line at every start and end. `$FAKE_DIR/orders.json` maps a part of the output's name to what
to do there: `{"exit": 1}`, `{"raise": "text"}`, `{"again": 2}` (exit 75 so often), `{"diverge": true}`, `{"steps": 9}`,
`{"hang": true}` (until SIGTERM, then exit 75), `{"silent": true}` (exit 0, write nothing), `{"kill": true}`
(SIGKILL), `{"fill": "path"}` (fill the disk, exit 1), `{"once": {...}}`. `{"rank": 1, ...}` is for that process of the
job alone; the others wait for it, as in a collective, and have no connection once it is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

AGAIN = 75


def base() -> Path:
    return Path(os.environ["FAKE_DIR"])


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(value if isinstance(value, str) else json.dumps(value))
    part.replace(path)


def event(*words: str) -> None:
    with open(base() / "events", "a") as stream:
        stream.write(" ".join([f"{time.monotonic():.4f}", *words]) + "\n")


def orders_for(name: str) -> dict:
    path = base() / "orders.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    orders = next((value for key, value in found.items() if key in name), {})
    once = orders.get("once")
    mark = base() / f"once-{name}"
    if once and not mark.exists():
        mark.touch()
        return once
    return orders


def words_after(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


def steps(out: Path, total: int) -> int:
    """Count to `total`, writing a checkpoint and a metrics line each step; how many were done by this process."""
    checkpoint = out / "checkpoint.json"
    first = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
    for step in range(first, total):
        time.sleep(0.01)
        with open(out / "metrics.json", "a") as stream:
            line = {"iteration": step + 1, "epoch": step + 1, "total_loss": 1 / (step + 1), "time": 0.01}
            stream.write(json.dumps(line) + "\n")
        write(checkpoint, {"step": step + 1})
    return total - first


def rank() -> int:
    return int(os.environ.get("SLURM_PROCID") or 0)


def fill(path: Path) -> int:
    with open(path, "wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    return 1


def obey(name: str, out: Path) -> int | None:
    """Do what the test ordered for this output; an exit code when that is the end of it."""
    orders = orders_for(name)
    if "again" in orders:
        count = base() / f"again-{name}"
        so_far = int(count.read_text()) if count.exists() else 0
        if so_far < orders["again"]:
            write(count, str(so_far + 1))
            return AGAIN
    if str(orders.get("rank", rank())) != str(rank()):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(AGAIN))
        event("wait", name)
        time.sleep(60)
    if "fill" in orders:
        return fill(Path(orders["fill"]))
    if orders.get("hang"):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(AGAIN))
        event("hang", name)
        time.sleep(60)
    if orders.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if "raise" in orders:
        raise RuntimeError(orders["raise"])
    if "exit" in orders:
        sys.stderr.write(f"error: {orders.get('say', 'ordered to fail')}\n")
        return int(orders["exit"])
    if orders.get("silent"):
        return 0
    steps(out, orders.get("steps", 3))
    return None
