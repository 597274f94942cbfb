"""Fits of loss curves against closed forms, scipy, numpy and statsmodels on the same data, and their invariances."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from dd_core.analysis.loss_slopes import curved_fits
from dd_core.analysis.loss_slopes.breaks import split_profile, two_power_fit
from dd_core.analysis.loss_slopes.curve import clean_curve
from dd_core.analysis.loss_slopes.curved_fits import offset_fit, smooth_break_fit
from dd_core.analysis.loss_slopes.fits import Errors, linear_fit
from dd_core.analysis.loss_slopes.knee import knee_epoch_aic, knee_epoch_at_loss
from dd_core.analysis.loss_slopes.points import Points, Sampling, make_points, variance_power
from dd_core.analysis.loss_slopes.slopes import in_bits, linear_slope, scan, start_spread, window_slope

STEP = np.arange(1, 4001)
PLAIN = Errors("independent")


def noise(size: int, seed: int = 0, scale: float = 0.1) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=size)


def every_step(log_loss: np.ndarray, step: np.ndarray = STEP) -> Points:
    return make_points(step, np.exp(log_loss), None)


@pytest.mark.parametrize("num_bins", [None, 150])
def test_noiseless_curves_are_recovered_exactly(num_bins: int | None) -> None:
    power = Sampling(num_bins).points(STEP, 3 * STEP**-0.4)
    assert linear_fit(power).value == pytest.approx({"intercept": math.log(3), "slope": -0.4}, rel=1e-10)
    assert linear_fit(power).r_squared == pytest.approx(1, abs=1e-12)
    exponential = Sampling(num_bins).points(STEP, 2 * np.exp(-STEP / 1500))
    found = linear_fit(exponential, "exponential").value
    assert found == pytest.approx({"intercept": math.log(2), "slope": -1 / 1500}, rel=1e-10)
    # The offset is not linear in the bins' means, which costs the square of their width.
    offset = Sampling(num_bins).points(STEP, 3 * STEP**-0.6 + 0.25)
    fit = offset_fit(offset)
    assert fit is not None
    expected = {"intercept": math.log(3), "slope": -0.6, "offset": 0.25}
    assert fit.value == pytest.approx(expected, rel=1e-6 if num_bins is None else 2e-3)


def test_a_line_is_that_of_scipy_numpy_and_statsmodels() -> None:
    points = every_step(1 - 0.3 * np.log(STEP) + noise(4000))
    fit, peer = linear_fit(points, errors=PLAIN), scipy.stats.linregress(points.log_time, points.log_loss)
    assert fit.estimator == "ols"
    assert fit.value["slope"] == pytest.approx(peer.slope, rel=1e-10)
    assert fit.standard_error["slope"] == pytest.approx(peer.stderr, rel=1e-10)
    assert fit.standard_error["intercept"] == pytest.approx(peer.intercept_stderr, rel=1e-8)
    assert fit.r_squared == pytest.approx(peer.rvalue**2, rel=1e-10)
    ols = sm.OLS(points.log_loss, sm.add_constant(points.log_time)).fit()
    assert [fit.low["slope"], fit.high["slope"]] == pytest.approx(list(ols.conf_int()[1]), rel=1e-9)
    semi_log = linear_fit(points, "exponential", PLAIN, huber_delta=None)
    assert [semi_log.value["slope"], semi_log.value["intercept"]] == pytest.approx(
        list(np.polyfit(points.time, points.log_loss, 1)), rel=1e-9
    )


def test_weights_are_those_of_weighted_least_squares() -> None:
    points = make_points(STEP, np.exp(1 - 0.3 * np.log(STEP) + noise(4000)), 150).weighted(0.8)
    fit = linear_fit(points, errors=PLAIN)
    wls = sm.WLS(points.log_loss, sm.add_constant(points.log_time), points.weight).fit()
    assert [fit.value["intercept"], fit.value["slope"]] == pytest.approx(list(wls.params), rel=1e-9)
    assert [fit.standard_error[n] for n in ("intercept", "slope")] == pytest.approx(list(wls.bse), rel=1e-9)
    assert fit.rss == pytest.approx(wls.ssr, rel=1e-9)
    assert np.log(points.weight).mean() == pytest.approx(0, abs=1e-12)


def test_the_variance_of_bins_is_found_out() -> None:
    count = np.tile(np.geomspace(1, 1000, 500), 10)
    for power in (0.0, 0.5, 1.0):
        residuals = noise(5000, 1) * count ** (-power / 2)
        assert variance_power(residuals, count) == pytest.approx(power, abs=0.05)
    straight = Sampling(150).points(STEP, np.exp(1 - 0.3 * np.log(STEP) + noise(4000)))
    assert np.ptp(np.log(linear_fit(straight).points.weight)) > 3  # white noise: bins of many steps count more
    bent = Sampling(150).points(STEP, np.exp(1 - 0.1 * np.log(STEP) ** 2 + noise(4000)))
    assert np.ptp(np.log(linear_fit(bent).points.weight)) < 1  # the model does not fit: each part counts as much


def test_outliers_call_huber_and_nothing_else_does() -> None:
    log_loss = 1 - 0.3 * np.log(STEP) + noise(4000)
    log_loss[3000::40] += 3
    points = every_step(log_loss)
    fit = linear_fit(points)
    assert fit.estimator == "huber"
    design = sm.add_constant(points.log_time)
    peer = sm.RLM(points.log_loss, design, M=sm.robust.norms.HuberT(1.5)).fit()
    assert [fit.value["intercept"], fit.value["slope"]] == pytest.approx(list(peer.params), rel=1e-4)
    ols = linear_fit(points, huber_delta=None)
    assert ols.estimator == "ols" and ols.rss == pytest.approx(fit.rss)
    assert abs(fit.value["slope"] + 0.3) < abs(ols.value["slope"] + 0.3) / 3
    assert fit.low["slope"] < -0.3 < fit.high["slope"]
    calm = [linear_fit(every_step(-0.3 * np.log(STEP[:200]) + noise(200, seed), STEP[:200])) for seed in range(100)]
    assert sum(fit.estimator == "huber" for fit in calm) <= 1


def test_the_offset_is_that_of_scipys_curve_fit_on_the_same_data() -> None:
    points = every_step(np.log(3 * STEP**-0.6 + 0.25) + noise(4000))
    fit = offset_fit(points, PLAIN)
    assert fit is not None and fit.estimator == "trust_region"
    found, covariance = scipy.optimize.curve_fit(
        lambda x, a, b, c: np.log(np.exp(a + b * x) + c), points.log_time, points.log_loss, [1, -0.5, 0.1]
    )
    names = ("intercept", "slope", "offset")
    assert [fit.value[name] for name in names] == pytest.approx(list(found), rel=1e-4)
    assert [fit.standard_error[name] for name in names] == pytest.approx(list(np.sqrt(np.diag(covariance))), rel=1e-3)
    straight = offset_fit(every_step(1 - 0.3 * np.log(STEP) - 0.01 * np.log(STEP) ** 2), PLAIN)
    assert straight is not None and straight.value["offset"] == pytest.approx(0, abs=1e-8)
    assert math.isnan(straight.standard_error["offset"]) and straight.standard_error["slope"] > 0


def two_powers(step: np.ndarray = STEP, at: float = 500, before: float = -0.1, after: float = -0.5) -> np.ndarray:
    x = np.log(step / at)
    return np.where(x < 0, before * x, after * x)


def test_two_power_laws_and_their_break_are_recovered() -> None:
    points = every_step(two_powers() + noise(4000, scale=0.03))
    fit = two_power_fit(points)
    assert fit is not None
    assert fit.value["slope"] == pytest.approx(-0.1, abs=0.01)
    assert fit.value["slope_after"] == pytest.approx(-0.5, abs=0.01)
    assert fit.low["break_epoch"] <= 500 <= fit.high["break_epoch"]
    assert fit.high["break_epoch"] / fit.low["break_epoch"] < 2
    assert two_power_fit(points[slice(29)]) is None
    smooth = smooth_break_fit(points, fit)
    assert smooth is not None
    assert smooth.value["slope_after"] == pytest.approx(-0.5, abs=0.01)
    assert smooth.value["break_epoch"] == pytest.approx(500, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), num=st.integers(6, 40), fewest=st.integers(2, 5), scale=st.sampled_from([1.0, 1e3]))
def test_the_break_is_that_of_a_loop_over_all(seed: int, num: int, fewest: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    x, y = np.sort(random.uniform(0, 8, num)) + scale, scale + random.normal(size=num)
    weight = random.uniform(0.1, 10, num)
    expected = np.full(num + 1, np.inf)
    for m in range(fewest, num - fewest + 1):
        expected[m] = 0
        for part in (slice(m), slice(m, None)):
            line = sm.WLS(y[part], sm.add_constant(x[part], has_constant="add"), weight[part]).fit()
            expected[m] += line.ssr
    assert split_profile(x, y, weight, fewest) == pytest.approx(expected, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("model", ["offset", "smooth"])
def test_jacobians_are_derivatives(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    original = scipy.optimize.least_squares

    def checking(function, start, jacobian, **options):  # type: ignore[no-untyped-def]
        at = start + 0.01
        numeric = scipy.optimize.approx_fprime(at, function, 1e-7)
        assert jacobian(at) == pytest.approx(numeric, rel=1e-3, abs=1e-4)
        checked.append(len(at))
        return original(function, start, jacobian, **options)

    monkeypatch.setattr(curved_fits, "least_squares", checking)
    points = make_points(STEP, np.exp(two_powers() + noise(4000)), 60).weighted(0.5)
    if model == "offset":
        offset_fit(points)
    else:
        start = two_power_fit(points)
        assert start is not None
        smooth_break_fit(points, start)
    assert len(checked) >= 2


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), unit=st.floats(0.01, 100), stretch=st.integers(2, 50))
def test_units_of_loss_and_time_change_what_they_should(seed: int, unit: float, stretch: int) -> None:
    log_loss = two_powers(STEP[:600], 100) + noise(600, seed)
    points = every_step(log_loss, STEP[:600])
    scaled = every_step(log_loss + math.log(unit), STEP[:600])
    slower = every_step(log_loss, STEP[:600] * stretch)
    for make in (linear_fit, two_power_fit, offset_fit):
        fit, other, late = (make(p, errors=Errors()) for p in (points, scaled, slower))  # type: ignore[operator]
        close = 1e-3 if make is offset_fit else 1e-8
        for name in ("slope", "slope_after"):
            if name in fit.value:
                for values in ("value", "standard_error", "low", "high"):
                    expected = pytest.approx(getattr(fit, values)[name], rel=close, abs=close)
                    assert getattr(other, values)[name] == expected
                    assert getattr(late, values)[name] == expected
        assert other.value["intercept"] - fit.value["intercept"] == pytest.approx(math.log(unit), abs=close * 10)
        shift = -fit.value["slope"] * math.log(stretch)
        assert late.value["intercept"] - fit.value["intercept"] == pytest.approx(shift, abs=close * 10)
        if "break_epoch" in fit.value:
            assert late.value["break_epoch"] == pytest.approx(stretch * fit.value["break_epoch"])
    assert linear_fit(slower, "exponential").value["slope"] * stretch == pytest.approx(
        linear_fit(points, "exponential").value["slope"], rel=1e-8
    )


CURVE = clean_curve(STEP, 3 * STEP**-0.4, 100, 5)


def test_windows_and_their_slopes() -> None:
    fit = window_slope(CURVE, 5, 15, Sampling())
    assert not isinstance(fit, str)
    assert fit.value["slope"] == pytest.approx(-0.4, rel=1e-9)
    assert fit.points.count.sum() == 1000  # steps 501 to 1500
    bits = window_slope(dataclasses.replace(CURVE, loss=in_bits(CURVE.loss)), 5, 15, Sampling())
    assert not isinstance(bits, str)
    assert bits.value["slope"] == pytest.approx(fit.value["slope"], rel=1e-12)
    assert bits.value["intercept"] - fit.value["intercept"] == pytest.approx(-math.log(math.log(2)))
    assert isinstance(window_slope(CURVE, 30, 50, Sampling()), str)
    windows = scan(CURVE, (1, 5, 20), (5, 10, 40, 50), Sampling(), PLAIN)
    assert [window[:2] for window in windows] == [(1, 5), (1, 10), (1, 40), (5, 10), (5, 40), (20, 40)]
    assert start_spread(CURVE, (3, 5, 7), 15, Sampling()) == pytest.approx(0, abs=1e-9)
    assert start_spread(CURVE, (3, 5, 7), 60, Sampling()) is None


def test_the_linear_slope_is_that_of_epoch_means() -> None:
    means = CURVE.loss.reshape(40, 100).mean(1)
    expected = np.polyfit(np.arange(5, 15), means[5:15], 1)[0]
    assert linear_slope(CURVE, 5, 15) == pytest.approx(expected, rel=1e-10)
    bits = linear_slope(dataclasses.replace(CURVE, loss=in_bits(CURVE.loss)), 5, 15)
    assert bits == pytest.approx(expected / math.log(2), rel=1e-10)
    assert linear_slope(CURVE, 39, 50) is None


def test_knees() -> None:
    # Exponential for ten epochs, a power law with the same end afterwards.
    x = np.log(STEP / 1000)
    log_loss = np.where(STEP < 1000, 1 - STEP / 1000, -0.5 * x) + noise(4000, scale=0.01)
    knee = knee_epoch_aic(every_step(log_loss), 100)
    assert knee is not None and knee > 10
    points = every_step(log_loss)
    for epochs, is_power in ((int(knee), True), (int(knee) - 1, False)):
        power, exponential = (
            np.polyfit(t, points.log_loss[: 100 * epochs], 1, full=True)[1][0]
            for t in (points.log_time[: 100 * epochs], points.time[: 100 * epochs])
        )
        assert (100 * epochs * math.log(power / exponential) <= -2) == is_power
    assert knee_epoch_aic(every_step(-STEP / 500 + noise(4000, scale=0.01)), 100) is None
    assert knee_epoch_at_loss(CURVE, 1.0) == 1 + np.argmax(CURVE.loss.reshape(40, 100).mean(1) <= 1)
    assert knee_epoch_at_loss(CURVE, 0.01) is None
