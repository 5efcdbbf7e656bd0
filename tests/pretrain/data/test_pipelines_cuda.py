"""The crops pipeline's device half on a CUDA device, as far as it can be seen without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.data.augment import AugmentationConfig, sample_params
from pretrain.data.pipelines.base import BLUR, pack_params
from pretrain.data.pipelines.device import _blend, _blur, _gray, _pad_kernels, _rotate_hue, augment_batch
from pretrain.data.sampler import philox_generator


def _draws(count: int) -> torch.Tensor:
    views = [
        sample_params(AugmentationConfig(24, solarize_prob=0.5), 40, 30, philox_generator(0, 0, i, 0))
        for i in range(count)
    ]
    return torch.from_numpy(pack_params(views))


@pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < (2, 14),
    reason="torch 2.9 asks the driver for a GPU even under FakeTensorMode; 2.14 does not",
)
def test_every_step_stays_on_the_device() -> None:
    draws = _draws(8)
    kernels = _pad_kernels(draws[:, BLUR])
    with FakeTensorMode():
        with torch.device("cuda"):
            images = torch.empty(8, 3, 24, 24)
            columns = torch.empty(8, 12)
            weights = torch.empty(*kernels.shape)
        steps = [
            _blend(images, columns[:, 0], columns[:, 1]),
            _rotate_hue(images, columns[:, 0]),
            _gray(images).expand_as(images),
            _blur(images, weights),
        ]
    assert all((step.device.type, step.dtype, step.shape) == ("cuda", torch.float32, images.shape) for step in steps)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_result_equals_cpu_result() -> None:
    draws = _draws(32)
    views = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (32, 3, 24, 24), dtype=np.uint8))
    gaps = (augment_batch(views.cuda(), draws).cpu() - augment_batch(views, draws)).abs()
    assert gaps.mean() < 0.05
