"""The queue against a deque."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from pretrain.methods.parts.momentum import FeatureQueue


def test_queue_is_first_in_first_out_with_a_fixed_size() -> None:
    queue = FeatureQueue(6, 3)
    start = queue.keys.clone()
    assert start.norm(dim=1).tolist() == pytest.approx([1.0] * 6)
    expected = deque(start.tolist(), maxlen=6)
    for step in range(7):
        new = torch.arange(6.0).view(2, 3) + 10 * step
        queue.enqueue(new)
        expected.extend(new.tolist())
        assert int(queue.pointer) == (2 * (step + 1)) % 6
        turned = torch.roll(queue.keys, -int(queue.pointer), 0)
        assert turned.tolist() == list(expected), "the pointer is at the oldest"


def test_keys_and_pointer_are_buffers() -> None:
    queue, other = FeatureQueue(4, 2), FeatureQueue(4, 2)
    queue.enqueue(torch.ones(2, 2))
    assert queue.state_dict().keys() == {"keys", "pointer"} and not list(queue.parameters())
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.keys, queue.keys) and int(other.pointer) == 2
    other.enqueue(torch.zeros(2, 2))
    assert other.keys.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]


def test_half_precision_features_are_stored_as_float32_without_gradient() -> None:
    queue = FeatureQueue(4, 2)
    queue.enqueue(torch.full((4, 2), 0.5, dtype=torch.bfloat16, requires_grad=True))
    assert queue.keys.dtype == torch.float32 and not queue.keys.requires_grad
    assert queue.keys.tolist() == [[0.5, 0.5]] * 4
