"""torch.compile: the same numbers, tensors of the same names, and one line where it cannot work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.config import defaults
from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Compiled, Trainer
from pretrain.methods.base import Method, MethodOutput
from pretrain.optim.optimizer import build_sgd
from ssl_transfer.errors import UserError
from tests.pretrain.engine.narrow_runs import apart

Command = Callable[..., int]


def _fails(_module: nn.Module) -> Callable[..., Any]:
    from torch._dynamo.exc import BackendCompilerFailed

    def call(*_: Any) -> None:
        raise BackendCompilerFailed("inductor", RuntimeError("no compiler"), None)

    return call


def test_a_compiler_that_fails_is_one_line(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", _fails)
    assert pretrain(tmp_path / "out", "ENGINE.COMPILE", "True") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "ENGINE.COMPILE is True, but torch.compile failed" in said[0]
    assert "no compiler" in said[0] and "leave ENGINE.COMPILE False" in said[0]


def test_errors_of_the_module_are_not_reported_as_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module: module)

    class Broken(nn.Module):
        def forward(self, _view: torch.Tensor) -> None:
            raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        Compiled(Broken())(torch.zeros(1))


class _Small(Method):
    """A method that is compiled in seconds."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
        self.encoder, self.predictor, self.dim = nn.Sequential(*layers), None, 5  # type: ignore[assignment]

    def forward(self, *views: torch.Tensor) -> MethodOutput:
        first, second = (self.encoder(view) for view in views)
        return MethodOutput((first - second.detach()).square().mean(), first.detach())


def _small_trainer(compile_model: bool) -> Trainer:
    torch.manual_seed(0)
    method = _Small().double()
    batches = [Batch((torch.rand(6, 3, 8, 8).double(), torch.rand(6, 3, 8, 8).double()), torch.arange(6))] * 3
    return Trainer(method, build_sgd(method, defaults()), iter(batches), compile_model=compile_model)


@pytest.mark.slow
def test_compiled_steps_are_equal_except_for_rounding() -> None:
    plain, compiled = _small_trainer(False), _small_trainer(True)
    for trainer in (plain, compiled):
        trainer.train(0, 3)
    assert isinstance(compiled.model, Compiled)
    assert compiled.latest["loss"] == pytest.approx(plain.latest["loss"], rel=1e-12)
    assert apart(compiled.method.state_dict(), plain.method.state_dict()) < 1e-12  # float64


@pytest.mark.slow
def test_without_a_compiler_it_is_refused() -> None:
    from torch._inductor import config

    torch._dynamo.reset()
    with (
        config.patch({"cpp.cxx": ("/no/such/compiler",), "fx_graph_cache": False}),
        pytest.raises(UserError, match=r"ENGINE.COMPILE is True, but torch.compile failed"),
    ):
        Compiled(nn.Sequential(nn.Linear(7, 5), nn.ReLU()))(torch.rand(3, 7))
