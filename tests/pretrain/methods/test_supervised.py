"""Supervised training: the reference classifier's steps, what a run writes, resumption, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from detectron2.utils import comm
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torchvision.datasets import ImageFolder

from pretrain.config import defaults, load_config
from pretrain.data.dataset import Batch
from pretrain.data.index import find_images
from pretrain.engine.build_trainer import build_trainer
from pretrain.engine.monitors import KnnMonitor, Monitor, ValidationMonitor, knn_sets, validation_set
from pretrain.engine.trainer import Trainer
from pretrain.evaluation import backbone_features
from pretrain.methods.base import TrainingInfo
from pretrain.methods.parts.losses import topk_correct
from pretrain.methods.supervised import Supervised
from pretrain.models.encoder import build_encoder
from pretrain.optim.optimizer import build_optimizer
from ssl_transfer.console import call_main
from ssl_transfer.errors import UserError
from ssl_transfer.training.distributed import launch
from tools.pretrain import main

CLASSES, WIDTH = 7, 512
RECIPE = """
METHOD: supervised
DATA: {SIZE: 32, WORKERS: 0}
AUGMENT: {JITTER_PROB: 0.0, GRAY_PROB: 0.0, BLUR_PROB: 0.0}
MODEL: {ARCH: resnet18}
SOLVER: {BATCH_SIZE: 7, BASE_LR: 1.0, EPOCHS: 2, SCHEDULE: steps, STEPS: [1]}
MONITOR: {COLLAPSE: {THRESHOLD: 0.0}, VALIDATION: {PERIOD: 1, RESIZE: 0}}
LOG: {PERIOD: 1, TENSORBOARD: False}
"""
Command = Callable[..., int]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven classes: 3 training images each, and 2 validation images but for one that has 3."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.RandomState(0)
    for split, count in (("train", 3), ("val", 2)):
        for label in range(CLASSES):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count + (split == "val" and label == 3)):
                pixels = rng.randint(0, 200, (4, 4, 3)) + 8 * label
                image = Image.fromarray(pixels.astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
                image.save(place / f"{number}.png")
    return folder


@pytest.fixture
def train(world: Path, tmp_path: Path) -> Command:
    """`train(output, *words)`: the command line on the small world; 3 steps an epoch, 2 epochs."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)

    def command(output: Path, *words: str) -> int:
        return call_main(main, ["--config-file", str(recipe), "--output", str(output), "DATA.ROOT", str(world), *words])

    return command


def rows(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "time" not in k} for row in found]


def state(folder: Path) -> dict[str, torch.Tensor]:
    stored = torch.load(folder / "checkpoint_0000006.pth", weights_only=True)
    momenta = {f"m{n}": entry["momentum_buffer"] for n, entry in stored["optimizer"]["state"].items()}
    return {**stored["method"], **momenta}


def equal(ours: Path, theirs: Path) -> bool:
    mine, other = state(ours), state(theirs)
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def method_and_reference() -> tuple[Supervised, nn.Module]:
    """Ours, and torchvision's classifier with the same weights, in float64."""
    torch.manual_seed(0)
    method = Supervised(*build_encoder("resnet18", zero_init_residual=False)).double()
    method.prepare(TrainingInfo(8, 4, 4, lambda _: iter(()), CLASSES))
    reference = torchvision.models.resnet18(num_classes=CLASSES).double()
    layer = {f"fc.{name}": tensor for name, tensor in method.classifier.state_dict().items()}
    reference.load_state_dict({**method.encoder.state_dict(), **layer})
    return method, reference


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)

    def batch() -> Batch:
        views = torch.randn(8, 3, 32, 32, generator=generator).double()
        return Batch((views,), torch.arange(8), torch.randint(0, CLASSES, (8,), generator=generator))

    return [batch() for _ in range(4)]


def apart(method: Supervised, reference: nn.Module) -> float:
    layer = {f"fc.{name}": tensor for name, tensor in method.classifier.state_dict().items()}
    ours, theirs = {**method.encoder.state_dict(), **layer}, reference.state_dict()
    assert ours.keys() == theirs.keys()
    gaps = [(ours[n] - theirs[n]).abs().max() / theirs[n].abs().max() for n in ours if ours[n].is_floating_point()]
    return float(max(gaps))


