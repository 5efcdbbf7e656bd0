"""A method with a momentum encoder writes two backbone files; both can be converted and evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pretrain.evaluation.result import weights_name
from ssl_transfer.console import call_main
from ssl_transfer.files import sha256_of
from tools import convert

Command = Callable[..., int]
BYOL = ["METHOD", "byol", "MODEL.PROJ_LAYERS", "2", "MODEL.HEAD_BN", "hidden", "SOLVER.EPOCHS", "1"]


def test_both_branches_are_exported_and_converted(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert pretrain(out, *BYOL, "MODEL.ARCH", "resnet50") == 0
    result = json.loads((out / "result.json").read_text())
    state = torch.load(out / "checkpoint_0000003.pth", weights_only=True)["method"]
    for key, branch, prefix in (("backbone", "online", "encoder."), ("backbone_target", "target", "target_encoder.")):
        file = out / result[key]
        assert result[f"{key}_sha256"] == sha256_of(file)
        tensors = safetensors.torch.load_file(file)
        assert len(tensors) == 265 and all(
            torch.equal(tensor, state[prefix + name]) for name, tensor in tensors.items()
        )
        assert call_main(convert.main, [str(file), str(tmp_path / f"{branch}.safetensors")]) == 0
        manifest = json.loads((tmp_path / f"{branch}.manifest.json").read_text())
        assert (manifest["source"]["layout"], manifest["source"]["branch"]) == ("own", branch)
        assert manifest["count"] == 265 and manifest["proof"]["tensors"] == "265/265"
        assert manifest["origin"]["method"] == "byol" and manifest["toy"] is False
    both = [safetensors.torch.load_file(tmp_path / f"{branch}.safetensors") for branch in ("online", "target")]
    assert both[0].keys() == both[1].keys() and not torch.equal(both[0]["conv1.weight"], both[1]["conv1.weight"])
    capsys.readouterr()
    words = [str(out / "backbone_target.safetensors"), str(tmp_path / "x.safetensors"), "--branch", "online"]
    assert call_main(convert.main, words) == 2, "the file does not hold that branch"
    assert "online" in capsys.readouterr().err and not (tmp_path / "x.safetensors").exists()


def test_without_a_momentum_encoder_there_is_one_file(pretrain: Command, tmp_path: Path) -> None:
    assert pretrain(tmp_path / "out", "SOLVER.EPOCHS", "1") == 0
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors")] == ["backbone.safetensors"]
    assert (
        not {"backbone_target", "backbone_target_sha256"}
        & json.loads((tmp_path / "out" / "result.json").read_text()).keys()
    )


def test_weights_are_named_after_their_run() -> None:
    assert weights_name(Path("/runs/byol/backbone.safetensors")) == "byol"
    assert weights_name(Path("/runs/byol/backbone_target.safetensors")) == "byol (target)"
    assert weights_name(Path("/runs/byol/other.safetensors")) == "other"
