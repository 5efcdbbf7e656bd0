"""Learning rates on the training loop."""

from __future__ import annotations

from detectron2.engine.train_loop import HookBase

from pretrain.engine.trainer import Trainer
from pretrain.optim.schedule import Schedule
from pretrain.optim.sgd import BASE, set_lr


class LearningRates(HookBase):
    """Sets each group's learning rate before a step; logs `lr`, `lr_predictor` and `epoch` after it.

    Args:
        schedule: a function of the iteration.
    """

    trainer: Trainer

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def before_step(self) -> None:
        """Set the rates of this iteration."""
        set_lr(self.trainer.optimizer, self.schedule, self.trainer.iter)

    def after_step(self) -> None:
        """Log the rates of this iteration and the epochs done."""
        rates = {
            "lr" if group["name"] == BASE else f"lr_{group['name']}": group["lr"]
            for group in self.trainer.optimizer.param_groups
        }
        epoch = (self.trainer.iter + 1) / self.schedule.steps_per_epoch
        self.trainer.storage.put_scalars(smoothing_hint=False, epoch=epoch, **rates)
