"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from transfer.report.cells import with_std
from transfer.report.model import Report, Table
from transfer.report.render.rows import (
    Footnotes,
    RenderedCell,
    RenderedRow,
    RenderedValue,
    compared_rows,
    render_rows,
    verdicts,
)


def render(report: Report) -> str:
    """Render every table with its footnotes and comparison, then what was skipped."""
    parts = [_table(table) for table in report.tables]
    tail = [f"- {note}" for note in report.notes]
    if report.skipped:
        tail.append(f"- {len(report.skipped)} file(s) skipped:")
        tail += [f"  - `{skipped.path}`: {escape(skipped.reason)}" for skipped in report.skipped]
    if tail:
        parts.append("\n".join(tail))
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    notes = Footnotes(table)
    rows = list(render_rows(table, notes))
    heads = [table.row_head]
    for column in table.columns:
        heads += [f"{column.label}: {column.metrics[0]}", *column.metrics[1:], "n"]
    body: list[list[str]] = []
    for row in rows:
        if row.heading:
            body.append([f"*{row.heading}*"] + [""] * (len(heads) - 1))
        body.append(_row(row))
    foot = [f"- {letter}: {escape(text)}" for letter, text in notes.lines()]
    foot += [f"- {escape(note)}" for note in table.notes]
    parts = [f"## {table.title}", _lead(table, rows), grid(heads, body), "\n".join(foot), _comparison(table)]
    return "\n\n".join(part for part in parts if part)


def _lead(table: Table, rows: Sequence[RenderedRow]) -> str:
    """What the figures are, and the splits each task was trained and tested on."""
    values = [value for row in rows if not row.row.published for cell in row.cells for value in cell.values]
    beside = " [95 % interval]" if any(value.interval for value in values) else ""
    beside += " (published value, difference)" if any(one.value.published is not None for one in values) else ""
    splits = "".join(f"{task}: {head}. " for task, head in table.splits.items())
    return f"Mean ± sample std over n trials{beside}. {splits.strip()}"


def _row(row: RenderedRow) -> list[str]:
    texts = [escape(row.row.label) + _letters(row.letters)]
    for cell in row.cells:
        if cell.cell is None:
            texts += [""] * (len(cell.column.metrics) + 1)
        else:
            texts += [_value(value) for value in cell.values] + [_count(cell)]
    return texts


def _value(rendered: RenderedValue) -> str:
    value, text = rendered.value, rendered.text
    if value.mean is not None:
        text = with_std(value.mean, value.std)
    if value.bold:
        text = f"**{rendered.text}**" + text[len(rendered.text) :]
    text += f" {rendered.interval}" if rendered.interval else ""
    away = f", {rendered.away}" if rendered.away else ""
    return f"{text} ({rendered.paper}{away})" if rendered.paper else text


def _count(cell: RenderedCell) -> str:
    kinds = ", ".join(cell.cell.flags_by_kind) if cell.cell else ""
    return cell.count and cell.count + (f" {kinds}" if kinds else "") + _letters(cell.letters)


def _letters(letters: str) -> str:
    return f" [{letters}]" if letters else ""


def _comparison(table: Table) -> str:
    """Each row's primary metric compared with the chosen row's: difference, interval, p, both n; then in sentences."""
    said = [(label, text) for label, texts in verdicts(table).items() for text in texts]
    sentences = "\n".join(f"- {escape(f'{label}: {text}')}" for label, text in said)
    body = []
    for row in compared_rows(table):
        texts = [_compared(cell) for cell in row.cells]
        if any(texts):
            body.append([escape(row.row.label), *texts])
    if not body:
        return sentences
    other = next(row.label for row in table.rows if row.key == table.against)
    heads = [table.row_head, *(f"{column.label} {column.primary}" for column in table.columns)]
    lead = f"Against {escape(other)}: difference of the means [95 % interval], p adjusted for the rows "
    lead += "(Holm), the smallest difference that four of five repetitions would show, n vs n."
    return f"{lead}\n\n{grid(heads, body)}\n\n{sentences}"


def _compared(cell: RenderedCell) -> str:
    against = next((value.against for value in cell.values if value.value.metric == cell.column.primary), [])
    return ", ".join(filter(None, [" ".join(filter(None, against[:2])), *against[2:]])) if against else ""


def grid(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text too."""
    widths = [max(len(line[i]) for line in (heads, *body)) for i in range(len(heads))]
    lines = [heads, ["-" * width for width in widths], *body]
    return "\n".join("| " + " | ".join(w.ljust(n) for w, n in zip(line, widths, strict=True)) + " |" for line in lines)


def escape(text: str) -> str:
    """A text as a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
