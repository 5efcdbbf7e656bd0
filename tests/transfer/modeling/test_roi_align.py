"""The separable RoIAlign against torchvision's: values, gradients, borders, precisions, layouts."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.ops import roi_align

from benchmarks import c4_step as c4
from benchmarks import roi_align as roi_align_benchmark
from transfer.engine.trial import build_detector
from transfer.modeling import roi_align as separable
from transfer.modeling.roi_align import SeparableROIAlign, make_separable, separable_roi_align

HEIGHT, WIDTH = 11, 17
KINDS = {  # x0, y0, x1, y1 in parts of the feature map
    "inside": (0.1, 0.2, 0.7, 0.9),
    "the whole map": (0.0, 0.0, 1.0, 1.0),
    "across a corner": (-0.3, -0.2, 0.4, 0.3),
    "across the far border": (0.6, 0.5, 1.4, 1.3),
    "fully outside": (2.0, 2.0, 3.0, 3.0),
    "far before": (-5.0, -5.0, -4.0, -4.0),
    "beside the border": (-0.2, 0.1, 0.0, 0.6),
    "no size": (0.3, 0.4, 0.3, 0.4),
    "no width": (0.3, 0.1, 0.3, 0.9),
    "within a cell": (0.50, 0.50, 0.51, 0.52),
    "on cells": (2 / WIDTH, 3 / HEIGHT, 9 / WIDTH, 8 / HEIGHT),
    "huge": (-40.0, -30.0, 50.0, 60.0),
}


def _rois(scale: float, draws: int = 12, seed: int = 0) -> Tensor:
    """Each kind once, then random ones of all sizes; of two images in turn; float64, (n, 5)."""
    draw = torch.Generator().manual_seed(seed)
    first = torch.rand(draws, 2, generator=draw, dtype=torch.float64) * 1.6 - 0.4
    far = first + torch.rand(draws, 2, generator=draw, dtype=torch.float64) ** 3 * 2
    parts = torch.cat([torch.tensor(list(KINDS.values()), dtype=torch.float64), torch.cat([first, far], 1)])
    images = torch.arange(len(parts), dtype=torch.float64)[:, None] % 2
    return torch.cat([images, parts * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]) / scale], 1)


def _features(channels: int = 3, order: torch.memory_format = torch.contiguous_format) -> Tensor:
    made = torch.randn(2, channels, HEIGHT, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return made.contiguous(memory_format=order)


def _both(features: Tensor, rois: Tensor, size: tuple[int, int], *rule: float | bool) -> list[tuple[Tensor, Tensor]]:
    """Pooled RoIs and the features' gradient: ours, torchvision's."""
    found = []
    for pool in (separable_roi_align, roi_align):
        leaf = features.clone().requires_grad_()
        pooled = pool(leaf, rois, size, *rule)  # type: ignore[operator]
        weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        pooled.backward(weight.to(pooled))
        assert leaf.grad is not None
        found.append((pooled.detach(), leaf.grad))
    return found


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [-1, 0, 1, 2, 5])
def test_values_and_gradients_are_torchvision_s(ratio: int, aligned: bool, order: torch.memory_format) -> None:
    for scale, size in ((1 / 16, (14, 14)), (1 / 4, (3, 5)), (1.0, (1, 1))):
        (pooled, gradient), (reference, its_gradient) = _both(
            _features(order=order), _rois(scale), size, scale, ratio, aligned
        )
        torch.testing.assert_close(pooled, reference, rtol=0, atol=1e-11)
        torch.testing.assert_close(gradient, its_gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_each_case_alone(kind: str) -> None:
    rois = _rois(1 / 16)[[list(KINDS).index(kind)]]
    (pooled, gradient), (reference, its_gradient) = _both(_features(), rois, (7, 7), 1 / 16, 0, True)
    torch.testing.assert_close(pooled, reference, rtol=0, atol=1e-11)
    torch.testing.assert_close(gradient, its_gradient, rtol=0, atol=1e-10)
    assert bool(pooled.any()) is (kind not in ("fully outside", "far before", "no size", "no width"))


def test_in_float32_they_differ_by_rounding() -> None:
    (pooled, gradient), (reference, its_gradient) = _both(
        _features(64).float(), _rois(1 / 16, 40).float(), (14, 14), 1 / 16, 0, True
    )
    torch.testing.assert_close(pooled, reference, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, its_gradient, rtol=0, atol=1e-5 * float(its_gradient.abs().max()))


def test_the_gradient_is_that_of_the_values() -> None:
    rois = _rois(1.0, 3)
    leaf = _features(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: separable_roi_align(x, rois, (3, 2), 1.0, 0, True), (leaf,))


def test_another_sampling_is_detected() -> None:
    """The comparison can fail: half a cell's shift and another number of points are no rounding."""
    (pooled, _), _ = _both(_features(), _rois(1 / 16), (7, 7), 1 / 16, 0, True)
    for ratio, aligned in ((0, False), (1, True)):
        _, (reference, _) = _both(_features(), _rois(1 / 16), (7, 7), 1 / 16, ratio, aligned)
        assert float((pooled - reference).abs().max()) > 1e-2


