"""LARS and LARC against their originals' formulas, written down here in float64; and what the comparison notices."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.config import defaults
from pretrain.methods import build_method
from pretrain.optim.lars import build_larc, build_lars
from pretrain.optim.optimizer import build_optimizer
from pretrain.optim.schedule import CosineByStep
from pretrain.optim.sgd import set_lr

LR, MOMENTUM, DECAY, TRUST, STEPS = 4.0, 0.9, 0.05, 0.001, 6
Rates = Callable[[int], float]
Arrays = dict[str, np.ndarray]


def falling(step: int) -> float:
    return LR * (1 - step / STEPS)


def constant(_step: int) -> float:
    return LR


def network() -> nn.Sequential:
    """A convolution, a batch normalisation and a layer with a bias, in float64; the bias is all zero at first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).double()
    nn.init.zeros_(model[3].bias)
    nn.init.normal_(model[1].bias)
    return model


def gradient(name: str, like: Any, step: int) -> np.ndarray:
    """Of a size that the weight decay is felt beside."""
    return 0.02 * np.random.RandomState(100 * step + len(name)).normal(size=tuple(like.shape))


def trained(build: Callable[..., Any], rates: Rates, foreach: bool = False, **changes: Any) -> Arrays:
    """Our weights after STEPS steps; `changes` are arguments that differ."""
    model = network()
    words = {"momentum": MOMENTUM, "decay": DECAY, "trust": TRUST, "foreach": foreach, **changes}
    optimizer = build([{"name": "base", "params": list(model.parameters())}], LR, **words)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rates(step)
        for name, p in model.named_parameters():
            p.grad = torch.from_numpy(gradient(name, p, step))
        optimizer.step()
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def adapted(u: np.ndarray, w: np.ndarray, below: float) -> np.ndarray:
    return u * TRUST * np.linalg.norm(w) / below if np.linalg.norm(w) > 0 and np.linalg.norm(u) > 0 else u


def byols(w: np.ndarray, g: np.ndarray, _name: str) -> np.ndarray:
    """deepmind-research byol/utils/optimizers.py: decay, then adaptation; neither for biases and norms."""
    if w.ndim == 1:
        return g
    u = g + DECAY * w
    return adapted(u, w, float(np.linalg.norm(u)))


def apexs(w: np.ndarray, g: np.ndarray, _name: str) -> np.ndarray:
    """apex/parallel/LARC.py, clip=False."""
    return adapted(g + DECAY * w, w, float(np.linalg.norm(g) + DECAY * np.linalg.norm(w) + 1e-8))


def expected(update: Callable[..., np.ndarray], rates: Rates, lr_in_buffer: bool = False) -> Arrays:
    """The original's weights: momentum over the updates, the rate on the buffer (or, as SimCLR has it, within)."""
    weights = {name: p.detach().numpy().copy() for name, p in network().named_parameters()}
    buffers = {name: np.zeros_like(w) for name, w in weights.items()}
    for step in range(STEPS):
        within, without = (rates(step), 1.0) if lr_in_buffer else (1.0, rates(step))
        for name, w in weights.items():
            u = update(w, gradient(name, w, step), name)
            buffers[name] = MOMENTUM * buffers[name] + within * u
            weights[name] = w - without * buffers[name]
    return weights


def gap(ours: Arrays, theirs: Arrays) -> float:
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in theirs)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(("build", "update"), [(build_lars, byols), (build_larc, apexs)], ids=["lars", "larc"])
def test_every_step_is_the_originals(build: Callable[..., Any], update: Any, foreach: bool) -> None:
    assert gap(trained(build, falling, foreach), expected(update, falling)) < 1e-13


def test_simclrs_momentum_is_the_same_while_the_rate_is_constant() -> None:
    """google-research/simclr lars_optimizer.py, classic momentum: the rate enters the buffer."""
    assert gap(trained(build_lars, constant), expected(byols, constant, lr_in_buffer=True)) < 1e-13
    assert gap(trained(build_lars, falling), expected(byols, falling, lr_in_buffer=True)) > 1e-3


@pytest.mark.parametrize("build", [build_lars, build_larc], ids=["lars", "larc"])
@pytest.mark.parametrize(
    "change", [{"trust": 0.00101}, {"decay": 0.0505}, {"momentum": 0.909}, {"decay": 0.0}], ids=lambda c: str(c)
)
def test_a_change_of_the_recipe_is_noticed(build: Callable[..., Any], change: dict[str, float]) -> None:
    update = byols if build is build_lars else apexs
    assert gap(trained(build, falling, **change), expected(update, falling)) > 1e-6


