"""How well a network that learns one task after the other learns the newest one: loss of plasticity.

Accuracy on the classes that came last, right at the end of their task, among all classes seen by then (Dohare et al.
2024, "Loss of plasticity in deep continual learning"). As every further task has more classes to tell apart, the
accuracy may fall without any loss of plasticity; the difference from a network that begins anew with every task, on
the same tasks, is free of that.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import numpy as np

from dd_core.analysis.intervals import Estimate, over_trials
from dd_core.analysis.loss_slope_report import CURRENT, query
from dd_core.study.recipe import Variant
from dd_core.study.study import Study

# Weights times so little before every task are as good as new.
_FORGOTTEN = 0.01

_NEWEST = f"""
    SELECT arm, trial, task, split, sum(accuracy * num_images) / sum(num_images) AS accuracy FROM class_progress
    WHERE {CURRENT} AND split IN ('test', 'validation') AND list_extract($ends, task) = epoch
    GROUP BY ALL ORDER BY arm, trial, task
"""


@dataclass(frozen=True)
class Newest:
    """Accuracy on the newest classes at the end of each task of one arm.

    Attributes:
        by_trial: by trial, then by task from 1; fraction.
        split: test, or validation where there are no test images.
    """

    by_trial: dict[int, dict[int, float]]
    split: str

    @property
    def tasks(self) -> list[int]:
        """Those that every trial has."""
        return sorted(set.intersection(*(set(own) for own in self.by_trial.values())))

    def at(self, task: int) -> Estimate:
        """Mean over trials."""
        return over_trials(own.get(task) for own in self.by_trial.values())

    def change_per_task(self) -> Estimate:
        """Slope of a straight line through a trial's accuracies over tasks, mean over trials; fraction per task."""
        tasks = self.tasks
        if len(tasks) < 2:
            return over_trials([])
        return over_trials(float(np.polyfit(tasks, [own[t] for t in tasks], 1)[0]) for own in self.by_trial.values())

    def minus(self, other: "Newest") -> Estimate:
        """Mean difference over the later half of the tasks, trials paired: equal ones have equal data and classes."""
        tasks = sorted(set(self.tasks) & set(other.tasks))
        late = tasks[len(tasks) // 2 :]
        both = sorted(set(self.by_trial) & set(other.by_trial)) if late else []
        return over_trials(sum(self.by_trial[t][i] - other.by_trial[t][i] for i in late) / len(late) for t in both)


def task_ends(study: Study) -> list[int]:
    """The last epoch of every task that a study reaches; of the last of these that of the study."""
    calendar = study.calendar(next(iter(study.variants)))
    return [calendar.epochs_of(task, study.epochs).stop - 1 for task in range(1, calendar.task_of(study.epochs) + 1)]


def newest_classes(study: Study, connection: duckdb.DuckDBPyConnection) -> dict[str, Newest]:
    """By arm in the study's order, the accuracy on the newest classes; arms without rows at the end of a task lack."""
    by_arm: dict[str, dict[str, dict[int, dict[int, float]]]] = defaultdict(lambda: defaultdict(dict))
    if study.data.classes is None:
        return {}
    for row in query(connection, study, _NEWEST, ends=task_ends(study)):
        if row["accuracy"] is not None:
            by_arm[row["arm"]][row["split"]].setdefault(row["trial"], {})[row["task"]] = row["accuracy"]
    found = {}
    for arm in study.arms:
        for split in ("test", "validation"):
            if by_trial := by_arm[arm].get(split):
                found[arm] = Newest(by_trial, split)
                break
    return found


def begins_anew(variant: Variant) -> bool:
    """Whether hardly anything of the weights is left when a task begins, so that the variant shows what can be had."""
    shrunk = variant.interventions.shrink_and_perturb
    return shrunk is not None and shrunk.at == "tasks" and shrunk.shrink <= _FORGOTTEN


def reference_of(study: Study, arms: Mapping[str, Newest]) -> str:
    """The arm that others are compared with: one that begins anew with every task, else the first.

    Args:
        study: whose arms.
        arms: of one width, in the study's order; at least one.
    """
    return next((arm for arm in arms if begins_anew(study.variants[study.arms[arm].variant])), next(iter(arms)))


def plasticity_sentences(study: Study, arms: Mapping[str, Newest]) -> list[str]:
    """What the accuracy on newest classes says, without a full stop: of the study's first arm, then of the others.

    Against a variant that begins anew with every task, where there is one, else over tasks and against the first.

    Args:
        study: whose arms.
        arms: of one width, in the study's order; at least one.
    """
    names = {arm: study.arms[arm].variant for arm in arms}
    reference = reference_of(study, arms)
    others = [arm for arm in arms if arm != reference]
    if begins_anew(study.variants[names[reference]]) and others:
        return [_against_fresh(names[arm], arms[arm].minus(arms[reference])) for arm in others]
    alone = arms[reference]
    own = [_over_tasks(names[reference], alone.change_per_task())] if len(alone.tasks) > 1 else []
    if not own and not others:
        share = alone.at(alone.tasks[0]).words(1, 100, " %") if alone.tasks else "not known for all trials"
        own = [f"{names[reference]}: accuracy on the newest classes is {share} with one task ended"]
    return own + [_against_first(names[arm], arms[arm].minus(arms[reference])) for arm in others]


def plasticity_headline(study: Study, arms: Mapping[str, Newest]) -> str:
    """The same in short: what becomes of the study's first arm, and of the one that does best beside it."""
    reference = reference_of(study, arms)
    first, *rest = [
        arm for arm in arms if arm != reference or not begins_anew(study.variants[study.arms[arm].variant])
    ] or [reference]
    shown = {first: arms[first]}
    if rest:
        best = max(rest, key=lambda arm: arms[arm].minus(arms[reference]).mean)
        shown[best] = arms[best]
    if reference not in shown:
        shown[reference] = arms[reference]
    return "; ".join(plasticity_sentences(study, shown))


def _points(estimate: Estimate) -> str:
    """A difference of accuracies in points; it has a sign where no word before it says in which direction it is."""
    plus = "+" if not estimate.sign and estimate.mean >= 0 else ""
    return plus + estimate.words(1, -100 if estimate.sign < 0 else 100, " points")


def _doubt(estimate: Estimate, what: str) -> str:
    """That an interval holds 0. One trial has no interval, and so nothing is known to be unsure."""
    return f", which is not surely a {what}" if estimate.num_trials > 1 and not estimate.sign else ""


def _against_fresh(name: str, gap: Estimate) -> str:
    if not gap.sign:
        start = f"{name} shows no sure loss of plasticity" if gap.num_trials > 1 else name
        return f"{start}: in later tasks {_points(gap)} against one that begins anew"
    verdict, how = ("loses plasticity", "worse") if gap.sign < 0 else ("gains from earlier tasks", "better")
    return f"{name} {verdict}: in later tasks it is {_points(gap)} {how} than one that begins anew"


def _over_tasks(name: str, change: Estimate) -> str:
    start = f"{name}: accuracy on the newest classes"
    if not change.sign:
        return f"{start} changes with every task by {_points(change)}{_doubt(change, 'change')}"
    return f"{start} {'rises' if change.sign > 0 else 'falls'} with every task by {_points(change)}"


def _against_first(name: str, gap: Estimate) -> str:
    if not gap.sign:
        return f"{name} differs in later tasks by {_points(gap)}{_doubt(gap, 'difference')}"
    return f"{name} is {'better' if gap.sign > 0 else 'worse'} in later tasks by {_points(gap)}"
