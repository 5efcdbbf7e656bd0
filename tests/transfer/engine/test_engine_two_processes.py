"""Two processes over gloo: the norm, precise BN, a step, divergence, and a whole trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_transfer.training import distributed
from tests.transfer.engine import two_detectors, two_processes
from transfer.engine.prepare import TrialRequest, prepare
from transfer.engine.trial import run_trial
from transfer.toy.build import Size, build_toy_sets

RequestFactory = Callable[..., TrialRequest]
TESTED = {"voc07": 7, "coco": 5}
"""Test images: a number that two processes cannot share evenly."""


@pytest.fixture(scope="module")
def ranks(root: Path, narrow_overlay: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    build_toy_sets(folder / "toy", size=Size(photos=8, voc2007=(8, 7), voc2012=(4, 4), coco=(8, 5)))
    words = ("TRANSFER.DATA_ROOT", str(folder / "toy/detection"))
    trials = {}
    for task in TESTED:
        request = TrialRequest(
            config_file=root / f"configs/transfer/{task}.yaml",
            overlay=narrow_overlay,
            overrides=words,
            weights="scratch",
            seed=1,
            output=folder / task,
            num_gpus=2,
        )
        trials[task] = prepare(request)[0]
    distributed.launch(two_processes.work, (folder, root, trials), 2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_precise_bn_equals_the_population_on_both_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["precise"] for rank in ranks)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    # The first norm's input does not depend on any norm: its population can be put together by hand.
    conv = two_processes.net(nn.BatchNorm2d)[0]
    with torch.no_grad():
        values = torch.cat(
            [conv(batch).transpose(0, 1).flatten(1) for rank in range(2) for batch in two_processes.batches(rank)],
            dim=1,
        )
    torch.testing.assert_close(first["1.running_mean"], values.mean(dim=1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(first["1.running_var"], values.var(dim=1, correction=0), rtol=1e-6, atol=1e-6)


def test_fvcore_s_precise_bn_leaves_each_rank_with_its_own_statistics(ranks: list[dict[str, Any]]) -> None:
    """Why ours is the default [detectron2 issue 5398]. That this holds shows that the test above can fail."""
    first, second = (rank["fvcore"] for rank in ranks)
    for name in ("1.running_mean", "1.running_var"):
        assert not torch.allclose(first[name], second[name], rtol=1e-3)


@pytest.mark.parametrize("task", ["voc07", "coco"])
def test_a_step_on_two_half_batches_equals_one_on_the_whole(root: Path, ranks: list[dict[str, Any]], task: str) -> None:
    whole = two_detectors.step(two_detectors.unsampled(root, task, "BN"), two_detectors.prescribed(task == "coco"))
    first, second = (rank["detector"][task] for rank in ranks)
    assert ("roi_heads.mask_head.predictor" in whole["outputs"]) == (task == "coco")
    for name, tensors in whole["outputs"].items():
        for one, halves in zip(tensors, zip(first["outputs"][name], second["outputs"][name], strict=True), strict=True):
            both = torch.cat(halves)
            if name.startswith("roi_heads"):  # RoIs come in an order that is drawn
                one, both = ordered(one), ordered(both)
            torch.testing.assert_close(both, one, rtol=1e-5, atol=1e-9)
    rois = 4 * (two_detectors.OBJECTS + (0 if task == "coco" else two_detectors.PROPOSALS))
    assert len(whole["outputs"]["roi_heads.box_predictor"][0]) == rois
    for name, loss in whole["losses"].items():
        torch.testing.assert_close((first["losses"][name] + second["losses"][name]) / 2, loss, rtol=1e-5, atol=0)
    for name, gradient in whole["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name])
        torch.testing.assert_close(first["gradients"][name], gradient, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("task", ["voc07", "coco"])
def test_its_running_variance_is_the_biased_one(root: Path, ranks: list[dict[str, Any]], task: str) -> None:
    """naiveSyncBN updates with E[x²] − E[x]², torch's BN with n / (n − 1) of it; the running means are equal."""
    whole = two_detectors.step(two_detectors.unsampled(root, task, "BN"), two_detectors.prescribed(task == "coco"))
    first, second = (rank["detector"][task]["statistics"] for rank in ranks)
    assert len(whole["counts"]) == 54
    for layer, n in whole["counts"].items():
        mean, var = f"{layer}.running_mean", f"{layer}.running_var"
        assert torch.equal(first[var], second[var]) and torch.equal(first[mean], second[mean])
        biased, unbiased = first[var] - 0.9, whole["statistics"][var] - 0.9  # 0.1 of the batch's
        torch.testing.assert_close(biased * n / (n - 1), unbiased, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(first[mean], whole["statistics"][mean], rtol=1e-5, atol=1e-12)


def ordered(rows: Tensor) -> Tensor:
    """Rows (N, …) in the order of their first number."""
    flat = rows.flatten(1)
    return flat[flat[:, 0].argsort()]


@pytest.mark.parametrize("task", TESTED)
def test_evaluation_gathers_every_image_once(ranks: list[dict[str, Any]], task: str) -> None:
    """A detector that knows all answers gets 100 only when no image is missing and none counts twice."""
    first, second = (rank["evaluated"][task] for rank in ranks)
    assert len(first["seen"]) + len(second["seen"]) == len({*first["seen"], *second["seen"]}) == TESTED[task]
    kinds = {"bbox"} if task == "voc07" else {"bbox", "segm"}
    assert first["all"].keys() == kinds and all(value == pytest.approx(100) for value in first["all"].values())
    assert all(value < 99 for value in first["but one"].values())
    assert second["all"] == {}  # the answer is rank 0's


def test_gradients_of_two_half_batches_equal_the_whole(ranks: list[dict[str, Any]]) -> None:
    model = two_processes.net(nn.BatchNorm2d)
    output = model(two_processes.equal_batches())
    output.square().mean().backward()
    first, second = (rank["step"] for rank in ranks)
    torch.testing.assert_close(torch.cat([first["output"], second["output"]]), output.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(first[name], parameter.grad)
    # Detectron2's synchronised norm keeps the biased variance, torch's the unbiased: they differ by n / (n − 1).
    for layer, n in (("1", 4 * 8 * 8), ("4", 4 * 6 * 6)):
        mine, torchs = first[f"{layer}.running_var"] - 0.9, dict(model.named_buffers())[f"{layer}.running_var"] - 0.9
        torch.testing.assert_close(mine * n / (n - 1), torchs)
        torch.testing.assert_close(first[f"{layer}.running_mean"], dict(model.named_buffers())[f"{layer}.running_mean"])


def test_divergence_of_one_rank_raises_on_both(ranks: list[dict[str, Any]]) -> None:
    assert [rank["diverged"] for rank in ranks] == ["b is infinite"] * 2


@pytest.mark.slow
def test_a_trial_of_two_processes(make_request: RequestFactory, tmp_path: Path) -> None:
    words = ("SOLVER.IMS_PER_BATCH", "4", "SOLVER.CHECKPOINT_PERIOD", "2")
    outcome = run_trial(make_request(*words, task="coco", num_gpus=2))
    assert outcome.status == "done" and set(outcome.content["metrics"]) == {"bbox", "segm"}
    settings = outcome.content["settings"]
    assert (settings["num_processes"], settings["norm"], settings["total_batch"]) == (2, "naiveSyncBN", 4)
    assert outcome.content["guards"]["norm"] == "NaiveSyncBatchNorm"
    assert not any("statistics" in reason for reason in outcome.content["comparable"]["reasons"])
    log = (outcome.file.parent / "log.txt").read_text()
    assert "Start inference on 4 batches" in log  # eight test images, each rank its half


@pytest.mark.slow
def test_a_user_error_of_a_spawned_process_is_raised_here(make_request: RequestFactory) -> None:
    from ssl_transfer.errors import UserError

    request = make_request("SOLVER.CHECKPOINT_PERIOD", "1", num_gpus=2, resume=True)
    run_trial(request)
    (request.output / "result.json").unlink()
    torch.save({"weights": 1}, request.output / "model_final.pth")  # whole, but something else
    with pytest.raises(UserError, match=r"model_final.pth cannot be used"):
        run_trial(request)
