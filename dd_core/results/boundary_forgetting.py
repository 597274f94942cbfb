"""Rows of ``boundary_forgetting``: at every change of task, what foretells how much of an image is forgotten."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dd_core.analysis.memorization.boundaries import STATISTICS, foretell, statistic
from dd_core.results.image_curves import ImageCurves
from dd_core.study.study import Arm, Study


def boundary_rows(curves: ImageCurves, study: Study, arm: Arm) -> list[dict[str, Any]]:
    """All rows of a trial; none without a class schedule, or where a task has no evaluation."""
    return [row for boundary in boundaries(study, arm) for row in _at(boundary, curves, study, arm)]


def boundaries(study: Study, arm: Arm) -> list[int]:
    """The last epoch of every task but the last that the study trains."""
    calendar = study.calendar(arm.variant)
    return [epoch for epoch in range(1, study.epochs) if calendar.ends_task(epoch)]


def _at(boundary: int, curves: ImageCurves, study: Study, arm: Arm) -> Iterator[dict[str, Any]]:
    later = curves.epochs[curves.epochs > boundary]
    before = np.flatnonzero(curves.epochs == boundary)
    calendar = study.calendar(arm.variant)
    task = calendar.task_of(boundary)
    # Forgetting is measured at the first evaluation of the next task alone, later ones have other causes, too. It may
    # not be among these, where values of single images are not kept of every evaluation.
    if not len(before) or not len(later) or later[0] > boundary + study.evaluation.every:
        return
    if calendar.task_of(int(later[0])) != task + 1:
        return
    losses = curves.values["loss"].astype(float)
    until = int(later[0])
    change = losses[np.flatnonzero(curves.epochs == until)[0]] - losses[before[0]]
    in_task = np.isin(curves.epochs, calendar.epochs_of(task, study.epochs))
    sources = {"loss": (curves.epochs[in_task], losses[in_task])}
    if "gradient_norm" in curves.values:
        sources["gradient_norm"] = (curves.epochs[in_task], curves.values["gradient_norm"][in_task].astype(float))
    if "trace" in curves.curvatures:
        in_task = np.isin(curves.curvature_epochs, calendar.epochs_of(task, study.epochs))
        sources["trace"] = (curves.curvature_epochs[in_task], curves.curvatures["trace"][in_task])
    predictors = {
        (name, what): statistic(what, curve, epochs)
        for name, (epochs, curve) in sources.items()
        for what in STATISTICS
        if len(epochs) > (what == "slope")
    }
    predictors["csl", "sum"] = np.where(np.isnan(change), np.nan, np.nansum(losses[curves.epochs <= boundary], axis=0))
    for (name, what), values in predictors.items():
        found = foretell(values, change, study.memorization.num_bootstraps, seed=boundary)
        yield {
            "trial": curves.trial,
            "boundary": boundary,
            "until": until,
            "predictor": name,
            "statistic": what,
            "num_images": found.num_images,
            "spearman": found.value,
            "spearman_low": found.low,
            "spearman_high": found.high,
            "quintile_forgetting": found.by_fifth,
        }
