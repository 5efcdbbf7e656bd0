"""Synchronised batch normalisation on CPUs: two processes see what one process with both batches sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain.models.batch_norm import CPUSyncBatchNorm, convert_sync_batch_norm
from ssl_transfer.training.distributed import launch
from tests.pretrain.models.normed import small_network


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 100 + torch.randn(10, 3, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randn(10, 8, generator=generator, dtype=torch.float64)


def _gradients(model: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two forward passes, as with two views; everything that comes of them."""
    x = x.clone().requires_grad_()
    loss = (model(x) * weights).sum() + (model(2 * x).square() * weights).sum()
    loss.backward()
    found = {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, **{f"buffer {name}": b.clone() for name, b in model.named_buffers()}, "x": x.grad, "loss": loss}


def _one_of_two(folder: str) -> None:
    import torch.distributed as dist

    rank = dist.get_rank()
    x, weights = _inputs()
    share = slice(0, 3) if rank == 0 else slice(3, 10)  # batches of different sizes
    model = convert_sync_batch_norm(small_network(), torch.device("cpu"))
    torch.save(_gradients(model, x[share], weights[share]), Path(folder) / f"{rank}.pt")


def test_statistics_and_gradients_equal_those_of_the_whole_batch(tmp_path: Path) -> None:
    launch(_one_of_two, (str(tmp_path),), num_processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    whole = _gradients(small_network(), *_inputs())
    for name, expected in whole.items():
        if name == "x":
            ours = torch.cat([first[name], second[name]])
        elif name.startswith("buffer"):
            assert torch.equal(first[name], second[name]), name
            ours = first[name]
        else:
            ours = first[name] + second[name]
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9, msg=name)


def test_conversion_keeps_names_parameters_and_mode() -> None:
    model = small_network().eval()
    names, first = list(model.state_dict()), model[1].weight
    converted = convert_sync_batch_norm(model, torch.device("cpu"))
    assert list(converted.state_dict()) == names
    assert [type(m) for m in converted.modules()].count(CPUSyncBatchNorm) == 2
    assert converted[1].weight is first and not converted[1].training
    x, _ = _inputs()
    torch.testing.assert_close(converted(x), small_network().eval()(x))  # evaluation needs no process group


def test_sync_batch_norm_of_torch_is_used_on_gpus() -> None:
    converted = convert_sync_batch_norm(small_network(), torch.device("cuda"))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in converted.modules()) == 2


def test_single_value_per_channel_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected"):
        CPUSyncBatchNorm(3)(torch.zeros(3))
