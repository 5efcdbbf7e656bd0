"""Linear evaluation: one linear layer trained on frozen pooled features.

Source: facebookresearch/simsiam main_lincls.py. The backbone stays in evaluation mode and gets no gradient, so only the
layer is trained: weights ~ N(0, 0.01), bias 0, mean cross-entropy, cosine once an epoch, the test set after each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.data.sampler import ResumableBatchSampler
from pretrain.evaluation.backbone_features import Extractor, chunk_range, extract_chunks
from pretrain.evaluation.labelled_images import FixedView, ImageDataset, LabelledSet, RandomView, load_images
from pretrain.methods.parts.losses import topk_correct
from pretrain.optim.optimizer import build_larc
from pretrain.optim.schedule import CosineByEpoch
from ssl_transfer.errors import Preempted
from ssl_transfer.files import sha256_of, temporary_name, write_text
from ssl_transfer.training.checkpoint import set_aside
from ssl_transfer.training.collectives import run_on_main_process, sum_over_processes, wrap_distributed
from ssl_transfer.training.divergence import Diverged

FeatureBatches = Iterator[tuple[torch.Tensor, torch.Tensor]]
"""This process's part of each step: features (n, width) and their labels (n,), on the device; n may be 0."""


def fresh_features(
    extractor: Extractor, images: LabelledSet, view: RandomView, sampler: ResumableBatchSampler, workers: int
) -> FeatureBatches:
    """Features of newly sampled views, as in the released code."""
    loaded = load_images(ImageDataset(images.index, view), sampler, workers, extractor.device.type == "cuda")
    for batch in loaded:
        yield extractor(batch.images), images.labels[batch.indices].to(extractor.device)


def cached_features(
    features: np.ndarray, images: LabelledSet, sampler: ResumableBatchSampler, device: torch.device
) -> FeatureBatches:
    """Features that were computed once, in the same order."""
    for piece in sampler:
        indices = np.array([index for _, index in piece], dtype=np.int64)
        rows = torch.from_numpy(np.asarray(features[indices]))
        yield rows.to(device), images.labels[torch.from_numpy(indices)].to(device)


def cache_features(
    file: Path,
    extractor: Extractor,
    images: LabelledSet,
    view: FixedView,
    *,
    workers: int,
    step: Callable[[int], None],
) -> np.ndarray:
    """The training features of fixed views, (N, width) float32, in a file that all processes map.

    Every process writes its chunks into one file, which gets its name when all are done and its digest is written: a
    resumed run uses a file that has its digest, sets another aside and computes the features again.
    """
    if not run_on_main_process(lambda: _is_whole(file)):
        shape = (len(images), extractor.width)
        part = file.with_name(run_on_main_process(lambda: _allocate(file, shape)))
        rows = np.lib.format.open_memmap(part, mode="r+")
        for chunk, features in extract_chunks(extractor, images, view, workers, step):
            indices = chunk_range(chunk, len(images))
            rows[indices.start : indices.stop] = features.cpu().numpy()
        rows.flush()
        comm.synchronize()
        run_on_main_process(lambda: _complete(part, file))
    return np.load(file, mmap_mode="r")


def _allocate(file: Path, shape: tuple[int, int]) -> str:
    part = temporary_name(file)
    np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape).flush()
    return part.name


def _complete(part: Path, file: Path) -> None:
    write_text(file.with_suffix(".sha256"), sha256_of(part))
    part.replace(file)


def _is_whole(file: Path) -> bool:
    """Whether the file is there and has its digest; one that does not is set aside."""
    if not file.exists():
        return False
    digest = file.with_suffix(".sha256")
    if digest.is_file() and digest.read_text(errors="replace") == sha256_of(file):
        return True
    set_aside(file, "it does not have the digest that was written with it")
    return False


@dataclass(frozen=True)
class DatasetShard:
    """This process's part of the test set: features and labels, on the device."""

    features: torch.Tensor
    labels: torch.Tensor


def extract_shard(
    extractor: Extractor, images: LabelledSet, view: FixedView, workers: int, step: Callable[[int], None]
) -> DatasetShard:
    """This process's chunks of the test set. Frozen features of fixed views never change, so one pass is enough."""
    features, labels = [], []
    for chunk, part in extract_chunks(extractor, images, view, workers, step):
        indices = chunk_range(chunk, len(images))
        features.append(part)
        labels.append(images.labels[indices.start : indices.stop])
    if not features:
        return DatasetShard(extractor(torch.empty(0, 3, 1, 1, dtype=torch.uint8)), torch.empty(0, dtype=torch.int64))
    return DatasetShard(torch.cat(features), torch.cat(labels).to(extractor.device))


def build_classifier(width: int, classes: int, seed: int) -> nn.Linear:
    """The layer with its initial weights, a function of the seed alone."""
    layer = nn.Linear(width, classes)
    with torch.no_grad():
        layer.weight.normal_(0.0, 0.01, generator=torch.Generator().manual_seed(seed))
        layer.bias.zero_()
    return layer


