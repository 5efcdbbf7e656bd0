"""Gathering, the queue and shuffling between two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pretrain.methods.parts.momentum import FeatureQueue, forward_with_shuffle_bn
from ssl_transfer.training.collectives import all_gather
from ssl_transfer.training.distributed import launch

N = 4
"""Images a process."""


def _network() -> nn.Sequential:
    """Whose batch normalisation covers a process's images alone."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5)).double()


def _images() -> torch.Tensor:
    """Of both processes."""
    return torch.randn(2 * N, 2, 3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def _one_of_two(folder: str) -> None:
    rank = dist.get_rank()
    torch.manual_seed(0)
    queue = FeatureQueue(8, 2)
    queue.enqueue(torch.full((2, 2), float(rank)))
    queue.enqueue(torch.full((1, 2), 5.0 + rank))
    x, network = _images()[rank * N : (rank + 1) * N], _network()
    torch.manual_seed(7 + rank)  # the first process's order counts
    seen: list[torch.Tensor] = []

    def looked_at(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return network(images)

    def is_channels_last(images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[images.is_contiguous(memory_format=torch.channels_last)]] * N)

    facts = {
        "queue": queue.keys,
        "pointer": queue.pointer,
        "gathered": all_gather(torch.tensor([[rank, 1.0]], requires_grad=True)),
        "keys": forward_with_shuffle_bn(looked_at, x),
        "seen": seen[0],
        "laid": forward_with_shuffle_bn(is_channels_last, x.contiguous(memory_format=torch.channels_last)),
    }
    torch.save(facts, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("both")
    launch(_one_of_two, (str(folder),), 2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_all_gather_is_in_rank_order_without_gradient(both: list[dict[str, Any]]) -> None:
    for facts in both:
        assert facts["gathered"].tolist() == [[0, 1], [1, 1]] and not facts["gathered"].requires_grad


def test_queue_is_equal_in_all_processes_and_in_rank_order(both: list[dict[str, Any]]) -> None:
    for facts in both:
        assert facts["queue"][:6, 0].tolist() == [0, 0, 1, 1, 5, 6] and int(facts["pointer"]) == 6
    assert torch.equal(both[0]["queue"], both[1]["queue"])


def test_shuffled_keys_are_returned_in_order(
    both: list[dict[str, Any]],
) -> None:
    torch.manual_seed(7)
    order = torch.randperm(2 * N)
    images, expected = _images(), torch.empty(2 * N, 5, dtype=torch.float64)
    for half in (order[:N], order[N:]):
        expected[half] = _network()(images[half]).detach()
    assert set(order[:N].tolist()) not in ({0, 1, 2, 3}, {4, 5, 6, 7}), "the halves are mixed"
    for rank, facts in enumerate(both):
        assert torch.equal(facts["seen"], images[order[rank * N : (rank + 1) * N]])
        torch.testing.assert_close(facts["keys"], expected[rank * N : (rank + 1) * N], rtol=1e-12, atol=1e-12)
        unshuffled = _network()(images[rank * N : (rank + 1) * N]).detach()
        assert float((facts["keys"] - unshuffled).abs().max()) > 1e-2
        assert not facts["keys"].requires_grad


def test_shuffling_keeps_channels_last(both: list[dict[str, Any]]) -> None:
    assert all(bool(facts["laid"].all()) for facts in both)


def test_single_process_shuffles_its_own_batch() -> None:
    x, seen = _images(), []
    network = _network()
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    ours = forward_with_shuffle_bn(network, x)
    torch.testing.assert_close(ours, _network()(x).detach())  # over the whole batch the order tells nothing
    assert not ours.requires_grad and not torch.equal(seen[0], x)
    assert all_gather(x) is not None and torch.equal(all_gather(x), x)
