"""The figures of loss curves: what they say of a campaign whose answers are known, and of such with little in them.

Drawn from made-up tables (``loss_slope_campaign``); no network is trained and no curve is fitted.
"""

import contextlib
import itertools
import json
import math
import statistics
from typing import Any

import numpy as np
import pytest
import scipy.stats
import vl_convert
from hypothesis import given
from hypothesis import strategies as st
from loss_slope_campaign import STEPS_PER_EPOCH, campaign_study, made_up_run, write_campaign
from specifications import assert_legible, rows, subtitle, title
from statsmodels.stats.proportion import proportion_confint

from dd_core.errors import DataMissingError
from dd_core.figures import FIGURES
from dd_core.figures.charts import loss_slope_by_width, loss_slope_mosaic, loss_slope_straightness, loss_slope_windows
from dd_core.store.store import Store
from dd_core.study.grid import unfolded
from dd_core.study.study import Study
from dd_core.tables.warehouse import connect

NAMES = [figure.name for figure in FIGURES if figure.group == "loss_slopes"]
BY_NAME = {figure.name: figure for figure in FIGURES}
# 48 runs of three families; of one every run diverges, of another half of those at the higher rate.
CAMPAIGN = campaign_study(families=("s-core", "s-bn-off", "s-adamw"), rates=(0.1, 0.2), decays=(1e-4, 1e-3), trials=4)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("campaign"))
    write_campaign(store, CAMPAIGN)
    return store


def runs() -> list[dict[str, Any]]:
    """All runs of the campaign, as the formula says."""
    return [
        {"variant": arm.variant, "arm": key, "trial": trial, **made_up_run(CAMPAIGN, arm.variant, arm.k, trial)}
        for key, arm in CAMPAIGN.arms.items()
        for trial in range(CAMPAIGN.trials)
    ]


def fitted() -> list[dict[str, Any]]:
    return [run for run in runs() if run["outcome"] == "fitted"]


def draw(name: str, study: Study, store: Store, *, compiled: bool = True) -> dict[str, Any] | None:
    """The specification of a figure, which compiles to an image without anything undefined."""
    with contextlib.closing(connect(store)) as connection:
        chart = BY_NAME[name].draw(study, store, connection)
    if chart is None:
        return None
    specification: dict[str, Any] = chart.to_dict()
    if not compiled:
        return specification
    text = vl_convert.vegalite_to_svg(json.dumps(specification, allow_nan=False))
    assert "NaN" not in text and "undefined" not in text
    assert_legible(specification, text)
    return specification


def drawn(name: str, study: Study, store: Store) -> dict[str, Any]:
    specification = draw(f"loss_slope_{name}", study, store)
    assert specification is not None
    return specification


# What the campaign says


def test_straightness_has_every_fitted_run_in_a_bar_and_wilsons_interval_over_all_runs(campaign: Store) -> None:
    specification = drawn("straightness", CAMPAIGN, campaign)
    straight = sum(run["r_squared"] >= 0.98 for run in fitted())
    assert 0 < straight < len(fitted()) < len(runs())
    low, high = proportion_confint(straight, len(runs()), method="wilson")
    share = straight / len(runs())
    assert title(specification).startswith(
        f"{straight} of {len(runs())} runs ({100 * share:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
    )
    assert "H1 is not met for more than 80 % and 90 %" in title(specification)
    bars = rows(specification, "runs", "from", "to")
    assert sum(bar["runs"] for bar in bars) == len(fitted())
    above = sum(bar["runs"] for bar in bars if bar["low"] >= 0.98 - 1e-9)
    assert above == straight
    assert f"48 runs: {len(fitted())} fitted, {48 - len(fitted())} diverged" in subtitle(specification)
    plain = rows(specification, "family", "value", "run")
    expected = {round(run["delta_aic_two_power"], 3) for run in fitted()}
    assert expected <= {round(row["value"], 3) for row in plain}


def test_what_no_straight_run_has_is_said_without_a_percentage(tmp_path: Any) -> None:
    study, store = campaign_study(families=("s-core",), rates=(0.1,), decays=(1e-3,), trials=2), Store(tmp_path)
    write_campaign(store, study, lambda run, arm, trial: {"r_squared": 0.99, "delta_aic_two_power": 3.0})
    specification = draw("loss_slope_straightness", study, store, compiled=False)
    assert specification is not None
    assert "of the straight runs none are fitted decisively better by two power laws" in subtitle(specification)