def test_the_two_are_not_one_another() -> None:
    assert gap(trained(build_larc, falling), expected(byols, falling)) > 1e-3
    assert gap(trained(build_lars, falling), expected(apexs, falling)) > 1e-3

    def sum_of_norms(w: np.ndarray, g: np.ndarray, name: str) -> np.ndarray:
        return byols(w, g, name) if w.ndim == 1 else apexs(w, g, name)

    assert gap(trained(build_lars, falling), expected(sum_of_norms, falling)) > 1e-5  # timm's own ratio


def _method(predictor: bool = True) -> Any:
    cfg = defaults()
    cfg.MODEL.update(PROJ_HIDDEN=8, DIM=8, PRED_DIM=4, HEAD_BN="default" if predictor else "none")
    with torch.device("meta"):
        return build_method(cfg)


@pytest.mark.parametrize("predictor", [True, False])
def test_what_is_spared_is_batch_normalisation_and_the_biases(predictor: bool) -> None:
    method, cfg = _method(predictor), defaults()
    cfg.SOLVER.update(OPTIMIZER="lars", WEIGHT_DECAY=1e-6, BASE_LR=0.3, BATCH_SIZE=4096)
    groups = build_optimizer(method, cfg).param_groups
    spared = {id(p) for group in groups if not group["always_adapt"] for p in group["params"]}
    held = {id(p) for group in groups for p in group["params"]}
    norms = {id(p) for module in method.modules() if isinstance(module, _BatchNorm) for p in module.parameters()}
    biases = {id(p) for name, p in method.named_parameters() if name.endswith("bias")}
    trained_ones = {id(p) for p in method.parameters() if p.requires_grad}
    assert held == trained_ones and spared == (norms | biases) & trained_ones and spared < held
    assert {group["added_decay"] for group in groups if group["always_adapt"]} == {1e-6}
    assert {group["added_decay"] for group in groups if not group["always_adapt"]} == {0.0}
    assert {(group["trust_coeff"], group["trust_clip"], group["weight_decay"]) for group in groups} == {
        (1e-3, False, 0)
    }
    assert {group["lr"] for group in groups} == {4.8}


def test_larc_spares_nothing_even_without_decay() -> None:
    cfg = defaults()
    cfg.SOLVER.update(OPTIMIZER="larc", WEIGHT_DECAY=0.0)
    groups = build_optimizer(_method(), cfg).param_groups
    assert {(group["always_adapt"], group["weight_decay"], group["eps"]) for group in groups} == {(True, 0.0, 1e-8)}


def test_both_halves_of_a_group_follow_the_schedule_and_the_predictor_may_not() -> None:
    cfg = defaults()
    cfg.SOLVER.OPTIMIZER = "lars"
    schedule = CosineByStep(0.05, epochs=2, steps_per_epoch=5)
    for fixed in (True, False):
        cfg.SOLVER.FIX_PRED_LR = fixed
        optimizer = build_optimizer(_method(), cfg)
        set_lr(optimizer, schedule, 5)
        rates = [(group["name"], group["lr"]) for group in optimizer.param_groups]
        assert rates == [("base", 0.025)] * 2 + [("predictor", 0.05 if fixed else 0.025)] * 2


@pytest.mark.parametrize("build", [build_lars, build_larc], ids=["lars", "larc"])
def test_a_tensor_without_gradient_stays(build: Callable[..., Any]) -> None:
    """As SwAV's prototypes in their first iterations."""
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = build([{"name": "base", "params": list(model.parameters())}], LR, MOMENTUM, DECAY, TRUST, foreach=False)
    for name, p in model.named_parameters():
        p.grad = None if name == "3.weight" else torch.ones_like(p)
    optimizer.step()
    after = model.state_dict()
    assert [name for name, _ in model.named_parameters() if torch.equal(after[name], before[name])] == ["3.weight"]


@pytest.mark.parametrize("build", [build_lars, build_larc], ids=["lars", "larc"])
def test_a_stored_state_goes_on_exactly(build: Callable[..., Any]) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = network()
        return model, build([{"name": "base", "params": list(model.parameters())}], LR, MOMENTUM, DECAY, TRUST, False)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            for name, p in model.named_parameters():
                p.grad = torch.from_numpy(gradient(name, p, step))
            optimizer.step()

    whole, half, rest = make(), make(), make()
    steps(*whole, 0, 6)
    steps(*half, 0, 3)
    stored = io.BytesIO()
    torch.save([half[0].state_dict(), half[1].state_dict()], stored)
    stored.seek(0)
    for ours, state in zip(rest, torch.load(stored, weights_only=True), strict=True):
        ours.load_state_dict(state)
    steps(*rest, 3, 6)
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, rest[0].state_dict()[name]) and (step_taken(tensor, half[0], name))


def step_taken(tensor: torch.Tensor, half: nn.Module, name: str) -> bool:
    return not name.endswith(("weight", "bias")) or not torch.equal(tensor, half.state_dict()[name])
