"""A whole run's rows against what it was made of; and the points that everything is fitted to."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal

from dd_core.analysis.loss_slopes.errors import correlation_time
from dd_core.analysis.loss_slopes.fits import linear_fit
from dd_core.analysis.loss_slopes.points import Sampling, independent_points, make_points, memory_of
from dd_core.analysis.loss_slopes.run import Run, analyse_run
from dd_core.study.loss_slopes import LossSlopeSettings

STEP = np.arange(1, 5001)  # 50 epochs of 100 steps
X = np.log(STEP / 400)
NOISE = 0.05 * np.random.default_rng(0).normal(size=5000)
LOSS = 1.2 * np.exp(np.where(X < 0, -0.1, -0.45) * X + NOISE)  # the knee is at epoch 4
VAL = STEP[24::25]
LAMBDA = STEP[99::100]
RUN = Run(STEP, LOSS, 100.0, VAL, 0.3 + np.abs(VAL - 3000) / 5000, LAMBDA, np.minimum(LAMBDA / 100, 12.0))


@pytest.fixture(scope="module")
def analysed() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return analyse_run(RUN, LossSlopeSettings(smooth_break=True))


def test_a_run_is_what_it_was_made_of(analysed: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    columns, rows = analysed
    assert columns["outcome"] == "fitted" and columns["reason"] is None
    assert columns["knee_epoch_break"] == columns["first_fit_epoch"] == pytest.approx(4, rel=0.15)
    assert columns["alpha_full_low"] <= -0.45 <= columns["alpha_full_high"]
    assert columns["alpha_early_low"] <= -0.45 <= columns["alpha_early_high"]
    assert columns["alpha_early_bits"] == pytest.approx(columns["alpha_early"], rel=1e-10)
    assert columns["r_squared"] > 0.98 and columns["estimator"] == "ols"
    assert columns["delta_aic_exponential"] > 100
    assert columns["burn_in_loss"] == pytest.approx(1.2, rel=0.1)
    assert columns["knee_epoch_at_loss"] == 1 + np.argmax(LOSS.reshape(50, 100).mean(1) <= 1)
    assert columns["loss_at_early_stop"] == pytest.approx(LOSS[1400:1500].mean())
    assert columns["last_train_loss"] == pytest.approx(LOSS[4900:].mean())
    assert (columns["best_validation_loss"], columns["best_validation_epoch"]) == (0.3, 30.0)
    assert columns["last_validation_loss"] == pytest.approx(0.7)
    # 5 % a measurement of 1, 2, ... 12: never before it stops growing.
    assert (columns["largest_eigenvalue_plateau_epoch"], columns["largest_eigenvalue_early"]) == (12.0, 12.0)
    assert columns["spectral_density_tail"] == pytest.approx(2 * 0.05**2, rel=0.1)
    assert columns["residual_power"] == pytest.approx(2 * 0.05**2, rel=0.3)
    assert columns["noise_floor"] == pytest.approx(0.05 * LOSS[4000:].mean(), rel=0.15)
    whole = {row["model"]: row for row in rows if row["segment"] == "whole"}
    assert set(whole) == {"power", "exponential", "power_offset", "two_power", "two_power_smooth"}
    two = whole["two_power"]
    assert two["break_epoch_low"] <= 4 <= two["break_epoch_high"]
    assert two["akaike_weight_effective"] + whole["two_power_smooth"]["akaike_weight_effective"] > 0.999
    for weight in ("akaike_weight", "akaike_weight_effective"):
        assert sum(row[weight] for row in whole.values()) == pytest.approx(1)


def test_settings_choose_the_knee_the_plateau_and_the_points() -> None:
    pelt = analyse_run(RUN, LossSlopeSettings(knee="loss", plateau="pelt", points="all", num_points=50))[0]
    assert pelt["first_fit_epoch"] == pelt["knee_epoch_at_loss"]
    assert pelt["num_points"] == 5000 - 100 * pelt["first_fit_epoch"]
    never = analyse_run(RUN, LossSlopeSettings(knee="loss", burn_in_loss=0.01))[0]
    assert never["first_fit_epoch"] == 0 and "Burn-in does not end" in never["reason"]
    late = np.where(STEP < 4500, -0.2 * np.log(STEP), -0.2 * np.log(4500) - 3 * np.log(STEP / 4500))
    cosine = analyse_run(Run(STEP, np.exp(late + NOISE), 100.0, *[np.zeros(0)] * 4), LossSlopeSettings())
    assert cosine[0]["first_fit_epoch"] == 0  # a change at epoch 45 is no burn-in, and is seen in the criteria
    assert cosine[0]["knee_epoch_break"] is None and cosine[0]["delta_aic_two_power"] < -2
    assert cosine[0]["early_break_epoch"] > 25


def bent(*breaks: tuple[float, float], seed: int, scale: float = 0.05) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run of slope -0.1 at first, then of others from epochs on."""
    log_loss = -0.1 * np.log(STEP)
    before = -0.1
    for epoch, slope in breaks:
        log_loss += (slope - before) * np.maximum(np.log(STEP / (100 * epoch)), 0)
        before = slope
    noise = scale * np.random.default_rng(seed).normal(size=5000)
    return analyse_run(Run(STEP, np.exp(log_loss + noise), 100.0, *[np.zeros(0)] * 4), LossSlopeSettings())


