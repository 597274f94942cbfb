"""H2: whether the early slope of a loss curve tells how good the run will be, and better than the loss itself does."""

from collections.abc import Mapping

import altair as alt
import duckdb

from dd_core.analysis.intervals import interval, signed
from dd_core.analysis.loss_slopes.correlation import Correlation
from dd_core.analysis.loss_slopes.hypotheses import H2, answer_h2
from dd_core.analysis.loss_slopes.prediction import Prediction
from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.drawing.zoom import zoomable
from dd_core.figures.panels.loss_slope_scatter import in_words, p_in_words, scatter
from dd_core.figures.panels.loss_slopes import SLOPE, Runs, read_runs
from dd_core.store.store import Store
from dd_core.study.loss_slopes import LossSlopeSettings
from dd_core.study.study import Study
from dd_core.words import counted

_SIZE, _SIDE, _ROW, _BETWEEN = (400, 330), 190, 21, 110
_PREDICTORS = {
    "mean": "no predictor (mean)",
    "loss": "loss at the same epoch",
    "alpha_early": "early slope",
    "both": "both",
}


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw runs, correlations with their intervals, and the errors of predicting configurations that were left out.

    Raises:
        DataMissingError: there are runs, but none with an early slope and a validation or test loss.
    """
    runs = read_runs(connection, study)
    if not runs.rows:
        return None
    rows = runs.having("alpha_early", "best_validation_loss")
    if not rows:
        raise DataMissingError(f"no run has an early slope and a validation or test loss; {runs.endings()}")
    settings = study.loss_slopes
    answer = answer_h2(runs.campaign, settings)
    first, last = settings.early
    title = [f"alpha_early, {SLOPE}, epochs {first:g} to {last:g}"]
    layers = scatter(runs, rows, "alpha_early", title, _SIZE, errors=True, behind="alpha_full")
    left = zoomable(alt.layer(*layers).properties(width=_SIZE[0], height=_SIZE[1]), "runs")
    side = [panel for panel in (_correlations(runs, answer, settings), _errors(answer.prediction)) if panel is not None]
    if len(side) == 2:  # as high as the runs beside them
        share = (_SIZE[1] - _BETWEEN) / sum(panel.height for panel in side)
        side = [panel.properties(height=max(panel.height, round(share * panel.height))) for panel in side]
    whole = alt.hconcat(left, alt.vconcat(*side, spacing=20), spacing=50) if side else left
    return style.finish(
        whole,
        headline(answer, settings),
        [
            "Point: a run; bar: its slope's 95 % interval; grey: its slope from the knee to the end, as far as the "
            "axis reaches",
            "Correlations: 95 % bootstrap intervals over configurations, whose seeds are no independent runs; all but "
            "two are Spearman's. Partial: Pearson's, given "
            f"{answer.given_in_words}" if side else None,
            prediction_line(answer.prediction),
            pivot_line(answer, settings),
            *runs.describe(study),
        ],
        characters=100 if side else 66,
    )  # fmt: skip


def headline(answer: H2, settings: LossSlopeSettings) -> str:
    """The correlation with its interval and p value, and what that means for the hypothesis."""
    rho = answer.pooled.spearman
    if rho.value is None:
        return f"Early slope and best loss: {in_words(rho)}"
    strong, weak = settings.strong_correlation, settings.weak_correlation
    asked = f"|\u03c1| \u2265 {strong:g} with p \u2264 {settings.significance:g}"
    verdict = {
        "yes": f"H2 is met ({asked})",
        "no": f"H2 is not met ({asked})",
        "weak": f"H2 is not met, |\u03c1| < {weak:g}",
    }.get(answer.verdict, "H2 is open")
    if answer.is_between_kinds:
        given = in_words(answer.pooled.partial)
        verdict += f", but not given {answer.given_in_words}: Pearson's partial {given}"
    return (
        f"Early slope and best loss: {in_words(rho)}, {p_in_words(rho)}, {counted(rho.num_runs, 'run')} of "
        f"{counted(rho.num_configurations, 'configuration')}: {verdict}"
    )


def prediction_line(prediction: Prediction) -> str:
    """Whether the slope predicts configurations that were left out better than the loss does."""
    errors = prediction.root_mean_square
    if prediction.gain is None or not errors:
        return f"Prediction of configurations left out: unknown. {prediction.why}"
    low, high = prediction.gain_low, prediction.gain_high
    sure = low is not None and high is not None and low * high > 0
    how = f"{'' if sure else 'not surely '}{'better' if prediction.gain < 0 else 'worse'}"
    return (
        f"Of configurations left out the early slope predicts the final loss {how} than the loss at the same epoch: "
        f"error {errors['alpha_early']:.3g} against {errors['loss']:.3g} nats (difference of squares "
        f"{signed(prediction.gain, 4)}, 95 % interval {interval(low, high, 4)})"
    )


def pivot_line(answer: H2, settings: LossSlopeSettings) -> str | None:
    """The campaign's second choice, where the first correlates too little."""
    if answer.verdict != "weak":
        return None
    found = in_words(answer.pivot.spearman)
    settles = "epoch at which the largest eigenvalue settles and best loss"
    return f"As |\u03c1| < {settings.weak_correlation:g}: {settles}, {found}"


