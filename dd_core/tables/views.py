"""Views over other views, for questions that would need a table larger than all others if its rows were stored."""

from collections.abc import Collection
from dataclasses import dataclass

import duckdb

from dd_core.tables.access import quoted
from dd_core.tables.columns import ARM, CLASS_RANK, EPOCH, IMAGE, LABELS, SPLIT, STUDY, TRIAL, VARIANT, Column
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


VIEWS = (
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


def create_views(connection: duckdb.DuckDBPyConnection, tables: Collection[str]) -> None:
    """Create those whose sources have views."""
    for view in VIEWS:
        if set(view.sources) <= set(tables):
            connection.execute(f"CREATE VIEW {view.name} AS {view.query}")
            connection.execute(f"COMMENT ON VIEW {view.name} IS {quoted(view.description)}")
            for column in view.columns:
                comment = quoted(column.description)
                connection.execute(f"COMMENT ON COLUMN {view.name}.{column.name} IS {comment}")
