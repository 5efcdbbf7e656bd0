"""The workloads on a fake GPU: every tensor of the forward pass is on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import detectron2.modeling
import pytest
import torch
import torch.cuda.amp  # now: imported under a fake mode it would ask for a driver
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import pretrain.methods
from tests.gpu import workloads
from tests.gpu.workloads import PrecisionConfig, SimSiamWorkload
from transfer.engine import trial

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < (2, 14),
    reason="older torch asks the driver for a GPU even under FakeTensorMode",
)


class BackwardReached(Exception):
    """The backward pass does not work on a fake GPU."""


def _with_driver(function: Callable[..., Any]) -> Callable[..., Any]:
    """Pretend that there is a driver while `function` runs."""

    def call(*args: Any, **more: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("is_available", "is_bf16_supported"):
                patch.setattr(torch.cuda, name, lambda *_: True)
            return function(*args, **more)

    return call


def _on_the_gpu(build: Callable[..., Any]) -> Callable[..., Any]:
    """Build on the GPU: fake parameters cannot be moved."""

    def call(*args: Any) -> Any:
        with torch.device("cuda"):
            return build(*args)

    return call


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def reached(*_args: Any, **_more: Any) -> None:
        raise BackwardReached

    for kind in (torch.autocast, torch.amp.GradScaler):
        monkeypatch.setattr(kind, "__init__", _with_driver(kind.__init__))
    monkeypatch.setattr(workloads, "detector_config", _with_driver(workloads.detector_config))
    monkeypatch.setattr(trial, "build_model", _on_the_gpu(detectron2.modeling.build_model))
    monkeypatch.setattr(pretrain.methods, "build_method", _on_the_gpu(pretrain.methods.build_method))
    monkeypatch.setattr(nn.Module, "to", lambda module, *_args, **_more: module)
    monkeypatch.setattr(torch.Tensor, "backward", reached)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, _memo: mode, raising=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.mark.parametrize("precision", [PrecisionConfig(), PrecisionConfig("bf16"), PrecisionConfig("fp16")], ids=str)
def test_simsiam_stays_on_the_device(fake_gpu: None, precision: PrecisionConfig) -> None:
    steps = SimSiamWorkload().small("cuda", precision)
    with pytest.raises(BackwardReached):
        steps.step()


@pytest.mark.parametrize("size", ["small", "full"])
def test_the_detectors_networks_stay_on_the_device(fake_gpu: None, size: str) -> None:
    """Detectron2 computes with the images' sizes before the first layer, which a fake tensor cannot."""
    detector = workloads.DetectorWorkload()
    steps = detector.small("cuda") if size == "small" else detector.full("cuda", PrecisionConfig(), 1)
    with pytest.raises(DataDependentOutputException):
        steps.step()
    features = steps.model.backbone(torch.zeros(1, 3, 64, 64, device="cuda"))["res4"]  # type: ignore[operator, index]
    pooled = steps.model.get_submodule("roi_heads.res5")(features)
    assert features.device.type == pooled.device.type == "cuda"


def test_a_tensor_left_on_the_cpu_fails(fake_gpu: None) -> None:
    steps = SimSiamWorkload().small("cuda")
    convolution = next(module for module in steps.model.modules() if isinstance(module, nn.Conv2d))
    convolution.weight = nn.Parameter(convolution.weight.detach().cpu())
    with pytest.raises(RuntimeError, match="device"):
        steps.step()