def build_linear_optimizer(parameters: Iterable[torch.nn.Parameter], linear: CfgNode) -> torch.optim.Optimizer:
    """The optimizer of the LINEAR keys, at the peak learning rate.

    `lars` is facebookresearch/simsiam's main_lincls.py --lars: apex's LARC without clipping around SGD with momentum,
    every tensor adapted (tests/pretrain/evaluation/test_larc.py). The bias starts at zero and then takes an unscaled
    step.
    """
    lr, momentum, decay = scaled_lr(linear), linear.MOMENTUM, linear.WEIGHT_DECAY
    if linear.OPTIMIZER == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=decay)
    return build_larc(parameters, lr, momentum=momentum, decay=decay, eta=linear.TRUST)


def scaled_lr(linear: CfgNode) -> float:
    """The linear scaling rule: BASE_LR × BATCH_SIZE / 256."""
    return linear.BASE_LR * linear.BATCH_SIZE / 256


@dataclass
class ProbeProgress:
    """The state of a run that a checkpoint holds besides tensors.

    Attributes:
        iteration: steps done.
        loss_sum, seen: of the epoch so far: each step's loss times its images, and the images.
        history: one entry per epoch: `epoch`, `iteration`, `lr`, `loss` (mean over the epoch), `top1`, `top5`.
    """

    iteration: int
    loss_sum: float
    seen: int
    history: list[dict[str, float]]


class LinearProbe:
    """The training of one classifier.

    Args:
        classifier: on its device.
        linear: the LINEAR section.
        sampler: the order of the images.
        batches: this process's features, in that order, from `sampler.start` on.
        test: this process's part of the test set.
    """

    def __init__(
        self,
        classifier: nn.Linear,
        linear: CfgNode,
        sampler: ResumableBatchSampler,
        batches: FeatureBatches,
        test: DatasetShard,
    ) -> None:
        self.classifier, self.sampler, self.batches, self.test = classifier, sampler, batches, test
        self.optimizer = build_linear_optimizer(classifier.parameters(), linear)
        self.schedule = CosineByEpoch(scaled_lr(linear), linear.EPOCHS, sampler.steps_per_epoch)
        self.progress = ProbeProgress(0, 0.0, 0, [])
        self.model = wrap_distributed(classifier)

    def fit(
        self,
        *,
        save: Callable[[], None],
        period: int,
        stop_requested: Callable[[], bool],
        report: Callable[[int, float], None],
    ) -> None:
        """Train from `progress.iteration` to the last iteration.

        Args:
            save: writes a checkpoint; called at each epoch's end, every `period` iterations, and before a stop.
            period: 0: only at the ends of epochs.
            stop_requested: whether this process received a stop signal.
            report: called with each step's number of images and loss.

        Raises:
            Diverged: the loss is not finite.
            Preempted: a process received a stop signal; the state is saved.
        """
        while self.progress.iteration < self.sampler.stop:
            size = self.sampler.step_size(self.progress.iteration)
            loss, stopping = self.step(size, stop_requested())
            report(size, loss)
            done = self.progress.iteration
            ends = done % self.sampler.steps_per_epoch == 0
            if ends:
                self._end_epoch()
            stopping = stopping and done < self.sampler.stop
            if ends or stopping or (period and done % period == 0):
                save()
            if stopping:
                raise Preempted(f"saved after {done} of {self.sampler.stop} iterations")

    def step(self, size: int, stop_requested: bool = False) -> tuple[float, bool]:
        """One step on the next batch, `size` images over all processes.

        Returns:
            The mean loss over all its images, and whether any process requested a stop: the same on all processes.

        Raises:
            Diverged: the loss is not finite.
        """
        lr = self.schedule.at(self.progress.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        features, labels = next(self.batches)
        logits = self.model(features)
        mean = F.cross_entropy(logits, labels) if len(labels) else logits.sum()
        # DistributedDataParallel averages over processes, whose parts may differ in size; for one the factor is 1.
        loss = mean * (len(labels) * comm.get_world_size() / size)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        sums = torch.stack([loss.detach().double(), loss.new_tensor(stop_requested).double()])
        shared = sum_over_processes(sums).cpu()
        value = float(shared[0]) / comm.get_world_size()
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value}", self.progress.iteration, [lr])
        self.progress.iteration += 1
        self.progress.loss_sum += value * size
        self.progress.seen += size
        return value, bool(shared[1] > 0)

    def _end_epoch(self) -> None:
        progress = self.progress
        entry = {
            "epoch": progress.iteration // self.sampler.steps_per_epoch,
            "iteration": progress.iteration - 1,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": progress.loss_sum / progress.seen,
            **accuracy(self.classifier, self.test),
        }
        progress.history.append(entry)
        progress.loss_sum, progress.seen = 0.0, 0

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs besides the data."""
        return {
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore `state`; `batches` must begin at its iteration."""
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = ProbeProgress(**state["progress"])


@torch.no_grad()
def accuracy(classifier: nn.Linear, shard: DatasetShard) -> dict[str, float]:
    """`top1` and, with enough classes, `top5` in per cent over all processes' shards."""
    correct = topk_correct(classifier(shard.features), shard.labels)
    counts = torch.stack([*correct.values(), torch.tensor(len(shard.labels), device=shard.labels.device)])
    *shared, total = sum_over_processes(counts).tolist()
    return {name: 100 * count / total for name, count in zip(correct, shared, strict=True)}
