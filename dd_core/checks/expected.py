"""What training must have recorded of every trial: the steps and epochs of every metric, up to the last checkpoint."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dd_core.errors import UserError
from dd_core.store.manifests import Manifest
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.architectures import ARCHITECTURES
from dd_core.study.calendar import Calendar
from dd_core.study.former_names import metric_now
from dd_core.study.monitors import PlasticityMonitor, due_steps, expected_steps
from dd_core.study.study import Arm, Study


@dataclass(frozen=True)
class Course:
    """How far a trial got.

    Attributes:
        calendar: of its arm.
        last_epoch: of its arm's last checkpoint.
        num_steps: optimiser steps up to there, or fewer if the trial ended before.
        ending: stopped early, diverged, or empty if the trial did not end before its arm.
    """

    calendar: Calendar
    last_epoch: int
    num_steps: int
    ending: str = ""

    @property
    def has_diverged(self) -> bool:
        """Whether there is nothing more after ``num_steps``; the weights of other trials can still be evaluated."""
        return self.ending == "diverged"

    @property
    def last_sound(self) -> int:
        """The last step after which monitors must have finite values.

        Before the loss of a batch ceases to be finite, norms, curvature and the loss of other images do, by some steps:
        of a trial that diverged nothing is asked for the epoch's length before.
        """
        if not self.has_diverged:
            return self.num_steps
        return self.num_steps - self.calendar.steps_of(self.calendar.epoch_of(self.num_steps + 1))

    def epoch_of(self, steps: np.ndarray) -> np.ndarray:
        """The epochs that steps belong to, both from 1."""
        return self.calendar.epoch_of(steps)

    def steps_at(self, epochs: np.ndarray) -> np.ndarray:
        """Optimiser steps behind the weights that are evaluated at some epochs."""
        return np.minimum(self.calendar.steps_after(epochs), self.num_steps)


def trained_courses(store: Store, study: Study) -> dict[str, list[Course]]:
    """How far every trial of every trained arm got, by key of the arm.

    How trials ended is read from the manifest of the arm's last checkpoint, which is written with the metrics up to
    it. The table ``runs`` says the same, but also of attempts that went on beyond that checkpoint or were killed.
    """
    last = {checkpoint.arm: manifest for checkpoint, manifest in trained_checkpoints(store, study).items()}
    return {
        arm.key: [_course(study, arm, manifest, trial) for trial in range(study.trials)]
        for arm, manifest in last.items()
    }


def _course(study: Study, arm: Arm, manifest: Manifest, trial: int) -> Course:
    epoch, ending = manifest.epoch, manifest.ended.get(trial)
    calendar = study.calendar(arm.variant)
    if ending is None:
        return Course(calendar, epoch, calendar.steps_after(epoch))
    # A trial diverges at the step whose loss is not finite, and stops early after a step.
    num_steps = ending.step - 1 if ending.status == "diverged" else ending.step
    return Course(calendar, epoch, num_steps, ending.status)


class Expectations:
    """The steps and epochs at which a trial of a study must have a row, by its course.

    Attributes:
        obstacles: sentences about monitors of whose metrics nothing is known.
        custom: metrics of the user's own monitors. Nobody knows which step is the first at which they can be measured.
    """

    def __init__(self, study: Study, courses: Iterable[Course]):
        """``courses``: all that will be asked about."""
        self._study = study
        self.obstacles: list[str] = []
        self.custom: set[str] = set()
        longest: dict[Calendar, int] = {}
        for course in courses:
            longest[course.calendar] = max(longest.get(course.calendar, 0), course.num_steps)
        self._monitors = {calendar: self._monitor_steps(calendar, number) for calendar, number in longest.items()}

    def batches(self, course: Course) -> np.ndarray:
        """Steps of ``training_batches``, int64."""
        return np.arange(1, course.num_steps + 1)

    def monitors(self, course: Course) -> dict[str, np.ndarray]:
        """Steps of ``training_monitors`` by metric, int64."""
        by_metric = self._monitors[course.calendar]
        return {metric: steps[steps <= course.last_sound] for metric, steps in by_metric.items()}

    def evaluations(self, course: Course, *, of_images: bool = False) -> np.ndarray:
        """Epochs of ``training_evals``, int64; ``of_images``: those of ``image_progress``."""
        evaluation = self._study.evaluation
        epochs = {0, *self._study.checkpoints, *range(0, course.last_epoch + 1, evaluation.every)}
        if of_images:
            epochs = set(filter(self._study.keeps_images, epochs))
        # A divergence after an epoch's last step may have been found by the evaluation that is then not recorded.
        before = course.calendar.epoch_of(course.num_steps) - 1
        latest = before if course.has_diverged else course.last_epoch
        return np.array(sorted(epoch for epoch in epochs if epoch <= latest), dtype=np.int64)

    def _monitor_steps(self, calendar: Calendar, num_steps: int) -> dict[str, np.ndarray]:
        settings = self._study.monitors
        due = dict(expected_steps(settings, self._study.data.num_validation > 0, calendar, num_steps))
        records = [ARCHITECTURES.get(variant.architecture) for variant in self._study.variants.values()]
        if not all(record and record.has_known_units for record in records):  # a network may lack ReLUs
            due = {metric: steps for metric, steps in due.items() if metric not in PlasticityMonitor.first_steps}
        for name, custom in settings.custom.items():
            try:
                from dd_core.training.monitors import monitor_class  # needs torch

                metrics = [metric_now(metric).name for metric in monitor_class(name, custom).metrics]
            except (UserError, ImportError) as error:
                self.obstacles = list(dict.fromkeys([*self.obstacles, f"{error}; its metrics were not checked"]))
                continue
            self.custom |= set(metrics)
            due |= dict.fromkeys(metrics, due_steps(custom.every, calendar, num_steps))
        return {metric: np.array(steps, dtype=np.int64) for metric, steps in due.items()}
