"""Result files as models: what is written is what was read, and a malformed file is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssl_transfer.errors import UserError
from ssl_transfer.formats import FileFormat, SealedFormat, digest_of
from ssl_transfer.formats.results import EvaluationResult, LrSearchRecord, PretrainResult, TransferResult

ENVIRONMENT = {"python": "3.11", "torch": "2.14", "commit": "0123", "host": "node1", "devices": ["cpu"]}
TRIAL: dict[str, Any] = {
    "format": "transfer-result/1",
    "status": "done",
    "task": "voc07",
    "seed": 1,
    "toy": False,
    "metrics": {"bbox": {"AP": 16.8, "AP50": 35.9, "AP75": None, "per_class": {"cat": 20.1, "sofa": None}}},
    "divergence": None,
    "comparable": {"ok": False, "reasons": ["total batch is 2, not 16"]},
    "settings": {
        "total_batch": 2,
        "lr": 0.02,
        "iterations": 9000,
        "steps": [7000, 8000],
        "warmup_iters": 100,
        "warmup_factor": 0.001,
        "norm": "BN",
        "precise_bn": None,
        "amp": False,
        "evaluator": "voc",
        "metric": "voc2007",
        "train_splits": ["voc_2007_trainval"],
        "test_split": "voc_2007_test",
        "num_processes": 1,
        "reference_gpus": None,
    },
    "weights": {"name": "scratch", "path": None, "sha256": None, "manifest": None},
    "config": {"file": "voc07.yaml", "overrides": ["SEED", "1"], "overlay": None},
    "guards": {"weights_loaded": "scratch", "extra_norm": True, "frozen": 0},
    "environment": ENVIRONMENT,
    "timing": {"train_seconds": 1.5, "eval_seconds": 0.5, "seconds_per_iteration": None},
}
HELD_OUT = {"split": "voc_2007_trainval", "fraction": 0.2, "seed": 0, "images": 1000, "sha256": "a" * 64}
CANDIDATE = {**TRIAL, "role": "lr_search", "select_on": "heldout", "heldout": HELD_OUT}
SEARCHED = {"file": "lr_search.json", "sha256": "b" * 64, "chosen": 0.02, "row": "a", "task": "voc07", "seed": 1000}
WITH_SEARCH = {**TRIAL, "lr_search": {**SEARCHED, "split": "voc_2007_test", "metric": "bbox/AP"}}
PRETRAINED: dict[str, Any] = {
    "format": "pretrain-result/1",
    "status": "done",
    "method": "moco_v2",
    "arch": "resnet50",
    "epochs": 200,
    "iterations": 2000,
    "dim": 128,
    "final": {"loss": 6.5, "std": 0.08, "acc1": 70.0},
    "std_alarm": None,
    "seconds": 7200.125,
    "backbone": "backbone.safetensors",
    "backbone_sha256": "c" * 64,
    "backbone_target": "backbone_target.safetensors",
    "backbone_target_sha256": "d" * 64,
    "toy": False,
    "num_processes": 8,
    "environment": ENVIRONMENT,
}
EVALUATED: dict[str, Any] = {
    "format": "evaluation-result/1",
    "status": "done",
    "kind": "knn",
    "seed": 0,
    "toy": False,
    "metrics": {"top1": 60.5},
    "divergence": None,
    "settings": {"KNN.K": 200, "classes": 10, "augmentation": False},
    "weights": {
        "name": "r",
        "path": "b.safetensors",
        "sha256": "e" * 64,
        "arch": "resnet50",
        "origin": {"epochs": 100},
    },
    "config": {"recipe": "knn", "data": "imagenet"},
    "environment": {**ENVIRONMENT, "timm": None},
    "timing": {"seconds": 12.5},
}
POINT = {"lr": 0.02, "value": 47.0, "status": "done", "folder": "lr0.02", "result_sha256": "f" * 64}
SEARCH: dict[str, Any] = {
    "format": "lr-search/1",
    "row": "a",
    "task": "voc07",
    "trial_task": "voc07",
    "seed": 1000,
    "split": "voc_2007_test",
    "select_on": "test",
    "heldout": None,
    "metric": "bbox/AP",
    "points": [POINT, {"lr": 0.1, "value": None, "status": "missing", "folder": None, "result_sha256": None}],
    "chosen": 0.02,
    "weights": {"name": "scratch", "sha256": None},
    "settings": {"total_batch": 16, "test_split": "voc_2007_test"},
    "toy": False,
}
FILES = [
    (TransferResult, TRIAL),
    (TransferResult, CANDIDATE),
    (TransferResult, WITH_SEARCH),
    (TransferResult, {**TRIAL, "status": "diverged", "metrics": None, "divergence": {"iteration": 3, "lr": 0.1}}),
    (PretrainResult, PRETRAINED),
    (EvaluationResult, EVALUATED),
    (EvaluationResult, {**EVALUATED, "a_newer_key": {"x": [1, 2.5]}}),
    (LrSearchRecord, SEARCH),
]


@pytest.mark.parametrize(("model", "content"), FILES)
def test_a_file_is_written_byte_for_byte_as_it_was_read(
    model: type[FileFormat], content: dict[str, Any], tmp_path: Path
) -> None:
    """Its digest, which files of earlier releases lack, is the last key."""
    file = tmp_path / "file.json"
    model.parse(content, file).write(file)
    if issubclass(model, SealedFormat):
        content = {**content, "digest": digest_of(content)}
    assert file.read_text() == json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    model.read(file).write(file)
    assert file.read_text() == json.dumps(content, indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"status": "running"}, "status"),
        ({"task": ""}, "task"),
        ({"seed": True}, "seed"),
        ({"toy": 0}, "toy"),
        ({"metrics": {"bbox": {"AP": "47"}}}, "metrics.bbox.AP"),
        ({"metrics": {"bbox": {"AP": float("nan")}}}, "metrics.bbox.AP"),
        ({"settings": []}, "settings"),
        ({"format": "transfer-result/2"}, "format"),
    ],
)
def test_a_malformed_file_is_one_line_with_file_and_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as error:
        TransferResult.parse({**TRIAL, **changes}, "run/result.json")
    assert str(error.value).startswith(f"run/result.json: {key}: ")


@pytest.mark.parametrize("model", sorted({model for model, _ in FILES}, key=lambda m: m.__name__))
def test_every_field_is_described(model: type[FileFormat]) -> None:
    schema = model.model_json_schema()
    for section in [schema, *schema.get("$defs", {}).values()]:
        assert [name for name, field in section.get("properties", {}).items() if not field.get("description")] == []
