"""Views: drawn as torchvision's transforms draw, applied as they apply."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms

from pretrain.config import defaults
from pretrain.data.augment import (
    MEAN,
    STD,
    AugmentationConfig,
    ViewParams,
    apply_to_image,
    augmentation_config,
    normalize,
    preprocessing_block,
    sample_params,
    second_augmentation_config,
)
from pretrain.data.sampler import philox_generator

PLAIN = ViewParams(box=(0, 0, 30, 40), jitter=(), gray=False, blur=None, solarize=False, flip=False)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    pixels = np.random.RandomState(0).randint(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1))


def apply(image: Image.Image, view: ViewParams, size: int) -> torch.Tensor:
    return transforms.functional.pil_to_tensor(apply_to_image(image, view, size))


def _draws(
    augmentation_config: AugmentationConfig, count: int, width: int = 400, height: int = 300
) -> list[ViewParams]:
    return [
        sample_params(augmentation_config, width, height, philox_generator(0, 0, index, 0)) for index in range(count)
    ]


def _quantiles_agree(ours: list[float], theirs: list[float]) -> bool:
    """Kolmogorov–Smirnov at the 0.001 level for two samples of the same size."""
    ours_sorted, theirs_sorted = np.sort(ours), np.sort(theirs)
    both = np.concatenate([ours_sorted, theirs_sorted])
    steps = [np.searchsorted(sample, both, side="right") / len(sample) for sample in (ours_sorted, theirs_sorted)]
    return float(np.abs(steps[0] - steps[1]).max()) < 1.95 * math.sqrt(2 / len(ours))


@pytest.mark.parametrize(("width", "height"), [(400, 300), (500, 120), (90, 400)])
def test_box_distribution_equals_random_resized_crop(width: int, height: int) -> None:
    ours = np.array([view.box for view in _draws(AugmentationConfig(224), 3000, width, height)])
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    get = transforms.RandomResizedCrop.get_params
    theirs = np.array([get(image, scale=[0.2, 1.0], ratio=[3 / 4, 4 / 3]) for _ in range(3000)])
    for column in range(4):
        assert _quantiles_agree(ours[:, column], theirs[:, column])
    assert (ours[:, 0] + ours[:, 2]).max() <= height and (ours[:, 1] + ours[:, 3]).max() <= width
    assert (ours[:, :2]).min() >= 0


def test_extreme_shape_gets_the_largest_central_crop() -> None:
    for width, height in ((1000, 10), (10, 1000)):
        boxes = {view.box for view in _draws(AugmentationConfig(224), 5, width, height)}
        torch.manual_seed(0)
        theirs = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), [0.2, 1.0], [3 / 4, 4 / 3])
        assert boxes == {tuple(theirs)}


def test_jitter_distribution_equals_color_jitter() -> None:
    ours = [dict(view.jitter) for view in _draws(AugmentationConfig(224, jitter_prob=1.0), 3000)]
    torch.manual_seed(0)
    ranges = ([0.6, 1.4], [0.6, 1.4], [0.6, 1.4], [-0.1, 0.1])
    theirs = [transforms.ColorJitter.get_params(*ranges)[1:] for _ in range(3000)]
    for column, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert _quantiles_agree([factors[name] for factors in ours], [float(factors[column]) for factors in theirs])


def test_all_24_orders_of_the_jitter_are_equally_likely() -> None:
    orders = [tuple(name for name, _ in view.jitter) for view in _draws(AugmentationConfig(224, jitter_prob=1.0), 4800)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7  # chi-square, 23 degrees of freedom, 0.001


def test_frequency_of_each_step() -> None:
    views = _draws(AugmentationConfig(224), 4000)
    shares = {
        0.8: [bool(view.jitter) for view in views],
        0.2: [view.gray for view in views],
        0.5: [view.blur is not None for view in views],
        0.0: [view.solarize for view in views],
    }
    for probability, happened in shares.items():
        assert abs(np.mean(happened) - probability) <= 4 * math.sqrt(probability * (1 - probability) / 4000)
    assert abs(np.mean([view.flip for view in views]) - 0.5) < 0.032
    radii = [view.blur for view in views if view.blur is not None]
    assert _quantiles_agree(radii, list(np.random.RandomState(0).uniform(0.1, 2.0, len(radii))))


def test_zero_strength_disables_jitter() -> None:
    still = AugmentationConfig(224, (1.0, 1.0), (0.0, 0.0, 0.0, 0.0), 1.0, 0.0, 0.0, (0.1, 2.0), 0.0, 0.0)
    assert all(not view.jitter and not view.gray and view.blur is None and not view.flip for view in _draws(still, 50))


def test_each_step_equals_its_transform(photo: Image.Image) -> None:
    to_tensor, size = transforms.PILToTensor(), 24
    resize = transforms.Resize((size, size))
    crop = transforms.functional.resized_crop(photo, 3, 5, 20, 25, [size, size])
    whole = resize(photo)
    jitter = transforms.functional.adjust_hue(transforms.functional.adjust_contrast(whole, 1.3), -0.07)
    expected = {
        replace(PLAIN): whole,
        replace(PLAIN, box=(3, 5, 20, 25)): crop,
        replace(PLAIN, jitter=(("contrast", 1.3), ("hue", -0.07))): jitter,
        replace(PLAIN, gray=True): transforms.Grayscale(3)(whole),
        replace(PLAIN, blur=1.4): whole.filter(ImageFilter.GaussianBlur(radius=1.4)),
        replace(PLAIN, solarize=True): transforms.functional.solarize(whole, 128),
        replace(PLAIN, flip=True): whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }
    for view, image in expected.items():
        assert torch.equal(apply(photo, view, size), to_tensor(image)), view


def test_steps_have_the_order_of_the_released_code(photo: Image.Image) -> None:
    view = ViewParams((3, 5, 20, 25), (("saturation", 0.7), ("brightness", 1.2)), True, 0.9, False, True)
    image = transforms.functional.resized_crop(photo, 3, 5, 20, 25, [24, 24])
    image = transforms.functional.adjust_brightness(transforms.functional.adjust_saturation(image, 0.7), 1.2)
    image = transforms.Grayscale(3)(image).filter(ImageFilter.GaussianBlur(radius=0.9))
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert torch.equal(apply(photo, view, 24), transforms.PILToTensor()(image))


def test_solarization_follows_blur_as_in_byol(photo: Image.Image) -> None:
    view = replace(PLAIN, gray=True, blur=0.9, solarize=True, flip=True)
    image = transforms.Grayscale(3)(transforms.Resize((24, 24))(photo)).filter(ImageFilter.GaussianBlur(radius=0.9))
    image = transforms.functional.solarize(image, 128)
    assert torch.equal(apply(photo, view, 24).flip(-1), transforms.PILToTensor()(image))


def test_second_view_differs_in_its_own_keys_only() -> None:
    cfg = defaults()
    assert second_augmentation_config(cfg) == augmentation_config(cfg) == AugmentationConfig(224)
    cfg.AUGMENT.SECOND.BLUR_PROB, cfg.AUGMENT.JITTER = 0.1, (0.4, 0.4, 0.2, 0.1)
    assert (
        second_augmentation_config(cfg) == replace(augmentation_config(cfg), blur_prob=0.1) != augmentation_config(cfg)
    )
    cfg.AUGMENT.SECOND.SOLARIZE_PROB = 0.0
    assert second_augmentation_config(cfg).solarize_prob == 0.0
    cfg.AUGMENT.SOLARIZE_PROB = 0.2
    assert (augmentation_config(cfg).solarize_prob, second_augmentation_config(cfg).solarize_prob) == (0.2, 0.0)


def test_normalize_equals_to_tensor_and_normalize(photo: Image.Image) -> None:
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])(photo)
    assert torch.equal(normalize(transforms.PILToTensor()(photo)[None])[0], theirs)


def test_preprocessing_block_is_on_the_0_to_255_scale() -> None:
    assert preprocessing_block() == {
        "channel_order": "RGB",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "stride_in_1x1": False,
    }


def test_sample_depends_on_seed_epoch_index_and_view_only() -> None:
    keys = [(seed, epoch, index, view) for seed in (0, 1) for epoch in (0, 1) for index in (0, 1, 2) for view in (0, 1)]
    draws = [sample_params(AugmentationConfig(224), 400, 300, philox_generator(*key)) for key in keys]
    assert draws == [sample_params(AugmentationConfig(224), 400, 300, philox_generator(*key)) for key in keys]
    assert len(set(draws)) == len(keys)
