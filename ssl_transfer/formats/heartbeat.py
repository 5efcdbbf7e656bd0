"""`heartbeat.rank<N>.json` (`heartbeat/1`): what one process of a training does, while it runs or where it hung."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from ssl_transfer.errors import UserError
from ssl_transfer.formats import FileFormat
from ssl_transfer.formats.job import Time

STRAGGLER = 1.5
"""A straggler's own part of a step, or its wait for images, takes so many times the median of the others."""


class Heartbeat(FileFormat):
    """Written by each process of a training every few seconds; removed at its end, but for one that hung."""

    format: Literal["heartbeat/1"] = Field(default="heartbeat/1", description="name and version of the format")
    rank: int = Field(description="of the process")
    host: str = Field(description="its machine")
    pid: int = Field(description="its process id")
    attempt: str = Field(description="the Slurm job and its restarts, `123.0`; empty without Slurm")
    at: Time = Field(description="time of writing, ISO 8601 in UTC")
    phase: str = Field(description="start, step, evaluation or checkpoint")
    iteration: int = Field(description="iterations done since the process started")
    step_seconds: float | None = Field(default=None, description="median of the last 50 steps")
    data_seconds: float | None = Field(default=None, description="of these, the median time spent waiting for images")
    collective_seconds: float | None = Field(
        default=None, description="of these, the median time spent in collectives, waiting for the other processes"
    )
    doing: str | None = Field(default=None, description="an evaluation's progress, such as `evaluating 3 of 9 images`")
    hung: str | None = Field(default=None, description="why the process ended itself")


def attempt_name() -> str:
    """The Slurm job of this process and its restarts, such as `123.0`; empty without Slurm."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return f"{job}.{os.environ.get('SLURM_RESTART_COUNT') or 0}" if job else ""


def read_heartbeats(folder: Path) -> list[Heartbeat]:
    """The heartbeats in a run's folder by rank; a damaged file, or one that vanishes, is left out."""
    found = []
    for path in folder.glob("heartbeat.rank*.json"):
        try:
            found.append(Heartbeat.read(path))
        except UserError:
            continue
    return sorted(found, key=lambda one: one.rank)


def find_hang(folder: Path, attempt: str) -> tuple[str, str] | None:
    """Why a process of this attempt ended itself, and the host to blame; None where none did."""
    heartbeats = [one for one in read_heartbeats(folder) if one.attempt == attempt]
    hung = next((one.hung for one in heartbeats if one.hung), None)
    return (f"hung: {hung}", slowest_host(heartbeats)) if hung else None


def slowest_host(heartbeats: Sequence[Heartbeat]) -> str:
    """The host to blame for a hang: of the process that got least far, by iteration, then by its last sign of life."""
    return min(heartbeats, key=lambda one: (one.iteration, one.hung is not None, one.at)).host


def own_seconds(heartbeat: Heartbeat) -> float | None:
    """A step's time without that spent in collectives, where a process waits for the slowest one; None: unknown."""
    if heartbeat.step_seconds is None or heartbeat.collective_seconds is None:
        return None
    return max(heartbeat.step_seconds - heartbeat.collective_seconds, 0.0)


def describe_stragglers(heartbeats: Sequence[Heartbeat]) -> str | None:
    """The slowest process by its waits for images or its own part of a step; None where all are alike."""
    for read, what in ((lambda one: one.data_seconds, "waits for images"), (own_seconds, "own part of a step")):
        times = {one.rank: value for one in heartbeats if (value := read(one)) is not None}
        if len(times) < 2:
            continue
        rank = max(times, key=lambda one: times[one])
        others = statistics.median(value for one, value in times.items() if one != rank)
        if times[rank] > STRAGGLER * others and times[rank] - others > 0.05 * _step(heartbeats):
            host = next(one.host for one in heartbeats if one.rank == rank)
            return f"straggler: rank {rank} on {host}, {what} of {times[rank]:.2f} s where others take {others:.2f} s"
    return None


def _step(heartbeats: Sequence[Heartbeat]) -> float:
    return statistics.median(one.step_seconds or 0.0 for one in heartbeats)
