"""A report's tables as LaTeX (booktabs), in the paper's columns, bold by its rule."""

from __future__ import annotations

from collections.abc import Sequence

from transfer.report.model import Column, Report, Table
from transfer.report.render.rows import Footnotes, RenderedRow, RenderedValue, render_rows, verdicts

SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "-",
    "–": "--",
    "…": r"\dots{}",
    "→": r"$\to$",
    "[": "{[}",  # after \\, it would be an option's, and * a variant's
    "*": "{*}",
    "\n": " ",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
HEADS = {"AP50": r"AP$_{50}$", "AP": "AP", "AP75": r"AP$_{75}$", "top1": "top-1"}
MASK_HEADS = {"AP50": r"AP$^{\mathrm{mask}}_{50}$", "AP": r"AP$^{\mathrm{mask}}$", "AP75": r"AP$^{\mathrm{mask}}_{75}$"}


def render(report: Report) -> str:
    """Render one `table*` for each table; needs the packages booktabs and graphicx and a UTF-8 source."""
    lead = "% \\usepackage{booktabs,graphicx}\n"
    return lead + "\n".join(_table(table) for table in report.tables)


def _table(table: Table) -> str:
    notes = Footnotes(table)
    rows = list(render_rows(table, notes))
    spec = "l" + "".join(" " + "c" * len(column.metrics) for column in table.columns)
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        # Shrunk to the line if it is wider, never enlarged.
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        *_heads(table),
        r"\midrule",
    ]
    width = 1 + sum(len(column.metrics) for column in table.columns)
    for previous, row in zip([None, *rows], rows, strict=False):
        if previous and previous.row.published != row.row.published:
            lines.append(r"\midrule")
        if row.heading:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape(row.heading)}}}}} \\")
        lines.append(_row(row))
        if any(value.interval for cell in row.cells for value in cell.values):
            lines[-1] += "[-0.6ex]"
            lines.append(_intervals(row))
    lines += [r"\bottomrule", r"\end{tabular}}", rf"\caption{{{_caption(table, rows)}}}"]
    texts = [rf"\textsuperscript{{{letter}}}\,{escape(text)}." for letter, text in notes.lines()]
    texts += [escape(" ".join([f"{label}:", *sentences])) for label, sentences in verdicts(table).items()]
    if texts:
        text = " ".join(texts)
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


def _row(row: RenderedRow) -> str:
    texts = [escape(row.row.label) + _letters(row.letters)]
    for cell in row.cells:
        texts += [_value(value) for value in cell.values] or [""] * len(cell.column.metrics)
        texts[-1] += _letters(cell.letters)
    return " & ".join(texts) + r" \\"


def _intervals(row: RenderedRow) -> str:
    """A line below a row: the interval of each value."""
    texts = [""]
    for cell in row.cells:
        found = [rf"{{\tiny {{{value.interval}}}}}" if value.interval else "" for value in cell.values]
        texts += found or [""] * len(cell.column.metrics)
    return " & ".join(texts) + r" \\[0.3ex]"


def _value(rendered: RenderedValue) -> str:
    if rendered.value.mean is None:
        return "--" if rendered.text == "-" else escape(rendered.text)
    text = rf"\textbf{{{rendered.text}}}" if rendered.value.bold else rendered.text
    return text + (rf"{{\scriptsize$\pm${rendered.std}}}" if rendered.std else "")


def _letters(letters: str) -> str:
    return rf"\textsuperscript{{{letters}}}" if letters else ""


def _caption(table: Table, rows: Sequence[RenderedRow]) -> str:
    title = table.title.partition(": ")[2] or table.title  # LaTeX counts tables itself
    parts = [escape(title[0].upper() + title[1:]) + "."]
    parts += [escape(f"{task}: {head}") + "." for task, head in table.splits.items()]
    if counts := _counts(table, rows):
        parts.append(f"Mean $\\pm$ sample std over n trials; n: {counts}.")
    if any(value.interval for row in rows for cell in row.cells for value in cell.values):
        parts.append(r"Below them 95\,\% intervals over test images, and seeds where n is above 1.")
    if table.bold_within is not None:
        parts.append(f"Bold entries are within {table.bold_within} below the best.")
    return " ".join(parts)


def _counts(table: Table, rows: Sequence[RenderedRow]) -> str:
    """The number of trials of each column's cells: `VOC 07 detection 5, COCO detection 1/2 or 1`."""
    parts = []
    for index, column in enumerate(table.columns):
        counts = dict.fromkeys(row.cells[index].count for row in rows)
        if known := [count for count in counts if count]:
            parts.append(f"{escape(column.label)} {' or '.join(known)}")
    return ", ".join(parts)


def escape(text: str) -> str:
    """Escape LaTeX's special characters."""
    return "".join(SPECIAL.get(character, character) for character in text)
