"""NT-Xent against two other implementations and its definition; what the SimSiam paper appends to it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.config import defaults
from pretrain.methods import build_method
from pretrain.methods.simclr import SimCLR, check
from ssl_transfer.errors import UserError
from tests.pretrain.golden import narrow
from tests.pretrain.golden import narrow_contrast as fixed
from tests.pretrain.golden.ours_contrast import narrow_simclr

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "simclr.json").read_text())["nt_xent"]
SOURCES = ("lightly", "solo-learn")  # lightly-ai/lightly at e8d317f and vturrisi/solo-learn at 9187ea3


def _bare(**arguments: Any) -> SimCLR:
    """The loss alone: the views are the projector's outputs."""
    return SimCLR(nn.Identity(), nn.Identity(), None, fixed.WIDTH, **arguments)  # type: ignore[arg-type]


def _furthest(method: SimCLR, source: str) -> float:
    """How far value and gradients are from another implementation's, relative to the largest of each."""
    z1, z2 = fixed.outputs()
    loss = method(z1, z2).loss
    loss.backward()
    theirs = GOLDEN[source]
    apart = [abs(loss.item() / theirs["loss"] - 1)]
    for ours, expected in zip((z1.grad, z2.grad), torch.tensor(theirs["gradients"], dtype=torch.float64), strict=True):
        assert ours is not None
        apart.append(float((ours - expected).abs().max() / expected.abs().max()))
    return max(apart)


@pytest.mark.parametrize("source", SOURCES)
def test_value_and_gradients_equal(source: str) -> None:
    assert _furthest(_bare(temperature=fixed.TEMPERATURE), source) < 1e-10


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "mutation", [{"temperature": 1.01 * fixed.TEMPERATURE}, {"stop_gradient": True}, {"reduction": "sum"}]
)
def test_a_change_is_detected_by_the_comparison(source: str, mutation: dict[str, Any]) -> None:
    assert _furthest(_bare(**mutation), source) > 1e-3


def test_sum_reduction_equals_the_released_code() -> None:
    views = fixed.outputs()
    assert _bare(reduction="sum")(*views).loss.item() == pytest.approx(2 * _bare()(*views).loss.item(), rel=1e-14)


def _written_out(p: torch.Tensor, z: torch.Tensor, stop_gradient: bool) -> torch.Tensor:
    """The paper's equation 1, anchor by anchor: p and z hold the first views, then the second ones."""
    images, terms = len(z) // 2, []
    z = z.detach() if stop_gradient else z
    for i in range(2 * images):
        similarity = [torch.dot(p[i], z[k]) / (p[i].norm() * z[k].norm()) for k in range(2 * images)]
        others = sum((similarity[k] / 0.1).exp() for k in range(2 * images) if k != i)
        terms.append(-torch.log((similarity[(i + images) % (2 * images)] / 0.1).exp() / others))
    return torch.stack(terms).mean()


@pytest.mark.parametrize(("predict", "stop_gradient"), [(False, False), (True, False), (True, True)])
def test_loss_and_gradients_equal_the_definition(predict: bool, stop_gradient: bool) -> None:
    """Both views are one batch to batch normalisation; the predictor is the anchors', the gradient the others'."""
    method, written = (narrow_simclr(predict, stop_gradient=stop_gradient).train() for _ in range(2))
    output = method(*narrow.images(0))
    z = written.projector(written.encoder(torch.cat(narrow.images(0))))
    loss = _written_out(written.predictor(z) if written.predictor else z, z, stop_gradient)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert torch.equal(output.embedding, z[: narrow.BATCH]) and not output.embedding.requires_grad
    output.loss.backward(), loss.backward()
    for (name, ours), theirs in zip(method.named_parameters(), written.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12, msg=name)


def test_accuracy_counts_the_nearest_positives() -> None:
    one = torch.eye(4)
    other = torch.eye(4)[[0, 1, 3, 2]]
    method = SimCLR(nn.Identity(), nn.Identity(), None, 4)  # type: ignore[arg-type]
    assert method(one, one).metrics["contrast_accuracy"].item() == 1
    assert method(one, other).metrics["contrast_accuracy"].item() == 0.5


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_similarities_are_float32_in_half_precision(half: torch.dtype) -> None:
    """Of outputs that came in half precision: what autocast does to a matrix product would cost three digits more."""
    z1, z2 = (z.detach().to(half) for z in fixed.outputs())
    with torch.autocast("cpu", half):
        loss = _bare()(z1, z2).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(_bare()(z1.double(), z2.double()).loss.item(), rel=1e-5)


def test_two_equal_images_give_a_finite_loss() -> None:
    z = torch.ones(4, 3, requires_grad=True)
    loss = _bare(temperature=0.01)(z, z).loss
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7)) and z.grad is not None and bool(z.grad.isfinite().all())


def test_output_norm_has_a_scale_and_no_offset() -> None:
    cfg = defaults()
    cfg.METHOD = "simclr"
    cfg.MODEL.update(ARCH="resnet18", PROJ_HIDDEN=8, DIM=4, PREDICTOR="none", PROJ_BN_AFFINE=True)
    with torch.device("meta"):
        method = build_method(cfg)
    assert isinstance(method, SimCLR) and method.predictor is None
    norm = list(method.projector.modules())[-1]
    assert isinstance(norm, nn.BatchNorm1d) and norm.weight.requires_grad and not norm.bias.requires_grad


@pytest.mark.parametrize(("key", "value"), [("TEMPERATURE", 0.0), ("REDUCTION", "total")])
def test_invalid_values_are_refused(key: str, value: Any) -> None:
    cfg = defaults()
    cfg.METHOD, cfg.SIMCLR[key] = "simclr", value
    with pytest.raises(UserError, match=f"SIMCLR.{key}"):
        check(cfg)
