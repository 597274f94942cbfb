"""Errors, criteria, spectra and plateaus of loss curves against statsmodels, scipy and closed forms."""

import math

import numpy as np
import pytest
import scipy.signal
import statsmodels.api as sm
from statsmodels.tsa.stattools import acf

from dd_core.analysis.loss_slopes.criteria import akaike_weights, criteria
from dd_core.analysis.loss_slopes.curved_fits import offset_fit
from dd_core.analysis.loss_slopes.errors import (
    autocorrelation,
    block_length,
    effective_sample_size,
    fixed_b_quantile,
    long_run_covariance,
    moving_block_draws,
    newey_west_lags,
    uncertainty,
)
from dd_core.analysis.loss_slopes.fits import Errors, linear_fit
from dd_core.analysis.loss_slopes.plateau import plateau_epoch
from dd_core.analysis.loss_slopes.points import Sampling
from dd_core.analysis.loss_slopes.rows import normality
from dd_core.analysis.loss_slopes.run import Run, analyse_run
from dd_core.analysis.loss_slopes.spectra import (
    band_mean,
    batch_noise_floor,
    longest_stretch,
    noise_floor,
    segment_length,
    welch_psd,
)
from dd_core.study.loss_slopes import LossSlopeSettings


def autoregressive(shape: tuple[int, int], memory: float, seed: int = 0) -> np.ndarray:
    """Rows of AR(1) noise of variance 1."""
    rows, num = shape
    shocks = np.random.default_rng(seed).normal(size=(rows, num + 300)) * math.sqrt(1 - memory**2)
    return scipy.signal.lfilter([1], [1, -memory], shocks, axis=1)[:, 300:]


def test_autocorrelation_is_that_of_statsmodels_and_its_sum_that_of_theory() -> None:
    series = autoregressive((1, 50_000), 0.8)[0]
    assert autocorrelation(series[:500]) == pytest.approx(acf(series[:500], nlags=499, fft=False), abs=1e-10)
    assert effective_sample_size(series) == pytest.approx(50_000 * (1 - 0.8) / (1 + 0.8), rel=0.1)
    white = np.random.default_rng(0).normal(size=50_000)
    assert effective_sample_size(white) == pytest.approx(50_000, rel=0.05)
    assert effective_sample_size(np.ones(5)) == 5 and effective_sample_size(np.zeros(0)) == 0


def test_newey_west_is_that_of_statsmodels_and_of_theory() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(19, 2)), random.normal(size=19)
    ols = sm.OLS(y, x).fit()
    robust = ols.get_robustcov_results("HAC", maxlags=newey_west_lags(19), use_correction=False)
    bread = np.linalg.inv(x.T @ x)
    inner = long_run_covariance(x * ols.resid[:, None])  # too few points to prewhiten
    assert bread @ inner @ bread == pytest.approx(robust.cov_params(), rel=1e-9)
    # A vector autoregression s' = A s + u has the long-run covariance n (I - A)^-1 cov(u) (I - A)^-T.
    memory = np.array([[0.8, 0.1], [-0.2, 0.6]])
    scores = np.zeros((20_000, 2))
    for i in range(1, 20_000):
        scores[i] = memory @ scores[i - 1] + random.normal(size=2)
    colour = np.linalg.inv(np.eye(2) - memory)
    assert long_run_covariance(scores) / 20_000 == pytest.approx(colour @ colour.T, rel=0.1)


def test_uncertainty_does_not_depend_on_the_parameters_units() -> None:
    x = np.linspace(3, 4, 100)
    residuals = autoregressive((1, 100), 0.5)[0]
    design, mixing = np.stack([np.ones(100), x], 1), np.array([[1.0, 5.0], [0.0, 1e3]])
    for method in ("newey_west", "independent", "block_bootstrap"):
        one = uncertainty(design, np.zeros(2), residuals, method)  # type: ignore[arg-type]
        other = uncertainty(design @ mixing, np.zeros(2), residuals, method)  # type: ignore[arg-type]
        assert mixing @ other.covariance @ mixing.T == pytest.approx(one.covariance, rel=1e-6)
    # White noise: the sandwich with residuals over 1 - leverage is near HC3, which is near the textbook's.
    white = np.random.default_rng(4).normal(size=4000)
    design = np.stack([np.ones(4000), np.linspace(0, 1, 4000)], 1)
    peer = sm.OLS(white, design).fit(cov_type="HC3")
    ours = uncertainty(design, peer.params, peer.resid, "newey_west")
    assert ours.standard_error == pytest.approx(peer.bse, rel=0.15)


