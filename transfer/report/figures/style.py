"""What all plots share: their description, and a style in which series differ without colour too."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ssl_transfer.errors import printable
from transfer.report.model import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Item = TypeVar("Item")

TRIALS, PRETRAINING, FINETUNING, CLASSES, SEARCH = "trials", "pretraining", "finetuning", "classes", "search"
INK, GRID = "#1b1b1f", "#c9c9cf"
SERIES = ("#0060b0", "#d1580a", "#007a5a", "#a6419a", "#8a6a00", "#5b5bd6", "#b3263e", "#3d7f99")
"""Colours of similar contrast on white; the page replaces them by those of its theme."""
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 3)), (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
WIDTH = 4.6
"""Inches: a plot fills a phone's width at its own size, and two or three stand side by side on a desk."""
LABEL_LENGTH = 56
"""Characters of a label that fit into a plot's width."""
MAX_ROWS, MAX_LINES, MAX_POINTS = 40, 120, 24_000
"""What one plot shows at most: rows of results, curves, and points of all curves. More could not be told apart."""
SETTINGS = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
}


@dataclass(frozen=True)
class Plot:
    """A plot of the report.

    Attributes:
        section: the page's section; one of the names above.
        name: its file's stem.
        title: the heading.
        alt: the content as text, for readers who cannot see it.
        draw: makes the figure; call inside `styled()`.
    """

    section: str
    name: str
    title: str
    alt: str
    draw: Callable[[], Figure]


def first_rows(rows: Iterable[Row], keep: str | None = None) -> list[Row]:
    """The rows that a plot shows: published ones, the first MAX_ROWS others, and the row of key `keep`."""
    found: list[Row] = []
    count = 0
    for row in rows:
        count += not row.published
        if row.published or count <= MAX_ROWS or row.key == keep:
            found.append(row)
    return found


def spaced(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items, evenly spaced, the first and the last among them; all if there are no more."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def part_of(shown: int, total: int, what: str) -> str:
    """What a heading adds where a plot shows a part: ` (40 of 2,000 rows)`."""
    return f" ({shown:,} of {total:,} {what})" if shown < total else ""


def slug(text: str) -> str:
    """`text` as a part of a file name or of an HTML id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def series_style(index: int) -> dict[str, Any]:
    """Colour, line style and marker of the series number `index`; eight differ in all three, 64 in one of them."""
    turn = index // len(SERIES)
    return {
        "color": SERIES[index % len(SERIES)],
        "linestyle": LINES[(index + turn) % len(LINES)],
        "marker": MARKERS[(index + 3 * turn) % len(MARKERS)],
    }


@contextmanager
def styled() -> Iterator[None]:
    """Apply this project's matplotlib settings within the block."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        yield


def create_axes(title: str, x: str, y: str, height: float = 2.3, labels: Sequence[str] = ()) -> tuple[Figure, Axes]:
    """Create a figure with one set of axes and space for a legend of `labels`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height + 0.2 * math.ceil(len(labels) / legend_columns(labels))))
    made = figure.subplots()
    made.set(title=title, xlabel=x, ylabel=y)
    return figure, made


def legend_columns(labels: Iterable[str]) -> int:
    """The columns of a legend as wide as one plot: two where every label is short enough."""
    return 2 if max(map(len, labels), default=0) <= LABEL_LENGTH // 2 - 5 else 1


def shortened(label: str) -> str:
    """A label that is not wider than a plot."""
    return label if len(label) <= LABEL_LENGTH else label[: LABEL_LENGTH - 1] + "…"


def legend_label(label: str) -> str:
    """A label as a legend shows it; matplotlib leaves out those that begin with `_`."""
    return shortened(f" {label}" if label.startswith("_") else label)


def _show_dollars(figure: Figure) -> None:
    """Show the `$` of labels and titles instead of reading them as formulas; ticks of a log axis are formulas."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if "$" in text.get_text() and "mathdefault" not in text.get_text():
            text.set_parse_math(False)


def to_svg(figure: Figure) -> str:
    """The figure as SVG; the same figure gives the same text."""
    text = io.StringIO()
    _show_dollars(figure)
    with styled():
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return printable(text.getvalue())


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, 200 dots an inch, on white."""
    data = io.BytesIO()
    _show_dollars(figure)
    with styled():
        figure.savefig(data, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    return data.getvalue()
