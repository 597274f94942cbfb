"""The test error against width, for figures to compare with."""

from typing import Any

import altair as alt
import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import Selection, fetch
from dd_core.study.study import Study

_TEST_ERROR = """
    SELECT variant, k, 100 * avg(test_error) AS error, 100 * min(test_error) AS low, 100 * max(test_error) AS high
    FROM rows WHERE epoch = $epoch AND list_contains($drawn, arm) AND isfinite(test_error)
    GROUP BY ALL ORDER BY variant, k
"""


def test_errors(connection: duckdb.DuckDBPyConnection, study: Study, selection: Selection) -> list[dict[str, Any]]:
    """Test error of the selected arms in percent, mean and extremes over trials, by variant and k."""
    parameters = {"epoch": selection.epoch, "drawn": list(selection.arms)}
    return fetch(connection, study, "training_evals", _TEST_ERROR, **parameters)


def test_error_panels(errors: list[dict[str, Any]], ks: list[int], threshold: int | None) -> list[style.Panel]:
    """The panel of test errors that stands above others with the same axis of k, or none without errors."""
    if not errors:
        return []
    base = alt.Chart(style.data(errors)).encode(x=style.k_axis(ks, labels=False))
    title = "test error, %"
    band = base.mark_area(opacity=0.15, color=style.TEST).encode(
        y=alt.Y("low:Q", title=title, scale=style.headroom(errors, "high", 0.25)), y2="high:Q"
    )
    y = alt.Y("error:Q", title=title)
    line = base.mark_line(color=style.TEST).encode(y=y)
    shown = style.numbers(error=title, low="lowest", high="highest")
    points = base.mark_circle(size=40, opacity=1, color=style.TEST).encode(y=y, tooltip=["k:Q", *shown])
    label = f"interpolation threshold: k = {threshold}"
    layers = [*style.threshold_rule(threshold, ks, label), band, line, points]
    return [alt.layer(*layers).properties(width=style.WIDTH, height=110)]
