"""One thing the doctor looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "skipped", "missing", "wrong"]


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        subject: what was looked at.
        state: `ok`; `warning`: work goes on without it, slower or with less; `skipped`: this machine has no such thing
            to look at; `missing`: nothing works without it; `wrong`: it is there and gives wrong numbers.
        found: one line: version, number or place.
        advice: one line: what to do; empty when there is nothing to do.
        normal: one line: what would be normal; empty where that is plain.
    """

    subject: str
    state: State
    found: str
    advice: str = ""
    normal: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def render(findings: list[Finding]) -> str:
    """The findings as lines of text: state, subject, what was found, and below it what is normal and what to do."""
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
    """Whether everything needed is there and gives right numbers."""
    return all(finding.state not in ("missing", "wrong") for finding in findings)
