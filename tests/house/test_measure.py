"""The source stays within the limits of its size and shape, and the script counts what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house import measure

ROOT = Path(__file__).resolve().parents[2]
STRICT = True
"""While the source is being brought below the limits, only those that have been reached hold."""

SOURCE = {
    "ssl_transfer/one.py": "class Task: ...\nclass _Own: ...\n",
    "pretrain/data/one.py": "class Task: ...\ndef f(a, b, c, d, e, f, g): ...\ndef g(a, b, c, d, e, f, *, g): ...\n",
    "pretrain/data/config.py": "from pretrain.engine import trainer\n",
    "pretrain/engine/trainer.py": "from ssl_transfer import one\nKEYS = ('LOG.PERIOD', 'DATA.WORKERS')\n",
    "transfer/experiment/config.py": "def late():\n    from transfer.experiment.slurm import task\n",
    "transfer/experiment/slurm/task.py": "from transfer.experiment import config\nfrom pretrain.data import one\n",
    "README.md": f"{'word ' * 30}\n\n    {'code ' * 30}\n| {'cell ' * 30} |\n[page]({'x' * 130})\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in SOURCE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("source files", (6, 12)),
        ("public class names", (1,)),
        ("repeated file names", (1,)),
        ("files in transfer/experiment", (2, 2)),
        ("import cycles", (1, 2)),
        ("functions with seven", (1,)),
        ("lists of run-only keys", (1,)),
        ("Markdown lines", (1,)),
        ("lines of a function", (1, 2)),
    ],
)
def test_each_measure_counts_a_small_source(checkout: Path, name: str, now: tuple[int, ...]) -> None:
    (found,) = [entry for entry in measure.measure(checkout) if entry.name.startswith(name)]
    assert found.now == now


def test_check_exits_with_1_where_a_limit_is_exceeded(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.main(["--root", str(checkout), "--check"]) == 1
    assert "| public class names defined more than once" in capsys.readouterr().out


def test_the_source_stays_within_its_limits() -> None:
    exceeded = {entry.name: entry.row()[2:] for entry in measure.measure(ROOT) if entry.exceeded}
    if exceeded and not STRICT:
        pytest.skip(f"not there yet: {exceeded}")
    assert not exceeded
