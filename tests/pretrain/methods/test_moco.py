"""MoCo against the released code and its authors' notebook, step by step, in float64; and what would go unnoticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain.config import check_config, defaults
from pretrain.data.dataset import Batch
from pretrain.methods import moco
from pretrain.methods.base import TrainingInfo, l2_normalize
from pretrain.methods.moco import MoCo, info_nce
from pretrain.methods.parts import momentum
from pretrain.methods.parts.momentum import FeatureQueue
from ssl_transfer.errors import UserError
from tests.pretrain.golden import narrow, narrow_momentum
from tests.pretrain.golden.ours_momentum import batches, ends, narrow_moco, trained

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "moco.json").read_text())["runs"]


@pytest.mark.parametrize("symmetry", GOLDEN)
def test_losses_gradients_weights_and_queue_equal_the_original(symmetry: str) -> None:
    golden, method = GOLDEN[symmetry], narrow_moco(symmetry)
    record = trained(method)
    assert record.losses == pytest.approx(golden["losses"], rel=1e-9)
    assert record.gradients == {
        key: pytest.approx(value, rel=1e-7, abs=1e-9) for key, value in golden["gradients"].items()
    }
    for network, tensors in ends(method).items():
        assert tensors == {key: pytest.approx(value, rel=1e-8, abs=1e-8) for key, value in golden[network].items()}
    assert method.queue.keys.sum(1).tolist() == pytest.approx(golden["queue"]["of keys"], rel=1e-8, abs=1e-9)
    assert method.queue.keys.sum(0).tolist() == pytest.approx(golden["queue"]["of channels"], rel=1e-8, abs=1e-9)
    assert int(method.queue.pointer) == golden["pointer"]


def _momentum_one_per_cent_off(_monkeypatch: pytest.MonkeyPatch) -> MoCo:
    return narrow_moco(momentum=narrow_momentum.KEY_MOMENTUM * 1.01)


def _temperature_one_per_cent_off(_monkeypatch: pytest.MonkeyPatch) -> MoCo:
    return narrow_moco(temperature=narrow_momentum.TEMPERATURE * 1.01)


def _mean(_monkeypatch: pytest.MonkeyPatch) -> MoCo:
    return narrow_moco("symmetric_mean")


def _frozen_queue(monkeypatch: pytest.MonkeyPatch) -> MoCo:
    monkeypatch.setattr(FeatureQueue, "enqueue", lambda *_: None)
    return narrow_moco()


def _gradient_to_keys(monkeypatch: pytest.MonkeyPatch) -> MoCo:
    """Keys of the query's own network, with their gradient: no momentum encoder and no stop-gradient."""
    method = narrow_moco()
    monkeypatch.setattr(method, "_key", lambda x: l2_normalize(method.projector(method.encoder(x))))
    monkeypatch.setattr(torch, "no_grad", torch.enable_grad)
    return method


def _buffers_too(monkeypatch: pytest.MonkeyPatch) -> MoCo:
    def update(target: nn.Module, online: nn.Module, m: float) -> None:
        momentum.update_ema(target, online, m)
        for ours, theirs in zip(target.buffers(), online.buffers(), strict=True):
            ours.copy_(theirs)

    monkeypatch.setattr(moco, "update_ema", update)
    return narrow_moco()


@pytest.mark.parametrize(
    "mutate", [_momentum_one_per_cent_off, _temperature_one_per_cent_off, _mean, _frozen_queue, _gradient_to_keys]
)
def test_a_change_is_detected_by_the_losses(
    monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], MoCo]
) -> None:
    assert trained(mutate(monkeypatch)).losses != pytest.approx(GOLDEN["symmetric"]["losses"], rel=1e-5)


