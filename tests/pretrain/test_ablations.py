"""Every ablation, shrunk, trains three steps; and its loss, gradients, heads and learning rates are what it says.

The losses are written out here from the paper's formulas, from the outputs of the method's own networks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain import config
from pretrain.data.dataset import Batch
from pretrain.data.index import find_images
from pretrain.engine.build_trainer import build_trainer
from pretrain.engine.step_hooks import LearningRates
from pretrain.engine.trainer import Trainer
from pretrain.methods import build_method
from pretrain.methods.base import TrainingInfo
from pretrain.methods.simsiam import SimSiam
from pretrain.models import heads
from pretrain.optim.schedule import build_schedule
from tests.pretrain.golden import narrow

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PREFIX = "simsiam_r50_b512_100ep_"
NAMES = sorted(path.stem.removeprefix(PREFIX) for path in (CONFIGS / "pretrain" / "ablations").glob(f"{PREFIX}*.yaml"))
FIRST, STEPS_PER_EPOCH, EPOCHS, PEAK = 197, 3, 100, 0.8 * 4 / 256
"""The three steps that are trained: across an epoch's end and up to a hundredth, late enough for a cosine to show."""


def _config(name: str, images: Path) -> Any:
    """The recipe behind the CPU's overlay, with heads 1/32 as wide."""
    file = CONFIGS / "pretrain" / "ablations" / f"{PREFIX}{name}.yaml"
    model = config.load_config(file).MODEL
    words = ["MODEL.ARCH", "resnet18", "MODEL.PROJ_HIDDEN", "32", "MODEL.DIM", str(model.DIM // 32)]
    words += ["MODEL.PRED_DIM", str(model.PRED_DIM // 32), "DATA.SIZE", "32", "DATA.ROOT", str(images)]
    words += ["SOLVER.BATCH_SIZE", "4", "SOLVER.EPOCHS", str(EPOCHS)]
    return config.load_config(file, str(CONFIGS / "overlays" / "cpu.yaml"), words)


class Run(NamedTuple):
    """What three steps did."""

    trainer: Trainer
    before: dict[str, torch.Tensor]

    @property
    def method(self) -> SimSiam:
        method = self.trainer.method
        assert isinstance(method, SimSiam)
        return method

    @property
    def rates(self) -> dict[str, float]:
        return {group["name"]: group["lr"] for group in self.trainer.optimizer.param_groups}


def _train(name: str, images: Path) -> Run:
    cfg = _config(name, images)
    total = STEPS_PER_EPOCH * EPOCHS
    trainer = build_trainer(cfg, find_images(str(images)), torch.device("cpu"), start=FIRST, total=total)
    before = {key: tensor.clone() for key, tensor in trainer.method.named_parameters()}
    trainer.register_hooks([LearningRates(build_schedule(cfg, STEPS_PER_EPOCH))])
    trainer.train(FIRST, FIRST + 3)
    return Run(trainer, before)


# -- the loss, from the formulas


def _cosine(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return -((p * z).sum(1) / (p.square().sum(1).sqrt() * z.square().sum(1).sqrt())).mean()


def _cross_entropy(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    target = z.exp() / z.exp().sum(1, keepdim=True)
    return -(target * (p - p.exp().sum(1, keepdim=True).log())).sum(1).mean()


def _definition(name: str, method: SimSiam, views: list[torch.Tensor]) -> torch.Tensor:
    z = [method.projector(method.encoder(view)) for view in views]
    p = z if name in ("predictor_none", "moving_average") else [method.predictor(x) for x in z]  # type: ignore[misc]
    fixed = z if name == "nostopgrad" else [x.detach() for x in z]
    if name == "moving_average":
        bank = method.get_buffer("bank")[:4]
        fixed = [0.8 * bank + 0.2 * x for x in fixed]
    d = _cross_entropy if name == "similarity_cross_entropy" else _cosine
    if name == "asymmetric":
        return d(p[0], fixed[1])
    if name == "asymmetric_2x":
        return d(p[0], fixed[1]) / 2 + d(p[2], fixed[3]) / 2
    return d(p[0], fixed[1]) / 2 + d(p[1], fixed[0]) / 2


def _assert_loss_is_the_definition(name: str, trained: SimSiam) -> None:
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(trained.views)]
    batch = Batch(tuple(views), torch.arange(4))
    if name != "moving_average":  # whose bank is to stay
        trained.prepare(TrainingInfo(4, 1, 1, lambda _first: iter([batch])))
    method, written = (copy.deepcopy(trained).double().train() for _ in range(2))
    method.before_step(0, batch)
    loss, expected = method(*views).loss, _definition(name, written, views)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-11)
    loss.backward(), expected.backward()
    for (key, ours), theirs in zip(method.named_parameters(), written.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), key
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-11, msg=key)


# -- heads


def _norms(head: nn.Module | None) -> list[bool]:
    """Whether each of the head's BNs has an affine."""
    return [] if head is None else [m.affine for m in head.modules() if isinstance(m, nn.BatchNorm1d)]


HEADS: dict[str, tuple[list[bool], list[bool]]] = {
    "predictor_none": ([True, True, False], []),
    "moving_average": ([True, True, False], []),
    "bn_none": ([], []),
    "bn_hidden": ([True, True], [True]),
    "bn_default": ([True, True, True], [True]),
    "bn_all": ([True, True, True], [True, True]),
}
"""BNs of projector and predictor, True with an affine, where they are not the released code's."""


def _assert_heads(name: str, method: SimSiam) -> None:
    projector, predictor = HEADS.get(name, ([True, True, False], [True]))
    assert (_norms(method.projector), _norms(method.predictor)) == (projector, predictor)
    for head in (method.projector, method.predictor):
        modules = [] if head is None else list(head.children())
        for layer, after in zip(modules, [*modules, None][1:], strict=True):
            if isinstance(layer, nn.Linear):
                trained = layer.bias is not None and layer.bias.requires_grad
                fixed = name == "predictor_fixed" and head is method.predictor
                assert trained == (not isinstance(after, nn.BatchNorm1d) and not fixed)
    widths = [m.out_features for h in (method.projector, method.predictor or nn.Identity()) for m in _linears(h)]
    d = {"dim256": 8, "dim512": 16, "dim1024": 32}.get(name, 64)
    assert widths == [32, 32, d] + ([] if method.predictor is None else [d // 4, d])


def _linears(head: nn.Module) -> list[nn.Linear]:
    return [module for module in head.modules() if isinstance(module, nn.Linear)]


# -- what was trained, and how fast


def _assert_trained(name: str, run: Run) -> None:
    for key, tensor in run.method.named_parameters():
        if not key.startswith("frozen."):
            assert torch.equal(tensor, run.before[key]) == _is_left(name, key), key


def _is_left(name: str, key: str) -> bool:
    if name == "predictor_fixed" and key.startswith("predictor."):
        return True
    output = {"bn_none": [], "bn_hidden": [], "bn_all": ["projector.6.bias", "predictor.3.bias"]}
    return key in output.get(name, ["projector.6.bias"])


def _assert_rates(name: str, run: Run) -> None:
    warmup = 10 if name == "bn_none" else 0
    epoch = (FIRST + 2) // STEPS_PER_EPOCH - warmup
    decayed = PEAK * (1 + math.cos(math.pi * epoch / (EPOCHS - warmup))) / 2
    expected = {"base": decayed, "predictor": PEAK}
    if name in ("stopgrad", "nostopgrad", "predictor_decayed_lr"):
        expected["predictor"] = decayed
    if name in ("predictor_none", "predictor_fixed", "moving_average"):
        del expected["predictor"]
    assert run.rates == pytest.approx(expected)


@pytest.fixture
def narrow_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every encoder is the golden values' narrow one, so that a step takes milliseconds."""

    def build(_arch: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
        encoder = narrow.NarrowResNet(1, zero_init_residual)
        encoder.fc = nn.Identity()
        return encoder, narrow.WIDTH

    monkeypatch.setattr(heads, "build_encoder", build)


@pytest.mark.usefixtures("narrow_encoder")
@pytest.mark.parametrize("name", NAMES)
def test_three_steps_of_an_ablation(name: str, images: Path) -> None:
    run = _train(name, images)
    assert run.trainer.iter == FIRST + 3 and math.isfinite(run.trainer.latest["loss"])
    assert run.method.views == (4 if name == "asymmetric_2x" else 2)
    _assert_heads(name, run.method)
    _assert_trained(name, run)
    _assert_rates(name, run)
    _assert_loss_is_the_definition(name, run.method)


@pytest.mark.usefixtures("narrow_encoder")
def test_only_baselines_have_equal_losses(images: Path) -> None:
    """In the first step's loss, every key shows but for those that act on gradients, on rates or on later steps."""
    losses = {}
    for name in NAMES:
        torch.manual_seed(0)
        method = build_method(_config(name, images)).double().train()
        generator = torch.Generator().manual_seed(0)
        views = [torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(method.views)]
        batch = Batch(tuple(views), torch.arange(4))
        method.prepare(TrainingInfo(4, 1, 1, lambda _first, batch=batch: iter([batch])))  # type: ignore[misc]
        method.before_step(0, batch)
        losses[name] = round(method(*views).loss.item(), 12)
    same = {name for name, loss in losses.items() if loss == losses["symmetric"]}
    assert same == {
        *("stopgrad", "nostopgrad", "predictor_fixed", "predictor_decayed_lr", "predictor_constant_lr", "symmetric"),
        *("bn_default", "bn_output_no_affine", "similarity_cosine", "dim2048"),
        *("alternation_1step", "alternation_10steps", "alternation_100steps", "alternation_1epoch"),
    }


@pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < (2, 14),
    reason="torch 2.9 asks the driver for a GPU even under FakeTensorMode; 2.14 does not",
)
@pytest.mark.usefixtures("narrow_encoder")
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("alternation")])  # test_cuda.py has it
def test_two_steps_stay_on_the_gpu(name: str, images: Path) -> None:
    """Forward on a fake one: a tensor left on the host fails."""
    cfg = _config(name, images)
    with FakeTensorMode():
        with torch.device("cuda"):
            method = build_method(cfg).train()
            views = tuple(torch.randn(4, 3, 32, 32) for _ in range(method.views))
        # Outside, so that a tensor made without a device lands on the host.
        batch = Batch(views, torch.arange(4))
        method.prepare(TrainingInfo(14, STEPS_PER_EPOCH, 2, lambda first: iter([batch] * (2 - first))))
        for step in range(2):
            method.before_step(step, batch)
            output = method(*views)
            assert output.loss.device.type == output.embedding.device.type == "cuda"
            assert output.embedding.shape == (4, cfg.MODEL.DIM)


Words = list[str]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["METHOD", "moving_average"], "MODEL.PREDICTOR is 'mlp'; METHOD moving_average has none: set it to none"),
        (["SIMSIAM.ALTERNATION_STEPS", "0"], "METHOD simsiam does not read it; alternation does"),
        (["SIMSIAM.ALTERNATION_STEPS", "10"], "METHOD simsiam does not read it; alternation does"),
        (["SIMSIAM.AVERAGE_MOMENTUM", "0.9"], "METHOD simsiam does not read it; moving_average does"),
        (["SIMSIAM.AVERAGE_START", "first"], "METHOD simsiam does not read it; moving_average does"),
        (["METHOD", "alternation", "SIMSIAM.ALTERNATION_STEPS", "-1"], "a number of steps, or 0 for an epoch"),
        (["METHOD", "alternation", "SIMSIAM.ALTERNATION_STEPS", "epoch"], "must be of type int"),
        (["METHOD", "alternation", "SIMSIAM.STOP_GRADIENT", "False"], "with METHOD alternation it must be True"),
        (
            ["METHOD", "alternation", "SOLVER.GRAD_ACCUM_STEPS", "2"],
            "SOLVER.GRAD_ACCUM_STEPS is 2",
        ),
        (["METHOD", "alternation", "ENGINE.COMPILE", "True"], "ENGINE.COMPILE is True; with METHOD alternation"),
        (["SIMSIAM.SIMILARITY", "euclid"], "SIMSIAM.SIMILARITY is 'euclid'"),
        (["SIMSIAM.SYMMETRY", "asymetric"], "did you mean asymmetric"),
        (["MODEL.PREDICTOR", "linear"], "valid: fixed, mlp, none"),
        (["MODEL.HEAD_BN", "output"], "MODEL.HEAD_BN is 'output'"),
        (["MODEL.HEAD_BN", "hidden", "MODEL.PROJ_BN_AFFINE", "True"], "the projector's output has no BN"),
        (["SIMSIAM.AVERAGE_MOMENTUM", "1.0"], "at least 0 and below 1"),
        (["SIMSIAM.STOPGRADIENT", "False"], "SIMSIAM.STOP_GRADIENT"),
    ],
)
def test_wrong_values_and_combinations_are_one_line(
    pretrain: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Words, said: str
) -> None:
    assert pretrain(tmp_path / "out", *words) == 2
    errors = capsys.readouterr().err
    assert said in errors and len(errors.strip().splitlines()) == 1 and "Traceback" not in errors
    assert not (tmp_path / "out").exists()
