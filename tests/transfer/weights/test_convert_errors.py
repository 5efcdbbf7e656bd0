"""Wrong input of all kinds ends in one line, exit code 2 and no file."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_USAGE
from tests.transfer.weights.made_checkpoints import bare, heads, moco, prefixed, resnet, save, simsiam
from tools.convert import main

Tensors = dict[str, torch.Tensor]
Make = Callable[[Path, Tensors], Path]


def check_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, source: Path, *words: str) -> str:
    """Convert, expect an error of one line and no file, and return the line."""
    out = tmp_path / "out"
    assert call_main(main, [str(source), str(out / "weights.pkl"), *words]) == EXIT_USAGE
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert not out.exists() or list(out.iterdir()) == []
    return error


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


class Foreign:
    """A class the converter does not know."""


def test_a_moco_named_file_without_encoder_q(tmp_path: Path, capsys: pytest.CaptureFixture[str], r50: Tensors) -> None:
    """MoCo's own converter writes a file of zero tensors here."""
    source = save(tmp_path / "moco_v2_800ep_pretrain.pth.tar", {"state_dict": prefixed(r50, "module.encoder_z.")})
    assert "no known layout" in check_refused(capsys, tmp_path, source)
    line = check_refused(capsys, tmp_path, source, "--source", "moco")
    assert "no module.encoder_q.*" in line and "module.encoder_z" in line


def test_a_simsiam_file_with_source_moco(tmp_path: Path, capsys: pytest.CaptureFixture[str], r50: Tensors) -> None:
    source = save(tmp_path / "moco.pth.tar", simsiam(r50))
    assert "no module.encoder_q.*" in check_refused(capsys, tmp_path, source, "--source", "moco")


def test_moco_with_only_the_momentum_branch(tmp_path: Path, capsys: pytest.CaptureFixture[str], r50: Tensors) -> None:
    source = save(tmp_path / "moco.pth.tar", {"state_dict": prefixed(r50, "module.encoder_k.")})
    assert "add --branch target" in check_refused(capsys, tmp_path, source)


def test_a_missing_branch(tmp_path: Path, capsys: pytest.CaptureFixture[str], r50: Tensors) -> None:
    source = save(tmp_path / "simsiam.pth.tar", simsiam(r50))
    assert "has no target encoder" in check_refused(capsys, tmp_path, source, "--branch", "target")


@pytest.mark.parametrize("part", [0, 1, 40, 5_000, 200_000, 0.5, 0.99, -1])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_truncated_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], r50: Tensors, part: float, legacy: bool
) -> None:
    source = tmp_path / "simsiam.pth.tar"
    torch.save(simsiam(r50), source, _use_new_zipfile_serialization=not legacy)
    size = source.stat().st_size
    os.truncate(source, int(part * size) if 0 < part < 1 else part % size)
    line = check_refused(capsys, tmp_path, source)
    assert any(word in line for word in ("cut short", "empty", "not a checkpoint")), line


def test_another_depth_of_basic_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1]).state_dict()
    line = check_refused(capsys, tmp_path, save(tmp_path / "resnet10.pth", made))
    assert "neither ResNet-18 nor ResNet-34" in line and "resnet18, resnet34, resnet50" in line


@pytest.mark.parametrize(("arch", "name"), [("wide_resnet50_2", "a wide ResNet"), ("resnext50_32x4d", "a ResNeXt")])
def test_other_widths(tmp_path: Path, capsys: pytest.CaptureFixture[str], arch: str, name: str) -> None:
    source = save(tmp_path / "checkpoint.pth", getattr(torchvision.models, arch)().state_dict())
    assert name in check_refused(capsys, tmp_path, source)


def test_a_deep_stem(tmp_path: Path, capsys: pytest.CaptureFixture[str], r50: Tensors) -> None:
    """timm's resnet50d: conv1 is three 3×3 convolutions."""
    body = {name: tensor for name, tensor in r50.items() if not name.startswith("conv1")}
    stem = {f"conv1.{i}.weight": torch.zeros(32, 32, 3, 3) for i in (0, 3, 6)}
    source = save(tmp_path / "resnet50d.pth", {**body, **stem, **heads("fc.weight", "fc.bias")})
    assert "deep stem" in check_refused(capsys, tmp_path, source)


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_a_command_in_a_pickle_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], r50: Tensors, suffix: str
) -> None:
    mark, source = tmp_path / "ran", tmp_path / f"evil.{suffix}"
    content = {"state_dict": {"x": torch.zeros(1)}, "loss": Command(mark)}
    if suffix == "pkl":
        source.write_bytes(pickle.dumps({"model": {}, "loss": Command(mark)}))
    else:
        torch.save(content, source)
    assert "system" in check_refused(capsys, tmp_path, source)
    assert not mark.exists()