def test_key_encoder_has_its_own_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training does not read them, the exported target backbone does."""
    golden = GOLDEN["symmetric"]["target"]
    method = _buffers_too(monkeypatch)
    assert trained(method).losses == pytest.approx(GOLDEN["symmetric"]["losses"], rel=1e-9)
    ours = ends(method)["target"]
    assert ours["encoder.bn1.weight"] == pytest.approx(golden["encoder.bn1.weight"], rel=1e-8)
    assert ours["encoder.bn1.running_mean"] != pytest.approx(golden["encoder.bn1.running_mean"], rel=1e-5)


def test_info_nce_equals_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, old = (nn.functional.normalize(torch.randn(n, 6, generator=generator).double()) for n in (4, 4, 9))
    terms = []
    for row in range(4):
        scores = [torch.exp(q[row] @ key / 0.3) for key in (k[row], *old)]
        terms.append(-torch.log(scores[0] / sum(scores)))
    assert info_nce(q, k, old, 0.3).item() == pytest.approx(float(torch.stack(terms).mean()), rel=1e-12)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_loss_is_float32_in_half_precision(half: torch.dtype) -> None:
    """Cosines that differ in the fourth digit stay different, although autocast would round them to the third."""
    method = narrow_moco().float()
    method.before_step(0, next(batches()))
    with torch.autocast("cpu", half):
        output = method(*(view.float() for view in narrow.images(0)))
    assert output.loss.dtype == torch.float32 and torch.isfinite(output.loss)
    q, k = (nn.functional.normalize(torch.randn(2, 4, 6), dim=2) for _ in range(2))
    with torch.autocast("cpu", half):
        loss = info_nce(q[0], k[0], q[1], 0.1)
    assert loss.item() == info_nce(q[0], k[0], q[1], 0.1).item()
    output.loss.backward()
    grads = [p.grad for p in method.parameters() if p.requires_grad]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)


def test_accumulated_step_updates_the_key_encoder_once_and_enqueues_all_keys() -> None:
    """Without batch normalisation the parts make the whole."""

    def method() -> MoCo:
        made = narrow_moco()
        for network in (made.encoder, made.target_encoder):
            for name, module in list(network.named_modules()):
                if isinstance(module, nn.BatchNorm2d):
                    parent, _, child = name.rpartition(".")
                    setattr(network.get_submodule(parent), child, nn.Identity())
        return made

    whole, parted = method(), method()
    views, indices = narrow.images(0), torch.arange(narrow.BATCH)
    whole.before_step(0, Batch(views, indices))
    loss = whole(*views).loss
    loss.backward()
    whole.after_backward(0)
    losses = []
    for part in range(2):
        rows = slice(4 * part, 4 * part + 4)
        views_of_part = tuple(view[rows] for view in views)
        parted.before_step(0, Batch(views_of_part, indices[rows]))
        losses.append(parted(*views_of_part).loss)
        (losses[-1] / 2).backward()
    parted.after_backward(0)
    assert torch.stack(losses).mean().item() == pytest.approx(loss.item(), rel=1e-12)
    for mine, other in zip(parted.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(parted.queue.keys.sum(0), whole.queue.keys.sum(0))
    assert int(parted.queue.pointer) == int(whole.queue.pointer) == 2 * narrow.BATCH


def _config(**keys: object) -> object:
    cfg = defaults()
    cfg.METHOD = "moco"
    cfg.MODEL.PREDICTOR, cfg.MODEL.SYNC_BN = "none", False
    cfg.SOLVER.BATCH_SIZE = 256
    for key, value in keys.items():
        section, name = key.split("__")
        cfg[section][name] = value
    return cfg


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"MOCO__QUEUE_SIZE": 65536 - 256}, ["MOCO.QUEUE_SIZE is 65280", "512 keys", "SOLVER.BATCH_SIZE 256"]),
        ({"MOCO__QUEUE_SIZE": 100, "MOCO__SYMMETRY": "asymmetric"}, ["MOCO.QUEUE_SIZE is 100", "256 keys"]),
        ({"MOCO__QUEUE_SIZE": 0}, ["MOCO.QUEUE_SIZE is 0", "1 or more"]),
        ({"MODEL__SYNC_BN": True}, ["MOCO.SHUFFLE True", "MODEL.SYNC_BN"]),
        ({"MODEL__PREDICTOR": "mlp"}, ["MODEL.PREDICTOR", "none"]),
        ({"MOCO__SYMMETRY": "symetric"}, ["MOCO.SYMMETRY", "symmetric"]),
        ({"MOCO__MOMENTUM": 1.0}, ["MOCO.MOMENTUM"]),
        ({"MOCO__TEMPERATURE": 0.0}, ["MOCO.TEMPERATURE"]),
    ],
)
def test_invalid_value_is_refused_in_one_line_with_its_key(keys: dict[str, object], named: list[str]) -> None:
    check_config(_config(MOCO__QUEUE_SIZE=65536))
    with pytest.raises(UserError) as error:
        check_config(_config(**keys))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in named)


def test_invalid_queue_size_is_refused_by_the_command_line(
    pretrain: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["METHOD", "moco", "MODEL.PREDICTOR", "none", "MODEL.SYNC_BN", "False", "MOCO.QUEUE_SIZE", "12"]
    assert pretrain(tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert "MOCO.QUEUE_SIZE is 12" in error and "SOLVER.BATCH_SIZE 4" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shuffle", [True, False])
def test_single_process_warns_that_shuffling_has_no_effect(caplog: pytest.LogCaptureFixture, shuffle: bool) -> None:
    with caplog.at_level("WARNING", logger="pretrain"):
        narrow_moco(shuffle=shuffle).prepare(TrainingInfo(8, 1, 1, batches))
    assert ("MOCO.SHUFFLE has no effect" in caplog.text) == shuffle


def test_single_process_shuffles_between_groups() -> None:
    """The keys' groups are not the queries', and a row's key is still its own."""
    seen: list[torch.Tensor] = []
    method = narrow_moco()
    method.grouped = True
    method.prepare(TrainingInfo(8, 1, 1, batches))
    method.target_encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    method.eval()  # without batch statistics a key does not hang on its company
    views = narrow.images(0)
    torch.manual_seed(0)
    method.before_step(0, Batch(views, torch.arange(narrow.BATCH)))
    method(*views)
    first = seen[0]
    assert not torch.equal(first, views[1])
    assert torch.equal(first.flatten(1).sum(1).sort().values, views[1].flatten(1).sum(1).sort().values)
    expected = method._key(views[1])
    torch.testing.assert_close(method._keys[1], expected, rtol=1e-12, atol=1e-12)


