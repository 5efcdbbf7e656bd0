"""How many files a decision reads for each job that Slurm ran (7 before there was one snapshot for each job)."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.compat.kept import Kept
from tests.file_reads import file_reads

AT_MOST = 2
"""job.json and the record of the submission."""


@pytest.mark.parametrize("verb", ["plan", "status"])
@pytest.mark.usefixtures("empty_queue")
def test_each_file_of_a_job_is_read_once_a_decision(kept: Kept, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with file_reads(kept.run("slurm") / "jobs") as reads:
        assert kept.launch(verb, "slurm") == 0
    jobs: Counter[str] = Counter()
    for path, count in reads.items():
        if not path.endswith("/result.json"):  # what status shows of a job that has ended, read once
            jobs[path.partition("/")[0]] += count
    assert len(jobs) >= 9, reads
    assert max(jobs.values()) <= AT_MOST and max(reads.values()) == 1, reads
