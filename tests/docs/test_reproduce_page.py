"""docs/guides/reproduce.md: the files that its loops name exist, its hours are the products they claim to be."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

from ssl_transfer.config_files import find_config
from transfer.report.published import load_expected

PAGE = Path(__file__).resolve().parents[2] / "docs/guides/reproduce.md"
LOOPS = {
    "recipe": ("base", "optimal"),
    "method": ("simclr", "byol", "swav"),
    "task": ("voc07", "voc0712"),
}
CONFIG = re.compile(r"(pretrain --config-file|transfer --config-file|plan|submit) +([\w${}]+)")
FOLDERS = {"pretrain --config-file": "pretrain", "transfer --config-file": "transfer"}


def test_the_configs_are_there() -> None:
    found = set(CONFIG.findall(re.sub(r"\\\n\s*", "", PAGE.read_text())))
    assert len(found) >= 5
    for before, word in found:
        names = re.findall(r"\$\{?(\w+)\}?", word)
        for values in product(*(LOOPS[name] for name in names)):
            shown = word
            for name, value in zip(names, values, strict=True):
                shown = shown.replace(f"${{{name}}}", value).replace(f"${name}", value)
            assert find_config(shown, FOLDERS.get(before, "experiments")).is_file()


def test_the_hours_are_the_products_they_claim_to_be() -> None:
    text = PAGE.read_text()
    trials = {"voc07": (9000, 0.537, 5), "voc0712": (24000, 0.537, 5), "coco": (90000, 0.584, 1)}
    total = 0.0
    for iterations, seconds, count in trials.values():
        hours = iterations * seconds / 3600
        total += count * hours
        assert f"| {hours:.1f} | {8 * hours:.1f} |" in text
    assert f"| {total:.1f} | {8 * total:.1f} |" in text


def test_the_published_keys_it_names_are_the_tables() -> None:
    (names,) = re.findall(r"table5\.yaml` \((.*?)\)", PAGE.read_text(), re.DOTALL)
    assert re.findall(r"`(\w+)`", names) == [
        row.key for row in load_expected("table5").rows if row.values and not row.group
    ]
