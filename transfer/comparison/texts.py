"""A comparison as Markdown and as JSON, and the texts that the page shares with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from transfer.comparison.differences import Comparison, Difference
from transfer.comparison.tide import KINDS
from transfer.report.cells import bracketed, p_value, printed, rounded
from transfer.report.cells import difference as signed
from transfer.report.render.json import finite
from transfer.report.render.markdown import escape, grid

FORMAT = "comparison/1"
BRANCHES = {"bbox": "boxes", "segm": "masks"}
TITLES = {"metrics": "AP", "sizes": "AP by object size", "classes": "AP per class"}


@dataclass(frozen=True)
class Grid:
    """A table of texts, with a title, in a section of the page; the first text of a row is its name."""

    section: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def headline(found: Comparison) -> str:
    """What AP of boxes says, in one sentence."""
    (a, b), ap = found.sides, found.differences["bbox"]["metrics"][0]
    text = f"{a.label} has AP {printed(ap.ours, '-')}, {b.label} {printed(ap.theirs, '-')}; more is not known."
    return f"{'Toy run: ' if a.found[0].toy else ''}{sentences(found)[0] if ap.verdict else text}"


def sentences(found: Comparison) -> list[str]:
    """What each metric of boxes and masks says that has a verdict."""
    a, b = (side.label for side in found.sides)
    known = ((one, branch) for branch, parts in found.differences.items() for one in parts["metrics"])
    return [f"{one.verdict.sentence(a, b, f'{one.name} ({BRANCHES[of]})')}." for one, of in known if one.verdict]


def facts(found: Comparison) -> list[tuple[str, str]]:
    """What is compared, and what is left out, as (name, text)."""
    about = found.sides[0].found[0]
    counts = [f"{len(s.trials)} trial{'s'[: len(s.trials) - 1]}" if s.trials else "result file" for s in found.sides]
    lines = [(side.label, f"{side.word} ({count})") for side, count in zip(found.sides, counts, strict=True)]
    lines.append(("Test split", f"{about.test_split}, {len(about.images):,} images, {len(about.classes)} classes"))
    lines.append(("Metric", about.metric))
    return [*lines, ("Left out", f"kinds of error and images: {found.note}")] if found.note else lines


def grids(found: Comparison) -> Iterator[Grid]:
    """Every table: differences of AP, per size of objects, per class; errors; images."""
    labels = tuple(side.label for side in found.sides)
    for part, title in TITLES.items():
        p = "p (Holm)" if part == "classes" else "p"
        heads = ("", *labels, "difference", "95 % interval", p, "smallest that could be seen")
        for branch, parts in found.differences.items():
            yield Grid(part, f"{title}, {BRANCHES[branch]}", heads, tuple(map(_row, parts[part])))
    if found.errors is not None:
        rows = []
        for kind in KINDS:
            (gain, count), (other, other_count) = (errors[kind] for errors in found.errors)
            gains = printed(gain), printed(other), signed(gain, other)
            rows.append((kind, *gains, f"{count:,.0f}", f"{other_count:,.0f}"))
        heads = ("", *labels, "difference", *(f"{label}: errors" for label in labels))
        yield Grid("errors", "AP50 gained without each kind of error, boxes", heads, tuple(rows))
    if found.images:
        images = tuple((one.name, str(one.ours), str(one.theirs)) for one in found.images)
        yield Grid("images", "True minus false positives of the images that differ most", ("", *labels), images)


def _row(one: Difference) -> tuple[str, ...]:
    away = "" if one.ours is None or one.theirs is None else f"{rounded(one.ours - one.theirs):+}"
    texts = one.name, printed(one.ours, "-"), printed(one.theirs, "-"), away
    if (found := one.verdict) is None:
        return (*texts, "", "", "")
    p = p_value(found.p if found.p_holm is None else found.p_holm).removeprefix("p ")
    return (*texts, bracketed(found.low, found.high, "+"), p, printed(found.detectable))


def render_markdown(found: Comparison) -> str:
    """Render sentence, facts and tables."""
    parts = [f"# {' against '.join(escape(side.label) for side in found.sides)}", escape(headline(found))]
    parts.append("\n".join(f"- {escape(name)}: {escape(text)}" for name, text in facts(found)))
    parts.append("\n".join(f"- {escape(text)}" for text in sentences(found)))
    for one in grids(found):
        heads, *rows = ([escape(text) for text in line] for line in (one.heads, *one.rows))
        parts += [f"## {one.title}", grid(heads, rows)]
    return "\n\n".join(filter(None, parts)) + "\n"


def render_json(found: Comparison) -> str:
    """Render every number, with full precision; null where nothing can be computed."""
    about, kinds = found.sides[0].found[0], found.errors or ()
    content = {
        "format": FORMAT,
        "headline": headline(found),
        "sentences": sentences(found),
        "sides": [
            {"label": s.label, "named": s.word, "trials": [{"result": str(t.source), "seed": t.seed} for t in s.trials]}
            for s in found.sides
        ],
        **{name: getattr(about, name) for name in ("test_split", "metric", "truth", "toy", "classes")},
        "images": len(about.images),
        "differences": {
            branch: {part: [asdict(one) for one in parts[part]] for part in TITLES}
            for branch, parts in found.differences.items()
        },
        "errors": [{k: {"gain": gain, "count": n} for k, (gain, n) in errors.items()} for errors in kinds] or None,
        "precision": [dict(zip(about.classes, curves.tolist(), strict=True)) for curves in found.curves],
        "differing_images": [asdict(one) for one in found.images],
        "note": found.note,
    }
    return json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