def test_runs_are_counted_by_what_is_stored_not_by_what_is_drawn(tmp_path: Any) -> None:
    study, store = campaign_study(families=("s-core",), rates=(0.1,), decays=(1e-3,), trials=2), Store(tmp_path)
    write_campaign(store, study, lambda run, arm, trial: {"r_squared": 0.97999999 if trial else 0.98})
    specification = draw("loss_slope_straightness", study, store, compiled=False)
    assert specification is not None
    assert title(specification).startswith("1 of 2 runs (50 %")


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0.5, 0.999))
def test_the_bars_of_r_squared_are_thirty_and_none_lies_across_the_criterion(
    values: list[float], threshold: float
) -> None:
    edges = loss_slope_straightness.bin_edges(values, threshold)
    assert len(edges) == 31 and edges[-1] == 1 and edges[0] >= 0
    assert np.allclose(np.diff(edges), edges[1] - edges[0])
    if edges[0] > 0:
        assert np.abs(edges - threshold).min() < 1e-9
    assert edges[0] <= np.quantile(values, 0.05) or edges[0] == max(0.0, 1 - 30 * (1 - threshold))


def test_the_grid_has_the_median_over_seeds_and_no_diverged_run_vanishes(campaign: Store) -> None:
    specification = drawn("grid", CAMPAIGN, campaign)
    cells = rows(specification, "rate", "decay", "value")
    assert len(cells) == 12
    assert sum(cell["runs"] for cell in cells) == len(runs())
    assert sum(cell["num_diverged"] for cell in cells) == sum(run["outcome"] == "diverged" for run in runs())
    assert {cell["diverged"] for cell in cells} == {"", "2 of 4 diverged", "4 of 4 diverged"}
    medians = []
    for variant in CAMPAIGN.variants:
        own = [run["best_validation_loss"] for run in fitted() if run["variant"] == variant]
        medians += [statistics.median(own)] if own else []
    assert sorted(cell["value"] for cell in cells if cell["value"] is not None) == pytest.approx(
        sorted(medians), rel=1e-5
    )
    assert f"{min(medians):#.3g} nats" in title(specification)
    assert "20 of 48 runs diverged (4 of s-bn-off and 16 of s-adamw)" in title(specification)


def test_runs_that_differ_in_another_setting_of_a_grid_are_no_seeds_of_one_cell(store: Store) -> None:
    variant = {
        **{
            "architecture": "preact_resnet10",
            "batch_size": 20,
            "optimizer": {"name": "sgd", "learning_rate": 0.1, "weight_decay": 1e-3},
        },
        "grid": {"learning_rate": [0.1, 0.2], "clip_norm": [1.0, 5.0]},
    }
    study = campaign_study(**unfolded({"variants": {"s-core": variant}}), trials=2)
    write_campaign(store, study)
    specification = drawn("grid", study, store)
    cells = rows(specification, "rate", "decay", "value")
    assert [cell["runs"] for cell in cells] == [2] * 4
    text = json.dumps(specification)
    assert "s-core, clip norm = 1.0" in text and "s-core, clip norm = 5.0" in text


def test_prediction_says_what_scipy_says_of_the_correlation(campaign: Store) -> None:
    specification = drawn("prediction", CAMPAIGN, campaign)
    x, y = ([run[name] for run in fitted()] for name in ("alpha_early", "best_validation_loss"))
    rho = scipy.stats.spearmanr(x, y).statistic
    assert title(specification).startswith(f"Early slope and best loss: \u03c1 = {rho:.2f} (95 % interval ")
    assert f"{len(fitted())} runs of 8 configurations" in title(specification)
    found = {row["name"]: row for row in rows(specification, "rho", "low", "high")}
    assert found["all runs"]["rho"] == pytest.approx(rho, abs=1e-6)
    assert found["all runs, Pearson"]["rho"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-4)
    core = [run for run in fitted() if run["family"] == "s-core"]
    own = scipy.stats.spearmanr([run["alpha_early"] for run in core], [run["best_validation_loss"] for run in core])
    assert found["s-core"]["rho"] == pytest.approx(own.statistic, abs=1e-6)
    errors = {row["name"]: row["error"] for row in rows(specification, "error")}
    assert set(errors) == {"no predictor (mean)", "loss at the same epoch", "early slope", "both"}
    assert errors["early slope"] < errors["no predictor (mean)"]
    bars = rows(specification, "alpha_early_low", "alpha_early_high")
    assert len(bars) == len(fitted())


