"""Figures of a study that is being trained: from what is there, and with a first line that says so.

They lie where the finished ones will, which replace them. Belongs here: what of a study can be shown already.
"""

import contextlib
from pathlib import Path
from typing import Any, cast

import altair as alt
import duckdb

from dd_core.figures import Figure
from dd_core.figures.drawing import style
from dd_core.figures.drawing.render import render
from dd_core.figures.drawing.selection import fetch, has_view
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.warehouse import connect
from dd_core.words import counted

_MOST_NAMED = 4  # arms in training
_FEWEST_WIDTHS = 2  # of a curve
_OF_TRAINED = (
    "CREATE TEMP VIEW training_evals AS SELECT * FROM memory.main.training_evals SEMI JOIN trained USING (arm)"
)


def draw_so_far(figure: Figure, study: Study, store: Store) -> Path | None:
    """Draw a figure of evaluations from what arms have done until now.

    A curve over widths shows those arms alone that are trained to the end: others are not to be compared with them.

    Args:
        figure: made of the table ``training_evals`` alone.
        study: some of its arms are in training.
        store: where it is, and where the figure goes.

    Returns:
        The page, or None if there is nothing to draw yet.

    Raises:
        StoreError: it cannot be written, or the results not be read.
        UserError: a file is damaged.
    """
    with contextlib.closing(connect(store, {*figure.tables, "runs"}, live=True, within=(study.name,))) as connection:
        if not has_view(connection, "training_evals"):
            return None
        trained = _trained(study, store)
        sentence = _sentence(study, connection, trained)
        if figure.is_over_widths:
            if len(trained) < _FEWEST_WIDTHS:
                return None
            connection.execute("CREATE TEMP TABLE trained AS SELECT unnest($arms) AS arm", {"arms": trained})
            connection.execute(_OF_TRAINED)
        chart = figure.draw(study, store, connection, lambda table: "unfinished")  # for reports, which leave it out
    if chart is None:
        return None
    return render(_with_first_line(chart, sentence), store.figure_folder(figure.name), study.name)["html"]


def _trained(study: Study, store: Store) -> list[str]:
    """The keys of the arms whose last checkpoint is there."""
    last = {key: Checkpoint(arm, study.checkpoints[-1]) for key, arm in study.arms.items()}
    manifests = store.read_manifests([store.checkpoint_manifest_path(study.name, c) for c in last.values()])
    return [
        key
        for (key, checkpoint), manifest in zip(last.items(), manifests, strict=True)
        if manifest is not None and manifest.recipe == study.recipe_hash(checkpoint.arm)
    ]


def _sentence(study: Study, connection: duckdb.DuckDBPyConnection, trained: list[str]) -> str:
    """How far the study is: ``Unfinished: 2 of 7 arms so far; k = 6 is at epoch 45 of 120``."""
    rows = fetch(connection, study, "training_evals", "SELECT arm, max(epoch) AS epoch FROM rows GROUP BY arm")
    running = [(study.arms[row["arm"]], row["epoch"]) for row in rows if row["arm"] not in trained]
    several = len(study.variants) > 1
    named = [
        f"{f'{arm.variant} ' * several}k = {arm.k} at epoch {epoch}" for arm, epoch in sorted(running)[:_MOST_NAMED]
    ]
    text = f"Unfinished: {len(trained)} of {counted(len(study.arms), 'arm')} so far"
    more = f" and {len(running) - _MOST_NAMED} more" if len(running) > _MOST_NAMED else ""
    return f"{text}; {', '.join(named)}{more} of {study.checkpoints[-1]}" if named else text


def _with_first_line(chart: alt.TopLevelMixin, text: str) -> alt.TopLevelMixin:
    title = cast("Any", chart).title
    lines = title.subtitle if isinstance(title.subtitle, list) else []
    title.subtitle = [*style.wrap_lines([text]), *lines]
    return chart
