"""Best validation loss over learning rate and weight decay, a heat map for each family, with the runs that diverged."""

import math
import statistics
from typing import Any, Literal

import altair as alt
import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.panels.loss_slopes import Runs, read_runs, val_ce_title
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.words import counted

_CELL = (78, 52)
_MOST_PANELS = 12
# Cells that are so many times worse than the best share the lightest colour.
_DARKEST_TO_LIGHTEST = 10
_AXES = ("learning_rate", "weight_decay")
# What else may differ within a family makes panels of its own: these, and whatever else its grid varies.
_OTHERS = {"k": "k", "momentum": "momentum", "batch_size": "batch size", "label_noise": "label noise"}


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw it where a family has several learning rates or weight decays; otherwise there is no grid."""
    runs = read_runs(connection, study)
    grids = _grids(study, runs)
    if not grids:
        return None
    drawn = dict(list(grids.items())[:_MOST_PANELS])
    cells = {name: _cells(rows) for name, rows in drawn.items()}
    values = [cell["value"] for own in cells.values() for cell in own if cell["value"] is not None]
    colour = _colour(values, val_ce_title(runs.rows))
    panels = [_panel(name, own, colour, values) for name, own in cells.items()]
    return style.finish(
        alt.concat(*panels, columns=2 if len(panels) in (2, 4) else 3, spacing=26),
        headline(runs, [{**cell, "grid": name} for name, own in cells.items() for cell in own]),
        [
            "Cell: median over seeds of the lowest loss of runs that did not diverge; below it how many did. "
            "Grey: none is left. Bold: the best cell of its grid",
            f"Shown: the first {len(drawn)} of {len(grids)} grids" if len(drawn) < len(grids) else None,
            *runs.describe(study),
        ],
        characters=100 if len(panels) > 4 else 74,
    )


def _grids(study: Study, runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """The runs by family, and by what else differs within it; families without a grid are left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for family in runs.families:
        own = [row for row in runs.rows if row["family"] == family and None not in (row[name] for name in _AXES)]
        if max(len({row[name] for row in own}) for name in _AXES) < 2:
            continue
        others = [_others(study, row) for row in own]
        names = dict.fromkeys(name for values in others for name in values)
        differing = [name for name in names if len({values.get(name) for values in others}) > 1]
        for row, values in zip(own, others, strict=True):
            parts = [family, *(f"{name} = {values.get(name)}" for name in differing)]
            found.setdefault(", ".join(parts), []).append(row)
    return found


def _others(study: Study, row: dict[str, Any]) -> dict[str, Any]:
    """What of a run may differ from the others of its family beside the axes, by name in words."""
    grid = {name: value for name, value in study.variants[row["variant"]].grid_values.items() if name not in _AXES}
    return {word: row[name] for name, word in _OTHERS.items()} | {
        name.replace("_", " "): value for name, value in grid.items() if name not in _OTHERS
    }