def test_blocks_drawn_at_once_are_those_of_a_loop() -> None:
    residuals, influence = autoregressive((1, 90), 0.7)[0], np.random.default_rng(1).normal(size=(2, 90))
    draws = moving_block_draws(influence, residuals, 50, seed=3)
    length = block_length(residuals)
    centred = residuals - residuals.mean()
    starts = np.random.default_rng(3).integers(0, 90 - length + 1, (50, -(-90 // length)))
    for draw, row in zip(draws, starts, strict=True):
        drawn = np.concatenate([centred[start : start + length] for start in row])[:90]
        assert draw == pytest.approx(influence @ drawn)


@pytest.mark.parametrize(
    "first, last, memory, method, lowest",
    [
        (1955, 5865, 0.0, "newey_west", 0.91),
        (1955, 5865, 0.9, "newey_west", 0.91),
        (1955, 5865, 0.9, "block_bootstrap", 0.87),
        (60, 180, 0.5, "newey_west", 0.88),
    ],
)
def test_intervals_hold_the_true_slope_as_often_as_they_say(
    first: int, last: int, memory: float, method: str, lowest: float
) -> None:
    num = 150
    step = np.arange(first, last + 1)
    hits = {method: 0, "independent": 0}
    for noise in autoregressive((num, len(step)), memory, seed=7):
        points = Sampling().points(step, np.exp(1 - 0.4 * np.log(step) + 0.1 * noise))
        for name in hits:
            fit = linear_fit(points, errors=Errors(name, 400))  # type: ignore[arg-type]
            hits[name] += fit.low["slope"] <= -0.4 <= fit.high["slope"]
    assert lowest <= hits[method] / num <= 0.99
    if memory:
        assert hits["independent"] < hits[method]


def test_an_offset_is_recovered_within_its_interval() -> None:
    step, num = np.arange(1, 3001), 60
    hits, slopes = 0, []
    for noise in autoregressive((num, len(step)), 0.5, seed=5):
        fit = offset_fit(Sampling().points(step, (3 * step**-0.5 + 0.1) * np.exp(0.1 * noise)))
        assert fit is not None
        hits += fit.low["offset"] <= 0.1 <= fit.high["offset"]
        slopes.append(fit.value["slope"])
    assert np.mean(slopes) == pytest.approx(-0.5, abs=0.01)
    assert hits / num >= 0.85


def test_two_power_laws_are_rarely_decisive_where_one_is_true() -> None:
    step, num, settings = np.arange(1, 3001), 40, LossSlopeSettings(scan_starts=(1.0,), scan_stops=(10.0,))
    decisive = {"delta_aic_two_power": 0, "delta_aic_two_power_plain": 0}
    every = settings.model_copy(update={"points": "all"})
    none = np.zeros(0)
    for noise in autoregressive((num, len(step)), 0.9, seed=2):
        run = Run(step, 3 * step**-0.3 * np.exp(0.1 * noise), 100, none, none, none, none)
        columns, _ = analyse_run(run, every)
        for name in decisive:
            decisive[name] += columns[name] < -2
    assert decisive["delta_aic_two_power"] <= 0.25 * num
    assert decisive["delta_aic_two_power_plain"] >= 0.75 * num  # correlated steps counted as independent


def test_criteria_are_those_of_statsmodels_up_to_a_constant() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(50, 4)), random.normal(size=50)
    models = [sm.OLS(y, sm.add_constant(x[:, :p])).fit() for p in (1, 2, 4)]
    ours = [criteria(model.ssr, 50, int(model.df_model) + 1) for model in models]
    for name in ("aic", "bic"):
        differences = np.diff([getattr(model, name) for model in models])
        assert np.diff([getattr(c, name) for c in ours]) == pytest.approx(differences, rel=1e-9)
    k = 3 + 1
    assert ours[1].aicc - ours[1].aic == pytest.approx(2 * k * (k + 1) / (50 - k - 1))
    assert criteria(2.0, 100, 2, 20).aic == pytest.approx(20 * math.log(0.02) + 6)
    assert math.isnan(criteria(2.0, 100, 2, 4).aicc)
    assert math.isfinite(criteria(0.0, 100, 2).aic)
    weights = akaike_weights([10.0, 12.0, math.nan])
    assert weights[:2] == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)]) and math.isnan(weights[2])
    assert fixed_b_quantile(0) == 1.96
    assert fixed_b_quantile(0.1) == pytest.approx(2.2606, abs=1e-3)


