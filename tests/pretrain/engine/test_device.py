"""The training device and its float32 precision."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pretrain.config import defaults
from pretrain.engine.build_trainer import training_device
from ssl_transfer.errors import UserError


@pytest.fixture
def settings() -> Iterator[None]:
    """Restore torch's settings afterwards."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before[:2]
    torch.set_float32_matmul_precision(before[2])


@pytest.mark.parametrize(("tf32", "products"), [(False, "highest"), (True, "high")])
def test_tf32_is_off_by_default(settings: None, monkeypatch: pytest.MonkeyPatch, tf32: bool, products: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    cfg = defaults()
    assert cfg.ENGINE.TF32 is False
    cfg.ENGINE.TF32 = tf32
    assert training_device(cfg) == torch.device("cuda", 3)
    assert torch.backends.cudnn.allow_tf32 is tf32 and torch.get_float32_matmul_precision() == products
    assert torch.backends.cudnn.benchmark


def test_on_a_cpu_nothing_is_set_and_fp16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg, before = defaults(), torch.backends.cudnn.benchmark
    assert training_device(cfg) == torch.device("cpu") and torch.backends.cudnn.benchmark == before
    cfg.ENGINE.PRECISION = "fp16"
    with pytest.raises(UserError, match="needs a GPU"):
        training_device(cfg)
