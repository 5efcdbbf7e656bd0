"""The kNN classifier: the nearest training images vote for an image's class.

Features are pool5, l2-normalised; the k nearest by dot product vote with weights exp(similarity / T). Sources: the
memory bank paper (arXiv 1805.01978, section 3.4); k = 200 and T = 0.2 on ImageNet, facebookresearch/simsiam issue 10;
T = 0.1 on CIFAR-10, facebookresearch/moco's notebook.

The training images (the bank) are distributed over the processes in chunks of fixed size, and the nearest are merged
over chunks and processes. Ties are broken by the lower index, so the result does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils import comm

from pretrain.evaluation.backbone_features import Extractor, chunk_count, chunk_range, extract_chunks
from pretrain.evaluation.labelled_images import FixedView, LabelledSet
from ssl_transfer.errors import UserError
from ssl_transfer.training.collectives import all_gather, is_distributed


class Nearest(NamedTuple):
    """The nearest bank images of some queries, nearest first.

    Attributes:
        similarity: (Q, k), −inf for padding.
        indices: (Q, k) int64, positions in the bank; PADDING if fewer than k were found.
    """

    similarity: torch.Tensor
    indices: torch.Tensor


PADDING = torch.iinfo(torch.int64).max
"""An index beyond every bank's size."""


def no_neighbors(queries: torch.Tensor, k: int) -> Nearest:
    """The result of a search in an empty bank: only padding."""
    shape = (len(queries), k)
    return Nearest(
        queries.new_full(shape, -torch.inf), torch.full(shape, PADDING, dtype=torch.int64, device=queries.device)
    )


def add_chunk(nearest: Nearest, queries: torch.Tensor, bank: torch.Tensor, first: int) -> Nearest:
    """Search a further chunk of the bank. Its indices start at `first` and are higher than those found so far."""
    similarity = queries @ bank.T
    index = torch.arange(first, first + len(bank), device=bank.device).expand(len(queries), -1)
    return _top_k(torch.cat([nearest.similarity, similarity], 1), torch.cat([nearest.indices, index], 1), nearest)


def merge_nearest(parts: Iterable[Nearest]) -> Nearest:
    """The nearest among those that several processes found, each in its own part of the bank."""
    found = list(parts)
    similarity = torch.cat([part.similarity for part in found], 1)
    index = torch.cat([part.indices for part in found], 1)
    index, order = index.sort(dim=1)
    return _top_k(similarity.gather(1, order), index, found[0])


def _top_k(similarity: torch.Tensor, index: torch.Tensor, like: Nearest) -> Nearest:
    """The k nearest, k as in `like`. The sort is stable: ties stay in the order of their indices."""
    k = like.similarity.shape[1]
    similarity, order = similarity.sort(dim=1, descending=True, stable=True)
    return Nearest(similarity[:, :k], index.gather(1, order[:, :k]))


def vote(nearest: Nearest, labels: torch.Tensor, classes: int, temperature: float) -> torch.Tensor:
    """Each class's sum of exp(similarity / T) over its neighbors.

    Args:
        nearest: (Q, k), without padding.
        labels: (N,) int64, the bank's classes, on the same device.
        classes: number of classes.
        temperature: T.

    Returns:
        (Q, classes) float64.
    """
    weights = (nearest.similarity.double() / temperature).exp()
    scores = weights.new_zeros(len(weights), classes)
    return scores.scatter_add_(1, labels[nearest.indices], weights)


def check_k(k: int, bank: LabelledSet, key: str) -> None:
    """Raise UserError if the bank has fewer than k images."""
    if k > len(bank):
        raise UserError(
            f"{key} is {k}, but {bank.index.folder} holds {len(bank)} images; set it to {len(bank)} or less"
        )


def knn_accuracy(
    extractor: Extractor,
    bank: LabelledSet,
    queries: LabelledSet,
    view: FixedView,
    *,
    k: int,
    temperature: float,
    workers: int = 0,
    step: Callable[[int], None] = lambda _: None,
) -> float:
    """The share of `queries` whose class wins the vote, in per cent, the same on all processes, which all must call it.

    Args:
        extractor: its encoder is in evaluation mode.
        bank: the training images.
        queries: the test images.
        view: of the images of both.
        k, temperature: number of neighbors, and T.
        workers: loader processes for each process.
        step: called with the number of images of each batch done by this process.

    Raises:
        UserError: k is above the bank's size, or a file cannot be read.
    """
    labels = bank.labels.to(extractor.device)
    correct = 0
    for indices, nearest in find_neighbors(extractor, bank, queries, view, k=k, workers=workers, step=step):
        scores = vote(nearest, labels, len(bank.classes), temperature)
        correct += int((scores.argmax(1).cpu() == queries.labels[indices.start : indices.stop]).sum())
        step(0)  # a sign of life
    return 100 * correct / len(queries)


def find_neighbors(
    extractor: Extractor,
    bank: LabelledSet,
    queries: LabelledSet,
    view: FixedView,
    *,
    k: int,
    workers: int = 0,
    step: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[range, Nearest]]:
    """The nearest bank images of each chunk of the queries, as (indices of the queries, nearest), on all processes.

    Memory: a process holds its part of the bank's features (4 bytes × width × N / processes on the encoder's device)
    and of the queries', and one chunk's similarities; never all of them. Arguments are those of `knn_accuracy`.
    """
    check_k(k, bank, "K")
    own_bank, own_queries = (
        {chunk: F.normalize(part, dim=1) for chunk, part in extract_chunks(extractor, images, view, workers, step)}
        for images in (bank, queries)
    )
    for chunk in range(chunk_count(len(queries))):
        indices = chunk_range(chunk, len(queries))
        features = _broadcast_chunk(own_queries.get(chunk), chunk, len(indices), extractor)
        nearest = no_neighbors(features, k)
        for bank_chunk, part in own_bank.items():
            nearest = add_chunk(nearest, features, part, chunk_range(bank_chunk, len(bank)).start)
        yield indices, _merge_over_processes(nearest)


def _broadcast_chunk(part: torch.Tensor | None, chunk: int, count: int, extractor: Extractor) -> torch.Tensor:
    """Broadcast a chunk of the queries' features from the process that computed it."""
    if not is_distributed() and part is not None:
        return part
    owner = chunk % comm.get_world_size()
    template = next(extractor.encoder.parameters())
    if part is None or comm.get_rank() != owner:
        part = template.new_empty(count, extractor.width)
    dist.broadcast(part, owner)
    return part


def _merge_over_processes(nearest: Nearest) -> Nearest:
    if not is_distributed():
        return nearest
    gathered = [all_gather(tensor.unsqueeze(0)) for tensor in nearest]  # (processes, Q, k)
    return merge_nearest(Nearest(*pair) for pair in zip(*gathered, strict=True))
