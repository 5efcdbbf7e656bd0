"""A report's tables as LaTeX (booktabs), in the paper's columns, bold by its rule."""

from __future__ import annotations

from transfer.report.digits import printed
from transfer.report.model import Cell, Column, Report, Row, Table, Value
from transfer.report.render.footnotes import Footnotes, count, missing

SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "-",
    "–": "--",
    "…": r"\dots{}",
    "→": r"$\to$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
HEADS = {"AP50": r"AP$_{50}$", "AP": "AP", "AP75": r"AP$_{75}$", "top1": "top-1"}
MASK_HEADS = {"AP50": r"AP$^{\mathrm{mask}}_{50}$", "AP": r"AP$^{\mathrm{mask}}$", "AP75": r"AP$^{\mathrm{mask}}_{75}$"}


def render(report: Report) -> str:
    """One `table*` a table; needs the packages booktabs and graphicx and a UTF-8 source (LaTeX since 2018)."""
    lead = "% \\usepackage{booktabs,graphicx}\n"
    return lead + "\n".join(_table(table) for table in report.tables)


def _table(table: Table) -> str:
    notes = Footnotes(table)
    spec = "l" + "".join(" " + "c" * len(column.metrics) for column in table.columns)
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        # Shrunk to the line where it is wider, never blown up.
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        *_heads(table),
        r"\midrule",
    ]
    previous: Row | None = None
    for row in table.rows:
        if previous and (previous.published != row.published):
            lines.append(r"\midrule")
        if row.group and (previous is None or previous.group != row.group):
            width = 1 + sum(len(column.metrics) for column in table.columns)
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape(row.group)}}}}} \\")
        lines.append(_row(row, table, notes))
        previous = row
    lines += [r"\bottomrule", r"\end{tabular}}", rf"\caption{{{_caption(table)}}}"]
    if marks := notes.lines():
        text = " ".join(rf"\textsuperscript{{{letter}}}\,{escape(text)}." for letter, text in marks)
        lines.append(rf"\begin{{minipage}}{{\linewidth}}\footnotesize\raggedright {text}\end{{minipage}}")
    return "\n".join([*lines, r"\end{table*}", ""])


def _heads(table: Table) -> list[str]:
    groups, rules, start = [], [], 2
    for column in table.columns:
        width = len(column.metrics)
        groups.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(column.label)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    metrics = [_metric(column, metric) for column in table.columns for metric in column.metrics]
    return [
        " & ".join(["", *groups]) + r" \\",
        " ".join(rules),
        " & ".join([escape(table.row_head), *metrics]) + r" \\",
    ]


def _metric(column: Column, metric: str) -> str:
    heads = MASK_HEADS if column.branch == "segm" else HEADS
    return heads.get(metric, escape(metric))


def _row(row: Row, table: Table, notes: Footnotes) -> str:
    words = [escape(row.label) + _letters(notes.of(row.marks))]
    for column in table.columns:
        cell = row.cells.get(column.key)
        if cell is None:
            words += [""] * len(column.metrics)
            continue
        texts = [_value(cell, cell.values[metric]) for metric in column.metrics]
        texts[-1] += _letters(notes.of(cell.marks))
        words += texts
    return " & ".join(words) + r" \\"


def _value(cell: Cell, value: Value) -> str:
    if value.mean is None:
        return (
            escape(missing(cell, value)).replace("-", "--", 1)
            if missing(cell, value) == "-"
            else escape(missing(cell, value))
        )
    text = printed(value.mean)
    text = rf"\textbf{{{text}}}" if value.bold else text
    return text + (rf"{{\scriptsize$\pm${printed(value.std)}}}" if value.std is not None else "")


def _letters(letters: list[str]) -> str:
    return rf"\textsuperscript{{{','.join(letters)}}}" if letters else ""


def _caption(table: Table) -> str:
    title = table.title.partition(": ")[2] or table.title  # LaTeX counts tables itself
    parts = [escape(title[0].upper() + title[1:]) + "."]
    heads = dict.fromkeys(f"{column.task}: {column.head}" for column in table.columns if column.head)
    parts += [escape(head) + "." for head in heads]
    if counts := _counts(table):
        parts.append(f"Mean $\\pm$ sample std over n trials; n: {counts}.")
    if table.bold_within is not None:
        parts.append(f"Bold entries are within {table.bold_within} below the best.")
    return " ".join(parts)


def _counts(table: Table) -> str:
    """How many trials stand behind each column's cells: `VOC 07 detection 5, COCO detection 1/2 to 1`."""
    parts = []
    for column in table.columns:
        found = [count(row.cells[column.key]) for row in table.rows if not row.published and column.key in row.cells]
        if found:
            parts.append(f"{escape(column.label)} {' or '.join(dict.fromkeys(found))}")
    return ", ".join(parts)


def escape(text: str) -> str:
    """`text` with LaTeX's special characters made harmless."""
    return "".join(SPECIAL.get(character, character) for character in text)
