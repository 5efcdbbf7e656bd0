"""Collective operations: the identity for a single process; sums, gathers and shared errors between two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from ssl_transfer.errors import UserError
from ssl_transfer.training.collectives import (
    all_gather,
    all_gather_with_grad,
    is_distributed,
    rank_offset,
    run_on_main_process,
    sum_over_processes,
)
from ssl_transfer.training.distributed import launch


def test_with_a_single_process_every_collective_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert not is_distributed() and rank_offset(x) == 0
    assert sum_over_processes(x) is x and all_gather_with_grad(x) is x
    assert torch.equal(all_gather(x), x) and not all_gather(x).requires_grad
    assert run_on_main_process(lambda: 7) == 7


def _use_all(folder: str) -> None:
    rank = comm.get_rank()
    counts = torch.tensor([rank + 1, 5])
    summed = sum_over_processes(counts)
    x = torch.full((2, 1), float(rank), requires_grad=True)
    gathered = all_gather_with_grad(x)
    (gathered * torch.arange(4.0).view(4, 1) * (rank + 1)).sum().backward()
    with pytest.raises(UserError, match="rank 0 alone"):
        run_on_main_process(_fail)
    facts = {
        "counts": counts.tolist(),
        "sum": summed.tolist(),
        "gathered": gathered.flatten().tolist(),
        "grad": None if x.grad is None else x.grad.flatten().tolist(),
        "offset": rank_offset(x),
        "main": run_on_main_process(lambda: f"said by {comm.get_rank()}"),
    }
    torch.save(facts, Path(folder) / f"{rank}.pth")


def _fail() -> None:
    raise UserError("rank 0 alone")


def test_two_processes_sum_gather_and_share_errors(tmp_path: Path) -> None:
    launch(_use_all, (str(tmp_path),), 2)
    for rank in (0, 1):
        facts = torch.load(tmp_path / f"{rank}.pth")
        assert facts == {
            "counts": [rank + 1, 5],  # not in place
            "sum": [3, 10],
            "gathered": [0.0, 0.0, 1.0, 1.0],
            "grad": [[0.0, 3.0], [6.0, 9.0]][rank],
            "offset": 2 * rank,
            "main": "said by 0",
        }