@pytest.mark.parametrize("faster", [1.0, 1.01])
def test_four_steps_equal_the_reference_classifier(faster: float) -> None:
    """pytorch/examples imagenet main.py: torchvision's ResNet, mean cross-entropy, SGD with momentum and decay."""
    method, reference = method_and_reference()
    cfg = defaults()
    cfg.SOLVER.update(BASE_LR=0.1 * faster, BATCH_SIZE=256, WEIGHT_DECAY=1e-4)
    trainer = Trainer(method, build_optimizer(method, cfg), iter(batches()))
    trainer.train(0, 4)
    theirs = torch.optim.SGD(reference.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    for batch in batches():
        logits = reference(batch.views[0])
        loss = nn.CrossEntropyLoss()(logits, batch.labels)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
    assert batch.labels is not None
    if faster != 1.0:
        assert apart(method, reference) > 1e-4
        return
    assert apart(method, reference) < 1e-11
    assert trainer.latest["loss"] == pytest.approx(loss.item(), rel=1e-12)
    order = logits.argsort(dim=1, descending=True)
    for k in (1, 5):
        right = [int(label) in row[:k].tolist() for label, row in zip(batch.labels, order, strict=True)]
        assert trainer.latest[f"train_top{k}"] == pytest.approx(100 * np.mean(right))


def test_accumulated_loss_and_metrics_are_means() -> None:
    method, _ = method_and_reference()
    method.eval()
    batch = batches()[0]
    assert batch.labels is not None
    outputs = []
    for part in (slice(0, 4), slice(4, 8), slice(0, 8)):
        method.before_step(0, Batch((batch.views[0][part],), batch.indices[part], batch.labels[part]))
        outputs.append(method(batch.views[0][part]))
    first, second, whole = outputs
    assert float(whole.loss) == pytest.approx(float(first.loss + second.loss) / 2)
    for name in ("train_top1", "train_top5"):
        assert whole.metrics[name] == (first.metrics[name] + second.metrics[name]) / 2


def test_topk_correct_counts_the_k_highest() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.4, 0.3, 0.2, 0.0, 0.6], [6.0, 5, 4, 3, 2, 1, 0]])
    for labels, top1, top5 in (([6, 0], 2, 2), ([1, 6], 0, 1), ([5, 4], 0, 1), ([0, 5], 0, 0)):
        found = topk_correct(logits, torch.tensor(labels))
        assert (int(found["top1"]), int(found["top5"])) == (top1, top5)
    assert list(topk_correct(logits[:, :5], torch.tensor([0, 0]))) == ["top1"]
    assert int(topk_correct(logits[:0], torch.tensor([], dtype=torch.int64))["top1"]) == 0


def test_layer_depends_on_the_seed_only() -> None:
    first, second = method_and_reference()[0], method_and_reference()[0]
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    bound = WIDTH**-0.5  # torch's own initialisation of a linear layer
    assert 0.9 * bound < float(first.classifier.weight.abs().max()) <= bound


