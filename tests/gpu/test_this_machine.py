"""`pytest -m gpu`: everything that `doctor.py --deep` checks on this machine's GPUs."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.verify import examine_devices
from transfer.doctor.finding import render


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpus_of_this_machine_compute_what_the_cpu_computes() -> None:
    findings = examine_devices()
    assert not [finding for finding in findings if finding.state in ("wrong", "missing")], render(findings)