def test_fixed_b_quantiles_are_those_of_simulated_statistics() -> None:
    random, share = np.random.default_rng(0), 0.2
    shocks = random.normal(size=(4000, 200))
    mean = shocks.mean(1)
    residuals = shocks - mean[:, None]
    lags = int(share * 200)
    variance = (residuals**2).sum(1)
    for lag in range(1, lags):
        variance += 2 * (1 - lag / lags) * (residuals[:, lag:] * residuals[:, :-lag]).sum(1)
    statistic = np.abs(shocks.sum(1) / np.sqrt(variance))
    assert np.quantile(statistic, 0.95) == pytest.approx(fixed_b_quantile(share), rel=0.05)


def test_welch_is_scipys_and_white_noise_has_twice_its_variance() -> None:
    white = 0.3 * np.random.default_rng(0).normal(size=40_000)
    frequency, density, enough = welch_psd(white)
    assert enough and segment_length(40_000) == 1024
    peer = scipy.signal.welch(white, nperseg=1024)
    assert density == pytest.approx(peer[1])
    assert band_mean(frequency, density, (0.3, 0.5)) == pytest.approx(2 * 0.09, rel=0.03)
    boxes = white[: 39 * 1024].reshape(39, 1024)
    boxes = boxes - boxes.mean(1, keepdims=True)
    periodograms = 2 * np.abs(np.fft.rfft(boxes)) ** 2 / 1024
    assert welch_psd(white, "boxcar")[1][1:-1] == pytest.approx(periodograms.mean(0)[1:-1])
    lengths = {100: 64, 511: 64, 1024: 128, 5000: 512, 10**6: 1024, 20: 20}
    assert {num: segment_length(num) for num in lengths} == lengths
    assert not welch_psd(white[:200])[2]
    assert math.isnan(band_mean(frequency, density, (0.6, 0.7)))
    assert longest_stretch(np.array([1, 2, 5, 6, 7, 9])) == slice(2, 5)


def test_noise_floors() -> None:
    random = np.random.default_rng(0)
    values = np.append(random.normal(2, 0.1, 5000), np.full(20, 50.0))
    levels = {method: noise_floor(values, method) for method in ("percentile", "minimum", "median", "hybrid")}  # type: ignore[arg-type]
    assert levels["median"] == pytest.approx(2, abs=0.01)
    assert max(levels["minimum"], levels["percentile"], levels["hybrid"]) < 1.95
    expected = 0.4 * levels["percentile"] + 0.35 * levels["minimum"] + 0.25 * levels["median"]
    assert levels["hybrid"] == pytest.approx(expected)
    assert batch_noise_floor(random.normal(0, 0.2, 20_000)) == pytest.approx(0.2, rel=0.06)
    assert math.isnan(noise_floor(np.zeros(0))) and math.isnan(batch_noise_floor(np.ones(3)))


def test_plateaus() -> None:
    epoch = np.arange(1, 31) / 2
    rising = np.where(epoch <= 6, 2 * 1.2**epoch, 2 * 1.2**6)
    assert plateau_epoch(epoch, rising, "relative_change") == 6
    assert plateau_epoch(epoch, 2 * 1.2**epoch, "relative_change") is None
    # 5 % for two epochs only is none.
    stairs = 2 * 1.2 ** np.floor(epoch / 3)
    assert plateau_epoch(epoch, stairs, "relative_change") is None
    step = np.where(epoch <= 5, 10.0, 30.0) * np.exp(0.02 * np.random.default_rng(0).normal(size=30))
    assert plateau_epoch(epoch, step, "pelt") == 5.5
    assert plateau_epoch(epoch, np.exp(0.02 * np.random.default_rng(1).normal(size=30)), "pelt") is None
    for method in ("relative_change", "pelt"):
        assert plateau_epoch(np.zeros(0), np.zeros(0), method) is None
        order = np.random.default_rng(0).permutation(30)
        assert plateau_epoch(epoch[order], step[order], method) == plateau_epoch(epoch, step, method)


def test_normality_is_the_correlation_of_quantiles() -> None:
    random = np.random.default_rng(0)
    assert normality(random.normal(size=2000)) == pytest.approx(1, abs=0.003)
    heavy = normality(random.standard_t(2, size=2000))
    assert heavy is not None and heavy < 0.95
    assert normality(np.zeros(5)) is None
