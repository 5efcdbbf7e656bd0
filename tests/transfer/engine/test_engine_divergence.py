"""A run that diverges ends as `diverged`: iteration, learning rate and what is no longer finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ssl_transfer.training.divergence import Diverged
from transfer.engine.guards import FiniteLossGuard, require_finite
from transfer.engine.prepare import TrialRequest
from transfer.engine.trial import run_trial

RequestFactory = Callable[..., TrialRequest]


def test_a_loss_that_is_nan_ends_the_trial_as_diverged(
    make_request: RequestFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

    losses = FastRCNNOutputLayers.losses
    steps: list[int] = []

    def poisoned(self: nn.Module, *args: object) -> dict[str, Tensor]:
        steps.append(1)
        found = losses(self, *args)
        return {**found, "loss_box_reg": found["loss_box_reg"] * (math.nan if len(steps) == 3 else 1)}

    monkeypatch.setattr(FastRCNNOutputLayers, "losses", poisoned)
    outcome = run_trial(make_request("SOLVER.WARMUP_ITERS", "0"))
    assert outcome.status == "diverged" and len(steps) == 3  # nothing ran after it: no precise BN, no evaluation
    assert outcome.content["divergence"] == {"iteration": 2, "lr": 0.02, "what": "loss_box_reg is NaN"}
    assert outcome.content["metrics"] is None
    assert not (outcome.file.parent / "model_final.pth").exists()
    log = (outcome.file.parent / "log.txt").read_text()
    assert "diverged at iteration 2" in log and "Traceback" not in log


def test_a_learning_rate_far_too_high_is_found(make_request: RequestFactory) -> None:
    request = make_request("SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0")
    outcome = run_trial(request)
    assert outcome.status == "diverged"
    assert 0 < outcome.content["divergence"]["iteration"] < 4 and outcome.content["divergence"]["lr"] == 1e30
    assert run_trial(request).status == "already"  # and is never tried again silently


def test_divergence_in_the_last_step_is_not_evaluated(
    make_request: RequestFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = FiniteLossGuard.forward

    def poisoned(self: FiniteLossGuard, batch: list[dict[str, object]]) -> dict[str, Tensor]:
        forward(self, batch)
        raise Diverged("loss_cls is infinite")

    monkeypatch.setattr(FiniteLossGuard, "forward", poisoned)
    outcome = run_trial(make_request("SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "[]"))
    assert outcome.status == "diverged" and outcome.content["timing"]["eval_seconds"] is None


@pytest.mark.parametrize(
    ("value", "words"), [(math.nan, "b is NaN"), (math.inf, "b is infinite"), (-math.inf, "b is infinite")]
)
def test_the_first_value_that_is_not_finite_is_named(value: float, words: str) -> None:
    with pytest.raises(Diverged, match=words):
        require_finite({"a": torch.tensor(1.0), "b": torch.tensor(value), "c": torch.tensor(math.nan)})


def test_finite_values_pass() -> None:
    require_finite({"a": torch.tensor(3e38), "b": torch.tensor(-1.0)})
