"""Trials of the FPN tasks and of the frozen ones: from their configs to their results, on a few drawn images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_transfer.errors import UserError
from transfer.engine import trial
from transfer.engine.guards import check_frozen, frozen_tensors
from transfer.engine.prepare import TrialRequest, prepare
from transfer.engine.trial import build_seeded_detector, run_trial

RequestFactory = Callable[..., TrialRequest]
FROZEN = {"voc0712_frozen": 215, "coco_fpn_frozen": 265}
"""Frozen tensors: of stem to res4, and of the whole ResNet."""


@pytest.mark.parametrize("task", ["coco_fpn", "voc0712_fpn"])
def test_an_fpn_task_gives_a_result(make_request: RequestFactory, task: str) -> None:
    result = run_trial(make_request(task=task)).content
    assert (result["status"], result["task"], result["toy"]) == ("done", task, True)
    assert result["metrics"].keys() == ({"bbox", "segm"} if task == "coco_fpn" else {"bbox"})
    norms = 69 if task == "coco_fpn" else 65
    expected = {"weights_loaded": "scratch", "extra_norm": False, "frozen": 0, "norm": "BatchNorm2d", "norms": norms}
    assert result["guards"] == expected and result["settings"]["norm"] == "BN"
    reasons = "; ".join(result["comparable"]["reasons"])
    assert "MODEL.ANCHOR_GENERATOR.SIZES" in reasons and "MODEL.FPN.OUT_CHANNELS" in reasons and "NORM" not in reasons


@pytest.mark.parametrize("task", FROZEN)
def test_frozen_tensors_end_as_they_began_and_the_result_says_so(make_request: RequestFactory, task: str) -> None:
    request = make_request(task=task)
    result = run_trial(request).content
    prepared, _ = prepare(make_request(task=task, resume=True))
    model = build_seeded_detector(prepared.cfg)
    before = frozen_tensors(model, prepared.cfg)
    assert len(before) == result["guards"]["frozen"] == FROZEN[task]
    assert any(name.endswith("running_var") for name in before)  # precise BN updated those of the heads alone
    saved = torch.load(request.output / "model_final.pth", weights_only=True)["model"]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, saved[name])}
    assert not moved & before.keys() and "proposal_generator.rpn_head.conv.weight" in moved
    statistics = {name for name in moved if name.endswith("running_mean")}
    heads = (
        {"roi_heads.res5.norm", "roi_heads.res5.0.shortcut.norm"}
        if task == "voc0712_frozen"
        else {"backbone.fpn_lateral2.norm", "roi_heads.box_head.conv1.norm"}
    )
    assert {f"{name}.running_mean" for name in heads} <= statistics
    assert result["guards"]["frozen_sha256"] == check_frozen(before, before)["frozen_sha256"]


def test_another_seed_has_other_frozen_tensors_and_so_another_digest() -> None:
    assert check_frozen({}, {}) == {}
    one, other = ({"backbone.stem.conv1.weight": digit * 64} for digit in "ab")
    assert check_frozen(one, one) != check_frozen(other, other)
    with pytest.raises(UserError, match=r"1 of 1 frozen tensors changed in training: backbone\.stem\.conv1\.weight"):
        check_frozen(one, other)


def update_mean(norm: Any, _inputs: Any, _output: Any) -> None:
    """A hook that does to a frozen norm what a trained one does."""
    norm.running_mean += 1e-6


@pytest.mark.parametrize("name", ["res3.1.conv2.weight", "res2.0.conv1.norm.running_mean"])
def test_a_tensor_that_training_changes_leaves_no_result(
    make_request: RequestFactory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A mutation past the guards of the built model: one weight is trained, or one running statistic updated."""
    build = trial.build_seeded_detector

    def thawed(cfg: Any) -> torch.nn.Module:
        model: Any = build(cfg)
        resnet = model.backbone.bottom_up
        if name.endswith("weight"):
            resnet.get_parameter(name).requires_grad_(True)
        else:
            norm = resnet.get_submodule(name.removesuffix(".running_mean"))
            norm.register_forward_hook(update_mean)
        return model  # type: ignore[no-any-return]

    monkeypatch.setattr(trial, "build_seeded_detector", thawed)
    request = make_request("SOLVER.BASE_LR", "0.5", task="coco_fpn_frozen")
    with monkeypatch.context() as patch:
        guards = {"extra_norm": False, "frozen": 265, "norm": "BatchNorm2d", "norms": 16}
        patch.setattr(trial, "check_model", lambda _model, _cfg: guards)
        with pytest.raises(
            UserError, match=rf"1 of 265 frozen tensors changed in training: backbone\.bottom_up\.{name}"
        ):
            run_trial(request)
    assert not (request.output / "result.json").exists()
    if name.endswith("weight"):
        with pytest.raises(UserError, match=rf"{name} is trained"):
            run_trial(make_request(task="coco_fpn_frozen", output=request.output.with_name("again")))


def test_the_cpu_overlay_trains_an_fpn(root: Path, toy_detection: Path, tmp_path: Path) -> None:
    request = TrialRequest(
        config_file=root / "configs/transfer/coco_fpn.yaml",
        overlay=root / "configs/overlays/cpu.yaml",
        overrides=(
            *("TRANSFER.DATA_ROOT", str(toy_detection), "SOLVER.MAX_ITER", "2", "TEST.PRECISE_BN.NUM_ITER", "1"),
            *("MODEL.RESNETS.DEPTH", "18"),
        ),
        weights="scratch",
        seed=1,
        output=tmp_path / "trial",
    )
    result = run_trial(request).content
    assert result["status"] == "done" and result["guards"]["norms"] == 36
    assert any("MODEL.RESNETS.DEPTH is 18, not 50" in reason for reason in result["comparable"]["reasons"])


@pytest.mark.slow
def test_two_processes_train_an_fpn_and_agree_on_what_is_frozen(make_request: RequestFactory, tmp_path: Path) -> None:
    results = [
        run_trial(make_request(task="coco_fpn_frozen", num_gpus=count, output=tmp_path / str(count))).content
        for count in (1, 2)
    ]
    assert [result["settings"]["norm"] for result in results] == ["BN", "naiveSyncBN"]
    assert results[0]["guards"]["frozen_sha256"] == results[1]["guards"]["frozen_sha256"]
