"""What a study whose classes come one group after the other says, as text: plasticity, forgetting, and its forecast."""

import contextlib
from collections import defaultdict

import duckdb

from dd_core.analysis.intervals import over_trials
from dd_core.analysis.loss_slope_report import CURRENT, query
from dd_core.analysis.memorization.sentences import boundary_sentence
from dd_core.analysis.plasticity import newest_classes, plasticity_sentences, task_ends
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.warehouse import connect

_TABLES = ("class_progress", "boundary_forgetting")
# Accuracy on the first task's classes by trial, at the end of that task and at the last one.
_FIRST = f"""
    SELECT arm, trial, epoch, sum(accuracy * num_images) / sum(num_images) AS accuracy FROM class_progress
    WHERE {CURRENT} AND split = $split AND task = 1 AND list_contains($epochs, epoch) GROUP BY ALL
    ORDER BY arm, trial, epoch
"""
_FORECASTS = f"""
    SELECT arm, trial, boundary, predictor, statistic, spearman FROM boundary_forgetting
    WHERE {CURRENT} AND spearman IS NOT NULL
    QUALIFY dense_rank() OVER (PARTITION BY arm, trial, boundary ORDER BY until) = 1
    ORDER BY arm, predictor, statistic, boundary, trial
"""


def findings(store: Store, study: Study) -> list[str]:
    """Sentences about a study's tasks; none where classes do not come one after the other, or no task has ended."""
    if study.data.classes is None:
        return []
    with contextlib.closing(connect(store, _TABLES, within=(study.name,))) as connection:
        newest = newest_classes(study, connection)
        sentences: list[str] = []
        for k in study.all_widths:
            of_width = {arm: own for arm, own in newest.items() if study.arms[arm].k == k}
            if of_width:
                start = f"k = {k}: " if len(study.all_widths) > 1 else ""
                sentences += [start + sentence for sentence in plasticity_sentences(study, of_width)]
        splits = {arm: own.split for arm, own in newest.items()}
        sentences += _forgotten(study, connection, splits)
        sentences += _foretold(study, connection)
    return [f"{sentence}." for sentence in sentences]


def _forgotten(study: Study, connection: duckdb.DuckDBPyConnection, splits: dict[str, str]) -> list[str]:
    """How much of the first task is lost by the last checkpoint at the end of a task."""
    ends = task_ends(study)
    rows = [
        row
        for split in sorted(set(splits.values()))
        for row in query(connection, study, _FIRST, split=split, epochs=[ends[0], ends[-1]])
        if splits.get(row["arm"]) == split
    ]
    found: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[row["arm"]][row["trial"]][row["epoch"]] = row["accuracy"]
    sentences = []
    for arm in study.arms:
        pairs = [own for own in found[arm].values() if len(own) == 2]
        if pairs:
            lost = over_trials(own[ends[0]] - own[ends[-1]] for own in pairs)
            left = over_trials(own[ends[-1]] for own in pairs)
            sentences.append(
                f"{arm}: accuracy on the first task's classes goes down by {lost.words(1, 100, ' points')} from epoch "
                f"{ends[0]} to {ends[-1]}, to {100 * left.mean:.1f} %"
            )
    return sentences


def _foretold(study: Study, connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = query(connection, study, _FORECASTS)
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in study.arms}
    return [boundary_sentence(arm, own) for arm, own in by_arm.items() if own]
