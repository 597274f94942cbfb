"""Where each trial stands: its last and best evaluation, early stopping, its plateau, whether and why it has ended.

Plain values that go into the resume point as JSON. What is decided here is decided from evaluations, at epoch ends.
"""

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from dd_core.store.manifests import Ending
from dd_core.study.recipe import EarlyStopping, Schedule, Variant


class Watch(BaseModel):
    """The best value of a metric so far, and how many evaluations ago it was."""

    best: float | None = None
    stale: int = 0


class TrialProgress(BaseModel):
    """One trial.

    Attributes:
        ending: None while it trains.
        last, best: metrics of the last evaluation, and of the one with the lowest loss (``best_by``); with ``epoch``.
            Where classes come one group after the other, the best of the task.
        kept: loss_val_nats and epoch of the best checkpoints, best first.
        stopping: what early stopping remembers.
        plateau: what the plateau schedule remembers.
        multiple: of the learning rate, by the plateau schedule.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")
    ending: Ending | None = None
    last: dict[str, float] = {}
    best: dict[str, float] = {}
    kept: list[tuple[float, int]] = []
    stopping: Watch = Watch()
    plateau: Watch = Watch()
    multiple: float = 1.0

    @property
    def is_training(self) -> bool:
        """Whether its weights still change."""
        return self.ending is None

    @property
    def has_diverged(self) -> bool:
        """Whether it has no weights any more."""
        return self.ending is not None and self.ending.status == "diverged"

    def begin_task(self, restarts: bool) -> None:
        """Forget which evaluation was best: the losses of other classes do not compare.

        ``restarts``: whether the schedule of the learning rate begins anew.
        """
        if self.is_training:
            self.best, self.kept = {}, []
            if restarts:
                self.plateau, self.multiple = Watch(), 1.0

    def note_evaluation(self, epoch: int, metrics: Mapping[str, float], num_kept: int) -> None:
        """Remember an evaluation of a trial that has not diverged."""
        self.last = {"epoch": epoch, **metrics}
        if self.is_training:
            metric = best_by(metrics)
            if not self.best or metrics[metric] < self.best[metric]:
                self.best = dict(self.last)
            if math.isfinite(metrics["loss_val_nats"]) and epoch:
                self.kept = sorted([*self.kept, (metrics["loss_val_nats"], epoch)])[:num_kept]

    def decide(self, epoch: int, step: int, metrics: Mapping[str, float], variant: Variant) -> None:
        """Lower the learning rate or stop, as the variant says; call at its regular evaluations only."""
        if not self.is_training:
            return
        if variant.schedule.name == "plateau":
            self._plateau(metrics[variant.schedule.metric], variant.schedule)
        if variant.early_stopping is not None:
            self._stop(epoch, step, metrics[variant.early_stopping.metric], variant.early_stopping)

    def _plateau(self, value: float, schedule: Schedule) -> None:
        """As torch.optim.lr_scheduler.ReduceLROnPlateau with a relative threshold and no cooldown."""
        best, watch = self.plateau.best, self.plateau
        if schedule.metric == "acc_val":
            is_better = best is None or value > best * (1 + schedule.threshold)
        else:
            is_better = best is None or value < best * (1 - schedule.threshold)
        if is_better:
            watch.best, watch.stale = value, 0
        else:
            watch.stale += 1
        if watch.stale > schedule.patience:
            self.multiple, watch.stale = max(self.multiple * schedule.factor, schedule.smallest), 0

    def _stop(self, epoch: int, step: int, value: float, settings: EarlyStopping) -> None:
        watch = self.stopping
        sign = -1 if settings.metric == "acc_val" else 1
        if watch.best is None or sign * (watch.best - value) > settings.min_delta:
            watch.best, watch.stale = value, 0
            return
        watch.stale += 1
        if watch.stale >= settings.patience:
            self.ending = Ending(
                status="stopped early",
                epoch=epoch,
                step=step,
                reason=f"{settings.metric} has not improved on {watch.best:.6g} for {watch.stale} evaluations",
            )


def best_by(metrics: Mapping[str, float]) -> str:
    """The metric that says which evaluation was best: on validation images, or without such on the test images."""
    return "loss_val_nats" if math.isfinite(metrics["loss_val_nats"]) else "test_loss"
