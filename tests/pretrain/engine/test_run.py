"""A small run by its command line: the files it writes, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch

from pretrain.engine.trainer import Trainer
from ssl_transfer.files import sha256_of

Command = Callable[..., int]


def _metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line on stderr (log lines begin with the hour)."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_writes_the_files_of_the_formats_page(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert pretrain(out, "TOY", "True", "LOG.TENSORBOARD", "True") == 0
    assert "finished: " in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["format"] == "pretrain-result/1" and result["status"] == "done"
    assert (result["method"], result["arch"], result["dim"], result["toy"]) == ("simsiam", "resnet18", 16, True)
    assert (result["epochs"], result["iterations"]) == (2, 6)
    assert result["backbone_sha256"] == sha256_of(out / result["backbone"])
    rows = _metrics(out)
    assert [row["iteration"] for row in rows] == list(range(6))
    assert rows[-1]["loss"] == result["final"]["loss"] and rows[-1]["std"] == result["final"]["std"]
    assert [row["lr"] for row in rows] == pytest.approx([0.05] * 3 + [0.025] * 3)
    assert {row["lr_predictor"] for row in rows} == {0.05}
    assert [row["epoch"] for row in rows] == pytest.approx([(i + 1) / 3 for i in range(6)])
    assert all(-1 <= row["loss"] <= 1 and 0 < row["std"] <= 16**-0.5 for row in rows)
    assert "time" in rows[-1] and "data_time" in rows[-1]
    assert (out / "last_checkpoint").read_text() == "checkpoint_0000006.pth\n"
    curves = {"loss", "std", "std_alarm", "grad_norm", "lr", "lr_predictor", "epoch", "data_time", "data_time_share"}
    assert curves <= set(rows[-1]) and curves <= _tensorboard_curves(out / "tensorboard")
    log = (out / "log.txt").read_text()
    assert "lr 0.025 (predictor 0.05) · " in log and re.search(r"images/s · data \d+% · ETA", log)
    assert result["std_alarm"] is None


def _tensorboard_curves(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return set(EventAccumulator(str(folder)).Reload().Tags()["scalars"])


def test_the_backbone_file_describes_itself(pretrain: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert pretrain(out) == 0
    with safetensors.safe_open(out / "backbone.safetensors", "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
    assert (metadata["format"], metadata["arch"], metadata["branch"]) == ("backbone/1", "resnet18", "online")
    assert json.loads(metadata["preprocessing"])["mean"] == [123.675, 116.28, 103.53]
    origin = json.loads(metadata["origin"])
    assert (origin["method"], origin["recipe"], origin["epochs"], origin["iteration"]) == ("simsiam", "small", 2, 6)
    assert origin["toy"] is False and "BASE_LR: 3.2" in origin["config"]
    assert set(origin) == {"method", "recipe", "epochs", "epoch", "iteration", "config", "toy", "commit", "versions"}
    saved = torch.load(out / "checkpoint_0000006.pth", weights_only=True)["method"]
    kept = {n[8:]: t for n, t in saved.items() if n.startswith("encoder.") and not n.endswith("tracked")}
    assert names == set(kept) and all(torch.equal(tensors[name], kept[name]) for name in names)
    assert not any(name.startswith("fc.") for name in names)


def test_the_backbone_file_names_its_views(pretrain: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert pretrain(out, "AUGMENT.STYLE", "simclr", "DATA.PIPELINE", "opencv", "SOLVER.EPOCHS", "1") == 0
    with safetensors.safe_open(out / "backbone.safetensors", "pt") as file:
        metadata = file.metadata()
    preprocessing = json.loads(metadata["preprocessing"])
    assert (preprocessing["mean"], preprocessing["std"]) == ([0, 0, 0], [255, 255, 255])
    assert "STYLE: simclr" in json.loads(metadata["origin"])["config"]


def test_the_last_checkpoints_are_kept(pretrain: Command, tmp_path: Path) -> None:
    assert pretrain(tmp_path / "out", "CHECKPOINT.PERIOD", "2", "CHECKPOINT.KEEP", "3") == 0
    found = sorted(path.name for path in (tmp_path / "out").glob("checkpoint_*"))
    assert found == ["checkpoint_0000003.pth", "checkpoint_0000004.pth", "checkpoint_0000006.pth"]


def test_checkpoints_of_every_n_epochs_are_permanent(pretrain: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert pretrain(out, "SOLVER.EPOCHS", "5", "CHECKPOINT.KEEP", "1", "CHECKPOINT.KEEP_EVERY", "2") == 0
    assert _checkpoints(out) == [6, 12, 15]


def _checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name[11:18]) for path in folder.glob("checkpoint_*.pth"))


def test_only_what_the_run_wrote_is_removed(pretrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, out = Trainer.run_step, tmp_path / "out"

    def visited(self: Trainer) -> None:
        if self.iter == 4:  # a user puts files there, one that looks like ours
            (out / "checkpoint_0000001.pth").write_text("the user's")
            (out / "checkpoint_best.pth").write_text("the user's too")
        if self.iter == 5 and not (out / "went").exists():
            (out / "went").touch()
            raise RuntimeError("the power went")
        step(self)

    monkeypatch.setattr(Trainer, "run_step", visited)
    words = ["CHECKPOINT.PERIOD", "2", "CHECKPOINT.KEEP"]
    with pytest.raises(RuntimeError):
        pretrain(out, *words, "5")
    assert pretrain(out, *words, "1", "--resume") == 0  # prunes what was written before it was resumed
    assert (out / "checkpoint_0000001.pth").read_text() == "the user's"
    assert (out / "checkpoint_best.pth").read_text() == "the user's too"
    (out / "checkpoint_0000001.pth").unlink(), (out / "checkpoint_best.pth").unlink()
    assert _checkpoints(out) == [6]


def test_checkpoints_without_a_config_are_refused(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert pretrain(out) == 0
    (out / "config.yaml").unlink()
    for words in ([], ["--resume"]):
        assert pretrain(out, "SEED", "1", *words) == 2
        assert "checkpoint_0000006.pth but no config.yaml" in _said(capsys)
    assert not (out / "config.yaml").exists()


def test_a_finished_run_prints_its_result(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert pretrain(out, "SOLVER.EPOCHS", "1") == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.setattr(Trainer, "run_step", lambda self: pytest.fail("trained again"))
    for words in ([], ["--resume"]):
        assert pretrain(out, "SOLVER.EPOCHS", "1", *words) == 0
        assert "finished" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_another_config_is_refused(pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert pretrain(out, "SOLVER.EPOCHS", "1") == 0
    capsys.readouterr()
    for words in ([], ["--resume"]):
        assert pretrain(out, "SOLVER.BASE_LR", "1", *words) == 2
        said = _said(capsys)
        assert "SOLVER.BASE_LR is 3.2 there and 1.0 here" in said and "SOLVER.EPOCHS" in said and "--output" in said


def test_an_unfinished_run_is_not_overwritten(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert pretrain(out) == 0
    (out / "result.json").unlink()
    before = sha256_of(out / "checkpoint_0000006.pth")
    capsys.readouterr()
    assert pretrain(out) == 2
    assert "--resume" in _said(capsys) and sha256_of(out / "checkpoint_0000006.pth") == before
    backbone = sha256_of(out / "backbone.safetensors")
    assert pretrain(out, "--resume") == 0  # killed between the last checkpoint and the result: nothing is trained again
    result = json.loads((out / "result.json").read_text())
    assert result["backbone_sha256"] == backbone and result["final"]["loss"] == _metrics(out)[-1]["loss"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["SOLVER.BATCH_SIZ", "4"], "SOLVER.BATCH_SIZE"),
        (["SOLVER.BATCH_SIZE", "15"], "14 image(s), too few for a batch"),
        (["DATA.ROOT", "/nowhere/at/all"], "/nowhere/at/all does not exist"),
        (["METHOD", "simsam"], "did you mean simsiam?"),
        (["ENGINE.PRECISION", "fp16"], "needs a GPU"),
        (["SEED"], "has no partner"),
        (
            ["SOLVER.GRAD_ACCUM_STEPS", "4"],
            "(SOLVER.GRAD_ACCUM_STEPS 4, 1 process(es), MODEL.SYNC_BN True)",
        ),
        (["SOLVER.GRAD_ACCUM_STEPS", "3"], "must be a multiple of it"),
    ],
)
def test_wrong_use_is_one_line_and_nothing_is_written(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    if "fp16" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert pretrain(tmp_path / "out", *words) == 2
    assert said in _said(capsys)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_and_a_broken_image_are_named(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert pretrain(tmp_path / "a", "DATA.ROOT", str(tmp_path / "empty")) == 2
    assert f"{tmp_path / 'empty'} holds no images" in _said(capsys)
    for number in range(4):
        (tmp_path / "empty" / f"{number}.jpg").write_text("no image")
    assert pretrain(tmp_path / "b", "DATA.ROOT", str(tmp_path / "empty"), "DATA.WORKERS", "1") == 2
    said = _said(capsys)
    assert str(tmp_path / "empty") in said and ".jpg cannot be read as an image" in said and "Traceback" not in said


def test_resume_refuses_other_images(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], draw: Callable[[Path, int], Path]
) -> None:
    out = tmp_path / "out"
    assert pretrain(out) == 0
    (out / "result.json").unlink()
    others = draw(tmp_path / "others", 15)
    capsys.readouterr()
    assert pretrain(out, "--resume", "DATA.ROOT", str(others)) == 2
    assert "does not hold the images this run began with" in _said(capsys)


def test_resume_sets_a_damaged_checkpoint_aside_and_continues_from_the_one_before(
    pretrain: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert pretrain(out) == 0
    (out / "result.json").unlink()
    newest = out / "checkpoint_0000006.pth"
    expected = sha256_of(out / "backbone.safetensors")
    newest.write_bytes(newest.read_bytes()[:1000])
    assert pretrain(out, "--resume") == 0
    aside = newest.with_name(f"{newest.name}.damaged")
    assert aside.stat().st_size == 1000 and newest.name in (out / "log.txt").read_text()
    assert sha256_of(out / "backbone.safetensors") == expected


def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.run_step

    def poisoned(self: Trainer) -> None:
        if self.iter == 4:
            with torch.no_grad():
                self.method.encoder.conv1.weight.fill_(float("nan"))
        step(self)

    monkeypatch.setattr(Trainer, "run_step", poisoned)
    out = tmp_path / "out"
    assert pretrain(out, "CHECKPOINT.PERIOD", "1", "CHECKPOINT.KEEP", "9") == 1
    errors = capsys.readouterr().err
    assert "iteration 4, learning rate 0.025, 0.05" in errors and "nan" in errors and "Traceback" not in errors
    assert [path.name for path in sorted(out.glob("checkpoint_*"))][-1] == "checkpoint_0000004.pth"
    assert not (out / "backbone.safetensors").exists() and not (out / "result.json").exists()
    state = torch.load(out / "checkpoint_0000004.pth", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in state["method"].values())
    monkeypatch.setattr(Trainer, "run_step", step)
    assert pretrain(out, "CHECKPOINT.PERIOD", "1", "CHECKPOINT.KEEP", "9", "--resume") == 0
    assert not (out / "divergence.json").exists()


def test_weights_that_are_not_finite_are_not_saved(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.run_step

    def poisoned(self: Trainer) -> None:
        step(self)
        if self.iter == 5:  # after the last loss
            with torch.no_grad():
                self.method.encoder.conv1.weight[0].fill_(float("inf"))

    monkeypatch.setattr(Trainer, "run_step", poisoned)
    assert pretrain(tmp_path / "out") == 1
    assert "a weight is not a finite number at iteration 5" in capsys.readouterr().err
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "checkpoint_0000003.pth\n"


def test_a_gradient_above_its_limit_stops_the_run_until_the_limit_is_raised(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "out", ["CHECKPOINT.PERIOD", "1", "MONITOR.GRAD_NORM_LIMIT"]
    assert pretrain(tmp_path / "free") == 0
    free = _metrics(tmp_path / "free")
    norms = [row["grad_norm"] for row in free]
    first = norms.index(max(norms))
    limit = 0.999 * max(norms)
    capsys.readouterr()
    assert pretrain(out, *words, str(limit)) == 1
    said = capsys.readouterr().err
    assert f"above MONITOR.GRAD_NORM_LIMIT {limit:g} at iteration {first}, learning rate" in said
    assert _checkpoints(out)[-1:] == ([first] if first else [])
    assert pretrain(out, *words, "0", "--resume") == 0
    assert [row["loss"] for row in _metrics(out)] == [row["loss"] for row in free]


def test_accumulated_and_foreach_steps_train(pretrain: Command, tmp_path: Path) -> None:
    assert pretrain(tmp_path / "plain") == 0
    assert pretrain(tmp_path / "foreach", "SOLVER.OPTIMIZER_IMPL", "foreach") == 0
    assert pretrain(tmp_path / "parts", "SOLVER.GRAD_ACCUM_STEPS", "2") == 0
    plain, foreach, parts = (_metrics(tmp_path / name) for name in ("plain", "foreach", "parts"))
    assert [row["loss"] for row in foreach] == [row["loss"] for row in plain]
    assert parts[0]["loss"] != plain[0]["loss"] and len(parts) == 6
    assert "4 images in 2 parts" in (tmp_path / "parts" / "log.txt").read_text()


def test_half_precision_and_channels_last_train(pretrain: Command, tmp_path: Path) -> None:
    words = ["SOLVER.EPOCHS", "1", "ENGINE.CHANNELS_LAST", "True"]
    assert pretrain(tmp_path / "full", *words) == 0
    assert pretrain(tmp_path / "half", *words, "ENGINE.PRECISION", "bf16") == 0
    full, half = (_metrics(tmp_path / name) for name in ("full", "half"))
    assert half[0]["loss"] != full[0]["loss"] and abs(half[0]["loss"] - full[0]["loss"]) < 0.05
    with safetensors.safe_open(tmp_path / "half" / "backbone.safetensors", "pt") as file:
        assert file.get_tensor("conv1.weight").dtype == torch.float32
