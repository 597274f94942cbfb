"""Is every metric of imported runs there as often as their study asks for?

Others count steps from 0 or from 1, and validate a step sooner or later, so numbers of values are compared and not
their places. Every run must have the loss of its batches, and what else of them some run has. Of monitors what the
loss-slope campaign logs is asked for, unless the study file says otherwise under ``monitors``: null for what its
program did not measure.
"""

from typing import Any

import duckdb

from dd_core.checks.sentences import Gap, sentences
from dd_core.study.calendar import Calendar
from dd_core.study.monitors import expected_steps
from dd_core.study.study import Study

_BATCH_COLUMNS = ("train_loss", "train_error", "learning_rate", "weight_decay", "time")
_COUNTS = f"""
    SELECT arm, trial, recipe, unnest([{", ".join(f"'{name}'" for name in _BATCH_COLUMNS)}]) AS metric,
           unnest([{", ".join(f"count({name})" for name in _BATCH_COLUMNS)}]) AS number
    FROM training_batches WHERE study = $study GROUP BY arm, trial, recipe
    UNION ALL
    SELECT arm, trial, recipe, metric, count(value) FROM training_monitors WHERE study = $study
    GROUP BY arm, trial, recipe, metric
    UNION ALL
    SELECT arm, trial, recipe, unnest(['validation_loss', 'validation_error']) AS metric,
           unnest([count(validation_loss), count(validation_error)]) AS number
    FROM training_evals WHERE study = $study GROUP BY arm, trial, recipe
"""
_SQL = f"SELECT arm, trial, recipe, metric, sum(number)::BIGINT FROM ({_COUNTS}) GROUP BY ALL"


def logged_gaps(study: Study, connection: duckdb.DuckDBPyConnection, runs: list[dict[str, Any]]) -> list[str]:
    """Sentences about metrics of which there are too few values.

    Args:
        study: an imported one.
        connection: has the views of its metrics.
        runs: its rows of ``loss_slopes``.
    """
    rows = connection.execute(_SQL, {"study": study.name}).fetchall()
    found = {(arm, trial, recipe, metric): number for arm, trial, recipe, metric, number in rows}
    columns = {"train_loss", *(metric for (_, _, _, metric), number in found.items() if number)}
    gaps: list[Gap] = []
    for run in runs:
        if run["outcome"] == "no losses":
            gaps.append(Gap(run["arm"], run["trial"], "train_loss", "missing"))
        if not run["steps_per_epoch"] or not run["last_epoch"]:
            continue
        num_steps = round(run["last_epoch"] * run["steps_per_epoch"])
        calendar = Calendar(max(1, round(run["steps_per_epoch"])), 1)
        due = dict.fromkeys((name for name in _BATCH_COLUMNS if name in columns), num_steps)
        due |= {name: len(at) for name, at in expected_steps(study.monitors, True, calendar, num_steps).items()}
        for metric, number in due.items():
            there = found.get((run["arm"], run["trial"], run["recipe"], metric), 0)
            if there < number - 1:  # the last may be due after the run's end
                gaps.append(
                    Gap(run["arm"], run["trial"], metric, f"there {there} of {number} times" if there else "missing")
                )
    nowhere = {gap.metric for gap in gaps} - {metric for (_, _, _, metric), number in found.items() if number}
    names = " and ".join(", ".join(sorted(nowhere)).rsplit(", ", 1))
    hint = "if its program did not measure that, say so in the study file, by null under monitors"
    several = [f"no run has {names}; {hint}"] if nowhere and len(runs) > 1 else []
    return [*several, *sentences(gap for gap in gaps if not (several and gap.metric in nowhere))]
