"""One plot: what it is called, what it says in words, and how it is drawn."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRIALS, PRETRAINING, FINETUNING, CLASSES, SEARCH = "trials", "pretraining", "finetuning", "classes", "lr-search"


@dataclass(frozen=True)
class Plot:
    """A plot of the report.

    Attributes:
        section: where it stands on the page; one of the names above.
        name: its file's stem.
        title: a few words.
        alt: what a reader who cannot see it should know.
        draw: makes the figure; call inside `style.styled()`.
    """

    section: str
    name: str
    title: str
    alt: str
    draw: Callable[[], Figure]


def slug(text: str) -> str:
    """`text` as a part of a file name or of an HTML id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