def test_only_a_recipe_without_groups_warns(
    pretrain: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["METHOD", "moco", "MODEL.PREDICTOR", "none", "MODEL.SYNC_BN", "False", "MOCO.QUEUE_SIZE", "16"]
    assert pretrain(tmp_path / "whole", *words) == 0
    assert "MOCO.SHUFFLE has no effect" in capsys.readouterr().err
    assert pretrain(tmp_path / "grouped", *words, "MODEL.BN_GROUP_SIZE", "2") == 0
    assert "MOCO.SHUFFLE has no effect" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["MODEL.BN_GROUP_SIZE", "3"], ["MODEL.BN_GROUP_SIZE is 3", "4 images"]),
        (["MODEL.BN_GROUP_SIZE", "1"], ["MODEL.BN_GROUP_SIZE is 1", "2 or more"]),
        (["MODEL.BN_GROUP_SIZE", "2", "MODEL.SYNC_BN", "True"], ["MODEL.BN_GROUP_SIZE is 2", "MODEL.SYNC_BN"]),
    ],
)
def test_invalid_groups_are_refused_in_one_line(
    pretrain: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    named: list[str],
) -> None:
    assert pretrain(tmp_path / "out", "MODEL.SYNC_BN", "False", *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in named)
    assert not (tmp_path / "out").exists()
