"""The steps after the crop on a whole batch, on any device: each sample by its own draw.

Values are whole levels 0…255 in float32, rounded where Pillow rounds. Which samples a step is for is decided on the
CPU, where the draws are, so that nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import pad

from pretrain.data.augment import SOLARIZE_FROM
from pretrain.data.pipelines.kernels import blur_kernel
from pretrain.data.pipelines.packed import BLUR, FLIP, GRAY, SOLARIZE, STEPS

LUMA = (0.299, 0.587, 0.114)
HUE = STEPS.index("hue")


def augmented(views: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Apply the draws.

    Args:
        views: uint8 (N, 3, H, W).
        draws: (N, 12) float32 on the CPU: `packed.pack`.

    Returns:
        float32 (N, 3, H, W), whole levels 0…255, on the device of `views`.
    """
    images = views.float().contiguous()
    for place in range(0, 2 * len(STEPS), 2):
        steps, factors = draws[:, place], draws[:, place + 1]
        _on(images, (steps >= 0) & (steps != HUE), lambda x, d: _blended(x, d[:, 0], d[:, 1]), draws[:, place:])
        _on(images, steps == HUE, lambda x, d: _hue_turned(x, d[:, 0]), factors[:, None])
    _on(images, draws[:, GRAY] > 0, lambda x, _: _gray(x).expand_as(x), draws)
    radii = draws[:, BLUR]
    if bool((radii > 0).any()):
        _on(images, radii > 0, _blurred, _kernels(radii))
    _on(images, draws[:, SOLARIZE] > 0, lambda x, _: torch.where(x < SOLARIZE_FROM, x, 255 - x), draws)
    _on(images, draws[:, FLIP] > 0, lambda x, _: x.flip(-1), draws)
    return images


def _on(
    images: torch.Tensor,
    which: torch.Tensor,
    step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    parameters: torch.Tensor,
) -> None:
    """Replace the samples of `which` (a mask on the CPU) by `step` of them and of their rows of `parameters`."""
    places = which.nonzero()[:, 0]
    if len(places):
        rows = parameters[places].to(images.device, non_blocking=True)
        places = places.to(images.device, non_blocking=True)
        images[places] = step(images[places], rows)


def _gray(images: torch.Tensor) -> torch.Tensor:
    """Pillow's `L`: (N, 1, H, W)."""
    red, green, blue = (weight * images[:, channel] for channel, weight in enumerate(LUMA))
    return (red + green + blue + 0.5).floor()[:, None]


def _blended(images: torch.Tensor, steps: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast or saturation: a blend with black, the mean gray, or the gray."""
    brightness, contrast, saturation = (
        (steps == STEPS.index(name)).view(-1, 1, 1, 1) for name in ("brightness", "contrast", "saturation")
    )
    gray = _gray(images)
    mean = (gray.mean((1, 2, 3), keepdim=True) + 0.5).floor()
    other = torch.where(saturation, gray, torch.where(contrast, mean, 0.0))
    factor = factors.view(-1, 1, 1, 1)
    blend = torch.where(brightness, factor * images, other + factor * (images - other))
    return blend.clamp(0, 255).floor()


def _hue_turned(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Turn the hue by each sample's share of a circle, in torchvision's steps of 1/255."""
    red, green, blue = images.unbind(1)
    value, lowest = images.amax(1), images.amin(1)
    spread = value - lowest
    safe = spread.clamp(min=1)
    sector = torch.where(
        red == value,
        (green - blue) / safe,
        torch.where(green == value, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sector + 6 * (factors * 255).trunc().view(-1, 1, 1) / 255
    channels = []
    for start in (5, 3, 1):
        k = (turned + start) % 6
        channels.append(value - spread * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1).round()


def _kernels(radii: torch.Tensor) -> torch.Tensor:
    """(N, K): each sample's blur kernel, filled up with zeros on both sides; K the longest's length."""
    kernels = [torch.from_numpy(blur_kernel(radius)) if radius > 0 else torch.ones(1) for radius in radii.tolist()]
    longest = max(map(len, kernels))
    return torch.stack([pad(kernel, [(longest - len(kernel)) // 2] * 2) for kernel in kernels])


def _blurred(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Both directions of a separable blur; a sum of shifted images, which no autocast or TF32 makes coarser."""
    reach = kernels.shape[1] // 2
    for dim, padding in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        size = images.shape[dim]
        padded = pad(images, padding, mode="replicate")
        total = torch.zeros_like(images)
        for place in range(kernels.shape[1]):
            total.addcmul_(padded.narrow(dim, place, size), kernels[:, place].view(-1, 1, 1, 1))
        images = total
    return (images + 0.5).floor()