def test_run_validates_and_exports_backbone_and_classifier(train: Command, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(out) == 0
    measured = [row for row in rows(out) if "val_top1" in row]
    assert [(row["epoch"], row["iteration"]) for row in measured] == [(0.0, 0), (1.0, 2), (2.0, 5)]
    assert all(0 <= row["train_top1"] <= row["train_top5"] <= 100 for row in rows(out) if "loss" in row)
    assert [row["lr"] for row in rows(out) if "lr" in row] == pytest.approx([7 / 256] * 3 + [0.7 / 256] * 3)
    result = json.loads((out / "result.json").read_text())
    assert (result["classes"], result["dim"], result["method"]) == (CLASSES, WIDTH, "supervised")
    assert result["final"].keys() == {"loss", "std", "train_top1", "train_top5"}
    assert result["validation"] == {name: measured[-1][name] for name in ("val_top1", "val_top5")}
    with safe_open(out / "classifier.safetensors", "pt") as stream:
        facts = stream.metadata()
    assert json.loads(facts["classes"]) == [f"class{n}" for n in range(CLASSES)]
    assert (facts["format"], facts["backbone_sha256"]) == ("classifier/1", result["backbone_sha256"])
    assert result["validation"] == pytest.approx(_by_torchvision(out, world))


def _by_torchvision(run: Path, world: Path) -> dict[str, float]:
    """The accuracies of the run's two files in torchvision's network on torchvision's data set."""
    backbone, layer = load_file(run / "backbone.safetensors"), load_file(run / "classifier.safetensors")
    assert not any(name.startswith("fc.") for name in backbone) and layer["fc.weight"].shape == (CLASSES, WIDTH)
    network = torchvision.models.resnet18(num_classes=CLASSES).eval()
    missing = network.load_state_dict({**backbone, **layer}, strict=False)
    assert not missing.unexpected_keys and all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    images = ImageFolder(str(world / "val"), torchvision.transforms.ToTensor())
    normalise = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert len(images) == 15
    with torch.no_grad():
        found = [(network(normalise(pixels)[None])[0].argsort(descending=True), label) for pixels, label in images]
    return {f"val_top{k}": 100 * np.mean([label in order[:k].tolist() for order, label in found]) for k in (1, 5)}


def test_validation_does_not_change_the_run(train: Command, tmp_path: Path) -> None:
    assert train(tmp_path / "watched") == 0
    assert train(tmp_path / "plain", "MONITOR.VALIDATION.PERIOD", "0") == 0
    assert equal(tmp_path / "watched", tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "result.json").read_text())["validation"] is None
    assert [row for row in rows(tmp_path / "watched") if "val_top1" not in row] == rows(tmp_path / "plain")


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "larc"])
def test_killed_and_resumed_run_ends_the_same(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ["CHECKPOINT.PERIOD", "2", "SOLVER.OPTIMIZER", optimizer]
    assert train(whole, *words) == 0
    step = Trainer.run_step

    def crash(self: Trainer) -> None:
        if self.iter == 5:
            raise RuntimeError("the power went")
        step(self)

    monkeypatch.setattr(Trainer, "run_step", crash)
    with pytest.raises(RuntimeError):
        train(broken, *words)
    monkeypatch.setattr(Trainer, "run_step", step)
    assert train(broken, *words, "--resume") == 0
    assert equal(broken, whole) and rows(broken) == rows(whole)
    for name in ("backbone.safetensors", "classifier.safetensors"):
        assert load_file(broken / name).keys() == load_file(whole / name).keys()
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, broken)]
    assert results[0]["validation"] == results[1]["validation"] and results[0]["final"] == results[1]["final"]


