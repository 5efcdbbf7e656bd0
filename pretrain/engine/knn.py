"""The kNN monitor: how well the frozen encoder's features tell classes apart, every few epochs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fvcore.common.config import CfgNode

from pretrain.engine.measure import Measurement, labelled_root
from pretrain.engine.trainer import Trainer
from pretrain.evaluation.data import FixedView, LabelledSet, labelled_sets
from pretrain.evaluation.features import frozen, own_image_count
from pretrain.evaluation.knn import check_k, knn_accuracy

NAME = "knn_top1"


@dataclass(frozen=True)
class Bank:
    """What the monitor measures on: the training images vote, the test images are asked for."""

    train: LabelledSet
    test: LabelledSet


def monitored_sets(cfg: CfgNode) -> Bank | None:
    """The labelled set of the MONITOR.KNN keys; None where the monitor is off.

    Raises:
        UserError: a split or a class is missing, or the training split has fewer than K images.
    """
    knn = cfg.MONITOR.KNN
    if not knn.PERIOD:
        return None
    root, said_by = labelled_root(cfg, "KNN")
    train, test = labelled_sets(root, knn.TRAIN, knn.VAL, said_by)
    check_k(knn.K, train, "MONITOR.KNN.K")
    return Bank(train, test)


class KnnMonitor(Measurement):
    """Measures kNN accuracy: `knn_top1` in per cent.

    Args:
        cfg: the run's config.
        bank: what it measures on.
        folder: the run's.
        steps_per_epoch: iterations an epoch.
    """

    name, board = NAME, "knn"

    def __init__(self, cfg: CfgNode, bank: Bank, folder: Path, steps_per_epoch: int) -> None:
        super().__init__(cfg, cfg.MONITOR.KNN.PERIOD, folder, steps_per_epoch)
        self.bank = bank
        self.view = FixedView(cfg.DATA.SIZE, cfg.MONITOR.KNN.RESIZE)

    def measure(self, trainer: Trainer) -> dict[str, float]:
        """The share of test images whose neighbours name their class."""
        knn, extractor = self.cfg.MONITOR.KNN, self.extractor(trainer)
        told = self.progress(own_image_count(self.bank.train) + own_image_count(self.bank.test), "kNN features, images")
        with frozen(trainer.method.encoder):
            value = knn_accuracy(
                extractor, self.bank.train, self.bank.test, self.view, knn.K, knn.T, self.cfg.DATA.WORKERS, told
            )
        return {NAME: value}

    def said(self, values: dict[str, float], epoch: float) -> str:
        """The value, and how it was measured."""
        knn = self.cfg.MONITOR.KNN
        return f"kNN after epoch {epoch:.2f}: top-1 {values[NAME]:.2f} % (k {knn.K}, T {knn.T:g})"
