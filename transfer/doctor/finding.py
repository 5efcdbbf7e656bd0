"""One thing the doctor looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        subject: what was looked at.
        state: `ok`; `warning`: work goes on without it, slower or with less; `missing`: nothing works without it.
        found: one line: version, number or place.
        advice: one line: what to do; empty when there is nothing to do.
    """

    subject: str
    state: State
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def render(findings: list[Finding]) -> str:
    """The findings as lines of text: state, subject, what was found, and below it what to do."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8} {finding.subject:<{width}}  {finding.found}")
        if finding.advice:
            lines.append(f"{'':<8} {'':<{width}}  → {finding.advice}")
    return "\n".join(lines)


def healthy(findings: list[Finding]) -> bool:
    """Whether everything needed is there."""
    return all(finding.state != "missing" for finding in findings)