@pytest.mark.slow
def test_two_processes_evaluate_each_image_once(train: Command, tmp_path: Path) -> None:
    """At the start the weights are the same: so are the accuracies, to the last image."""
    words = ["SOLVER.BATCH_SIZE", "14"]
    assert train(tmp_path / "one", *words) == 0
    assert train(tmp_path / "two", *words, "--num-gpus", "2") == 0
    one, two = ([row for row in rows(tmp_path / name) if "val_top1" in row] for name in ("one", "two"))
    assert len(two) == 3 and two[0] == one[0]
    steps = [[row for row in rows(tmp_path / name) if "loss" in row] for name in ("one", "two")]
    for a, b in zip(*steps, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
    assert steps[0][0]["train_top5"] == pytest.approx(steps[1][0]["train_top5"])


def _trainer_and_monitors(folder: Path, world: Path) -> tuple[Trainer, list[Monitor]]:
    """Before the first step; validation and kNN sets are distributed over the processes in chunks of 4 images."""
    backbone_features.CHUNK = 4
    words = ["DATA.ROOT", str(world), "MODEL.SYNC_BN", "False", "SOLVER.BATCH_SIZE", "14"]
    words += ["MONITOR.KNN.PERIOD", "1", "MONITOR.KNN.K", "3", "MONITOR.KNN.RESIZE", "0"]
    cfg, index = load_config(folder / "recipe.yaml", overrides=words), find_images(world)
    sets, validation = knn_sets(cfg), validation_set(cfg, index)
    assert sets and validation
    trainer = build_trainer(cfg, index, torch.device("cpu"), start=0, total=2)
    return trainer, [ValidationMonitor(cfg, validation, folder, 1), KnnMonitor(cfg, sets, folder, 1)]


def _measure_with_own_statistics(folder: Path, world: Path) -> None:
    trainer, monitors = _trainer_and_monitors(folder, world)
    for buffer in trainer.method.encoder.buffers():
        buffer += comm.get_rank()
    own = {name: tensor.clone() for name, tensor in trainer.method.state_dict().items()}
    for monitor in monitors:
        monitor.catch_up(trainer, 0)
    after = trainer.method.state_dict()
    assert all(torch.equal(after[name], own[name]) for name in own)
    if comm.is_main_process():
        torch.save(own, folder / "saved.pth")


def test_processes_with_own_statistics_measure_the_saved_network(world: Path, tmp_path: Path) -> None:
    """With SYNC_BN off each has its own, and rank 0's are saved: a resumed process, which has them, measures the same.

    The processes' own statistics are afterwards what they were.
    """
    for folder in (tmp_path, tmp_path / "resumed"):
        folder.mkdir(exist_ok=True)
        (folder / "recipe.yaml").write_text(RECIPE)
    launch(_measure_with_own_statistics, (tmp_path, world), 2)
    trainer, monitors = _trainer_and_monitors(tmp_path / "resumed", world)
    trainer.method.load_state_dict(torch.load(tmp_path / "saved.pth"))
    for monitor in monitors:
        monitor.catch_up(trainer, 0)
    assert rows(tmp_path) == rows(tmp_path / "resumed") and len(rows(tmp_path)) == 2


def _unlabelled(folder: Path, world: Path) -> Path:
    folder.mkdir()
    for number, file in enumerate(sorted((world / "train").rglob("*.png"))):
        shutil.copy(file, folder / f"{number}.png")
    return folder


def test_missing_data_is_reported_in_one_line_before_anything_is_written(
    train: Command, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat, single, other = _unlabelled(tmp_path / "flat", world), tmp_path / "single", tmp_path / "other"
    shutil.copytree(flat, single / "only")
    shutil.copytree(world, other)
    (other / "val" / "class6").rename(other / "val" / "horse")
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{file}\n" for file in sorted((world / "train").rglob("*.png"))))
    for words, said in (
        ([str(flat)], f"0.png in {flat} lies in no class folder"),
        ([str(listed)], f"{listed} names none"),
        ([str(single)], "METHOD supervised needs two classes or more; "),
        ([str(other)], "class horse is not among the training set's"),
        ([str(world), "MONITOR.VALIDATION.FOLDER", "test"], "has no folder test/ (it has: train, val)"),
        ([str(world), "MONITOR.VALIDATION.RESIZE", "20"], "MONITOR.VALIDATION.RESIZE is 20; it must be 0 or at least"),
    ):
        out = tmp_path / "out"
        assert train(out, "DATA.ROOT", *words) == 2, words
        errors = capsys.readouterr().err.strip()
        assert said in errors and "\n" not in errors and not out.exists(), errors


@pytest.mark.parametrize(
    ("key", "value"), [("MODEL.DIM", "128"), ("SOLVER.FIX_PRED_LR", "False"), ("AUGMENT.SECOND.BLUR_PROB", "0.1")]
)
def test_keys_of_heads_and_second_views_are_refused(tmp_path: Path, key: str, value: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    with pytest.raises(UserError, match=f"{key} is .*; METHOD supervised does not read it"):
        load_config(recipe, overrides=[key, value])


def test_validation_needs_a_classifier(
    config: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[Any] = ["DATA.ROOT", str(images), "MONITOR.VALIDATION.PERIOD", "1"]
    assert call_main(main, ["--config-file", str(config), "--output", str(tmp_path / "out"), *words]) == 2
    assert "METHOD simsiam has no classifier" in capsys.readouterr().err and not (tmp_path / "out").exists()
