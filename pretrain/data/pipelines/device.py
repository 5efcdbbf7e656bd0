"""The `crops` pipeline: crops in a loader worker; all later steps on a whole batch, on any device.

Values are whole levels 0…255 in float32, rounded where Pillow rounds. The samples of each step are selected on the CPU,
where the parameters are, so that the host never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import pad

from pretrain.data.augment import SOLARIZE_THRESHOLD, ViewParams, normalize
from pretrain.data.pipelines.base import BLUR, FLIP, GRAY, SOLARIZE, STEPS
from pretrain.data.pipelines.opencv import OpenCVPipeline, blur_kernel, resized_crop

LUMA = (0.299, 0.587, 0.114)
HUE = STEPS.index("hue")


class CropPipeline(OpenCVPipeline):
    """Decode and crop with OpenCV in a loader worker; jitter, gray, blur, solarize and flip on the training device."""

    needs_params = True

    def render(self, pixels: np.ndarray, params: ViewParams, out: np.ndarray) -> None:
        out[:] = resized_crop(pixels, params.box, len(out))

    def finish_view(self, views: torch.Tensor, params: torch.Tensor | None) -> torch.Tensor:
        assert params is not None
        return normalize(augment_batch(views, params))


def augment_batch(views: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """Augment each sample with its own parameters.

    Args:
        views: uint8 (N, 3, H, W).
        params: (N, 12) float32 on the CPU, from `pack_params`.

    Returns:
        float32 (N, 3, H, W), whole levels 0…255, on the device of `views`.
    """
    images = views.float().contiguous()
    for column in range(0, 2 * len(STEPS), 2):
        steps, factors = params[:, column], params[:, column + 1]
        _update(images, (steps >= 0) & (steps != HUE), lambda x, d: _blend(x, d[:, 0], d[:, 1]), params[:, column:])
        _update(images, steps == HUE, lambda x, d: _rotate_hue(x, d[:, 0]), factors[:, None])
    _update(images, params[:, GRAY] > 0, lambda x, _: _gray(x).expand_as(x), params)
    radii = params[:, BLUR]
    if bool((radii > 0).any()):
        _update(images, radii > 0, _blur, _pad_kernels(radii))
    _update(images, params[:, SOLARIZE] > 0, lambda x, _: torch.where(x < SOLARIZE_THRESHOLD, x, 255 - x), params)
    _update(images, params[:, FLIP] > 0, lambda x, _: x.flip(-1), params)
    return images


def _update(
    images: torch.Tensor,
    mask: torch.Tensor,
    step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    params: torch.Tensor,
) -> None:
    """Apply `step` to the samples of a mask on the CPU, with their rows of `params`; in place."""
    indices = mask.nonzero()[:, 0]
    if len(indices):
        rows = params[indices].to(images.device, non_blocking=True)
        indices = indices.to(images.device, non_blocking=True)
        images[indices] = step(images[indices], rows)


def _gray(images: torch.Tensor) -> torch.Tensor:
    """Pillow's `L`: (N, 1, H, W)."""
    red, green, blue = (weight * images[:, channel] for channel, weight in enumerate(LUMA))
    return (red + green + blue + 0.5).floor()[:, None]


def _blend(images: torch.Tensor, steps: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
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


def _rotate_hue(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Rotate the hue by each sample's fraction of a circle, in torchvision's steps of 1/255."""
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


def _pad_kernels(radii: torch.Tensor) -> torch.Tensor:
    """(N, K): each sample's blur kernel, zero-padded on both sides to the longest length K."""
    kernels = [torch.from_numpy(blur_kernel(radius)) if radius > 0 else torch.ones(1) for radius in radii.tolist()]
    longest = max(map(len, kernels))
    return torch.stack([pad(kernel, [(longest - len(kernel)) // 2] * 2) for kernel in kernels])


def _blur(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Separable blur as a sum of shifted images, whose precision neither autocast nor TF32 reduces."""
    reach = kernels.shape[1] // 2
    for dim, padding in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        size = images.shape[dim]
        padded = pad(images, padding, mode="replicate")
        total = torch.zeros_like(images)
        for shift in range(kernels.shape[1]):
            total.addcmul_(padded.narrow(dim, shift, size), kernels[:, shift].view(-1, 1, 1, 1))
        images = total
    return (images + 0.5).floor()
