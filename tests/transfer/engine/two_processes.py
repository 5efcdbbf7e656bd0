"""What the two gloo processes of `test_engine_two_processes.py` do; each writes what it found to a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.utils import comm
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn

from ssl_transfer.training.divergence import Diverged
from tests.transfer.engine import two_detectors
from transfer.engine.guards import require_finite
from transfer.engine.precise_bn import update_synchronised
from transfer.engine.prepare import PreparedTrial, load_task_of
from transfer.engine.trial import evaluate


def net(norm: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 4, 3), norm(4)).double().train()


def batches(rank: int, count: int = 3) -> list[Tensor]:
    """Images whose number and size differ from batch to batch and from rank to rank."""
    generator = torch.Generator().manual_seed(rank)
    sizes = [(1 + (i + rank) % 3, 3, 9 + 2 * i + rank, 8 + rank) for i in range(count)]
    return [torch.randn(size, generator=generator, dtype=torch.float64) * (1 + rank) + rank for size in sizes]


def equal_batches() -> Tensor:
    return torch.randn((4, 3, 10, 10), generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name}


def work(folder: Path, root: Path, trials: dict[str, PreparedTrial]) -> None:
    rank = comm.get_rank()
    found: dict[str, Any] = {"precise": precise(rank), "step": step(rank), "diverged": diverged(rank)}
    found["fvcore"] = fvcore_s(rank)
    found["detector"] = {task: detector_step(root, task, rank) for task in ("voc07", "coco")}
    found["evaluated"] = {task: evaluated(prepared) for task, prepared in trials.items()}
    torch.save(found, folder / f"rank{rank}.pt")


def precise(rank: int) -> dict[str, Tensor]:
    """Statistics by our precise BN of a net whose first layer sees the raw batches."""
    model = net(NaiveSyncBatchNorm)
    update_synchronised(model, batches(rank))
    return statistics(model)


def fvcore_s(rank: int) -> dict[str, Tensor]:
    """The same by fvcore's, the named option."""
    model = net(NaiveSyncBatchNorm)
    update_bn_stats(model, batches(rank), 3)
    return statistics(model)


def detector_step(root: Path, task: str, rank: int) -> dict[str, Any]:
    """One step of a detector on this rank's half of four images."""
    model = two_detectors.unsampled(root, task, "naiveSyncBN")
    return two_detectors.step(model, two_detectors.prescribed(task == "coco")[2 * rank : 2 * rank + 2])


def evaluated(prepared: PreparedTrial) -> dict[str, Any]:
    """An evaluation of a detector that knows all answers, and of one that knows nothing of one image."""
    task = load_task_of(prepared.cfg)
    oracle, blinded = two_detectors.Oracle(task.test), two_detectors.Oracle(task.test, blind=4)
    answers = {"all": evaluate(oracle, prepared, task)[0], "but one": evaluate(blinded, prepared, task)[0]}
    found = {name: {kind: values["AP"] for kind, values in answer.items()} for name, answer in answers.items()}
    return {"seen": oracle.seen, **found}


def step(rank: int) -> dict[str, Tensor]:
    """One step on this rank's half of a batch: outputs, gradients averaged over ranks, statistics."""
    model = nn.parallel.DistributedDataParallel(net(NaiveSyncBatchNorm), broadcast_buffers=False)
    output = model(equal_batches()[2 * rank : 2 * rank + 2])
    output.square().mean().backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters()}
    return {"output": output.detach(), **gradients, **statistics(model.module)}  # type: ignore[dict-item]


def diverged(rank: int) -> str:
    """What each rank learns when a loss is infinite on rank 1 alone."""
    try:
        require_finite({"a": torch.tensor(1.0), "b": torch.tensor(float("inf") if rank else 1.0)})
    except Diverged as error:
        return str(error)
    return "nothing"
