"""Test and training error and loss against width, with the interpolation threshold (``landmarks.threshold``).

For the setting of Nakkiran et al. 2019, Figure 1, the published mean test curve is drawn over it.
"""

import csv
from pathlib import Path
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.double_descent import percent
from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import EPSILON, Widths, errors_by_width
from dd_core.figures.drawing.selection import MOST_PANELS, Selection, fetch, select, shown_variants
from dd_core.figures.panels.errors_by_variant import errors_by_variant, lowest
from dd_core.store.store import Store
from dd_core.study.study import Study

PUBLISHED_CSV = Path(__file__).with_name("nakkiran_2019_figure1.csv")
_TEST, _TRAIN, _VALIDATION = "test (true labels)", "training (given labels)", "validation (no test set)"
_PUBLISHED = "test, Nakkiran et al. 2019, Figure 1"

# Percent and nats of each split, one row per trial and width; what an imported study does not tell is null.
_TRIALS = f"""
    SELECT variant, k, trial, split, if(isfinite(error), 100 * error, NULL) AS error,
           if(isfinite(loss), loss, NULL) AS loss FROM (
        SELECT variant, k, trial, '{_TEST}' AS split, test_error AS error, test_loss AS loss FROM rows
        WHERE epoch = $epoch
        UNION ALL
        SELECT variant, k, trial, '{_TRAIN}', train_error, train_loss FROM rows WHERE epoch = $epoch
        UNION ALL
        SELECT variant, k, trial, '{_VALIDATION}', validation_error, validation_loss FROM rows
        WHERE epoch = $epoch AND test_error IS NULL AND test_loss IS NULL
    ) WHERE isfinite(error) OR isfinite(loss)
"""
_MEANS = f"""
    SELECT variant, k, split, avg(error) AS error, min(error) AS error_low, max(error) AS error_high,
           avg(loss) AS loss, min(loss) AS loss_low, max(loss) AS loss_high
    FROM ({_TRIALS}) GROUP BY ALL ORDER BY variant, split, k
"""


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw error and loss against width at the latest checkpoint epoch that all drawn arms have."""
    selection = select(connection, study, "training_evals")
    if selection is None:
        return None
    widths = errors_by_width(connection, study, selection)
    means = fetch(connection, study, "training_evals", _MEANS, epoch=selection.epoch)
    trials = fetch(connection, study, "training_evals", f"{_TRIALS} ORDER BY ALL", epoch=selection.epoch)
    if not means:
        return None
    variants = [name for name in study.variants if any(row["variant"] == name for row in means)]
    published = {variant: published_curve(study, variant) for variant in variants}
    splits = {row["split"] for row in means} | ({_PUBLISHED} if any(published.values()) else set())
    colours = {_TEST: style.TEST, _TRAIN: style.TRAIN, _VALIDATION: style.VALIDATION, _PUBLISHED: style.PUBLISHED}
    shown = {name: colour for name, colour in colours.items() if name in splits}
    scale = alt.Scale(domain=list(shown), range=list(shown.values()))
    colour = alt.Color("split:N", scale=scale, legend=style.line_legend(columns=2))
    described = style.describe(study, variants, selection.epoch)
    marks = "Line: mean over trials; points: trials; band: lowest to highest trial"
    if len(variants) > MOST_PANELS and len({(row["variant"], row["k"]) for row in means}) == len(variants):
        panel, others = errors_by_variant(means, trials, variants, colour)
        marks = "Large points: mean over trials; small points: trials; bar: lowest to highest trial"
        notes = [marks, others, _absent(study, selection, trials), selection.note(study)]
        return style.finish(panel, _of_many(means, variants), [*described, *notes])
    drawn, others = shown_variants(study, variants)
    panels = {
        variant: _panels(
            [row for row in means if row["variant"] == variant],
            [row for row in trials if row["variant"] == variant],
            widths[variant].threshold if variant in widths else None,
            published[variant],
            colour,
            style.loss_title(study, [variant]),
        )
        for variant in drawn
    }
    title = f"{_measured(means)} against width" + (", by variant" if len(variants) > 1 else "")
    return style.finish(
        style.by_variant(panels),
        headline(widths[variants[0]], title) if len(variants) == 1 and widths else title,
        [
            *described,
            marks,
            "Published: mean error of 5 runs on clean test labels, Adam, 4000 epochs"
            if any(published.values())
            else None,
            others,
            _absent(study, selection, trials),
            selection.note(study),
        ],
        characters=66 if len(panels) == 1 else 100,
    )


def _absent(study: Study, selection: Selection, trials: list[dict[str, Any]]) -> str | None:
    """How many trials of the drawn arms have nothing at the epoch, so that means are over the others."""
    present = {(row["variant"], row["k"], row["trial"]) for row in trials}
    num = len(selection.arms) * study.trials - len(present)
    if study.imported or num <= 0:
        return None
    return f"Without {num} of {num + len(present)} trials, which diverged, stopped early or are not that far"


def _of_many(means: list[dict[str, Any]], variants: list[str]) -> str:
    """One sentence about many variants at one width each: the one with the lowest error."""
    for split, word in ((_TEST, "test"), (_VALIDATION, "validation")):
        if best := lowest(means, split):
            error = f"{style.number(best['error'], 3)} %"
            return f"Of {len(variants)} variants {best['variant']} has the lowest {word} error, {error}"
    return f"Errors of {len(variants)} variants"


def headline(found: Widths, otherwise: str) -> str:
    """One sentence that states what the test error does, if three widths or more have one."""
    if len(found.test_error) < 3:
        return otherwise
    if found.peak is None:
        return "Test error has no peak of one point or more within these widths"
    peak = found.peak
    return (
        f"Test error falls to {percent(peak.before)} at k = {peak.k_before}, peaks at {percent(peak.value)} at "
        f"k = {peak.k} and falls again to {percent(peak.after)} at k = {peak.k_after}"
    )


def _measured(means: list[dict[str, Any]]) -> str:
    """What is drawn: ``Test and training error and loss``."""
    words = {_TEST: "test", _VALIDATION: "validation", _TRAIN: "training"}
    splits = [word for split, word in words.items() if any(row["split"] == split for row in means)]
    values = [value for value in ("error", "loss") if any(row[value] is not None for row in means)]
    return f"{style.listed(splits)} {style.listed(values)}".capitalize()


def published_curve(study: Study, variant: str) -> list[dict[str, Any]]:
    """The published mean clean-test error in percent over the study's range of k, if the variant has its setting."""
    used = study.variants[variant]
    setting = (study.data.dataset, used.architecture, used.label_noise)
    if setting != ("cifar10", "preact_resnet18", 0.15):
        return []
    return [
        {"k": int(row["k"]), "error": 100 * float(row["test_error_clean"]), "split": _PUBLISHED}
        for row in read_published()
        if study.all_widths[0] <= int(row["k"]) <= study.all_widths[-1]
    ]


