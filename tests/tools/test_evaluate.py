"""tools/evaluate.py: what it refuses, which weights it takes, and its result in the table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pretrain.evaluation import config
from ssl_transfer.console import call_main
from tests.pretrain.evaluation.conftest import *  # noqa: F403  (fixtures)
from tools.evaluate import main

Command = Callable[..., int]
RECIPES = sorted((Path(__file__).resolve().parents[2] / "configs" / "evaluation").glob("*.yaml"))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    return errors[0]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_loaded(recipe: Path) -> None:
    config.load_evaluation_config(recipe, recipe.stem.partition("_")[0])


def test_the_recipes_have_the_protocols_numbers() -> None:
    by_stem = {path.stem: config.load_evaluation_config(path, path.stem.partition("_")[0])[0] for path in RECIPES}
    lars = by_stem["linear_imagenet_lars_b4096_90ep"].LINEAR
    assert (lars.OPTIMIZER, lars.TRUST, lars.BASE_LR, lars.BATCH_SIZE) == ("lars", 0.001, 0.1, 4096)
    assert (lars.EPOCHS, lars.MOMENTUM, lars.WEIGHT_DECAY, lars.CACHE_FEATURES) == (90, 0.9, 0.0, False)
    assert (lars.CROP_SCALE, lars.FLIP_PROB) == ((0.08, 1.0), 0.5)
    assert by_stem["linear_imagenet_lars_b4096_90ep_paper_lr"].LINEAR.BASE_LR == 0.02
    sgd = by_stem["linear_imagenet_sgd_b256_90ep"].LINEAR
    assert (sgd.OPTIMIZER, sgd.BASE_LR, sgd.BATCH_SIZE, sgd.WEIGHT_DECAY) == ("sgd", 30.0, 256, 0.0)
    imagenet, cifar = by_stem["knn_imagenet_k200_t0.2"], by_stem["knn_cifar10_k200_t0.1"]
    assert (imagenet.KNN.K, imagenet.KNN.T, imagenet.DATA.SIZE, imagenet.DATA.RESIZE) == (200, 0.2, 224, 256)
    assert (cifar.KNN.K, cifar.KNN.T, cifar.DATA.SIZE, cifar.DATA.RESIZE) == (200, 0.1, 32, 0)


def test_knn_prints_and_writes(evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("knn") == 0
    printed = capsys.readouterr().out
    assert evaluate("knn", "--output", str(tmp_path / "out")) == 0
    made = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (made["kind"], made["status"], made["settings"]["KNN.K"]) == ("knn", "done", 5)
    assert f"top1 {made['metrics']['top1']:.2f} %" in printed and made["metrics"]["top1"] > 60
    assert not any(key.startswith("LINEAR") for key in made["settings"])


def test_a_linear_result_is_a_cell_of_table_4(
    evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools.table import main as table

    assert evaluate("linear", "--output", str(tmp_path / "out")) == 0
    made = json.loads((tmp_path / "out" / "result.json").read_text())
    capsys.readouterr()
    assert call_main(table, [str(tmp_path), "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["tables"]
    assert found["layout"] == "table4"
    (row,) = [row for row in found["rows"] if row["kind"] == "result"]
    assert row["key"] == "simsiam_r50_b256_100ep_base"
    assert row["cells"]["linear_100ep.linear"]["values"]["top1"]["mean"] == pytest.approx(made["metrics"]["top1"])


def test_another_evaluation_is_refused_and_an_unfinished_one_needs_resume(
    evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--output", str(tmp_path / "out"))
    assert evaluate("knn", *words) == 0
    capsys.readouterr()
    assert evaluate("knn", *words, "KNN.T", "0.1") == 2
    assert "KNN.T is 0.2 there and 0.1 here" in said(capsys)
    assert evaluate("linear", *words) == 2
    assert "kind is 'knn' there" in said(capsys)
    (tmp_path / "out" / "result.json").unlink()
    assert evaluate("knn", *words) == 2
    assert "--resume" in said(capsys)
    assert evaluate("knn", *words, "--resume") == 0


def test_a_foreign_result_is_not_overwritten(
    evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text("a pre-training's")
    assert evaluate("knn", "--output", str(tmp_path)) == 2
    assert str(tmp_path / "result.json") in said(capsys)
    assert (tmp_path / "result.json").read_text() == "a pre-training's"


def spoil(data: Path, what: str) -> None:
    """Make one thing wrong with a copy of the labelled set."""
    if what == "no val":
        shutil.rmtree(data / "val")
    elif what == "class only in train":
        shutil.rmtree(data / "val" / "red")
    elif what == "class only in val":
        shutil.rmtree(data / "train" / "red")
    elif what == "one class":
        for split in ("train", "val"):
            for name in ("red", "green"):
                shutil.rmtree(data / split / name)
    elif what == "loose image":
        shutil.move(data / "train" / "red" / "00.png", data / "train" / "00.png")
    elif what == "broken image":
        (data / "val" / "red" / "01.png").write_bytes(b"no image")
    elif what == "large image":
        from PIL import Image

        Image.new("RGB", (40, 32)).save(data / "train" / "red" / "00.png")
    elif what == "no images":
        for split in ("train", "val"):
            shutil.rmtree(data / split)
            (data / split).mkdir()


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("no val", "has no folder val/ (it has: train)"),
        ("class only in train", "class red is in train/ but not in val/"),
        ("class only in val", "class red is in val/ but not in train/"),
        ("one class", "only one class (blue)"),
        ("loose image", "00.png lies in no class folder"),
        ("broken image", "01.png cannot be read as an image"),
        ("large image", "00.png: it is 40×32, not 32×32"),
        ("no images", "holds no images"),
    ],
)
def test_bad_data_is_one_line(
    evaluate: Command, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, line: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    spoil(data, what)
    assert evaluate("knn", "--data", str(data)) == 2
    assert line in said(capsys)


@pytest.mark.parametrize(
    ("kind", "words", "line"),
    [
        ("knn", ["KNN.K", "31"], "KNN.K is 31, but"),
        ("knn", ["KNN.L", "3"], "unknown key 'KNN.L'; did you mean KNN.T, KNN.K"),
        ("knn", ["LINEAR.EPOCHS", "3"], "a knn evaluation does not read LINEAR.EPOCHS"),
        ("linear", ["KNN.K", "3"], "a linear evaluation does not read KNN.K"),
        ("linear", ["LINEAR.OPTIMIZER", "adam"], "it must be lars or sgd"),
        ("knn", ["DATA.RESIZE", "16"], "DATA.RESIZE is 16"),
        ("knn", ["--data", "/nowhere"], "--data /nowhere does not exist"),
        ("knn", ["--weights", "/nowhere.safetensors"], "/nowhere.safetensors does not exist"),
        ("knn", ["--pretrain-epochs", "200"], "records 100"),
    ],
)
def test_wrong_use_is_one_line_and_nothing_is_written(
    evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, words: list[str], line: str
) -> None:
    assert evaluate(kind, "--output", str(tmp_path / "out"), *words) == 2
    assert line in said(capsys)
    assert not (tmp_path / "out").exists()


def test_linear_needs_an_output(evaluate: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("linear") == 2
    assert "needs --output" in said(capsys)


def weights_file(folder: Path, weights: Path, what: str) -> Path:
    """A file that is no backbone file, or a damaged one."""
    tensors = safetensors.torch.load_file(weights)
    with safetensors.safe_open(weights, "pt") as stream:
        metadata = stream.metadata()
    del metadata["digest"]  # what is wrong is no damage
    file = folder / "w.safetensors"
    if what == "raw checkpoint":
        torch.save({"state_dict": tensors}, folder / "w.pth.tar")
        return folder / "w.pth.tar"
    if what == "detectron2":
        (folder / "w.pkl").write_bytes(b"\x80\x04}q\x00.")
        return folder / "w.pkl"
    if what == "cut short":
        file.write_bytes(weights.read_bytes()[:5000])
        return file
    if what == "no metadata":
        safetensors.torch.save_file(tensors, file)
        return file
    if what == "tensor missing":
        tensors.pop("bn1.weight")
    elif what == "other arch":
        metadata["arch"] = "resnet34"
    elif what == "unknown arch":
        metadata["arch"] = "resnet19"
    elif what == "nan":
        tensors["bn1.weight"][0] = float("nan")
    safetensors.torch.save_file(tensors, file, metadata)
    return file


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("raw checkpoint", "w.pth.tar w.pth.safetensors --to safetensors"),
        ("detectron2", "tools/convert.py"),
        ("cut short", "w.safetensors"),
        ("no metadata", "--to safetensors"),
        ("tensor missing", "bn1.weight is missing in a resnet18"),
        ("other arch", "in a resnet34"),
        ("unknown arch", "did you mean resnet18"),
        ("nan", "not finite"),
    ],
)
def test_weights_that_cannot_be_evaluated_are_one_line(
    evaluate: Command, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, line: str
) -> None:
    assert evaluate("knn", "--weights", str(weights_file(tmp_path, weights, what))) == 2
    assert line in said(capsys)


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, ["--help"]) == 0
    assert "examples:" in capsys.readouterr().out
