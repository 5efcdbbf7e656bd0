"""The std of the embedding: its definition, and its values for spread and collapsed outputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pretrain.engine.metrics import embedding_moments, embedding_std


def test_is_the_mean_over_channels_of_the_deviation_of_the_unit_vectors() -> None:
    z = torch.randn(24, 40) * 3 + 1
    expected = F.normalize(z.double(), dim=1).std(dim=0, unbiased=False).mean()
    assert embedding_std(embedding_moments(z)) == pytest.approx(float(expected), rel=1e-6)


def test_the_moments_of_parts_sum_to_those_of_the_batch() -> None:
    z = torch.randn(24, 40)
    parts = embedding_moments(z[:5]) + embedding_moments(z[5:6]) + embedding_moments(z[6:])
    assert embedding_std(parts) == pytest.approx(embedding_std(embedding_moments(z)), rel=1e-12)


def test_gaussian_outputs_have_one_over_root_d() -> None:
    torch.manual_seed(0)
    for d in (128, 2048):
        assert embedding_std(embedding_moments(torch.randn(512, d))) == pytest.approx(d**-0.5, rel=0.01)
    assert embedding_std(embedding_moments(torch.randn(4, 2048))) <= 2048**-0.5


def test_collapsed_outputs_have_none() -> None:
    z = torch.randn(1, 2048).expand(64, -1) * torch.rand(64, 1)
    assert embedding_std(embedding_moments(z)) < 1e-8


def test_half_precision_does_not_overflow() -> None:
    assert embedding_std(embedding_moments(torch.full((4, 8), 6e4, dtype=torch.float16))) < 1e-3
