"""Linear evaluation beside the original with apex's LARC, in float64; the comparison detects changes of the recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.data.sampler import ResumableBatchSampler
from pretrain.evaluation.config import defaults
from pretrain.evaluation.linear import DatasetShard, LinearProbe
from tests.pretrain.golden import narrow, narrow_linear

RUNS = json.loads((Path(__file__).resolve().parents[1] / "golden" / "linear.json").read_text())["runs"]
TOTAL = narrow.STEPS_PER_EPOCH * narrow.EPOCHS


def config(optimizer: str) -> CfgNode:
    linear = defaults().LINEAR
    assert (linear.TRUST, linear.MOMENTUM, linear.WEIGHT_DECAY) == (0.001, 0.9, 0.0)
    linear.update(
        OPTIMIZER=optimizer,
        BASE_LR=narrow_linear.base_lr(optimizer),
        BATCH_SIZE=narrow.BATCH,
        EPOCHS=narrow.EPOCHS,
    )
    return linear


def run(linear: CfgNode, change: Callable[[LinearProbe], Any] = lambda _: None) -> dict[str, Any]:
    """Our steps on the original's images, from the original's weights."""
    model = narrow_linear.model().eval()
    classifier, model.fc = model.fc, nn.Identity()

    @torch.no_grad()
    def features(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = narrow_linear.batch(step)
        return model(images), labels

    sampler = ResumableBatchSampler(
        narrow.STEPS_PER_EPOCH * narrow.BATCH, narrow.BATCH, 0, start=0, stop=TOTAL, drop_last=False
    )
    share = DatasetShard(*features(0))
    probe = LinearProbe(classifier, linear, sampler=sampler, batches=map(features, range(TOTAL)), test=share)
    change(probe)
    losses: list[float] = []
    report = lambda _, loss: losses.append(loss)  # noqa: E731
    probe.fit(save=lambda: None, period=0, stop_requested=lambda: False, report=report)
    model.fc = classifier
    rates = [entry["lr"] for entry in probe.progress.history]
    return {"losses": losses, "rates": rates, "end": narrow_linear.probes(classifier), "all": narrow.checksums(model)}


def agrees(ours: dict[str, Any], golden: dict[str, Any]) -> bool:
    same = all(ours[key] == pytest.approx(golden[key], rel=1e-10, abs=1e-13) for key in ("losses", "rates", "end"))
    assert ours["all"].keys() == golden["all"].keys()
    return same and all(
        ours["all"][name] == pytest.approx(sums, rel=1e-10, abs=1e-12) for name, sums in golden["all"].items()
    )


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_every_step_is_the_originals(optimizer: str) -> None:
    golden = RUNS[optimizer]
    assert len(golden["losses"]) == TOTAL and golden["losses"][0] != pytest.approx(golden["losses"][-1], rel=1e-3)
    assert agrees(run(config(optimizer)), golden)


@pytest.mark.parametrize(
    ("key", "value"),
    [("BASE_LR", 64.0 * 1.01), ("TRUST", 0.00101), ("MOMENTUM", 0.909), ("WEIGHT_DECAY", 1e-6), ("OPTIMIZER", "sgd")],
)
def test_a_change_of_the_recipe_is_noticed(key: str, value: float | str) -> None:
    linear = config("lars")
    linear[key] = value
    assert not agrees(run(linear), RUNS["lars"])


def test_a_layer_left_out_of_the_adaptation_is_noticed() -> None:
    def spare_the_bias(probe: LinearProbe) -> None:
        (group,) = probe.optimizer.param_groups
        bias = group["params"].pop()
        probe.optimizer.add_param_group({"params": [bias], "always_adapt": False})

    assert not agrees(run(config("lars"), spare_the_bias), RUNS["lars"])


@pytest.mark.parametrize(("option", "value"), [("always_adapt", False), ("trust_clip", True)])
def test_other_options_of_timm_are_noticed(option: str, value: bool) -> None:
    def change(probe: LinearProbe) -> None:
        probe.optimizer.param_groups[0][option] = value

    assert not agrees(run(config("lars"), change), RUNS["lars"])


def test_one_step_is_the_published_formula() -> None:
    """apex/parallel/LARC.py with clip=False: the gradient times trust × ‖w‖ / (‖g‖ + wd ‖w‖ + 1e-8), then SGD."""
    torch.manual_seed(0)
    linear = config("lars")
    layer = nn.Linear(5, 3).double()
    from pretrain.evaluation.linear import build_linear_optimizer, scaled_lr

    optimizer = build_linear_optimizer(layer.parameters(), linear)
    expected = [p.detach().clone() for p in layer.parameters()]
    momentum = [torch.zeros_like(p) for p in expected]
    for _ in range(3):
        grads = [torch.randn_like(p) for p in expected]
        for p, grad, w, m in zip(layer.parameters(), grads, expected, momentum, strict=True):
            p.grad = grad.clone()
            m.mul_(0.9).add_(grad * 0.001 * w.norm() / (grad.norm() + 1e-8))
            w.sub_(scaled_lr(linear) * m)
        optimizer.step()
        for p, w in zip(layer.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=0)
