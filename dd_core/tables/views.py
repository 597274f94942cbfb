"""Views over other views, for questions that would need a table larger than all others if its rows were stored."""

from collections.abc import Collection
from dataclasses import dataclass

import duckdb

from dd_core.tables.access import quoted
from dd_core.tables.columns import CLASS_RANK, EPOCH, IMAGE, LABELS, SPLIT, STUDY, TRIAL, VARIANT, Column


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


VIEWS = (
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