def _correlations(runs: Runs, answer: H2, settings: LossSlopeSettings) -> style.Panel | None:
    """Correlations with their intervals, a row for each reading and each family."""
    pooled = answer.pooled
    found: dict[str, Correlation] = {
        "all runs": pooled.spearman, "all runs, Pearson": pooled.pearson, "all runs, partial": pooled.partial,
    }  # fmt: skip
    if len(runs.families) > 1:
        found |= {name: answer.by_family[name].spearman for name in runs.families if name in answer.by_family}
    if answer.pivot.spearman.value is not None:
        found["plateau of the largest eigenvalue"] = answer.pivot.spearman
    known = {name: own for name, own in found.items() if own.value is not None}
    if not known:
        return None
    rows = [
        {"name": name, "rho": own.value, "low": own.low, "high": own.high, "runs": own.num_runs}
        | {"text": signed(own.value or 0.0) + ("" if own.low is not None else f" (n = {own.num_runs})")}
        for name, own in known.items()
    ]
    axis = alt.Axis(ticks=False, domain=False, labelLimit=200, labelPadding=8)
    y = alt.Y("name:N", sort=list(known), title=None, axis=axis)
    scale = alt.Scale(domain=[-1, 1])
    x = alt.X("rho:Q", scale=scale, title="correlation with the best loss", axis=alt.Axis(values=[-1, -0.5, 0, 0.5, 1]))
    strong = settings.strong_correlation
    asked = alt.Chart(style.data([{"rho": -strong}, {"rho": strong}]))
    zero = alt.Chart(style.data([{"rho": 0}]))
    base = alt.Chart(style.data(rows)).encode(y=y)
    tooltip = ["name:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("rho", "low", "high")), "runs:Q"]
    aside = base.mark_text(align="left", fontSize=10, color=style.GREY)
    return alt.layer(
        zero.mark_rule(color="#BBBBBB").encode(x=x),
        asked.mark_rule(color=style.GREY, strokeDash=[4, 3], strokeWidth=1.2).encode(x=x),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q"),
        base.mark_circle(size=50, opacity=1, color="black").encode(x=x, tooltip=tooltip),
        aside.encode(x=alt.value(_SIDE + 5), text="text:N"),
    ).properties(width=_SIDE, height=_ROW * len(rows))


def _errors(prediction: Prediction) -> style.Panel | None:
    """Root mean square errors, a bar for each predictor."""
    errors: Mapping[str, float] = prediction.root_mean_square
    rows = [
        {"name": words, "error": errors[name], "text": f"{errors[name]:#.3g}"}
        for name, words in _PREDICTORS.items()
        if name in errors
    ]
    if not rows:
        return None
    axis = alt.Axis(ticks=False, domain=False, labelLimit=200, labelPadding=8)
    y = alt.Y("name:N", sort=list(_PREDICTORS.values()), title=None, axis=axis)
    scale = style.headroom(rows, "error", 0.15)
    title = ["error of the predicted final loss,", "configuration left out, nats (RMS)"]
    x = alt.X("error:Q", scale=scale, title=title, axis=alt.Axis(tickCount=4))
    base = alt.Chart(style.data(rows)).encode(y=y)
    aside = base.mark_text(align="left", fontSize=10, color=style.GREY, dx=4)
    own = alt.condition("datum.name === 'early slope'", alt.value(style.BLUE), alt.value("#B5B5B5"))
    return alt.layer(
        base.mark_bar(size=13).encode(x=x, color=own), aside.encode(x=x, text="text:N")
    ).properties(width=_SIDE, height=_ROW * len(rows))  # fmt: skip