def test_the_heat_map_of_windows_is_spearmans_and_the_best_window_is_in_the_title(campaign: Store) -> None:
    specification = drawn("windows", CAMPAIGN, campaign)
    cells = {(cell["start"], cell["stop"]): cell for cell in rows(specification, "start", "stop", "rho")}
    settings = CAMPAIGN.loss_slopes
    pairs = [(a, b) for a, b in itertools.product(settings.scan_starts, settings.scan_stops) if a < b]
    assert set(cells) == {(f"{a:g}", f"{b:g}") for a, b in pairs}
    assert [key for key, cell in cells.items() if cell["early"]] == [("5", "15")]
    best = max(cells.values(), key=lambda cell: abs(cell["rho"]))
    rho = f"\u03c1 = {best['rho']:.2f} (95 % interval "
    assert f"most over epochs {best['start']} to {best['stop']}: {rho}" in title(specification)
    stable = sum(run["alpha_start_spread"] < 0.02 for run in fitted())
    assert f"by less than 0.02 in {stable} of {len(fitted())} runs" in title(specification)


def test_correlations_of_windows_leave_out_what_cannot_be_correlated() -> None:
    known = [{"arm": "a", "trial": i, "best_validation_loss": loss} for i, loss in enumerate((0.3, 0.2, 0.5, 0.4))]
    scan = [
        {"arm": "a", "trial": i, "start": start, "stop": 10.0, "slope": slope}
        for start, slopes in {1.0: (3, 1, 4, 2), 2.0: (1, 1, 1, 1), 3.0: (1, 2, 3), 5.0: (1, 2, 3, 4)}.items()
        for i, slope in enumerate(slopes)
    ]
    scan.append({"arm": "b", "trial": 0, "start": 1.0, "stop": 10.0, "slope": -9})  # has no loss
    cells = {cell["start"]: cell for cell in loss_slope_windows.correlations(loss_slope_windows.by_window(scan, known))}
    assert set(cells) == {1.0, 5.0}
    assert cells[1.0] == {"start": 1.0, "stop": 10.0, "rho": pytest.approx(0.8), "runs": 4}


def test_the_knee_says_who_has_none_and_how_much_later_curvature_settles(campaign: Store) -> None:
    specification = drawn("knee", CAMPAIGN, campaign)
    found = {row["family"]: row["text"] for row in rows(specification, "family", "text")}
    assert found["s-core"] == "4 of 16"  # every fourth was never measured, or never settles
    knees = [run["knee_epoch_break"] for run in fitted() if run["knee_epoch_break"] is not None]
    assert f"Burn-in ends at epoch {statistics.median(knees):.2g}, median" in title(specification)
    timed = [
        run["largest_eigenvalue_plateau_epoch"] - run["knee_epoch_break"]
        for run in fitted()
        if run["largest_eigenvalue_plateau_epoch"] is not None and run["knee_epoch_break"] is not None
    ]
    assert f"settles {statistics.median(timed):.2g} epochs later (median)" in title(specification)
    assert f"after it in {sum(delay > 0 for delay in timed)} of {len(timed)} runs" in title(specification)


def test_units_differ_by_what_the_tables_say_not_by_their_rounding(campaign: Store, tmp_path: Any) -> None:
    sentence = title(drawn("units", CAMPAIGN, campaign))
    assert "(largest difference 1e-16)" in sentence and "1.4427 times as large in bits" in sentence
    study, store = campaign_study(families=("s-core",), rates=(0.1,), decays=(1e-3,), trials=2), Store(tmp_path)
    write_campaign(store, study, lambda run, arm, trial: {"alpha_early_bits": run["alpha_early"] + 0.01 * trial})
    assert "are not the same in bits and nats (largest difference 1e-02)" in title(drawn("units", study, store))


