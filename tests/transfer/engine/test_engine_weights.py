"""Starting from converted weights: the file tools/convert.py makes, the block it brings, the proof that it arrived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK, UserError
from transfer.engine.prepare import TrialRequest, prepare
from transfer.engine.trial import build_seeded_detector, run_trial
from transfer.engine.weights import find_weights, load_weights
from transfer.weights.converted import read_converted

RequestFactory = Callable[..., TrialRequest]
WHOLE = ("MODEL.RESNETS.STEM_OUT_CHANNELS", "64", "MODEL.RESNETS.RES2_OUT_CHANNELS", "256")
WHOLE += ("MODEL.RESNETS.WIDTH_PER_GROUP", "64", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "[]")
pytestmark = pytest.mark.slow  # a whole ResNet-50 is written, proven, and trained for one step


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tools.convert import main

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50().state_dict(), folder / "raw.pth")
    assert call_main(main, [str(folder / "raw.pth"), str(folder / "own.pkl"), "--no-verify"]) == EXIT_OK
    return folder / "own.pkl"


def test_a_trial_starts_from_exactly_these_tensors(make_request: RequestFactory, converted: Path) -> None:
    outcome = run_trial(make_request(*WHOLE, weights=str(converted)))
    assert outcome.content["guards"]["weights_loaded"] == "265/265 exact"
    weights = outcome.content["weights"]
    assert weights["path"] == str(converted) and len(weights["sha256"]) == 64
    assert weights["manifest"] == read_converted(converted)[1].as_dict()
    assert weights["name"] == "own"


def test_the_folder_of_a_finished_trial_is_a_source(
    make_request: RequestFactory, converted: Path, tmp_path: Path
) -> None:
    """With the preprocessing of its config.yaml, what it was trained on, and the tensors of its last checkpoint."""
    from tools.convert import main

    request = make_request(*WHOLE, weights=str(converted))
    run_trial(request)
    assert call_main(main, [str(request.output), str(tmp_path / "again.pkl")]) == EXIT_OK
    tensors, manifest = read_converted(tmp_path / "again.pkl")
    trained = torch.load(request.output / "model_final.pth", weights_only=False)["model"]
    assert torch.equal(tensors["res5.2.conv3.weight"], trained["roi_heads.res5.2.conv3.weight"])
    assert torch.equal(tensors["stem.conv1.norm.running_var"], trained["backbone.stem.conv1.norm.running_var"])
    assert manifest.preprocessing == read_converted(converted)[1].preprocessing and manifest.warnings == []
    assert manifest.origin is not None and manifest.origin["method"].startswith("own+") and manifest.toy
    assert "config.yaml" in manifest.source.rule and manifest.proof is not None


def test_a_tensor_that_was_not_loaded_is_an_error(
    make_request: RequestFactory, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, _ = prepare(make_request(*WHOLE, weights=str(converted)))
    model = build_seeded_detector(prepared.cfg)
    assert load_weights(model, prepared.weights) == "265/265 exact"
    monkeypatch.setattr("transfer.engine.weights.DetectionCheckpointer.load", lambda self, path: None)
    model = build_seeded_detector(prepared.cfg)
    with pytest.raises(UserError, match="/265 tensors of the weights are in the model"):
        load_weights(model, prepared.weights)


def test_another_depth_is_refused(converted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"own\.pkl is a resnet50, but MODEL\.RESNETS\.DEPTH is 101"):
        find_weights(str(converted), 101, tmp_path)


def test_a_contradicting_key_stops_the_run(make_request: RequestFactory, converted: Path) -> None:
    with pytest.raises(UserError, match=r"INPUT\.FORMAT is BGR, but the weights need RGB"):
        prepare(make_request(*WHOLE, "INPUT.FORMAT", "BGR", weights=str(converted)))


def test_other_weights_are_another_trial(make_request: RequestFactory, converted: Path) -> None:
    request = make_request(*WHOLE, weights=str(converted))
    prepare(request)
    with pytest.raises(UserError, match=r"holds another trial: weights is '[0-9a-f]{64}' there and 'scratch' here"):
        prepare(replace(request, weights="scratch"))


@pytest.mark.parametrize("name", ["zoo:simsiam_200ep_b256", "hf-hub:timm/resnet50.a1_in1k"])
def test_several_processes_convert_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"first python tools/convert.py {name} OUT.pkl"):
        find_weights(name, 50, tmp_path, single_process=False)
