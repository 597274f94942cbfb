"""The spectrum of the Hessian in the weights, density and largest eigenvalues: narrow, threshold, wide."""

import math
from typing import Any

import altair as alt
import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import shown_widths
from dd_core.figures.drawing.selection import fetch, select, shown_variants
from dd_core.figures.panels import weight_hessian
from dd_core.store.store import Store
from dd_core.study.study import Study

_HEIGHT, _TICK = 150, 12

_SPECTRA = """
    SELECT variant, k, num_images, num_parameters, layers, largest_eigenvalue, smallest_eigenvalue, eigenvalues,
           density_eigenvalues, density
    FROM rows WHERE epoch = $epoch AND trial = 0 AND len(density) > 1 ORDER BY variant, k
"""


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw trial 0 at the latest checkpoint epoch whose Hessian all analysed arms have."""
    selection = select(connection, study, "hessian_spectra")
    if selection is None:
        return None
    spectra = fetch(connection, study, "hessian_spectra", _SPECTRA, epoch=selection.epoch)
    widths = weight_hessian.thresholds(connection, study, selection)
    variants, others = shown_variants(study, {row["variant"] for row in spectra})
    drawn = {
        variant: shown_widths(ks, widths[variant].threshold if variant in widths else None)
        for variant in variants
        if (ks := [row["k"] for row in spectra if row["variant"] == variant])
    }
    if not drawn:
        return None
    shown = [row for row in spectra if row["k"] in drawn.get(row["variant"], ())]
    panels = {
        variant: alt.vconcat(
            *(_panel(row, names[row["k"]], last=row["k"] == max(names)) for row in shown if row["variant"] == variant),
            spacing=20,
        )
        for variant, names in drawn.items()
    }
    most = max(len(row["eigenvalues"] or ()) for row in shown)
    return style.finish(
        style.by_variant(panels),
        headline(shown) if len(drawn) == 1 else "Eigenvalues of the Hessian in the weights, by variant and width",
        [
            *style.describe(study, list(drawn), selection.epoch),
            weight_hessian.about(study, shown),
            "Trial 0. Area: density of the eigenvalues by stochastic Lanczos quadrature, smoothed with Gaussians; each "
            "axis of densities begins below the density of one single eigenvalue",
            f"Orange ticks: the {most} largest eigenvalues by Lanczos, and the smallest" if most else None,
            others,
            selection.note(study),
        ],
        characters=66 if len(panels) == 1 else 100,
    )


def headline(shown: list[dict[str, Any]]) -> str:
    """One sentence with the largest eigenvalues."""
    known = [row for row in shown if row["largest_eigenvalue"] is not None]
    found = [f"{style.number(row['largest_eigenvalue'], 3)} at k = {row['k']}" for row in known]
    if not found:
        return "Eigenvalues of the Hessian in the weights"
    return f"The largest eigenvalue of the Hessian in the weights is {style.listed(found)}"


def density_above_floor(row: dict[str, Any]) -> tuple[list[dict[str, float]], float]:
    """The density at its grid, and the power of ten at which its axis begins and to which smaller values are lifted.

    It is below the density of one eigenvalue spread over the whole range. A single eigenvalue, smoothed to a small
    share of the range, stands far above that.
    """
    grid, density = row["density_eigenvalues"], row["density"]
    floor = 10.0 ** math.floor(-math.log10(row["num_parameters"] * (grid[-1] - grid[0])))
    points = zip(grid, density, strict=True)
    return [{"eigenvalue": _short(x), "density": _short(max(y, floor))} for x, y in points], floor


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _panel(row: dict[str, Any], name: str, *, last: bool) -> style.Panel:
    points, floor = density_above_floor(row)
    y_scale, y_axis = style.log_scale([*points, {"density": floor}], ["density"])
    ends = [points[0]["eigenvalue"], points[-1]["eigenvalue"]]
    x = alt.X(
        "eigenvalue:Q",
        scale=alt.Scale(domain=ends, nice=False, zero=False),
        title=f"eigenvalue, {weight_hessian.UNIT}" if last else None,
        axis=alt.Axis(tickCount=8, labelOverlap="greedy"),
    )
    y = alt.Y(
        "density:Q", scale=y_scale, title=["spectral density,", "squared weights per nat"],
        axis=alt.Axis(labelOverlap="greedy", **y_axis),
    )  # fmt: skip
    area = alt.Chart(style.csv_data([{**point, "floor": floor} for point in points])).encode(x=x)
    marked = [value for value in [*(row["eigenvalues"] or ()), row["smallest_eigenvalue"]] if value is not None]
    ticks = alt.Chart(style.data([{"eigenvalue": value} for value in marked])).mark_rule(
        color=style.LARGEST_EIGENVALUE, strokeWidth=1.8, clip=True
    )
    facts = [
        f"{word} eigenvalue {style.number(row[column], 3)}".replace("-", "\u2212")
        for word, column in (("largest", "largest_eigenvalue"), ("smallest", "smallest_eigenvalue"))
        if row[column] is not None
    ]
    facts.append(f"{row['num_parameters']:,} weights")
    layers = [
        area.mark_area(color=style.WEIGHT_TRACE, opacity=0.35, clip=True).encode(y=y, y2="floor:Q"),
        area.mark_line(color=style.WEIGHT_TRACE, strokeWidth=1.5, clip=True).encode(y=y),
        area.mark_circle(size=40, opacity=0, clip=True).encode(
            y=y, tooltip=style.numbers(eigenvalue="eigenvalue", density="density")
        ),
        ticks.encode(x=alt.X("eigenvalue:Q"), y=alt.value(_HEIGHT), y2=alt.value(_HEIGHT - _TICK)),
        *style.heading(style.WIDTH, f"k = {row['k']}, {name}", "; ".join(facts)),
    ]
    return alt.layer(*layers).properties(width=style.WIDTH, height=_HEIGHT)
