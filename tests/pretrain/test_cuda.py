"""The CUDA path without a GPU: everything runs forward on a fake one, so a tensor left on the wrong device fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from pretrain.config import check_config, defaults
from pretrain.data.augment import normalize
from pretrain.data.dataset import Batch
from pretrain.engine import metrics
from pretrain.engine.trainer import Trainer
from pretrain.methods import build_method
from pretrain.methods import method_names as method_names
from pretrain.methods.base import Method, MethodOutput, TrainingInfo
from pretrain.models.batch_norm import convert_grouped_batch_norm
from pretrain.models.encoder import ARCHITECTURES
from pretrain.optim.optimizer import build_optimizer, build_sgd

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < (2, 14),
    reason="torch 2.9 asks the driver for a GPU even under FakeTensorMode; 2.14 does not",
)
KEYS: dict[str, dict[str, Any]] = {
    "moco": {"PREDICTOR": "none", "SYNC_BN": False, "BN_GROUP_SIZE": 2},
    "moving_average": {"PREDICTOR": "none"},
}
"""MODEL keys that a method insists on, and for one of them batch normalisation in groups."""


@contextlib.contextmanager
def _driver() -> Iterator[None]:
    """What asks for a driver while it is made, and turns itself off for want of one, finds one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("is_available", "is_bf16_supported"):
            patch.setattr(torch.cuda, name, lambda *_: True)
        yield


@pytest.fixture(autouse=True)
def one_fake_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method may copy a network of its own; torch would copy the mode with it, and refuses to mix two."""
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, _memo: mode, raising=False)


class _OnFakeGpu(Trainer):
    """The trainer, its autocast and its scaler at work as on a GPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with _driver():
            super().__init__(*args, **kwargs)

    def _autocast(self) -> torch.autocast:
        with _driver():
            return super()._autocast()


def _config(method: str, arch: str) -> Any:
    cfg = defaults()
    cfg.METHOD = method
    heads = {} if method == "supervised" else {"PROJ_HIDDEN": 64, "DIM": 32, "PRED_DIM": 16}
    cfg.MODEL.update(ARCH=arch, **heads, **KEYS.get(method, {}))
    check_config(cfg)
    return cfg


def _batches(views: int) -> Iterator[Batch]:
    """As the loader leaves them: bytes sent to the device, normalised there, in channels-last order."""
    while True:
        pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, device="cuda")
        images = [normalize(pixels).contiguous(memory_format=torch.channels_last) for _ in range(views)]
        yield Batch(tuple(images), torch.arange(4), torch.arange(4, device="cuda"))


def _trainer(cfg: Any, precision: str, accumulate: int = 1) -> Trainer:
    with torch.device("cuda"):
        method: Method = build_method(cfg)
    if cfg.MODEL.BN_GROUP_SIZE:
        convert_grouped_batch_norm(method, cfg.MODEL.BN_GROUP_SIZE)
    # Outside, so that a tensor made without a device lands on the CPU and fails.
    method.prepare(TrainingInfo(8, 2, 4, lambda _: _batches(method.views), 10))
    return _OnFakeGpu(
        method, build_sgd(method, cfg), _batches(method.views), precision=precision, accumulate=accumulate
    )


def _forward(trainer: Trainer, iteration: int = 0) -> MethodOutput:
    """What a step does up to the loss (backward does not work on a fake GPU)."""
    batch = next(trainer.batches)
    with trainer._autocast():
        trainer.method.before_step(iteration, batch)
    with trainer._autocast():
        output: MethodOutput = trainer.model(*batch.views)
    return output


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", method_names())
def test_every_method_stays_on_the_device(method: str, precision: str) -> None:
    with FakeTensorMode():
        trainer = _trainer(_config(method, "resnet18"), precision)
        assert trainer.scaler.is_enabled() == (precision == "fp16")
        output = _forward(trainer)
        summary = metrics.pack_metrics([output, output], sorted(output.metrics), torch.zeros((), device="cuda"), False)
    assert (output.loss.device.type, output.loss.dtype, output.loss.shape) == ("cuda", torch.float32, ())
    assert output.embedding.dtype == (trainer.half or torch.float32)
    assert output.embedding.device.type == summary.device.type == "cuda"
    assert summary.dtype == torch.float64 and summary.shape == (3 + len(output.metrics) + 2 * trainer.method.dim + 1,)


