"""A whole trial: its files, its result, and what asking again does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ssl_transfer.errors import UserError
from ssl_transfer.files import read_json, sha256_of
from ssl_transfer.formats.detections import DETECTIONS_FILE, EVALUATED_FILE, Detections
from tests.transfer.engine.broken_off import logged
from transfer.engine.prepare import TrialRequest
from transfer.engine.trial import run_trial
from transfer.engine.trial_folder import TrialCheckpoints
from transfer.resampling.weighted_ap import average_precision

RequestFactory = Callable[..., TrialRequest]


@pytest.fixture(scope="module")
def voc(
    root: Path, toy_detection: Path, narrow_overlay: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrialRequest, dict[str, Any]]:
    """A finished trial on VOC with a checkpoint and an evaluation on the way."""
    words = ("TRANSFER.DATA_ROOT", str(toy_detection), "TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "1")
    request = TrialRequest(
        config_file=root / "configs/transfer/voc07.yaml",
        overlay=narrow_overlay,
        overrides=words,
        weights="scratch",
        seed=1,
        output=tmp_path_factory.mktemp("runs") / "trial",
    )
    outcome = run_trial(request)
    assert outcome.status == "done"
    return request, outcome.content


def test_the_result_has_the_documented_content(voc: tuple[TrialRequest, dict[str, Any]], root: Path) -> None:
    request, result = voc
    assert (result["format"], result["status"], result["task"], result["seed"], result["toy"]) == (
        "transfer-result/1",
        "done",
        "voc07",
        1,
        True,
    )
    assert result["divergence"] is None
    bbox = result["metrics"]["bbox"]
    assert set(result["metrics"]) == {"bbox"} and set(bbox) == {"AP", "AP50", "AP75", "per_class"}
    assert set(bbox["per_class"]) == {"bus", "cat", "sheep"}
    assert bbox["AP"] == pytest.approx(sum(bbox["per_class"].values()) / 3)
    assert result["settings"] == {
        "total_batch": 2,
        "lr": 0.02,
        "iterations": 4,
        "steps": [3],
        "warmup_iters": 1,
        "warmup_factor": 0.001,
        "norm": "BN",
        "precise_bn": "synchronised",
        "amp": False,
        "evaluator": "exact",
        "metric": "voc2007",
        "train_splits": ["voc_2007_trainval"],
        "test_split": "voc_2007_test",
        "num_processes": 1,
        "reference_gpus": None,
    }
    assert result["weights"] == {"name": "scratch", "path": None, "sha256": None, "manifest": None}
    assert result["config"] == {
        "file": str(request.config_file),
        "overrides": list(request.overrides),
        "overlay": str(request.overlay),
    }
    assert result["guards"] == {
        "weights_loaded": "scratch",
        "extra_norm": True,
        "frozen": 0,
        "norm": "BatchNorm2d",
        "norms": 54,
    }
    assert result["environment"]["torch"] == torch.__version__.split("+")[0] and result["environment"]["devices"]
    assert all(result["timing"][key] > 0 for key in ("train_seconds", "eval_seconds", "seconds_per_iteration"))
    assert result == read_json(request.output / "result.json")


def test_the_folder_has_detectron2_s_files(voc: tuple[TrialRequest, dict[str, Any]]) -> None:
    request, _ = voc
    folder = request.output
    assert yaml.safe_load((folder / "config.yaml").read_text())["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 3
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "loss_rpn_cls", "lr", "bbox/AP50", "data_time"} <= {key for line in lines for key in line}
    assert list(folder.glob("events.out.tfevents.*"))
    assert "nothing frozen" in (folder / "log.txt").read_text()
    # Three numbered checkpoints were written (the fourth iteration's is the final one), the last two are kept.
    kept = ["model_0000001.pth", "model_0000002.pth", "model_final.pth"]
    assert sorted(file.name for file in folder.glob("*.pth")) == kept
    assert (folder / "last_checkpoint").read_text().strip() == "model_final.pth"


def test_detectron2_s_checkpointer_loads_the_final_checkpoint(voc: tuple[TrialRequest, dict[str, Any]]) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    from transfer.engine.prepare import prepare
    from transfer.engine.trial import build_seeded_detector

    request, _ = voc
    prepared, _ = prepare(replace(request, resume=True))
    model = build_seeded_detector(prepared.cfg)
    DetectionCheckpointer(model).load(str(request.output / "model_final.pth"))
    saved = torch.load(request.output / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_trial_stays_finished(voc: tuple[TrialRequest, dict[str, Any]], resume: bool) -> None:
    request, result = voc
    before = {file: file.stat().st_mtime_ns for file in request.output.iterdir()}
    (request.output / ".writer.lock").touch()  # of a process that was killed after its result
    outcome = run_trial(replace(request, resume=resume))
    assert (outcome.status, outcome.content) == ("already", result)
    assert not (request.output / ".writer.lock").exists()
    assert {file: file.stat().st_mtime_ns for file in request.output.iterdir()} == before


def test_a_folder_of_another_trial_is_refused(voc: tuple[TrialRequest, dict[str, Any]]) -> None:
    request, _ = voc
    with pytest.raises(UserError, match="holds another trial: SEED is 1 there and 2 here; choose another --output"):
        run_trial(replace(request, seed=2))
    other = (*request.overrides, "SOLVER.BASE_LR", "0.1")
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LR is 0\.02 there and 0\.1 here"):
        run_trial(replace(request, overrides=other, resume=True))


def test_run_only_settings_may_differ(voc: tuple[TrialRequest, dict[str, Any]]) -> None:
    request, _ = voc
    other = (*request.overrides, "DATALOADER.NUM_WORKERS", "1", "SOLVER.CHECKPOINT_PERIOD", "9")
    assert run_trial(replace(request, overrides=other)).status == "already"


def test_eval_only_measures_the_newest_checkpoint_again(voc: tuple[TrialRequest, dict[str, Any]]) -> None:
    request, result = voc
    outcome = run_trial(replace(request, eval_only=True))
    assert outcome.status == "evaluated" and outcome.file.name == "evaluation.json"
    assert outcome.content["checkpoint"] == "model_final.pth" and outcome.content["iteration"] == 3
    assert outcome.content["metrics"] == result["metrics"]
    assert read_json(request.output / "result.json") == result
    found = Detections.read(request.output / EVALUATED_FILE, outcome.content["detections"]["sha256"])
    assert found.write(request.output / "again") == result["detections"]["sha256"]  # the same bytes


def test_the_detections_are_those_of_the_metrics(voc: tuple[TrialRequest, dict[str, Any]]) -> None:
    request, result = voc
    assert result["detections"]["file"] == DETECTIONS_FILE
    found = Detections.read(request.output / DETECTIONS_FILE, result["detections"]["sha256"])
    assert (found.metric, found.test_split, found.toy) == ("voc2007", "voc_2007_test", True)
    bbox = result["metrics"]["bbox"]
    assert average_precision(found.matches["bbox"], 3, "voc2007") == {key: bbox[key] for key in ("AP", "AP50", "AP75")}
    assert {name: len(values) for name, values in found.resamples["bbox"].items()} == {
        "AP": 2000,
        "AP50": 2000,
        "AP75": 2000,
    }
    assert len(found.score) and found.masks is None


def test_killed_before_its_result_it_writes_the_same_detections(
    voc: tuple[TrialRequest, dict[str, Any]], tmp_path: Path
) -> None:
    request, result = voc
    shutil.copytree(request.output, tmp_path / "trial")
    (tmp_path / "trial/result.json").unlink()
    (tmp_path / "trial" / DETECTIONS_FILE).write_bytes(b"of another day")
    (tmp_path / "trial/.detections.safetensors.0a1b.tmp").touch()
    outcome = run_trial(replace(request, output=tmp_path / "trial", resume=True))
    assert outcome.content["detections"] == result["detections"]
    assert sha256_of(tmp_path / "trial" / DETECTIONS_FILE) == result["detections"]["sha256"]
    assert not list((tmp_path / "trial").glob(".*.tmp"))


def test_the_two_voc_evaluators_agree(voc: tuple[TrialRequest, dict[str, Any]]) -> None:
    request, result = voc
    other = (*request.overrides, "TRANSFER.EVALUATOR", "detectron2")
    metrics = run_trial(replace(request, overrides=other, eval_only=True)).content["metrics"]["bbox"]
    assert {key: metrics[key] for key in ("AP", "AP50", "AP75")} == pytest.approx(
        {key: result["metrics"]["bbox"][key] for key in ("AP", "AP50", "AP75")}, abs=1e-9
    )


def test_eval_only_needs_a_trial(make_request: RequestFactory) -> None:
    with pytest.raises(UserError, match=r"--eval-only: .* holds no trial"):
        run_trial(make_request(eval_only=True))


def test_coco_measures_boxes_and_masks(make_request: RequestFactory, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_trial(make_request("TRANSFER.KEEP_MASKS", "True", task="coco"))
    assert set(outcome.content["metrics"]) == {"bbox", "segm"}
    assert set(outcome.content["metrics"]["segm"]["per_class"]) == {"bus", "cat", "sheep"}
    found = Detections.read(outcome.file.parent / DETECTIONS_FILE, outcome.content["detections"]["sha256"])
    for branch, values in outcome.content["metrics"].items():
        ours = average_precision(found.matches[branch], 3, "coco")
        assert ours == {key: values[key] for key in ours}
    assert found.masks is not None and len(found.masks) == len(found.score)
    assert outcome.content["settings"]["evaluator"] == "hotcoco"
    assert capsys.readouterr().out == ""  # what an evaluator prints goes to the log
    assert "Average Precision" in (outcome.file.parent / "log.txt").read_text()
    assert len(list((outcome.file.parent / "predictions").glob("*.jpg"))) == 4


def test_an_unfinished_trial_requires_resume(make_request: RequestFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_request("SOLVER.CHECKPOINT_PERIOD", "1")

    def power_cut(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(TrialCheckpoints, "save_final", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run_trial(request)
    assert not (request.output / "result.json").exists()
    with pytest.raises(UserError, match=r"holds an unfinished trial \(model_0000002.pth\); add --resume"):
        run_trial(request)
    assert run_trial(replace(request, resume=True)).status == "done"


def test_foreign_checkpoints_are_not_touched(make_request: RequestFactory) -> None:
    request = make_request(resume=True)
    request.output.mkdir()
    (request.output / "last_checkpoint").write_text("model_0000005.pth")
    with pytest.raises(UserError, match="holds checkpoints of something else"):
        run_trial(request)
    assert [file.name for file in request.output.iterdir()] == ["last_checkpoint"]


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(
    make_request: RequestFactory,
) -> None:
    request = make_request("SOLVER.CHECKPOINT_PERIOD", "1", resume=True)
    first = run_trial(request).content
    lines = logged(request.output)
    file = request.output / "model_final.pth"
    for damage in ("cut short", "one bit"):
        (request.output / "result.json").unlink()
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "one bit" else content[:1000])
        assert run_trial(request).content["metrics"] == first["metrics"]
        assert logged(request.output) == lines
        assert f"{file} is damaged" in (request.output / "log.txt").read_text() and file.exists()
    assert (request.output / "model_final.pth.damaged").exists() and (
        request.output / "model_final.pth.damaged2"
    ).exists()
    (request.output / "result.json").unlink()
    for left in request.output.glob("model_*"):
        left.unlink()
    with pytest.raises(UserError, match=r"last_checkpoint names model_final.pth"):
        run_trial(request)
