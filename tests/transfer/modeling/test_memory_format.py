"""Channels-last order changes where numbers lie, not what they are called or, but for rounding, what they are."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks import c4_step as c4
from tests.gpu.numerics import backend_precision
from transfer.engine.trial import build_detector
from transfer.modeling.memory_format import channels_last


@pytest.fixture(scope="module")
def model() -> nn.Module:
    cfg = c4.small_config("voc0712_trainval", 2, 16)
    cfg.MODEL.RESNETS.update({"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4})
    return c4.random_detector(cfg).train()


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model.zero_grad()
    with EventStorage():
        sum(model(c4.random_batch(2, 96, 128, 20, False)).values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_are_the_same_up_to_rounding(model: nn.Module) -> None:
    plain, last = copy.deepcopy(model), channels_last(copy.deepcopy(model))
    mine, other = _gradients(last), _gradients(plain)
    assert mine.keys() == other.keys()
    scale = max(float(gradient.abs().max()) for gradient in other.values())
    assert max(float((mine[name] - other[name]).abs().max()) for name in other) < 1e-3 * scale


def test_pooled_regions_are_converted_once(model: nn.Module) -> None:
    seen: list[bool] = []
    for made in (channels_last(copy.deepcopy(model)), copy.deepcopy(model).to(memory_format=torch.channels_last)):  # type: ignore[call-overload]
        res5 = made.get_submodule("roi_heads.res5.0")
        res5.register_forward_pre_hook(
            lambda _module, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
        _gradients(made)
    assert seen == [True, False]


def test_the_gradient_of_pooled_regions_means_is_converted(model: nn.Module) -> None:
    seen: list[bool] = []

    def look(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        output.register_hook(
            lambda gradient: seen.append(gradient.is_contiguous(memory_format=torch.channels_last)) and None
        )

    for made in (channels_last(copy.deepcopy(model)), copy.deepcopy(model).to(memory_format=torch.channels_last)):  # type: ignore[call-overload]
        made.get_submodule("roi_heads.res5").register_forward_hook(look)
        _gradients(made)
    assert seen == [True, False]


def test_the_rpn_head_keeps_the_default_format_on_a_cpu(model: nn.Module) -> None:
    head = "proposal_generator.rpn_head.conv.weight"
    assert channels_last(copy.deepcopy(model)).state_dict()[head].is_contiguous()
    assert not channels_last(copy.deepcopy(model).to("meta")).state_dict()[head].is_contiguous()


def test_a_state_dict_loads_into_the_other_memory_format(model: nn.Module) -> None:
    last = channels_last(copy.deepcopy(model))
    assert list(last.state_dict()) == list(model.state_dict())
    plain = copy.deepcopy(model)
    plain.load_state_dict(last.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True))
    assert not last.state_dict()["backbone.res2.0.conv2.weight"].is_contiguous()


@pytest.mark.parametrize("asked", [False, True])
def test_tf32_is_off_by_default(asked: bool) -> None:
    cfg = c4.small_config("voc0712_trainval", 2, 16)
    cfg.MODEL.RESNETS.update({"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4})
    assert cfg.TRANSFER.TF32 is False
    cfg.TRANSFER.TF32 = asked
    with backend_precision(tf32=not asked, benchmark=False):
        build_detector(cfg)
        assert torch.backends.cudnn.allow_tf32 is asked
        assert torch.get_float32_matmul_precision() == ("high" if asked else "highest")


def test_channels_last_is_a_config_key() -> None:
    cfg = c4.small_config("voc0712_trainval", 2, 16)
    cfg.MODEL.RESNETS.update({"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4})
    for asked in (False, True):
        cfg.TRANSFER.CHANNELS_LAST = asked
        weight = build_detector(cfg).state_dict()["backbone.res2.0.conv2.weight"]
        assert weight.is_contiguous(memory_format=torch.channels_last) is asked
