"""How well each level of a graph network is reconstructed while it trains, and how evenly pooling scores its nodes."""

import altair as alt
import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.panels import graphs
from dd_core.store.store import Store
from dd_core.study.study import Study

_LEVELS = {"cycle_loss_1": "level 1", "cycle_loss_2": "level 2", "cycle_loss": "cycle loss, .7 and .3 of them"}
_ENTROPY = {"pooling_entropy": "entropy of pooling scores"}
_COLOURS = dict(
    zip((*_LEVELS.values(), *_ENTROPY.values()), (style.BLUE, style.SKY, style.BLACK, style.PURPLE), strict=True)
)
_HEIGHT, _LOWER = 165, 80


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw a column for each domain: cycle losses with the floor above, entropy of pooling below."""
    progress = graphs.read_progress(study, connection, (*_LEVELS, *_ENTROPY, "cycle_loss_floor"))
    if progress is None:
        return None
    colour = graphs.colour_of(_COLOURS)
    highest = max((row[f"{name}_high"] or 0.0 for row in progress.rows for name in _LEVELS), default=1.0)
    panels = {arm: [_losses(progress, arm, colour, highest), _entropy(progress, arm, colour)] for arm in progress.names}
    return style.finish(
        graphs.in_columns(panels, progress.names),
        headline(progress),
        [
            *style.describe(study, [study.arms[arm].variant for arm in progress.names]),
            f"Of {progress.split} graphs. Mean squared errors of the reconstructed features of each level",
            "Floor, no strict bound, of level 1: the share of nodes that poolings drop, times the features' variance; "
            ".7 of it the sum's",
            "Entropy of the first pooling's scores, over its largest value: 0, one node takes all; 1, all are alike",
            *progress.notes,
        ],
        characters=graphs.characters(len(panels)),
    )


def headline(progress: graphs.Progress) -> str:
    """One sentence: where the cycle loss ends, and its floor."""
    parts = []
    for arm, name in progress.names.items():
        rows = [row for row in progress.of(arm, progress.split) if row["cycle_loss"] is not None]
        if rows:
            value, low, high, floor = (
                None if rows[-1][column] is None else style.number(rows[-1][column], 3)
                for column in ("cycle_loss", "cycle_loss_low", "cycle_loss_high", "cycle_loss_floor")
            )
            aside = [f"trials {low} to {high}"] * (rows[-1]["num_trials"] > 1) + [f"floor {floor}"] * (
                floor is not None
            )
            parts.append(f"{name} {value}" + (f" ({', '.join(aside)})" if aside else ""))
    return f"Cycle loss at the end: {'; '.join(parts)}" if parts else "Cycle loss by level, over training"


def _losses(progress: graphs.Progress, arm: str, colour: alt.Color, highest: float) -> style.Panel:
    rows = progress.of(arm, progress.split)
    ends = (0.0, 1.05 * highest or 1.0)
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(domain=list(ends), nice=False),
        title="mean squared error",
        axis=alt.Axis(tickCount=5),
    )
    floor = rows[-1]["cycle_loss_floor"] if rows else None
    layers = [
        *graphs.rules(_floors(floor), y, ends, progress.width),
        *graphs.lines(
            graphs.as_series(rows, _LEVELS), graphs.epoch_axis(progress.last, labels=False), y, colour, ".3f"
        ),
    ]
    return alt.layer(*layers).properties(width=progress.width, height=_HEIGHT)


def _floors(floor: float | None) -> dict[str, float]:
    """Floors of the cycle loss and of its first level, which alone has one: nodes dropped come back as one constant."""
    if floor is None:
        return {}
    first = floor / 0.7
    return {f"floor {style.number(floor, 2)}": floor, f"of level 1, {style.number(first, 2)}": first}


def _entropy(progress: graphs.Progress, arm: str, colour: alt.Color) -> style.Panel:
    y = alt.Y("value:Q", scale=alt.Scale(domain=[0, 1]), title="entropy", axis=alt.Axis(tickCount=3))
    rows = graphs.as_series(progress.of(arm, progress.split), _ENTROPY)
    layers = graphs.lines(rows, graphs.epoch_axis(progress.last), y, colour, ".3f")
    return alt.layer(*layers).properties(width=progress.width, height=_LOWER)