@pytest.mark.parametrize("seed", range(3))
def test_a_late_break_is_no_knee_but_ends_the_early_power_law(seed: int) -> None:
    late, _ = bent((23, -1.5), seed=seed)
    assert late["knee_epoch_break"] is late["knee_epoch_break_low"] is None and late["first_fit_epoch"] == 0
    assert late["early_break_epoch"] == pytest.approx(23, rel=0.05)
    assert late["early_break_slope_before"] == pytest.approx(-0.1, abs=0.03)
    assert late["early_break_slope_after"] == pytest.approx(-1.5, abs=0.1)
    later, _ = bent((30, -1.5), seed=seed)
    assert later["knee_epoch_break"] is None and later["early_break_epoch"] > 20
    straight, _ = bent(seed=seed)
    assert straight["early_break_epoch"] is None


def test_burn_in_is_found_before_a_late_break() -> None:
    columns, rows = bent((3, -0.4), (25, -2.5), seed=2, scale=0.2)
    assert columns["knee_epoch_break"] == columns["first_fit_epoch"] == pytest.approx(3, rel=0.25)
    assert columns["knee_epoch_break_low"] <= 3 <= columns["knee_epoch_break_high"] < 5
    assert columns["early_break_epoch"] == pytest.approx(25, rel=0.15)
    sides = {row["segment"]: row for row in rows if row["segment"] in ("before break", "after break")}
    before, after = sides["before break"], sides["after break"]
    assert (before["first_epoch"], before["last_epoch"]) == (0, columns["knee_epoch_break"])
    assert after["first_epoch"] == columns["knee_epoch_break"]
    assert after["last_epoch"] == columns["early_break_epoch"]
    assert (before["slope"], after["slope"]) == (pytest.approx(-0.1, abs=0.03), pytest.approx(-0.4, abs=0.05))


def test_windows_are_named_as_they_were_asked_for() -> None:
    every = STEP[149::150]  # the first step of a window may lie after the beginning of the next
    _, rows = analyse_run(
        Run(every, 3 * every**-0.3 * np.exp(NOISE[149::150]), 100.0, *[np.zeros(0)] * 4), LossSlopeSettings()
    )
    found = [(row["first_epoch"], row["last_epoch"]) for row in rows if row["segment"] == "scan"]
    settings = LossSlopeSettings()
    asked = {(first, last) for first in settings.scan_starts for last in settings.scan_stops}
    assert len(found) == len(set(found)) > 20 and set(found) <= asked
    assert {(row["first_epoch"], row["last_epoch"]) for row in rows if row["segment"] == "whole"} == {(0, 49.5)}


def test_every_parameter_of_a_break_is_in_the_row(analysed: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    rows = {row["model"]: row for row in analysed[1] if row["segment"] == "whole"}
    two, smooth = rows["two_power"], rows["two_power_smooth"]
    at = np.log(400)  # where both lines meet: at the loss 1.2, from which the slopes are -0.1 and -0.45
    assert two["intercept"] + two["slope"] * at == pytest.approx(np.log(1.2), abs=0.03)
    assert two["intercept_after"] + two["slope_after"] * at == pytest.approx(np.log(1.2), abs=0.03)
    assert two["intercept_after_standard_error"] > 0
    assert two["break_width"] is smooth["intercept_after"] is None
    assert 0 < smooth["break_width"] < 0.5


def test_time_in_other_units_changes_epochs_alone(analysed: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    slower = Run(STEP, LOSS, 50.0, VAL, RUN.val_loss, LAMBDA, RUN.largest_eigenvalue)
    columns, _ = analyse_run(slower, LossSlopeSettings(early=(10.0, 30.0), smooth_break=True))
    expected = analysed[0]
    for name in ("alpha_early", "alpha_full", "r_squared", "delta_aic_two_power", "spectral_density_tail"):
        assert columns[name] == pytest.approx(expected[name], rel=1e-9)
    assert columns["knee_epoch_break"] == pytest.approx(2 * expected["knee_epoch_break"])


def test_bins_are_as_wide_as_noise_remembers() -> None:
    shocks = np.random.default_rng(1).normal(size=5300) * 0.1
    remembering = scipy.signal.lfilter([1], [1, -0.9], shocks)[300:]
    memory = memory_of(STEP, np.exp(-0.4 * np.log(STEP) + remembering))
    assert memory == pytest.approx(19, rel=0.4)  # (1 + 0.9) / (1 - 0.9)
    points = Sampling(200).points(STEP, np.exp(-0.4 * np.log(STEP) + remembering))
    assert points.count.min() >= memory and points.count.sum() == 5000
    assert memory_of(STEP, LOSS) == 1
    assert memory_of(STEP, 3 * STEP**-0.4 + 0.2) == 1  # nothing but what a polynomial misses
    assert make_points(STEP, LOSS, 200).count.min() == 1


def test_a_model_that_misses_the_curve_does_not_hide_behind_its_residuals() -> None:
    bent = Sampling(None).points(STEP, np.exp(-0.05 * np.log(STEP) ** 2 + NOISE))
    fit = linear_fit(bent)
    assert 5000 / correlation_time(fit.residuals) < 50
    assert independent_points(bent) > 4000


def test_the_example_of_the_documentation_runs() -> None:
    page = (Path(__file__).parents[2] / "docs/loss_slopes.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0], names)
    columns = names["columns"]
    assert columns["best_model"] == "power"
    assert columns["alpha_early_low"] <= -0.3 <= columns["alpha_early_high"]
