"""The fixed tensors behind the golden values of SimCLR and SwAV: the same for the original code and for ours."""

from __future__ import annotations

import torch

from tests.pretrain.golden import narrow

IMAGES, WIDTH, PROTOTYPES = 6, 5, 7
TEMPERATURE, EPSILON, SINKHORN_STEPS = 0.1, 0.05, 3
RUN_PROTOTYPES, FREEZE, QUEUE, QUEUE_START, LR = 10, 3, 2 * narrow.BATCH, 1, 0.05
"""Of the trained narrow SwAV: its queue of two steps is filled from the second of three epochs on."""


def outputs() -> tuple[torch.Tensor, torch.Tensor]:
    """What a projector might give for two views, (IMAGES, WIDTH): the second is the first with noise."""
    first = narrow.normal("outputs", (IMAGES, WIDTH))
    return first.requires_grad_(), (first.detach() + 0.5 * narrow.normal("second", (IMAGES, WIDTH))).requires_grad_()


def scores() -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of two views with prototypes, (IMAGES, PROTOTYPES), within −1 … 1."""
    first = narrow.normal("scores", (IMAGES, PROTOTYPES))
    second = first + 0.5 * narrow.normal("second scores", (IMAGES, PROTOTYPES))
    return torch.tanh(first).requires_grad_(), torch.tanh(second).requires_grad_()
