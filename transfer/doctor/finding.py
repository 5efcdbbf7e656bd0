"""The result of one check of the doctor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "skipped", "missing", "wrong"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: what was checked.
        state: `ok`; `warning`: the project works, but more slowly or with less; `skipped`: cannot be checked on this
            machine; `missing`: required; `wrong`: it computes wrong numbers.
        found: one line: version, number or path.
        advice: one line: what to do; empty where nothing is to be done.
        normal: one line: the normal value; empty where it is obvious.
    """

    subject: str
    state: State
    found: str
    advice: str = ""
    normal: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ok(subject: str, found: str) -> Finding:
    return Finding(subject, "ok", found)


def warning(subject: str, found: str, advice: str) -> Finding:
    return Finding(subject, "warning", found, advice)


def missing(subject: str, found: str, advice: str) -> Finding:
    return Finding(subject, "missing", found, advice)


def render(findings: list[Finding]) -> str:
    """Findings as text: state, subject and result, followed by the normal value and the advice."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8} {finding.subject:<{width}}  {finding.found}")
        if finding.normal:
            lines.append(f"{'':<8} {'':<{width}}  normal: {finding.normal}")
        if finding.advice:
            lines.append(f"{'':<8} {'':<{width}}  → {finding.advice}")
    return "\n".join(lines)


def healthy(findings: list[Finding]) -> bool:
    """Whether nothing is missing or wrong."""
    return all(finding.state not in ("missing", "wrong") for finding in findings)
