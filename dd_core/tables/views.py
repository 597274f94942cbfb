"""Views over other views, for questions that would need a table larger than all others if its rows were stored."""

from collections.abc import Collection
from dataclasses import dataclass

import duckdb

from dd_core.tables.access import quoted
from dd_core.tables.columns import ARM, CLASS_RANK, EPOCH, IMAGE, LABELS, SPLIT, STUDY, TRIAL, VARIANT, Column
from dd_core.tables.graphs import NSM_RESULTS
from dd_core.tables.memorization import NEVER_IS_LARGEST, SCORES


@dataclass(frozen=True)
class View:
    """A view without files.

    Attributes:
        sources: the tables whose views it reads.
        query: SQL of its rows, with its columns in their order.
    """

    name: str
    description: str
    sources: tuple[str, ...]
    query: str
    columns: tuple[Column, ...]


def _rank(score: str) -> str:
    """SQL of the share of a trial's images that look less memorised by a score; null where it was not measured."""
    sign, trial = SCORES[score][1], "study, arm, recipe, trial"
    if score in NEVER_IS_LARGEST:
        value = f"{sign} * coalesce({score}, 'infinity'::DOUBLE)"
        is_known = f"count({score}) OVER (PARTITION BY {trial}) > 0"
    else:
        value, trial, is_known = f"{sign} * {score}", f"{trial}, {score} IS NULL", f"{score} IS NOT NULL"
    return f"CASE WHEN {is_known} THEN percent_rank() OVER (PARTITION BY {trial} ORDER BY {value}) END AS {score}"


# A row of runs is a trial of an attempt, but times are those of the attempt. Trials that train apart are parts of their
# arm, known by their first trial. An attempt after one that was lost goes on with what was predicted then.
_COSTS = """
WITH attempts AS (
    SELECT study, arm, variant, k, recipe, attempt, min(trial) AS part, count(*) AS num_trials,
        coalesce(any_value(arms_together), 1) = 1 AS is_alone, any_value(seconds) AS seconds,
        any_value(first_epoch) AS first_epoch, max(last_epoch) AS last_epoch,
        any_value(cost) AS cost, any_value(predicted_seconds) AS predicted_seconds,
        any_value(gpu_share) * any_value(price_per_gpu_hour) / 3600 AS price,
        bool_or(status IN ('running', 'interrupted', 'failed')) AS is_lost,
        CASE WHEN bool_and(end_epoch IS NOT NULL) THEN max(end_epoch) END AS all_ended,
        arg_max(status, end_epoch) AS last_ending
    FROM runs GROUP BY study, arm, variant, k, recipe, attempt
), ordered AS (
    SELECT *, lag(is_lost, 1, false) OVER of_part AS goes_on, row_number() OVER newest = 1 AS is_newest,
        greatest(least(coalesce(all_ended, last_epoch), last_epoch) - first_epoch, 0) AS epochs
    FROM attempts
    WINDOW of_part AS (PARTITION BY study, arm, recipe, part ORDER BY attempt),
        newest AS (PARTITION BY study, arm, recipe, part ORDER BY attempt DESC)
), parts AS (
    SELECT study, arm, variant, k, recipe, part, count(*) AS num_attempts,
        count(*) - count(seconds) AS num_untimed_attempts, sum(seconds) AS seconds, sum(cost) AS cost,
        CASE WHEN NOT bool_or(predicted_seconds IS NULL AND NOT goes_on)
            THEN sum(predicted_seconds) FILTER (NOT goes_on) END AS predicted_seconds,
        arg_max(price, attempt) AS price, max(num_trials) AS num_trials,
        sum(seconds) FILTER (NOT is_lost) / nullif(sum(epochs) FILTER (NOT is_lost), 0) AS seconds_per_epoch,
        coalesce(
            max(last_epoch - all_ended) FILTER (is_newest AND is_alone AND last_ending = 'stopped early'), 0
        ) AS epochs_saved
    FROM ordered GROUP BY study, arm, variant, k, recipe, part
)
SELECT study, arm, variant, k, recipe, sum(num_attempts) AS num_attempts,
    sum(num_untimed_attempts) AS num_untimed_attempts,
    CASE WHEN count(predicted_seconds) = count(*) THEN sum(predicted_seconds) END AS predicted_seconds,
    CASE WHEN count(predicted_seconds) = count(*) THEN sum(predicted_seconds * price) END AS predicted_cost,
    sum(seconds) AS seconds, sum(cost) AS cost, sum(epochs_saved * num_trials) AS trial_epochs_saved,
    sum(CASE WHEN epochs_saved = 0 THEN 0 ELSE epochs_saved * seconds_per_epoch END) AS seconds_saved,
    sum(price * CASE WHEN epochs_saved = 0 THEN 0 ELSE epochs_saved * seconds_per_epoch END) AS cost_saved
FROM parts GROUP BY study, arm, variant, k, recipe
"""

