"""The kNN classifier: the training images nearest to an image vote for its class.

Features are pool5, l2-normalised; the k nearest by dot product vote with weights exp(similarity / T). Sources: the
memory bank paper (arXiv 1805.01978, section 3.4); k = 200 and T = 0.2 on ImageNet, facebookresearch/simsiam issue 10;
T = 0.1 on CIFAR-10, facebookresearch/moco's notebook.

The bank is shared out over the processes by chunks of fixed size and the nearest are merged over chunks and processes.
Of equally near images the one with the lower number is nearer, so the result is the same for any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils import comm

from common.errors import UserError
from pretrain.evaluation.data import FixedView, LabelledSet
from pretrain.evaluation.features import Extractor, chunk_count, extract_chunks, numbers_of


class Nearest(NamedTuple):
    """The nearest bank images of some queries, nearest first.

    Attributes:
        similarity: (Q, k), −inf where there are fewer than k.
        number: (Q, k) int64, their places in the bank; beyond any place where there are fewer.
    """

    similarity: torch.Tensor
    number: torch.Tensor


NOWHERE = torch.iinfo(torch.int64).max
"""A number beyond every bank's."""


def nobody(queries: torch.Tensor, k: int) -> Nearest:
    """No neighbours yet."""
    shape = (len(queries), k)
    return Nearest(
        queries.new_full(shape, -torch.inf), torch.full(shape, NOWHERE, dtype=torch.int64, device=queries.device)
    )


def add_chunk(nearest: Nearest, queries: torch.Tensor, bank: torch.Tensor, first: int) -> Nearest:
    """The nearest among those found and a chunk of the bank, whose numbers count from `first` and are all higher."""
    similarity = queries @ bank.T
    number = torch.arange(first, first + len(bank), device=bank.device).expand(len(queries), -1)
    return _best(torch.cat([nearest.similarity, similarity], 1), torch.cat([nearest.number, number], 1), nearest)


def merge(parts: Iterable[Nearest]) -> Nearest:
    """The nearest among those that several processes found, each in its own share of the bank."""
    found = list(parts)
    similarity = torch.cat([part.similarity for part in found], 1)
    number = torch.cat([part.number for part in found], 1)
    number, order = number.sort(dim=1)
    return _best(similarity.gather(1, order), number, found[0])


def _best(similarity: torch.Tensor, number: torch.Tensor, like: Nearest) -> Nearest:
    """As many columns as `like` has; the sort is stable: equally near ones stay in the order of their numbers."""
    k = like.similarity.shape[1]
    similarity, order = similarity.sort(dim=1, descending=True, stable=True)
    return Nearest(similarity[:, :k], number.gather(1, order[:, :k]))


def vote(nearest: Nearest, labels: torch.Tensor, classes: int, temperature: float) -> torch.Tensor:
    """Each class's sum of exp(similarity / T) over the neighbours that have it.

    Args:
        nearest: (Q, k), all of them found.
        labels: (N,) int64, the bank's classes, on the same device.
        classes: how many classes there are.
        temperature: T.

    Returns:
        (Q, classes) float64.
    """
    weights = (nearest.similarity.double() / temperature).exp()
    scores = weights.new_zeros(len(weights), classes)
    return scores.scatter_add_(1, labels[nearest.number], weights)


def check_k(k: int, bank: LabelledSet, key: str) -> None:
    """Raise UserError where the bank has fewer than k images."""
    if k > len(bank):
        there = f"{bank.index.folder} holds {len(bank)} images"
        raise UserError(f"{key} is {k}, but {there}; set it to {len(bank)} or less")


def knn_accuracy(
    extractor: Extractor,
    bank: LabelledSet,
    queries: LabelledSet,
    view: FixedView,
    k: int,
    temperature: float,
    workers: int = 0,
    step: Callable[[int], None] = lambda _: None,
) -> float:
    """The share of `queries` whose class wins the vote, in per cent. Every process calls it and gets the same.

    Args:
        extractor: its encoder is in evaluation mode.
        bank: the training images.
        queries: the test images.
        view: how both are looked at.
        k, temperature: neighbours, and T.
        workers: loader processes for each process.
        step: told of so many more images done by this process.

    Raises:
        UserError: k is above the bank's size, or a file cannot be read.
    """
    labels = bank.labels.to(extractor.device)
    correct = 0
    for numbers, nearest in neighbours(extractor, bank, queries, view, k, workers, step):
        scores = vote(nearest, labels, len(bank.classes), temperature)
        correct += int((scores.argmax(1).cpu() == queries.labels[numbers.start : numbers.stop]).sum())
    return 100 * correct / len(queries)


def neighbours(
    extractor: Extractor,
    bank: LabelledSet,
    queries: LabelledSet,
    view: FixedView,
    k: int,
    workers: int = 0,
    step: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[range, Nearest]]:
    """Chunk by chunk of the queries, their numbers and their nearest; on all processes the same.

    Memory: a process holds its share of the bank's features (4 bytes × width × N / processes on the encoder's device)
    and of the queries', and one chunk's similarities; never all of them. Arguments as `knn_accuracy`'s.
    """
    check_k(k, bank, "K")
    own, asked = (
        {chunk: F.normalize(part, dim=1) for chunk, part in extract_chunks(extractor, images, view, workers, step)}
        for images in (bank, queries)
    )
    for chunk in range(chunk_count(len(queries))):
        numbers = numbers_of(chunk, len(queries))
        features = _from_owner(asked.get(chunk), chunk, len(numbers), extractor)
        nearest = nobody(features, k)
        for place, part in own.items():
            nearest = add_chunk(nearest, features, part, numbers_of(place, len(bank)).start)
        yield numbers, _over_processes(nearest)


def _from_owner(part: torch.Tensor | None, chunk: int, count: int, extractor: Extractor) -> torch.Tensor:
    """A chunk of the queries' features, from the process that computed it to all."""
    if comm.get_world_size() == 1 and part is not None:
        return part
    owner = chunk % comm.get_world_size()
    template = next(extractor.encoder.parameters())
    if part is None or comm.get_rank() != owner:
        part = template.new_empty(count, extractor.width)
    dist.broadcast(part, owner)
    return part


def _over_processes(nearest: Nearest) -> Nearest:
    if comm.get_world_size() == 1:
        return nearest
    gathered = []
    for mine in nearest:
        theirs = [torch.empty_like(mine) for _ in range(comm.get_world_size())]
        dist.all_gather(theirs, mine.contiguous())
        gathered.append(theirs)
    return merge(Nearest(*pair) for pair in zip(*gathered, strict=True))
