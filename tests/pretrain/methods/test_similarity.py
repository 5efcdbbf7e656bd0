"""D(p, z) against its definition, in float64, with gradients written out."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.methods.parts.losses import SIMILARITIES, cross_entropy, negative_cosine


def _pair(rows: int = 5, channels: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    p, z = torch.randn(2, rows, channels, generator=generator, dtype=torch.float64)
    return p.requires_grad_(), z.requires_grad_()


def _softmax(row: list[float]) -> list[float]:
    weights = [math.exp(value) for value in row]
    return [weight / sum(weights) for weight in weights]


def test_negative_cosine_and_both_gradients_equal_the_definition() -> None:
    p, z = _pair()
    loss = negative_cosine(p, z)
    loss.backward()
    value = 0.0
    for i, (a, b) in enumerate(zip(p.tolist(), z.tolist(), strict=True)):
        length_a, length_b = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(x * x for x in b))
        cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (length_a * length_b)
        value -= cosine / len(p)
        by_p = [-(y / length_b - cosine * x / length_a) / length_a / len(p) for x, y in zip(a, b, strict=True)]
        by_z = [-(x / length_a - cosine * y / length_b) / length_b / len(p) for x, y in zip(a, b, strict=True)]
        assert p.grad is not None and p.grad[i].tolist() == pytest.approx(by_p, rel=1e-12, abs=1e-15)
        assert z.grad is not None and z.grad[i].tolist() == pytest.approx(by_z, rel=1e-12, abs=1e-15)
    assert loss.item() == pytest.approx(value, rel=1e-13)


def test_cross_entropy_and_both_gradients_equal_the_definition() -> None:
    p, z = _pair()
    loss = cross_entropy(p, z)
    loss.backward()
    value = 0.0
    for i, (a, b) in enumerate(zip(p.tolist(), z.tolist(), strict=True)):
        of_p, of_z = _softmax(a), _softmax(b)
        row = -sum(t * math.log(q) for t, q in zip(of_z, of_p, strict=True))
        value += row / len(p)
        by_p = [(q - t) / len(p) for t, q in zip(of_z, of_p, strict=True)]
        by_z = [t * (-math.log(q) - row) / len(p) for t, q in zip(of_z, of_p, strict=True)]
        assert p.grad is not None and p.grad[i].tolist() == pytest.approx(by_p, rel=1e-12, abs=1e-15)
        assert z.grad is not None and z.grad[i].tolist() == pytest.approx(by_z, rel=1e-12, abs=1e-15)
    assert loss.item() == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    p, z = (tensor.detach().bfloat16() for tensor in _pair())
    loss = SIMILARITIES[name](p, z)
    assert loss.dtype == torch.float32
    assert loss.item() == SIMILARITIES[name](p.float(), z.float()).item()


def test_cross_entropy_is_minimal_for_equal_arguments() -> None:
    _, z = _pair()
    entropy = torch.distributions.Categorical(logits=z).entropy().mean()
    assert cross_entropy(z, z).item() == pytest.approx(entropy.item(), rel=1e-12)
    assert cross_entropy(z + 0.1 * torch.arange(7), z) > entropy