def test_noise_names_the_measure_that_goes_with_the_best_loss(campaign: Store) -> None:
    specification = drawn("noise", CAMPAIGN, campaign)
    losses = [run["best_validation_loss"] for run in fitted()]
    found = {
        name: scipy.stats.spearmanr([run[name] for run in fitted()], losses).statistic
        for name in ("spectral_density_tail", "residual_power", "noise_floor")
    }
    most = max(found.values(), key=abs)
    assert f"\u03c1 = {most:.2f}".replace("-", "\u2212") in title(specification)
    assert len(rows(specification, "spectral_density_tail")) == len(rows(specification, "noise_floor")) == len(fitted())


# The mosaic


def test_the_mosaic_has_the_straightest_and_the_least_straight_runs(campaign: Store) -> None:
    specification = drawn("mosaic", CAMPAIGN, campaign)
    ranked = sorted(fitted(), key=lambda run: -run["r_squared"])
    text = json.dumps(specification)
    for run in (*ranked[:3], *ranked[-3:]):
        assert f"{run['arm']}, trial {run['trial']}" in text
    for run in ranked[3:-3]:
        assert f"{run['arm']}, trial {run['trial']}" not in text
    assert f"from {ranked[-1]['r_squared']:.4f}" in title(specification)
    assert len(rows(specification, "residual")) > 100


def test_fitted_curves_are_those_of_the_table() -> None:
    def fit(segment: str, model: str, first: float, last: float, **values: float) -> dict[str, Any]:
        return {"segment": segment, "model": model, "first_epoch": first, "last_epoch": last, **values}

    fits = [
        fit("straight", "power", 4, 50, intercept=1.0, slope=-0.5),
        fit("straight", "power_offset", 4, 50, intercept=1.0, slope=-0.5, offset=0.25),
        fit("straight", "exponential", 4, 50, intercept=0.5, slope=-1e-3),
        fit("before break", "power", 0.0, 50, intercept=2.0, slope=-0.1),
        fit("after break", "power", 4, 50, intercept=1.0, slope=-0.5),
    ]
    curves = loss_slope_mosaic.curves(fits, STEPS_PER_EPOCH)
    expected = {
        ("power law", 0): lambda step: math.exp(1) * step**-0.5,
        ("power law with offset", 0): lambda step: math.exp(1) * step**-0.5 + 0.25,
        ("exponential", 0): lambda step: math.exp(0.5 - 1e-3 * step),
        ("two power laws", 0): lambda step: math.exp(2) * step**-0.1,
        ("two power laws", 1): lambda step: math.exp(1) * step**-0.5,
    }
    assert {(row["model"], row["part"]) for row in curves} == set(expected)
    for row in curves:
        loss = expected[row["model"], row["part"]](row["epoch"] * STEPS_PER_EPOCH)
        assert row["loss"] == pytest.approx(loss, rel=1e-4)
    before = [row["epoch"] for row in curves if (row["model"], row["part"]) == ("two power laws", 0)]
    assert (min(before), max(before)) == (1 / STEPS_PER_EPOCH, 4)


# Widths


def test_slopes_by_width_say_from_where_on_the_power_law_breaks(tmp_path: Any) -> None:
    ks = (1, 2, 4, 8)
    study = campaign_study(families=("s-core",), rates=(0.1,), decays=(1e-3,), trials=2, widths=ks)
    store = Store(tmp_path)

    def change(run: dict[str, Any], arm: str, trial: int) -> dict[str, Any]:
        k = study.arms[arm].k
        knee = 16.0 + trial if k >= 4 else 3.0 if k == 2 else None  # the one at k = 2 is burn-in
        late = {"early_break_epoch": knee if k >= 4 else None}
        return {"knee_epoch_break": knee, "delta_aic_two_power": -9.0 if k == 8 else 5.0, **late}

    write_campaign(store, study, change)
    specification = drawn("by_width", study, store)
    assert title(specification).startswith(
        "From k = 4 on the early power law breaks at epoch 16 to 17, in 4 of 4 runs, and in none of 4 below; the early "
        "slope is flattest at k = 1 ("
    )
    found = [(row["k"], row["what"]) for row in rows(specification, "what", "run")]
    assert [k for k, what in found if what == "end of the early power law"] == [4, 4, 8, 8], "as the title says"
    assert {k for k, what in found if what == "knee (end of burn-in)"} == {2, 4, 8}
    assert len([k for k, what in found if what == "early slope"]) == 8


