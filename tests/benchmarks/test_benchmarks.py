"""`make bench`: its rows exist, their equality checks can fail, and the JSON holds them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import SimpleTrainer

from benchmarks import c4_step as c4
from benchmarks import checkpoints, comparison, evaluators, input_pipelines
from benchmarks import simsiam_step as steps
from benchmarks.__main__ import isolated_benchmarks, main, paired_benchmarks
from benchmarks.paired import PairedBenchmark
from pretrain.config import defaults
from pretrain.methods import build_method
from ssl_transfer.console import call_main


@pytest.mark.parametrize(
    "words", [["--pairs", "0"], ["--only", "no such row", "--no-comparisons"], ["--no-comparisons", "--no-costs"]]
)
def test_wrong_use_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, words) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m benchmarks: error:")


def test_costs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, ["--no-comparisons", "--only", "lr_search", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["comparisons"] == [] and found["machine"]["cores"] >= 1
    (row,) = found["costs"]
    assert row["name"] == "lr_search.py --help, cold" and row["seconds"] > 0 and row["peak_mib"] > 1


def test_costs_cover_every_command_line_and_three_curves() -> None:
    found = list(isolated_benchmarks())
    root = Path(__file__).parents[2]
    tools = {file.stem for file in (root / "tools").glob("*.py")} - {"__init__", "install_detectron2"}
    assert {cost.name.split(".py")[0] for cost in found if "--help" in cost.name} == tools
    sizes: dict[str, list[int]] = {}
    for cost in found:
        sizes.setdefault(cost.name, []).append(cost.size)
    for curve in ("list of a folder, first time", "launch.py plan, cold", "COCO evaluation, boxes"):
        assert len(sizes[curve]) >= 3 and sizes[curve] == sorted(sizes[curve])
    assert all(cost.expected for cost in found)
    assert [cost.size for cost in found if cost.name == "list of a folder, cached"] == [100_000]


def test_comparisons_have_a_step_of_each_trainer_and_a_bootstrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = PairedBenchmark("a step", "", lambda: None, lambda: None, lambda: "", 1, "steps")
    monkeypatch.setattr(steps, "simsiam_step", lambda: made)
    monkeypatch.setattr(c4, "c4_step", lambda task: made)
    monkeypatch.setattr(comparison, "paired_bootstrap", lambda _folder: made)
    for module in (input_pipelines, evaluators, checkpoints):
        monkeypatch.setattr(module, "benchmarks", lambda _folder: iter(()))
    assert list(paired_benchmarks(tmp_path)).count(made) == 4


def test_the_rows_of_checkpoints_refuse_another_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "resnet50", lambda: torch.nn.Linear(4, 4))
    write, resume = checkpoints.benchmarks(tmp_path / "made")
    assert write.equal() == resume.equal() == "every tensor"
    resume.ours()
    write.theirs()
    assert torch.serialization.get_crc32_options()
    monkeypatch.setattr(checkpoints, "save_checkpoint", lambda path, _: torch.save({}, path))
    with pytest.raises(AssertionError, match="another tensor"):
        write.equal()


def test_the_row_of_the_bootstrap_refuses_another_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", 20)
    row = comparison.paired_bootstrap(tmp_path / "coco", images=20, detections=10)
    assert "interval" in row.equal()
    point = comparison.average_precision
    monkeypatch.setattr(comparison, "average_precision", lambda *a, **k: {"AP": point(*a, **k)["AP"] * 1.001})
    with pytest.raises(AssertionError, match="Δ AP"):
        row.equal()


def _narrow_simsiam() -> tuple[object, object, list[torch.Tensor]]:
    cfg = defaults()
    cfg.MODEL.update(ARCH="resnet18", PROJ_HIDDEN=64, DIM=32, PRED_DIM=16)
    torch.manual_seed(0)
    return build_method(cfg), cfg, [torch.randn(8, 3, 32, 32) for _ in range(2)]


def test_both_steps_of_simsiam_have_the_same_losses_and_another_rate_shows() -> None:
    method, cfg, views = _narrow_simsiam()
    ours, theirs = steps.our_stepper(method, cfg, views), steps.their_stepper(method, cfg, views)  # type: ignore[arg-type]
    assert max(abs(ours() - theirs()) for _ in range(3)) < 1e-5
    other = cfg.clone()  # type: ignore[attr-defined]
    other.SOLVER.BASE_LR *= 1.5
    ours, theirs = steps.our_stepper(method, other, views), steps.their_stepper(method, cfg, views)  # type: ignore[arg-type]
    assert max(abs(ours() - theirs()) for _ in range(3)) > 1e-4


def test_the_row_of_simsiam_refuses_another_step(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = steps.their_stepper
    monkeypatch.setattr(steps, "their_stepper", lambda m, c, v: peer(m, c, [view + 0.01 for view in v]))
    row = steps.simsiam_step(batch=4, size=32)
    with pytest.raises(AssertionError, match="the losses of three steps differ"):
        row.equal()


NARROW = {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of C4 on a narrow detector."""
    whole = c4.small_config

    def small_config(task: str, images: int, rois: int) -> object:
        cfg = whole(task, images, rois)
        cfg.MODEL.RESNETS.update(NARROW)
        return cfg

    monkeypatch.setattr(c4, "small_config", small_config)


@pytest.mark.parametrize("task", ["voc0712_trainval", "coco"])
def test_both_steps_of_c4_have_the_same_losses(narrow: None, task: str) -> None:
    assert "3 steps' losses" in c4.c4_step(task, height=96, width=128).equal()


def test_the_row_of_c4_refuses_another_step(narrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SimpleTrainer.run_step

    def without_update(self: SimpleTrainer) -> None:
        before = copy.deepcopy(self.model.state_dict())
        step(self)
        self.model.load_state_dict(before)

    peer = c4.their_stepper

    def theirs(*arguments: object) -> object:
        theirs_step = peer(*arguments)  # type: ignore[arg-type]

        def run() -> object:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(SimpleTrainer, "run_step", without_update)
                return theirs_step()

        return run

    monkeypatch.setattr(c4, "their_stepper", theirs)
    monkeypatch.setattr(c4, "LOSS_LIMIT", 1e-6)
    with pytest.raises(AssertionError, match="the losses of three steps differ"):
        c4.c4_step("voc0712_trainval", height=96, width=128).equal()