def test_it_runs_on_one_thread_and_restores_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    product = torch.mm

    def mm(*arguments: Tensor, **words: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return product(*arguments, **words)

    monkeypatch.setattr(torch, "mm", mm)
    torch.set_num_threads(2)
    try:
        leaf = _features().requires_grad_()
        separable_roi_align(leaf, _rois(1.0), (7, 7), 1.0, 0, True).sum().backward()
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_rois_output_and_gradient_are_empty() -> None:
    (pooled, gradient), (reference, _) = _both(_features(), _rois(1.0)[:0], (7, 7), 1.0, 0, True)
    assert pooled.shape == reference.shape == (0, 3, 7, 7) and not gradient.any()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_as_torchvision_does_under_autocast(half: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (pooled, gradient), (reference, its_gradient) = _both(
            _features().to(half), _rois(1 / 16).to(half), (7, 7), 1 / 16, 0, True
        )
    assert pooled.dtype == reference.dtype == half and gradient.dtype == half
    step = torch.finfo(half).eps
    torch.testing.assert_close(pooled, reference, rtol=step, atol=1e-6)
    torch.testing.assert_close(gradient, its_gradient, rtol=step, atol=step)


def test_autocast_does_not_change_float32() -> None:
    features, rois = _features().float(), _rois(1 / 16).float()
    ours, _ = _both(features, rois, (7, 7), 1 / 16, 0, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under, _ = _both(features, rois, (7, 7), 1 / 16, 0, True)
    assert all(torch.equal(a, b) for a, b in zip(ours, under, strict=True))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_pooled_regions_have_the_features_memory_format(order: torch.memory_format) -> None:
    pooled = separable_roi_align(_features(order=order), _rois(1.0), (7, 7), 1.0, 0, True)
    assert pooled.is_contiguous(memory_format=order)


def test_the_layer_has_detectron2_s_arguments_and_uses_torchvision_on_other_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = SeparableROIAlign(7, 1 / 16, 0, True), ROIAlign(7, 1 / 16, 0, True)
    features, rois = _features().float(), _rois(1 / 16)
    torch.testing.assert_close(ours(features, rois), theirs(features, rois), rtol=0, atol=1e-5)
    monkeypatch.delattr(separable, "separable_roi_align")
    assert ours(features.to("meta"), rois.to("meta")).shape == (len(rois), 3, 7, 7)
    with pytest.raises(NameError):
        ours(features, rois)


@pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < (2, 14),
    reason="torch 2.9 asks the driver for a GPU even under FakeTensorMode; 2.14 does not",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_on_a_gpu_shapes_and_dtypes_come_through(dtype: torch.dtype) -> None:
    """Forward alone: the backward pass does not work on a fake GPU."""
    with FakeTensorMode():
        features = torch.empty(2, 3, HEIGHT, WIDTH, device="cuda", dtype=dtype, requires_grad=True)
        pooled = SeparableROIAlign((7, 7), 1 / 16, 0, True)(features, torch.zeros(5, 5, device="cuda"))
    assert (pooled.shape, pooled.dtype, pooled.device.type) == ((5, 3, 7, 7), dtype, "cuda")
    assert pooled.requires_grad


@pytest.fixture(scope="module")
def model() -> nn.Module:
    cfg = c4.small_config("voc0712_trainval", 2, 16)
    cfg.MODEL.RESNETS.update({"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4})
    return c4.random_detector(cfg).train()


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model.zero_grad()
    with EventStorage():
        sum(model(c4.random_batch(2, 96, 128, 20, False)).values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_a_detector_s_gradients_are_the_same_up_to_rounding_and_deterministic(model: nn.Module) -> None:
    other = make_separable(copy.deepcopy(model))
    mine, again, plain = _gradients(other), _gradients(copy.deepcopy(other)), _gradients(copy.deepcopy(model))
    assert mine.keys() == plain.keys() and all(torch.equal(mine[name], again[name]) for name in mine)
    scale = max(float(gradient.abs().max()) for gradient in plain.values())
    assert max(float((mine[name] - plain[name]).abs().max()) for name in plain) < 1e-3 * scale


def test_a_detector_keeps_its_tensors_and_its_pooler_s_arguments(model: nn.Module) -> None:
    other = make_separable(copy.deepcopy(model))
    assert list(other.state_dict()) == list(model.state_dict())
    (ours,), (theirs,) = (made.get_submodule("roi_heads.pooler.level_poolers").children() for made in (other, model))
    assert type(ours) is SeparableROIAlign and type(theirs) is ROIAlign
    assert repr(ours) == f"Separable{theirs!r}"


@pytest.mark.parametrize(("name", "layer"), [("torchvision", ROIAlign), ("separable", SeparableROIAlign)])
def test_roi_align_is_a_config_key(name: str, layer: type[nn.Module]) -> None:
    cfg = c4.small_config("voc0712_trainval", 2, 16)
    assert cfg.TRANSFER.ROI_ALIGN == "torchvision"
    cfg.MODEL.RESNETS.update({"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4})
    cfg.TRANSFER.ROI_ALIGN = name
    (made,) = build_detector(cfg).get_submodule("roi_heads.pooler.level_poolers").children()
    assert type(made) is layer


def test_the_bench_s_row_holds_and_refuses_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "values and gradients" in roi_align_benchmark.roi_align(6, 8, 4, channels=16).equal()
    monkeypatch.setattr(roi_align_benchmark, "SeparableROIAlign", lambda *words: ROIAlign(*words[:3], aligned=False))
    with pytest.raises(AssertionError, match="values or gradients differ"):
        roi_align_benchmark.roi_align(6, 8, 4, channels=16).equal()