@pytest.mark.parametrize(
    ("broken", "threshold", "expected"),
    [
        ((), None, "the early power law breaks in none of 4 runs"),
        ((1, 2, 4, 8), 4, "the early power law breaks in 4 of 4 runs, at epoch 7 (interpolation threshold: k = 4)"),
        ((4, 8), 4, "from k = 4, the interpolation threshold, on the early power law breaks at epoch 7, in 2 of 2 "
         "runs, and in none of 2 below"),
        ((2, 4, 8), 4, "from k = 2 on the early power law breaks at epoch 7, in 3 of 3 runs, and in none of 1 below "
         "(interpolation threshold: k = 4)"),
    ],
)  # fmt: skip
def test_where_it_breaks_in_words(broken: tuple[int, ...], threshold: int | None, expected: str) -> None:
    rows_ = [{"k": k, "early_break_epoch": 7.0 if k in broken else None} for k in (1, 2, 4, 8)]
    assert loss_slope_by_width._where_it_breaks(rows_, threshold) == expected


# Campaigns with little in them


_SHORT = ("alpha_early", "alpha_early_low", "alpha_early_high", "alpha_early_bits", "alpha_early_linear")
THIN = {
    "one run": (dict(families=("s-core",), rates=(0.1,), decays=(1e-3,), trials=1), {}),
    "short, without validation and curvature": (
        dict(families=("s-core", "s-bn-off"), rates=(0.1,), decays=(1e-4, 1e-3), trials=1),
        dict.fromkeys(
            (
                *_SHORT,
                "alpha_start_spread",
                "best_validation_loss",
                "loss_at_early_stop",
                "largest_eigenvalue_plateau_epoch",
            )
        ),
    ),
    "dead": (dict(families=("s-adamw",), rates=(0.1, 0.2), decays=(1e-3,), trials=2), {}),
}
NOT_DRAWN = {
    "one run": set(),
    "short, without validation and curvature": {f"loss_slope_{name}" for name in ("prediction", "noise", "units")},
    "dead": {name for name in NAMES if name not in ("loss_slope_grid", "loss_slope_by_width")},
}
NO_FIGURE = {
    "one run": {"loss_slope_grid", "loss_slope_by_width"},
    "short, without validation and curvature": {"loss_slope_by_width"},
    "dead": {"loss_slope_by_width"},
}


@pytest.mark.parametrize("case", THIN)
def test_a_thin_campaign_gives_the_figures_it_can_and_says_why_not_the_others(case: str, tmp_path: Any) -> None:
    settings, change = THIN[case]
    study, store = campaign_study(**settings), Store(tmp_path)
    write_campaign(store, study, lambda run, arm, trial: change)
    said, none = {}, set()
    for name in NAMES:
        try:
            specification = draw(name, study, store, compiled=case == "one run")
        except DataMissingError as error:
            said[name] = str(error)
        else:
            if specification is None:
                none.add(name)
            else:
                assert "scikit-learn digits" in subtitle(specification)
    assert (set(said), none) == (NOT_DRAWN[case], NO_FIGURE[case])
    num_runs = len(study.arms) * study.trials
    for text in said.values():
        assert text.startswith("no run ") and f"{num_runs} runs: " in text
        assert case != "dead" or f"none fitted, {num_runs} diverged" in text


def test_runs_of_an_earlier_recipe_are_left_out_and_that_is_said(tmp_path: Any) -> None:
    study = campaign_study(families=("s-core",), rates=(0.1, 0.2), decays=(1e-3,), trials=1)
    before, store = study.model_copy(update={"seed": 1}), Store(tmp_path)
    write_campaign(store, study, recipe_of=before)
    assert all(draw(name, study, store) is None for name in NAMES[:2])  # test_figures.py asks all of them
    first = next(iter(study.arms))
    write_campaign(store, study)
    for table in ("loss_slopes", "loss_slope_fits"):
        for path in store.table_folder(table, study.name, first).glob("*"):
            path.unlink()
    text = subtitle(drawn("straightness", study, store))
    assert "1 run: 1 fitted" in text
    assert f"Left out: {study.arms[first].variant} k = 8 (no results yet)" in text