def read_published() -> list[dict[str, str]]:
    """The rows of the CSV file of published values; its comment lines say where they are from."""
    lines = PUBLISHED_CSV.read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def _panels(
    means: list[dict[str, Any]],
    trials: list[dict[str, Any]],
    threshold: int | None,
    published: list[dict[str, Any]],
    colour: alt.Color,
    loss_title: str,
) -> alt.VConcatChart:
    ks = sorted({row["k"] for row in [*means, *published]})

    def panel(value: str, title: str, height: int, *, last: bool) -> style.Panel:
        x, y = style.k_axis(ks, labels=last), alt.Y(f"{value}:Q", title=title)
        shown = [row for row in means if row[value] is not None]
        highest = [{"top": row[f"{value}_high"]} for row in shown]
        if value == "error":
            highest += [{"top": row["error"]} for row in published]
        scale = style.headroom(highest, "top", 0.15 if value == "error" else 0)
        shown_below = {value: title, f"{value}_low": "lowest trial", f"{value}_high": "highest trial"}
        base = alt.Chart(style.data(shown)).encode(x=x, color=colour)
        label = f"interpolation threshold: k = {threshold}\n(training error at most {style.percent(EPSILON)})"
        layers = [
            *style.threshold_rule(threshold, ks, label if value == "error" else None),
            base.mark_area(opacity=0.15).encode(
                y=alt.Y(f"{value}_low:Q", title=title, scale=scale), y2=f"{value}_high:Q"
            ),
            alt.Chart(style.data([row for row in trials if row[value] is not None]))
            .mark_circle(size=12, opacity=0.6)
            .encode(x=x, y=y, color=colour, tooltip=["split:N", "k:Q", "trial:O", *style.numbers(**{value: title})]),
            base.mark_line(strokeWidth=2).encode(y=y),
            base.mark_circle(size=42, opacity=1).encode(
                y=y,
                tooltip=["split:N", "k:Q", *style.numbers(**shown_below)],
            ),
        ]
        if published and value == "error":
            over = alt.Chart(style.data(published)).mark_line(strokeDash=[6, 3], strokeWidth=2)
            dots = over.mark_circle(size=30, opacity=0).encode(tooltip=["split:N", "k:Q", *style.numbers(error=title)])
            layers += [layer.encode(x=x, y=y, color=colour) for layer in (over, dots)]
        return alt.layer(*layers).properties(width=style.WIDTH, height=height)

    measured = [value for value in ("error", "loss") if any(row[value] is not None for row in means)]
    titles = {"error": ("error, %", 230), "loss": (loss_title, 170)}
    return alt.vconcat(*(panel(value, *titles[value], last=value == measured[-1]) for value in measured), spacing=14)