@pytest.mark.parametrize("implementation", ["for-loop", "foreach"])
@pytest.mark.parametrize("name", ["lars", "larc"])
def test_layerwise_steps_stay_on_the_device(name: str, implementation: str) -> None:
    cfg = _config("simsiam", "resnet18")
    cfg.SOLVER.update(OPTIMIZER=name, OPTIMIZER_IMPL=implementation)
    with FakeTensorMode():
        with torch.device("cuda"):
            method = build_method(cfg)
        optimizer = build_optimizer(method, cfg)
        for _ in range(2):
            for p in method.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert {p.device.type for p in [*method.parameters(), *momenta]} == {"cuda"} and len(momenta) > 60


@pytest.mark.parametrize("method", ["byol", "moco", "simsiam", "swav"])
def test_hooks_around_the_optimizer_step_stay_on_the_device_without_synchronizing(method: str) -> None:
    cfg = _config(method, "resnet18")
    cfg.SIMSIAM.TARGET_MOMENTUM = 0.9
    with FakeTensorMode():
        trainer = _trainer(cfg, "bf16")
        for iteration in range(2):
            _forward(trainer, iteration)
            _give_gradients(trainer)
            with _driver():
                trainer.method.after_backward(iteration)
                trainer.method.after_step(iteration)
        tensors = trainer.method.state_dict()
    assert {tensor.device.type for tensor in tensors.values()} == {"cuda"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_encoder_stays_on_the_device(arch: str) -> None:
    with FakeTensorMode():
        output = _forward(_trainer(_config("simsiam", arch), "bf16"))
    assert output.loss.device.type == output.embedding.device.type == "cuda"


@pytest.mark.parametrize(
    ("similarity", "symmetry", "norm"),
    [
        ("cross_entropy", "symmetric", "none"),
        ("cross_entropy", "asymmetric", "hidden"),
        ("cosine", "asymmetric_2x", "all"),
    ],
)
def test_every_loss_and_head_stays_on_the_device(similarity: str, symmetry: str, norm: str) -> None:
    cfg = _config("simsiam", "resnet18")
    cfg.SIMSIAM.update(SIMILARITY=similarity, SYMMETRY=symmetry)
    cfg.MODEL.HEAD_BN = norm
    with FakeTensorMode():
        assert _forward(_trainer(cfg, "bf16")).loss.device.type == "cuda"


@pytest.mark.parametrize("implementation", ["for-loop", "foreach"])  # torch has no fake kernel for fused
def test_step_after_the_gradients_stays_on_the_device_without_synchronizing(implementation: str) -> None:
    """Whatever waits for the device (`.item()`, `if tensor:`) raises on a fake one."""
    cfg = _config("simsiam", "resnet18")
    cfg.SOLVER.OPTIMIZER_IMPL = implementation
    with FakeTensorMode():
        trainer = _trainer(cfg, "fp32")
        output = _forward(trainer)
        _give_gradients(trainer)
        trainer.scaler.unscale_(trainer.optimizer)
        norm = trainer._gradient_norm()
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
        assert norm.device.type == metrics.pack_metrics([output], [], norm, False).device.type == "cuda"
        momenta = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
        assert momenta and all(buffer.device.type == "cuda" for buffer in momenta)
        with pytest.raises(DataDependentOutputException):
            float(norm)


def test_fp16_scaler_synchronizes_once_more() -> None:
    with FakeTensorMode():
        trainer = _trainer(_config("simsiam", "resnet18"), "fp16")
        trainer.scaler.scale(_forward(trainer).loss)
        _give_gradients(trainer)
        trainer.scaler.unscale_(trainer.optimizer)
        with pytest.raises(DataDependentOutputException):
            trainer.scaler.step(trainer.optimizer)


def _give_gradients(trainer: Trainer) -> None:
    for parameter in trainer.method.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None


def _norm_on_the_cpu(trainer: Trainer) -> None:
    trainer.method.encoder.bn1 = nn.BatchNorm2d(64)


def _constant_on_the_cpu(trainer: Trainer) -> None:
    constant = torch.ones(32)
    trainer.method.projector.register_forward_hook(lambda _module, _args, z: z * constant)


def _views_on_the_cpu(trainer: Trainer) -> None:
    trainer.batches = (Batch(tuple(view.cpu() for view in b.views), b.indices) for b in trainer.batches)


@pytest.mark.parametrize("mutate", [_norm_on_the_cpu, _constant_on_the_cpu, _views_on_the_cpu])
def test_tensor_on_the_wrong_device_fails(mutate: Callable[[Trainer], None]) -> None:
    with FakeTensorMode():
        trainer = _trainer(_config("simsiam", "resnet18"), "fp32")
        _forward(trainer)
        mutate(trainer)
        with pytest.raises(RuntimeError, match=r"device"):
            _forward(trainer)
