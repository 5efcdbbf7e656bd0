"""README's picture of the page of results: `python docs/picture.py` makes it with Chromium, `--check` compares only.

The page shows the published rows of Table 5 and two rows that are an example, made here, and says so. The picture holds
a digest of the table, of the page's template, style and script, and of the trials' plots: `--check` finds a picture of
an earlier page without Chromium.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.transfer.report import browser  # noqa: E402
from tests.transfer.report.made_results import FIVE, Run, keep, put, result  # noqa: E402
from transfer.report.collect import collect  # noqa: E402
from transfer.report.figures import trials  # noqa: E402
from transfer.report.model import Report  # noqa: E402
from transfer.report.published import load_expected  # noqa: E402
from transfer.report.render import facts, html, markdown  # noqa: E402
from transfer.report.tables import Options, build_report  # noqa: E402

PICTURE = ROOT / "docs" / "pictures" / "report.png"
WIDTH, COLOURS = 1400, 64
NOTE = (
    "An example: the last two rows repeat the published numbers of “ImageNet supervised” and “SimSiam, base”, with VOC "
    "trials spread by up to 0.2. Their commit, hours and intervals are placeholders. All other rows are published."
)


def example(folder: Path) -> Report:
    """The report of the example's rows beside the published ones; their results are written into `folder`."""
    table5 = load_expected("table5")
    tasks = {"voc07": 5, "voc0712": 5, "coco": 1}
    rows = {"baseline": ("supervised (example)", "supervised"), "mine": ("your weights (example)", "simsiam_base")}
    run = Run(folder, [(row, *known) for row, known in rows.items()], tasks)
    for (row, (_, key)), (task, count) in itertools.product(rows.items(), tasks.items()):
        box, mask = (
            [table5.entry(key, task, branch).values.get(m) for m in table5.metrics] for branch in ("bbox", "segm")
        )
        for seed, offset in enumerate(FIVE if count > 1 else (0.0,), 1):
            spread = [value + offset for value in box if value is not None]
            masks = [value for value in mask if value is not None] or None
            content = result(row, task, seed, spread, masks)
            where = run.finetune(row, task, seed, None)
            put(where, keep(where, content, own=10 * len(row) + seed, noise=0.4, extra=0.2))
    run.graph["experiment"] = "How well do your weights transfer?"
    return replace(build_report(collect([run.save()]), Options(published="rows")), notes=(NOTE,))


def digest(report: Report) -> str:
    """What the picture depends on, but for the versions of the programs that draw."""
    sources = [*sorted(facts.FOLDER.iterdir()), Path(trials.__file__)]
    parts = [markdown.render(report), NOTE, *(path.read_text() for path in sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def draw(report: Report, folder: Path) -> bytes:
    """The page as PNG, from its top to the end of the first line of plots.

    Raises:
        SystemExit: Chromium is not installed.
    """
    program = browser.find()
    if program is None:
        raise SystemExit("chromium is not installed: apt-get install chromium")
    (folder / "table.html").write_text(html.render(report))
    with browser.Browser(program, folder / "profile") as page:
        page.see(WIDTH)
        page.open((folder / "table.html").as_uri())
        end = page.js("document.querySelector('.gallery figure').getBoundingClientRect().bottom + scrollY")
        shown = page.picture()
    with Image.open(io.BytesIO(shown)) as image:
        small = image.convert("RGB").crop((0, 0, WIDTH, round(end) + 12)).quantize(COLOURS, dither=Image.Dither.NONE)
    info, data = PngInfo(), io.BytesIO()
    info.add_text("page", digest(report))
    small.save(data, "PNG", optimize=True, pnginfo=info)
    return data.getvalue()


def is_current(report: Report) -> bool:
    """Whether the picture is one of this page."""
    if not PICTURE.is_file():
        return False
    with Image.open(PICTURE) as image:
        return image.info.get("page") == digest(report)


def main(words: list[str] | None = None) -> int:
    """Write the picture, or compare it; exit 1 where it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the picture is out of date")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        report = example(Path(name) / "example")
        if is_current(report):
            return 0
        if not args.check:
            PICTURE.write_bytes(draw(report, Path(name)))
        print(f"{'out of date' if args.check else 'written'}: {PICTURE.relative_to(ROOT)}")
    return int(args.check)


if __name__ == "__main__":
    raise SystemExit(main())
