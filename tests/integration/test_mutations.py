"""What `data.py check` passes, training finishes, and what it refuses it names: on seeded mutations of both layouts.

`MUTATIONS=300 pytest tests/integration/test_mutations.py` runs as many of each layout (`make test-mutations`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutations.py")
COUNT = int(os.environ.get("MUTATIONS", "40"))
MEMORY = 2048
"""MiB, PyTorch's own 800 included."""
NAMES = re.compile(r"\.json|\.xml|\.jpg|\.jpeg|\.png|\.txt|\.JPG|\.xyz|TRANSFER\.CLASSES|t_train|t_test|/voc")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_check_and_training_agree_on_mutated_sets(kind: str, root: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), kind, "0", str(COUNT + 1)],
        cwd=root,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60 + 20 * COUNT,
        check=False,
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(outcomes) == COUNT + 1, done.stderr[-2000:]
    for outcome in outcomes:
        assert not outcome["crash"], outcome
        passed = outcome["training"] in ("done", "diverged")
        assert passed == (not outcome["check"]), outcome
        assert all(NAMES.search(fault) and "\n" not in fault for fault in outcome["check"]), outcome
        assert outcome["peak_mib"] < MEMORY, outcome
    assert outcomes[0]["training"] == "done"  # the set as it was made
    passed = sum(not outcome["check"] for outcome in outcomes)
    assert COUNT // 10 < passed < len(outcomes) - COUNT // 10
