"""The collapse monitor: the spread of the l2-normalised output (section 4.1 of arXiv 2011.10566).

`std` is the mean over channels of the standard deviation over samples of z/‖z‖. Where the outputs spread evenly over
the unit sphere it is near 1/√d; where they have collapsed to one point it is 0. The deviation is the population's
(divided by N, not N − 1), so that 1/√d is its upper bound at any batch size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pretrain.methods.base import full_precision


def moments(z: torch.Tensor) -> torch.Tensor:
    """Count, channel sums and channel sums of squares of the normalised z.

    They add up over processes, so that one sum of 2d + 1 numbers gives the spread of the whole batch.

    Args:
        z: (N, d) on any device.

    Returns:
        (2d + 1,) float64 on the same device.
    """
    unit = F.normalize(full_precision(z), dim=1).double()
    return torch.cat([unit.new_tensor([len(unit)]), unit.sum(0), unit.square().sum(0)])


def spread(total: torch.Tensor) -> float:
    """`std` from (summed) `moments`."""
    mean, square = (total[1:] / total[0]).chunk(2)
    return float((square - mean.square()).clamp(min=0).sqrt().mean())
