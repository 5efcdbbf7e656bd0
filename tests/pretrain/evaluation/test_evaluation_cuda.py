"""Evaluation's CUDA path without a GPU: features, neighbors, votes and the linear layer stay on a fake one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.data.augment import normalize
from pretrain.evaluation import linear
from pretrain.evaluation.backbone_features import Extractor, feature_width
from pretrain.evaluation.knn import add_chunk, merge_nearest, no_neighbors, vote
from pretrain.evaluation.linear import DatasetShard, accuracy
from pretrain.models.encoder import build_encoder

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < (2, 14),
    reason="torch 2.9 asks the driver for a GPU even under FakeTensorMode; 2.14 does not",
)


def extractor(precision: str) -> Extractor:
    with torch.device("cuda"):
        encoder, _ = build_encoder("resnet18", True)
    return Extractor(encoder.eval(), feature_width(encoder), normalize, precision, channels_last=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_features_of_bytes_on_the_cpu_are_float32_on_the_device(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeTensorMode():
        found = extractor(precision)
        for name in ("is_available", "is_bf16_supported"):  # autocast asks the driver
            monkeypatch.setattr(torch.cuda, name, lambda *_: True)
        features = found(torch.zeros(3, 3, 32, 32, dtype=torch.uint8))
        empty = found(torch.zeros(0, 3, 32, 32, dtype=torch.uint8))
    assert (features.shape, features.dtype, features.device.type) == ((3, 512), torch.float32, "cuda")
    assert (empty.shape, empty.device.type) == ((0, 512), "cuda")


def test_neighbours_and_their_votes_stay_on_the_device() -> None:
    with FakeTensorMode():
        queries, bank = (F.normalize(torch.randn(n, 16, device="cuda"), dim=1) for n in (4, 10))
        nearest = merge_nearest([add_chunk(no_neighbors(queries, 3), queries, bank, first) for first in (0, 10)])
        scores = vote(nearest, torch.zeros(20, dtype=torch.int64, device="cuda"), 5, 0.2)
        wrong = torch.zeros(20, dtype=torch.int64)
        with pytest.raises(RuntimeError, match="device"):
            vote(nearest, wrong, 5, 0.2)
    assert nearest.indices.device.type == scores.device.type == "cuda"
    assert (scores.shape, scores.dtype) == ((4, 5), torch.float64)


def test_the_linear_layer_counts_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def shared(counts: torch.Tensor) -> Any:
        seen.append(counts)
        return [1, 2, 4]  # what a fake tensor cannot say

    class FakeCounts(list):
        def tolist(self) -> list[int]:
            return list(self)

    monkeypatch.setattr(linear, "sum_over_processes", lambda counts: FakeCounts(shared(counts)))
    with FakeTensorMode():
        classifier = torch.nn.Linear(16, 10, device="cuda")
        share = DatasetShard(torch.randn(4, 16, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda"))
        assert accuracy(classifier, share) == {"top1": 25.0, "top5": 50.0}
    assert seen[0].device.type == "cuda" and seen[0].shape == (3,)