def _cells(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One cell per learning rate and weight decay."""
    pairs = sorted({(row["learning_rate"], row["weight_decay"]) for row in rows})
    made = []
    for rate, decay in pairs:
        own = [row for row in rows if (row["learning_rate"], row["weight_decay"]) == (rate, decay)]
        losses = [
            row["best_validation_loss"]
            for row in own
            if row["best_validation_loss"] is not None and not row["is_diverged"]
        ]
        num_diverged = sum(row["is_diverged"] for row in own)
        value = statistics.median(losses) if losses else None
        made.append(
            {
                "rate": f"{rate:g}", "decay": f"{decay:g}", "value": value,
                "number": f"{value:#.3g}" if value is not None else "no loss" if num_diverged < len(own) else "",
                "diverged": f"{num_diverged} of {len(own)} diverged" if num_diverged else "",
                "runs": len(own), "num_diverged": num_diverged,
            }
        )  # fmt: skip
    best = min((cell["value"] for cell in made if cell["value"] is not None), default=None)
    return [{**cell, "is_best": cell["value"] is not None and cell["value"] == best} for cell in made]


def headline(runs: Runs, cells: list[dict[str, Any]]) -> str:
    """One sentence: the best cell, and how many runs diverged."""
    known = [cell for cell in cells if cell["value"] is not None]
    diverged = [row["family"] for row in runs.rows if row["is_diverged"]]
    where = {family: diverged.count(family) for family in runs.families if family in diverged}
    named = style.listed([f"{count} of {family}" for family, count in where.items()]) if where else ""
    most = f" ({named})" if named and len(runs.families) > 1 else ""
    lost = f"{len(diverged)} of {counted(len(runs.rows), 'run')} diverged{most}"
    if not known:
        return lost if diverged else "No run has a validation or test loss"
    best = min(known, key=lambda cell: cell["value"])
    kind = val_ce_title(runs.rows).removesuffix(", nats").removeprefix("best ")
    return (
        f"Lowest median {kind}: {best['value']:#.3g} nats, of {best['grid']} at learning rate {best['rate']} and "
        f"weight decay {best['decay']}; {lost if diverged else 'no run diverged'}"
    )


def _colour(values: list[float], title: str) -> alt.Color:
    """Dark is good; the worst cells share a colour, so that they do not hide the differences of the others."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    high = min(high, _DARKEST_TO_LIGHTEST * low) if low > 0 else high
    scale = alt.Scale(
        type="log" if low > 0 else "linear", scheme="viridis", domain=[low, high if high > low else low + 1], clamp=True
    )
    clipped = [f"({style.number(high)} or more: one colour)"] if values and max(values) > high else []
    words = [f"{title.removesuffix(', nats')},", "nats", *clipped]
    legend = alt.Legend(gradientLength=120, format=".3r") if values else None
    return alt.Color("value:Q", title=words, scale=scale, legend=legend)


def _panel(name: str, cells: list[dict[str, Any]], colour: alt.Color, values: list[float]) -> style.Panel:
    rates, decays = (list(dict.fromkeys(sorted((cell[key] for cell in cells), key=float))) for key in ("rate", "decay"))
    x = alt.X("rate:O", sort=rates, title="learning rate", axis=alt.Axis(labelAngle=0, domain=False, ticks=False))
    y = alt.Y("decay:O", sort=decays[::-1], title="weight decay", axis=alt.Axis(domain=False, ticks=False))
    tooltip = ["rate:O", "decay:O", alt.Tooltip("value:Q", format=".4g"), "runs:Q", "num_diverged:Q"]
    base = alt.Chart(style.data(cells)).encode(x=x, y=y)
    # Text is dark on the lighter half of the colours.
    shown = sorted(values)
    middle = math.sqrt(shown[0] * min(shown[-1], _DARKEST_TO_LIGHTEST * shown[0])) if shown else 0.0
    ink = alt.condition(f"datum.value === null || datum.value > {middle}", alt.value("black"), alt.value("white"))
    layers = [
        base.mark_rect(color="#D9D9D9", stroke="white", strokeWidth=2),
        base.transform_filter("datum.value !== null").mark_rect(stroke="white", strokeWidth=2).encode(
            color=colour, tooltip=tooltip
        ),
    ]  # fmt: skip
    weights: tuple[Literal["bold", "normal"], ...] = ("bold", "normal")
    for weight in weights:
        text = base.transform_filter(f"datum.is_best === {str(weight == 'bold').lower()}")
        above = text.mark_text(
            fontSize=12, fontWeight=weight, baseline="middle", dy=alt.expr("datum.diverged ? -7 : 0")
        )
        layers.append(above.encode(text="number:N", color=ink))
    below = base.transform_filter("datum.diverged !== ''")
    under = below.mark_text(fontSize=9.5, baseline="middle", dy=alt.expr("datum.number ? 9 : 0"))
    layers.append(under.encode(text="diverged:N", color=ink))
    width, height = max(_CELL[0] * len(rates), 110), max(_CELL[1] * len(decays), 52)
    return alt.layer(*layers, *style.heading(width, name)).properties(width=width, height=height)
