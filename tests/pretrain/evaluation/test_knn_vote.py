"""The kNN vote against its definition, for any chunks and any number of processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pretrain.evaluation import backbone_features as features_module
from pretrain.evaluation.backbone_features import Extractor, read_backbone
from pretrain.evaluation.knn import Nearest, add_chunk, find_neighbors, knn_accuracy, merge_nearest, no_neighbors, vote
from pretrain.evaluation.labelled_images import FixedView, labelled_sets
from ssl_transfer.errors import UserError
from ssl_transfer.training.distributed import launch


def defined(query: torch.Tensor, bank: torch.Tensor, labels: list[int], k: int, t: float, classes: int) -> list[float]:
    """Scores by the definition, in plain Python: the k most similar, of equal ones the first, vote exp(sim / T)."""
    similarities = [float(query @ row) for row in bank]
    nearest = sorted(range(len(bank)), key=lambda i: (-similarities[i], i))[:k]
    return [sum(math.exp(similarities[i] / t) for i in nearest if labels[i] == c) for c in range(classes)]


def points(count: int, seed: int) -> torch.Tensor:
    """Unit vectors on a coarse grid, so that many are equally near."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randint(-2, 3, (count, 4), generator=generator).double() + 0.5, dim=1)


@pytest.mark.parametrize("size", [1, 7, 16, 100])
def test_chunked_search_and_vote_are_the_definition(size: int) -> None:
    bank, queries, k, t = points(50, 0), points(20, 1), 9, 0.1
    labels = torch.arange(50) * 7 % 4
    nearest = no_neighbors(queries, k)
    for first in range(0, 50, size):
        nearest = add_chunk(nearest, queries, bank[first : first + size], first)
    scores = vote(nearest, labels, 4, t)
    expected = [defined(query, bank, labels.tolist(), k, t, 4) for query in queries]
    assert scores.tolist() == [pytest.approx(row, rel=1e-12) for row in expected]


def test_merged_parts_equal_the_whole_even_with_ties() -> None:
    queries = torch.ones(3, 2)
    bank = torch.ones(20, 2)
    whole = no_neighbors(queries, 6)
    for first in range(0, 20, 4):
        whole = add_chunk(whole, queries, bank[first : first + 4], first)
    assert whole.indices.tolist() == [[0, 1, 2, 3, 4, 5]] * 3
    shares = [no_neighbors(queries, 6), no_neighbors(queries, 6), no_neighbors(queries, 6)]
    for chunk in range(5):  # the third process has one chunk, fewer images than k
        mine = chunk % 3
        shares[mine] = add_chunk(shares[mine], queries, bank[4 * chunk : 4 * chunk + 4], 4 * chunk)
    merged = merge_nearest(shares)
    assert torch.equal(merged.indices, whole.indices) and torch.equal(merged.similarity, whole.similarity)


def test_temperature_and_k_decide() -> None:
    nearest = Nearest(torch.tensor([[1.0, 0.8, 0.8]]), torch.tensor([[0, 1, 2]]))
    labels = torch.tensor([0, 1, 1])
    assert vote(nearest, labels, 2, 0.1).argmax(1).item() == 0  # the nearest outweighs two others
    assert vote(nearest, labels, 2, 10.0).argmax(1).item() == 1
    first = Nearest(nearest.similarity[:, :1], nearest.indices[:, :1])
    assert vote(first, labels, 2, 10.0).argmax(1).item() == 0


def small_world(weights: Path, labelled: Path) -> tuple:
    """Arguments of `find_neighbors` on the small labelled set, in chunks of 4 images and batches of 2."""
    features_module.CHUNK, features_module.BATCH = 4, 2
    backbone = read_backbone(weights)
    extractor = Extractor(backbone.encoder, backbone.width, backbone.preprocessing)
    return (extractor, *labelled_sets(str(labelled), "train", "val", "--data"), FixedView(32, 0))


def write_neighbours(weights: Path, labelled: Path, out: Path) -> None:
    """What each process finds; the last one's is kept."""
    found = [nearest for _, nearest in find_neighbors(*small_world(weights, labelled), k=5)]
    torch.save([tuple(nearest) for nearest in found], out)


def test_accuracy_on_a_small_set_by_definition(weights: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "CHUNK", 4)
    monkeypatch.setattr(features_module, "BATCH", 2)
    k, (extractor, bank, queries, view) = 5, small_world(weights, labelled)
    images = [
        torch.stack([view(_open(found.index.path(i)), 0, i) for i in range(len(found))]) for found in (bank, queries)
    ]
    units = [F.normalize(extractor(stack), dim=1).double() for stack in images]
    labels = bank.labels.tolist()
    scores = torch.tensor([defined(unit, units[0], labels, k, 0.2, 3) for unit in units[1]])
    expected = 100 * (scores.argmax(1) == queries.labels).double().mean().item()
    assert knn_accuracy(extractor, bank, queries, view, k=k, temperature=0.2) == pytest.approx(expected)
    assert expected > 60  # colors: even a random network separates them
    with pytest.raises(UserError, match=r"K is 31, but .*train holds 30 images"):
        knn_accuracy(extractor, bank, queries, view, k=31, temperature=0.2)


def _open(path: Path):
    from pretrain.data.decode import decode_rgb

    return decode_rgb(path)


def test_two_processes_find_exactly_what_one_finds(
    weights: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "CHUNK", 4)
    monkeypatch.setattr(features_module, "BATCH", 2)
    write_neighbours(weights, labelled, tmp_path / "one")
    launch(write_neighbours, (weights, labelled, tmp_path / "two"), 2)
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for mine, other in zip(one, two, strict=True):
        assert torch.equal(mine[0], other[0]) and torch.equal(mine[1], other[1])
