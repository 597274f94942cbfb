"""Scores of single images, means over the trials that trained on them, beside memorisation itself."""

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from dd_core.figures.drawing.selection import fetch, fetch_exact, has_view
from dd_core.study.study import Study
from dd_core.tables.memorization import NEVER_IS_LARGEST, SCORES

TRUTH = "memorization"


def _known(name: str) -> str:
    """A score with a number for "never", as ``as_numbers`` has it: an average would leave null out."""
    most = f"max({name}) OVER (PARTITION BY trial)"
    never = f"{most} + 1" if name == "forgetting_events" else f"CASE WHEN {most} IS NOT NULL THEN longest END"
    return f"coalesce({name}, {never}) AS {name}"


_MEANS = f"""
    SELECT image_id, any_value(true_label) AS true_label, any_value(given_label) AS given_label,
           bool_or(is_noisy) AS is_noisy, any_value(copy_of) AS copy_of, any_value(duplicate) AS duplicate,
           count(*) AS num_trials, bool_and(is_never_right) AS never_right,
           {", ".join(f"avg({name}) AS {name}" for name in SCORES)}
    FROM (SELECT * REPLACE ({", ".join(map(_known, NEVER_IS_LARGEST))}), forgetting_events IS NULL AS is_never_right
          FROM (SELECT *, list_extract($epochs, max(num_evaluations) OVER ()) + 1 AS longest
                FROM rows WHERE arm = $arm))
    GROUP BY image_id ORDER BY image_id
"""
# Of several sources the study's own measurement comes first.
_TRUTH = """
    SELECT image_id, memorization, standard_error, correct_in, correct_out, source FROM rows
    WHERE arm = $arm AND memorization IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY source <> 'subsets', source) = 1
"""


@dataclass(frozen=True)
class ImageMeans:
    """The images of one arm.

    Attributes:
        rows: of each image its labels, mean scores ("never" counts as in ``as_numbers``), whether it is ``never_right``
            in any trial (without forgetting events all are), and where it is known ``memorization`` with its standard
            error.
        scores: columns with a value for at least half of the images and not all the same, in the order of ``SCORES``.
        source: of the truth; None without.
    """

    rows: list[dict[str, Any]]
    scores: list[str]
    source: str | None

    def oriented(self, name: str) -> np.ndarray:
        """A column, larger where an image looks more memorised, (images,) float64; NaN where unknown."""
        sign = SCORES[name][1] if name in SCORES else 1
        return sign * np.array([np.nan if row[name] is None else row[name] for row in self.rows], dtype=np.float64)


def read_means(connection: duckdb.DuckDBPyConnection, study: Study, arm: str) -> ImageMeans:
    """The images of an arm; no rows where none has scores."""
    every = study.evaluation.every
    evaluated = [epoch for epoch in range(1, study.epochs + 1) if epoch % every == 0 or epoch in study.checkpoints]
    epochs = [epoch for epoch in evaluated if study.keeps_images(epoch)]
    rows = fetch_exact(connection, study, "memorization", _MEANS, arm=arm, epochs=epochs)
    truth = (
        {row["image_id"]: row for row in fetch_exact(connection, study, "memorization_truth", _TRUTH, arm=arm)}
        if has_view(connection, "memorization_truth")
        else {}
    )
    for row in rows:
        own = truth.get(row["image_id"], {})
        row.update({name: own.get(name) for name in (TRUTH, "standard_error", "correct_in", "correct_out")})
    return ImageMeans(rows, [name for name in SCORES if _is_telling(rows, name)], _source(truth))


def _source(truth: dict[int, dict[str, Any]]) -> str | None:
    return str(next(iter(truth.values()))["source"]) if truth else None


def _is_telling(rows: list[dict[str, Any]], name: str) -> bool:
    values = [row[name] for row in rows if row[name] is not None]
    return 2 * len(values) >= max(len(rows), 1) and min(values) < max(values)


def arms_with_scores(connection: duckdb.DuckDBPyConnection, study: Study, table: str) -> set[str]:
    """Keys of the arms with current rows in a table."""
    return {row["arm"] for row in fetch(connection, study, table, "SELECT DISTINCT arm FROM rows")}


def looked_at(connection: duckdb.DuckDBPyConnection, study: Study) -> str | None:
    """The arm to look at: the widest of the first variant with a truth and wrong labels, as far as there are such."""
    present = arms_with_scores(connection, study, "memorization")
    if not present:
        return None
    measured = arms_with_scores(connection, study, "memorization_truth")
    order = list(study.variants)

    def merit(key: str) -> tuple[bool, bool, int, int]:
        arm = study.arms[key]
        has_noise = study.variants[arm.variant].label_noise > 0
        return key in measured, has_noise, -order.index(arm.variant), arm.k

    return max(present, key=merit)
