"""The noise of the loss curve against the best validation loss: fast and slow fluctuations, and the noise floor."""

import altair as alt
import duckdb
import numpy as np

from dd_core.analysis.loss_slopes.correlation import Correlation, correlate
from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.panels.loss_slope_scatter import in_words, p_in_words, scatter
from dd_core.figures.panels.loss_slopes import read_runs
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.words import counted

_SIZE = 220
# Words and the title of the axis.
_MEASURES = {
    "spectral_density_tail": (
        "fast fluctuations",
        ["spectral_density_tail, variance of log loss", "per cycle per step"],
    ),
    "residual_power": ("slow fluctuations", ["residual_power, variance of log loss", "per cycle per step"]),
    "noise_floor": ("noise floor", ["noise_floor, nats"]),
}


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw a panel per measure.

    Raises:
        DataMissingError: there are runs, but none with such a measure and a validation or test loss.
    """
    runs = read_runs(connection, study)
    if not runs.rows:
        return None
    shown = {name: rows for name in _MEASURES if (rows := runs.having(name, "best_validation_loss"))}
    if not shown:
        raise DataMissingError(f"no run has a noise of its loss and a validation or test loss; {runs.endings()}")
    found = {}
    panels: list[style.Panel] = []
    for name, rows in shown.items():
        x, y = (np.array([row[column] for row in rows], dtype=np.float64) for column in (name, "best_validation_loss"))
        groups = np.unique([row["arm"] for row in rows], return_inverse=True)[1]
        found[name] = correlate(x, y, groups, "spearman", study.loss_slopes.bootstrap_samples)
        words, title = _MEASURES[name]
        layers = scatter(runs, rows, name, title, (_SIZE, _SIZE), labels=not panels)
        above = style.heading(_SIZE, words, in_words(found[name]))
        panels.append(alt.layer(*layers, *above).properties(width=_SIZE, height=_SIZE))
    return style.finish(
        alt.hconcat(*panels, spacing=40),
        headline(found),
        [
            "Residuals of the straight segment's line in log loss; fast: 0.3 to 0.5 cycles per step, slow: "
            "0.02 to 0.1. Point: a run; \u03c1: Spearman's, its interval by bootstrap over configurations",
            *runs.describe(study),
        ],
        characters=100 if len(panels) > 1 else 50,
    )


def headline(found: dict[str, Correlation]) -> str:
    """Which measure goes most with the best loss, and how sure that is."""
    known = {name: own for name, own in found.items() if own.value is not None}
    if not known:
        return "The noise of the loss curve against the best loss; too few runs for a correlation"
    name, most = max(known.items(), key=lambda item: abs(item[1].value or 0.0))
    what = {
        "spectral_density_tail": "fast fluctuations of the loss go",
        "residual_power": "slow fluctuations of the loss go",
    }
    subject = what.get(name, "the noise floor goes")
    better = "lower" if (most.value or 0.0) < 0 else "higher"
    sure = most.low is not None and most.high is not None and most.low * most.high > 0
    sentence = f"{in_words(most)}, {p_in_words(most)}, {counted(most.num_runs, 'run')}"
    if not sure:
        return f"No noise of the loss curve surely goes with the best loss; the most, {_MEASURES[name][0]}: {sentence}"
    return f"Stronger {subject} with {better} best losses: {sentence}".replace("Stronger the", "A higher")
