"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from transfer.report.digits import difference, p_value, printed, rounded, with_std
from transfer.report.model import Cell, Column, Report, Row, Table, Value
from transfer.report.render.footnotes import Footnotes, count, kinds, mean_text


def render(report: Report) -> str:
    """Every table with its footnotes and comparison, then what was skipped."""
    parts = [_table(table) for table in report.tables]
    tail = [f"- {note}" for note in report.notes]
    if report.skipped:
        tail.append(f"- {len(report.skipped)} file(s) skipped:")
        tail += [f"  - `{skipped.path}`: {_safe(skipped.reason)}" for skipped in report.skipped]
    if tail:
        parts.append("\n".join(tail))
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    notes = Footnotes(table)
    heads = [table.row_head]
    for column in table.columns:
        heads += [f"{column.label}: {column.metrics[0]}", *column.metrics[1:], "n"]
    body: list[list[str]] = []
    group = None
    for row in table.rows:
        if row.group != group and row.group:
            body.append([f"*{row.group}*"] + [""] * (len(heads) - 1))
        group = row.group
        body.append(_row(row, table, notes))
    foot = [f"- {letter}: {_safe(text)}" for letter, text in notes.lines()] + [
        f"- {_safe(note)}" for note in table.notes
    ]
    parts = [f"## {table.title}", _heads(table), _grid(heads, body)]
    if foot:
        parts.append("\n".join(foot))
    if comparison := _comparison(table):
        parts.append(comparison)
    return "\n\n".join(parts)


def _heads(table: Table) -> str:
    """The splits each column was trained and tested on, once a task."""
    heads = dict.fromkeys(f"{column.task}: {column.head}" for column in table.columns if column.head)
    lead = "Mean ± sample std over n trials"
    beside = any(value.published is not None for row in table.rows if not row.published for value in _values(row))
    lead += " (published value, difference)" if beside else ""
    return f"{lead}. " + "".join(f"{head}. " for head in heads).strip()


def _values(row: Row) -> list[Value]:
    return [value for cell in row.cells.values() for value in cell.values.values()]


def _row(row: Row, table: Table, notes: Footnotes) -> list[str]:
    words = [_safe(row.label) + _letters(notes.of(row.marks))]
    for column in table.columns:
        cell = row.cells.get(column.key)
        if cell is None:
            words += [""] * (len(column.metrics) + 1)
            continue
        words += [_value(cell, cell.values[metric], row.published) for metric in column.metrics]
        words.append("" if row.published else _count(cell, notes))
    return words


def _value(cell: Cell, value: Value, published: bool) -> str:
    text = with_std(value.mean, value.std) if value.mean is not None else mean_text(cell, value)
    if value.bold:
        text = f"**{printed(value.mean)}**" + text[len(printed(value.mean)) :]
    if published:
        return text
    paper = value.word or printed(value.published)
    if not paper:
        return text
    away = ""
    if value.difference is not None and value.mean is not None and value.published is not None:
        away = f", {difference(value.mean, value.published)}"
    return f"{text} ({paper}{away})"


def _count(cell: Cell, notes: Footnotes) -> str:
    words = [count(cell), *kinds(cell)]
    return " ".join(words[:1]) + (" " + ", ".join(words[1:]) if words[1:] else "") + _letters(notes.of(cell.marks))


def _letters(letters: Sequence[str]) -> str:
    return f" [{','.join(letters)}]" if letters else ""


def _comparison(table: Table) -> str:
    """Each row's primary metric against the chosen row's: difference, interval, p, and the two n."""
    if table.against is None:
        return ""
    columns = [(column, _primary(column)) for column in table.columns]
    body = []
    for row in table.rows:
        words = [_against(row, column, metric) for column, metric in columns]
        if any(words):
            body.append([_safe(row.label), *words])
    if not body:
        return ""
    other = next(row.label for row in table.rows if row.key == table.against)
    heads = [table.row_head, *(f"{column.label} {metric}" for column, metric in columns)]
    lead = f"Against {_safe(other)}: difference of the means [95 % bootstrap interval], p of Welch's t-test, n vs n."
    return f"{lead}\n\n{_grid(heads, body)}"


def _primary(column: Column) -> str:
    return "AP" if "AP" in column.metrics else column.metrics[0]


def _against(row: Row, column: Column, metric: str) -> str:
    cell = row.cells.get(column.key)
    found = cell.values[metric].against if cell else None
    if found is None:
        return ""
    interval = (
        f" [{rounded(found.low):+}, {rounded(found.high):+}]"
        if found.low is not None and found.high is not None
        else ""
    )
    return f"{rounded(found.difference):+}{interval}, p {p_value(found.p)}, n {found.n} vs {found.n_other}"


def _grid(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text too."""
    widths = [max(len(line[i]) for line in (heads, *body)) for i in range(len(heads))]
    lines = [heads, ["-" * width for width in widths], *body]
    return "\n".join("| " + " | ".join(w.ljust(n) for w, n in zip(line, widths, strict=True)) + " |" for line in lines)


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
