"""The CUDA path without a GPU: everything runs forward on a fake one, so a tensor left on the wrong device fails."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.config import defaults
from pretrain.data.preprocessing import normalise
from pretrain.engine import collapse
from pretrain.methods import build_method


def autocast(half: torch.dtype | None) -> torch.autocast:
    """CUDA's autocast, which turns itself off where it is made on a machine without a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("is_available", "is_bf16_supported"):
            patch.setattr(torch.cuda, name, lambda *_: True)
        return torch.autocast("cuda", half, enabled=half is not None)


@pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < (2, 14),
    reason="torch 2.9 asks the driver for a GPU even under FakeTensorMode; 2.14 does not",
)
@pytest.mark.parametrize("arch", ["resnet50", "resnet18_cifar"])
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
def test_a_forward_pass_stays_on_the_device(arch: str, half: torch.dtype | None) -> None:
    cfg = defaults()
    cfg.MODEL.ARCH = arch
    with FakeTensorMode():
        with torch.device("cuda"):
            method = build_method(cfg)
            pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
        # Outside, so that a tensor made without a device lands on the CPU and fails.
        views = [normalise(pixels).contiguous(memory_format=torch.channels_last) for _ in range(2)]
        with autocast(half):
            output = method(*views)
        moments = collapse.moments(output.embedding)
    assert (output.loss.device.type, output.loss.dtype, output.loss.shape) == ("cuda", torch.float32, ())
    assert output.embedding.device.type == moments.device.type == "cuda"
    assert output.embedding.dtype == (half or torch.float32)
    assert moments.dtype == torch.float64 and moments.shape == (2 * cfg.MODEL.DIM + 1,)
