"""How the files beside this one were recorded: run in a checkout of commit 54cff5b.

    cd CHECKOUT && PYTHONPATH=$PWD python THIS_REPOSITORY/tests/pins/make.py THIS_REPOSITORY/tests

`plans.json`: of each shipped experiment the fingerprint of every job; of Table 5 also its jobs' fields and what `plan`
printed. `*.csv`, `*.md`, `*.latex`, `*.html.json` (the numbers in the cells of
results): tables of the kept run folders.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

KEPT = "54cff5b"
SETS = ("run_dir=/nowhere/run", "data.images=/data/images", "data.detection=/data/detection")
FIELDS = ("name", "kind", "row", "task", "seed", "trial", "total", "counter", "recipe", "role", "data", "needs")
FORMS = ("csv", "md", "latex", "html")
PUBLISHED = ("--published", "rows", "--allow-toy")


def numbers_in_cells(page: str) -> list[str]:
    """Every number in the cells of the page's results and of their comparison, sorted."""
    tables = "".join(re.findall(r'<table[^>]*class="(?:results|compare)".*?</table>', page, re.DOTALL))
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", tables, re.DOTALL)
    texts = (re.sub(r"<[^>]*>", " ", cell) for cell in cells)
    return sorted(number for text in texts for number in re.findall(r"-?\d+(?:\.\d+)?", text))


def printed(main: Callable[[Sequence[str]], int], words: Sequence[str]) -> str:
    """What a command line printed."""
    from ssl_transfer.console import call_main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert call_main(main, list(words)) == 0, words
    return out.getvalue()


def sets_of(name: str, folder: Path) -> list[str]:
    """The `--set` words that make an experiment's plan independent of the machine."""
    if name != "one_checkpoint":
        return list(SETS)
    (folder / "checkpoint.pth").write_bytes(b"constant")
    return [*SETS, f"rows.mine.weights={folder / 'checkpoint.pth'}"]


def main() -> None:
    """Record all of it."""
    from tools import launch, table
    from transfer.experiment.service import open_experiment

    tests = Path(sys.argv[1])
    here, plans = tests / "pins", {}
    for file in sorted(Path("configs/experiments").glob("*.yaml")):
        sets = sets_of(file.stem, Path("/tmp"))
        jobs = list(open_experiment(str(file), sets).graph)
        plans[file.stem] = {"fingerprints": {job.name: job.fingerprint for job in jobs}}
        if file.stem == "table5":
            plans[file.stem]["jobs"] = [{field: getattr(job, field) for field in FIELDS} for job in jobs]
            plans[file.stem]["outputs"] = {
                job.name: [output.replace(job.fingerprint[:8], "PRINT") for output in job.outputs] for job in jobs
            }
            words = [word for one in sets for word in ("--set", one)]
            plans[file.stem]["plan"] = printed(launch.main, ["plan", str(file), *words]).splitlines()
    (here / "plans.json").write_text(json.dumps(plans, indent=1, sort_keys=True) + "\n")
    for run in ("measures", "transfers"):
        for form in FORMS:
            for kind, words in (("", ()), (".published", PUBLISHED)):
                text = printed(table.main, [str(tests / "compat" / KEPT / run), "--format", form, *words])
                if form == "html":
                    (here / f"{run}{kind}.html.json").write_text(json.dumps(numbers_in_cells(text)) + "\n")
                else:
                    (here / f"{run}{kind}.{form}").write_text(text)


if __name__ == "__main__":
    main()
