"""Two processes over gloo: the norm, precise BN, a step, divergence, and a whole trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from torch import nn

from common import processes
from transfer.engine.prepare import Request
from transfer.engine.trial import run

Ask = Callable[..., Request]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    processes.start(two_processes.work, (folder,), 2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_precise_bn_is_the_same_on_both_ranks_and_the_population_s(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["precise"] for rank in ranks)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    # The first norm's input does not depend on any norm: its population can be put together by hand.
    conv = two_processes.net(nn.BatchNorm2d)[0]
    with torch.no_grad():
        values = torch.cat(
            [conv(batch).transpose(0, 1).flatten(1) for rank in range(2) for batch in two_processes.batches(rank)],
            dim=1,
        )
    torch.testing.assert_close(first["1.running_mean"], values.mean(dim=1))
    torch.testing.assert_close(first["1.running_var"], values.var(dim=1, correction=0))


def test_two_halves_of_a_batch_make_the_step_of_the_whole(ranks: list[dict[str, Any]]) -> None:
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


def test_both_ranks_learn_of_one_rank_s_divergence(ranks: list[dict[str, Any]]) -> None:
    assert [rank["diverged"] for rank in ranks] == ["b is infinite"] * 2


@pytest.mark.slow
def test_a_trial_of_two_processes(ask: Ask, tmp_path: Path) -> None:
    words = ("SOLVER.IMS_PER_BATCH", "4", "SOLVER.CHECKPOINT_PERIOD", "2")
    outcome = run(ask(*words, task="coco", num_gpus=2))
    assert outcome.status == "done" and set(outcome.content["metrics"]) == {"bbox", "segm"}
    settings = outcome.content["settings"]
    assert (settings["num_processes"], settings["norm"], settings["total_batch"]) == (2, "naiveSyncBN", 4)
    assert outcome.content["guards"]["norm"] == "NaiveSyncBatchNorm"
    assert not any("statistics" in reason for reason in outcome.content["comparable"]["reasons"])
    log = (outcome.file.parent / "log.txt").read_text()
    assert "Start inference on 4 batches" in log  # eight test images, each rank its half


@pytest.mark.slow
def test_a_process_s_user_error_is_one_line_here_too(ask: Ask) -> None:
    from common.errors import UserError

    request = ask("SOLVER.CHECKPOINT_PERIOD", "1", num_gpus=2, resume=True)
    run(request)
    (request.output / "result.json").unlink()
    (request.output / "model_final.pth").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"model_final.pth is not a whole checkpoint"):
        run(request)