_TRIAL_AND_SPLIT = tuple(c for c in NSM_RESULTS.columns if c in ARM or c.name in ("domain", "labels", "split"))
_OF_RESULT = tuple(c for c in NSM_RESULTS.columns if c not in _TRIAL_AND_SPLIT and c.name != "result")
_AT = {"best": "at the best epoch: ", "last": "at the last epoch: "}
_BESIDE = ", ".join(
    f"any_value({c.name}) FILTER (result = '{at}') AS {at}_{c.name}" for at in _AT for c in _OF_RESULT
)  # fmt: skip

VIEWS = (
    View(
        "costs",
        "What training each arm was predicted to take and cost, what it took and cost, and what early stopping saved. "
        "Money is in the currency of price_per_gpu_hour, null without one, 0 on a CPU.",
        ("runs",),
        _COSTS,
        (
            *(column for column in ARM if column != TRIAL),
            Column("num_attempts", "int64", "with those that were lost, of all parts of the arm"),
            Column(
                "num_untimed_attempts",
                "int64",
                "of them, those that seconds and cost leave out: they train, or were killed and nothing has trained or "
                "tidied the arm since",
            ),
            Column(
                "predicted_seconds",
                "float64",
                "wall time as predicted before it began, s; the prediction of an attempt that takes up a lost one does "
                "not count once more; null: nothing to go by",
            ),
            Column("predicted_cost", "float64", "the same in money"),
            Column("seconds", "float64", "wall time of all attempts, of lost ones up to their last sign of life, s"),
            Column("cost", "float64", "of the same attempts"),
            Column(
                "trial_epochs_saved",
                "int64",
                "epochs times trials that were asked for and not trained, as all trials of the attempt had ended and "
                "the last of them stopped early; while one trains, those in its network cost as much as before. 0 "
                "where arms share a network, which trains until the last of them has ended",
            ),
            Column("seconds_saved", "float64", "those epochs at the measured time of an epoch, s; 0: none"),
            Column("cost_saved", "float64", "the same in money"),
        ),
    ),
    View(
        "memorization_ranks",
        "Scores made comparable: for each, the share of the trial's images that look less memorised, 0 to 1.",
        ("memorization",),
        f"SELECT {', '.join(column.name for column in (*ARM, IMAGE, *LABELS))}, {', '.join(map(_rank, SCORES))} "
        "FROM memorization",
        (
            *(*ARM, IMAGE, *LABELS),
            *(
                Column(score, "float64", f"by {title}; ties have the lowest of their ranks")
                for score, (title, _) in SCORES.items()
            ),
        ),
    ),
    View(
        "nsm_best_and_last",
        "The results of a trial on graphs at its best and at its last epoch beside each other, by split; null: it has "
        "no best one.",
        ("nsm_results",),
        f"SELECT {', '.join(c.name for c in _TRIAL_AND_SPLIT)}, {_BESIDE} FROM nsm_results GROUP BY ALL",
        (
            *_TRIAL_AND_SPLIT,
            *(
                Column(f"{at}_{c.name}", c.type, f"{words}{c.description}")
                for at, words in _AT.items()
                for c in _OF_RESULT
            ),
        ),
    ),
    View(
        "images_by_epoch",
        "Which images the weights of each checkpoint epoch had seen, and which were active from then on, where classes "
        "come one group after the other. The two differ where a task has just ended.",
        ("images", "class_schedule"),
        "SELECT i.study, i.variant, i.trial, s.epoch, i.image_id, i.split, i.true_label, i.given_label, i.is_noisy, "
        "i.class_rank, s.task, i.class_rank < s.num_seen_classes AS is_seen, "
        "i.class_rank < s.num_active_classes AS is_active "
        "FROM images i JOIN class_schedule s USING (study) WHERE i.class_rank IS NOT NULL",
        (
            *(STUDY, VARIANT, TRIAL, EPOCH, IMAGE, SPLIT, *LABELS, CLASS_RANK),
            Column("task", "int16", "that the epoch belongs to, from 1"),
            Column("is_seen", "bool", "of a class that the weights after the epoch have been trained on"),
            Column("is_active", "bool", "of a class that the next epoch is trained on"),
        ),
    ),
)


def create_views(connection: duckdb.DuckDBPyConnection, tables: Collection[str], *, is_commented: bool) -> None:
    """Create those whose sources have views, with words about them and their columns where people will ask for them."""
    for view in VIEWS:
        if set(view.sources) <= set(tables):
            connection.execute(f"CREATE VIEW {view.name} AS {view.query}")
            if not is_commented:
                continue
            connection.execute(f"COMMENT ON VIEW {view.name} IS {quoted(view.description)}")
            for column in view.columns:
                comment = quoted(column.description)
                connection.execute(f"COMMENT ON COLUMN {view.name}.{column.name} IS {comment}")