def test_a_foreign_class_without_tensors_needs_no_trust(tmp_path: Path, r50: Tensors) -> None:
    source = save(tmp_path / "simsiam.pth.tar", {**simsiam(r50), "settings": Foreign()})
    for words in ([], ["--trust-checkpoint"]):
        assert call_main(main, [str(source), str(tmp_path / "out.pkl"), "--no-verify", *words]) == 0


def test_a_trusted_file_that_needs_a_missing_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "pretrain_res50x1.pkl"
    source.write_bytes(b"\x80\x02cno_such_module.inner\nThing\n.")
    assert "needs the module no_such_module" in check_refused(capsys, tmp_path, source, "--trust-checkpoint")
    source.write_bytes(b"\x80\x02chaiku._src.data_structures\nFlatMapping\n.")
    assert "trained with SAME padding" in check_refused(capsys, tmp_path, source)


def test_harmless_objects_of_trainers_need_no_trust(tmp_path: Path, r50: Tensors) -> None:
    extra = {"args": argparse.Namespace(lr=0.1), "best": np.float64(68.1), "seen": np.int64(7), "ok": np.bool_(True)}
    source = save(tmp_path / "simsiam.pth.tar", {**simsiam(r50), **extra})
    assert call_main(main, [str(source), str(tmp_path / "out.pkl"), "--no-verify"]) == 0


def _changed(name: str, tensor: torch.Tensor | None) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        new = {key: value for key, value in tensors.items() if key != name}
        return new if tensor is None else {**new, name: tensor}

    return change


def _nan(tensors: Tensors) -> Tensors:
    weight = tensors["layer2.1.conv2.weight"].clone()
    weight[3, 2, 1, 0] = float("nan")
    return {**tensors, "layer2.1.conv2.weight": weight}


NEGATIVE = torch.ones(64).index_fill(0, torch.tensor([5]), -1e-3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_changed("layer3.2.bn2.bias", None), "264 of 265 tensors of a resnet50; 1 are missing: layer3.2.bn2.bias"),
        (_changed("layer3.5.conv1.weight", None), "1 are missing: layer3.5.conv1.weight"),
        (
            _changed("layer4.3.conv1.weight", torch.zeros(1)),
            "1 tensors more than a resnet50 has: layer4.3.conv1",
        ),
        (_changed("bn1.weight", torch.ones(65)), "bn1.weight has shape [65], a resnet50 has [64]"),
        (_changed("bn1.weight", torch.ones(64, dtype=torch.int32)), "bn1.weight is int32"),
        (_changed("bn1.running_var", NEGATIVE), "bn1.running_var contains a negative variance"),
        (_changed("bn1.running_var", torch.zeros(64)), "bn1.running_var is zero in every channel"),
        (_changed("bn1.num_batches_tracked", None), "317 tensors, neither 265 nor (with num_batches_tracked) 318"),
        (_nan, "layer2.1.conv2.weight contains NaN"),
    ],
)
def test_wrong_tensors_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], r50: Tensors, change: Any, expected: str
) -> None:
    source = save(tmp_path / "simsiam.pth.tar", simsiam(change(r50)))
    assert expected in check_refused(capsys, tmp_path, source)


def test_a_file_of_another_tool_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], r50: Tensors
) -> None:
    source = save(tmp_path / "simsiam.pth.tar", simsiam(r50))
    out = tmp_path / "thesis.pkl"
    out.write_text("years of work")
    assert call_main(main, [str(source), str(out), "--no-verify"]) == EXIT_USAGE
    assert "was not written by this tool" in capsys.readouterr().err and out.read_text() == "years of work"
    assert call_main(main, [str(source), str(source), "--no-verify", "--to", "detectron2"]) == EXIT_USAGE
    capsys.readouterr()
    fresh = tmp_path / "weights.pkl"
    assert [call_main(main, [str(source), str(fresh), "--no-verify"]) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("text", ["", "<html>404</html>", "version https://git-lfs.github.com/spec/v1\n", "hello"])
def test_files_that_are_not_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    source = tmp_path / "weights.pth"
    source.write_text(text)
    check_refused(capsys, tmp_path, source)
    check_refused(capsys, tmp_path, tmp_path)
    check_refused(capsys, tmp_path, tmp_path / "missing.pth")


def test_unknown_names_get_a_suggestion(tmp_path: Path, capsys: pytest.CaptureFixture[str], r50: Tensors) -> None:
    source = save(tmp_path / "moco.pth.tar", moco(bare(r50), resnet(seed=1)))
    assert "did you mean simsiam" in check_refused(capsys, tmp_path, source, "--source", "simsam")
    assert "did you mean detectron2" in check_refused(capsys, tmp_path, source, "--to", "detectron")
