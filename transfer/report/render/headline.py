"""The page's first sentence: what the first column with a mean says, and no more."""

from __future__ import annotations

from collections import Counter

from transfer.report import model
from transfer.report.cells import bracketed, difference, p_value, rounded, with_std
from transfer.report.model import NOT_COMPARABLE, TOY, UNLIKE, Cell, Column, Report, Row, Table

LEVEL = 0.05


def headline(report: Report) -> str:
    """The row with the highest mean of the first column that has one, its difference, n and p; and what is missing."""
    for table in report.tables:
        for column in table.columns:
            rows = [row for row in table.rows if column.key in row.cells and not row.published]
            known = [(row, row.cells[column.key]) for row in rows]
            if known := [(row, cell) for row, cell in known if cell.values[column.primary].mean is not None]:
                return " ".join(filter(None, [_sentence(table, column, known), _missing(report)]))
    if published := sum(row.published for table in report.tables for row in table.rows):
        return f"{published} published rows, no result of this project beside them."
    return " ".join(filter(None, ["No trial has a result that counts.", _missing(report)])) if report.tables else ""


def _sentence(table: Table, column: Column, known: list[tuple[Row, Cell]]) -> str:
    metric = column.primary
    fair = [(row, cell) for row, cell in known if not cell.has(NOT_COMPARABLE, UNLIKE)] or known
    ranked = sorted(fair, key=lambda one: -(one[1].values[metric].mean or 0.0))
    row, cell = ranked[0]
    value = cell.values[metric]
    toy = "Toy run: " if cell.has(TOY) else ""
    equal = sum(rounded(one.values[metric].mean or 0.0) == rounded(value.mean or 0.0) for _, one in ranked)
    highest = "the highest" if equal == 1 else f"one of {equal} equal highest"
    highest = f"{highest} of {len(ranked)} rows, " if len(ranked) > 1 else ""
    text = f"{toy}{row.label} has {metric} {with_std(value.mean, value.std)} on {column.label} ({highest}{_count(cell)}"
    text += f"{', marked not comparable' if cell.has(NOT_COMPARABLE) else ''}){_comparison(table, metric, ranked)}"
    if value.difference is not None and value.mean is not None and value.published is not None:
        text += f"; published is {with_std(value.published, None)} ({difference(value.mean, value.published)})"
    return text + "."


def _comparison(table: Table, metric: str, ranked: list[tuple[Row, Cell]]) -> str:
    """The first row's difference to the row compared with; to the next one, where it is that row itself."""
    first_is_it = ranked[0][0].key == table.against
    tested = next((one for one in ranked if one[0].key != table.against), None)
    other = next((one for one in ranked if one[0].key == table.against), None)
    if tested is None or other is None or (found := tested[1].values[metric].against) is None:
        return ""
    low = tested if first_is_it else other
    sign = -1 if first_is_it else 1
    low_end, high_end = (None if end is None else sign * end for end in (found.low, found.high)[::sign])
    interval = bracketed(low_end, high_end, "+")
    away = " ".join(filter(None, [f"{rounded(sign * found.difference):+}", interval]))
    test = p_value(found.p_holm) if found.p_holm is not None else "no test possible"
    if found.p_holm is not None and found.p_holm >= LEVEL:
        test += ", no evidence of a difference"
    return f", {away} against {low[0].label} ({_count(low[1])}; {test})"


def _count(cell: Cell) -> str:
    short = cell.requested is not None and cell.n < cell.requested
    return f"n = {cell.n} of {cell.requested}" if short else f"n = {cell.n}"


def _missing(report: Report) -> str:
    """How many cells are incomplete, diverged or mixed."""
    cells = [cell for table in report.tables for row in table.rows if not row.published for cell in row.cells.values()]
    counts = Counter(
        kind for cell in cells for kind in (model.INCOMPLETE, model.DIVERGED, model.MIXED) if cell.has(kind)
    )
    found = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"Of {len(cells)} cells, {found}." if found and len(cells) > 1 else ""
