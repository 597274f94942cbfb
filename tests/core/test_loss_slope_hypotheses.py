"""H1 and H2 on made-up campaigns whose answers are known, and their statistics against scipy and statsmodels."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
from statsmodels.stats.proportion import proportion_confint

from dd_core.analysis.loss_slopes.campaign import Campaign
from dd_core.analysis.loss_slopes.correlation import KINDS, categories, correlate, draw_groups, resampled
from dd_core.analysis.loss_slopes.hypotheses import answer_h1, answer_h2, wilson
from dd_core.analysis.loss_slopes.prediction import left_out_errors, predict
from dd_core.study.loss_slopes import LossSlopeSettings

SETTINGS = LossSlopeSettings(bootstrap_samples=1000)


def rows(effect: float = 1.0, seed: int = 0, families: str = "abcd", trials: int = 6) -> list[dict[str, Any]]:
    """A campaign of 9 configurations a family, in which alpha_early moves the final loss by ``effect``."""
    random = np.random.default_rng(seed)
    made: list[dict[str, Any]] = []
    for family in families:
        for rate in (0.05, 0.1, 0.2):
            for decay in (1e-4, 1e-3, 1e-2):
                shared, other = random.normal(size=2)  # what trials of a configuration have in common
                for trial in range(trials):
                    alpha = -0.4 + 0.05 * shared + 0.02 * random.normal()
                    loss = 0.6 + effect * (alpha + 0.4) + 0.03 * other + 0.005 * random.normal()
                    made.append(
                        {
                            **{"study": "s", "family": family, "arm": f"{family}-{rate}-{decay}", "k": 4},
                            **{"trial": trial, "learning_rate": rate, "weight_decay": decay, "outcome": "fitted"},
                            **{"r_squared": 0.99 if trial else 0.9, "alpha_early": alpha, "best_validation_loss": loss},
                            **{"last_validation_loss": loss + 0.01, "loss_at_early_stop": 0.8 + 0.1 * random.normal()},
                            **{"delta_aic_two_power": -5.0 if trial == 1 else 3.0, "delta_aic_exponential": 9.0},
                            **{"residual_autocorrelation": 0.1 * trial, "residual_normality": 0.99},
                            "largest_eigenvalue_plateau_epoch": 10.0 + 50 * (loss - 0.6),
                        }
                    )
    return made


CAMPAIGN = Campaign.from_rows(rows())
COVARIATES = categories(CAMPAIGN.learning_rate, CAMPAIGN.weight_decay, CAMPAIGN.family)


def test_correlations_are_those_of_scipy_and_statsmodels() -> None:
    x, y = CAMPAIGN.alpha_early, CAMPAIGN.best_validation_loss
    found = {kind: correlate(x, y, CAMPAIGN.configuration, kind, 200, COVARIATES) for kind in KINDS}
    for kind, peer in (("pearson", scipy.stats.pearsonr(x, y)), ("spearman", scipy.stats.spearmanr(x, y))):
        assert found[kind].value == pytest.approx(peer.statistic, rel=1e-9)  # type: ignore[index]
        assert found[kind].p_value_runs == pytest.approx(peer.pvalue, rel=1e-6)  # type: ignore[index]
    assert COVARIATES.shape == (216, 7)
    left = [sm.OLS(values, sm.add_constant(COVARIATES)).fit().resid for values in (x, y)]
    assert found["partial"].value == pytest.approx(scipy.stats.pearsonr(*left).statistic, rel=1e-9)
    # The t test of a partial correlation is that of the coefficient in the regression with all covariates.
    whole = sm.OLS(y, sm.add_constant(np.column_stack([x, COVARIATES]))).fit()
    assert found["partial"].p_value_runs == pytest.approx(whole.pvalues[1], rel=1e-6)
    assert found["pearson"].num_runs == 216 and found["pearson"].num_configurations == 36


@pytest.mark.parametrize("kind", KINDS)
def test_the_bootstrap_of_all_samples_at_once_is_that_of_a_loop(kind: str) -> None:
    campaign = CAMPAIGN[np.arange(60)]
    x, y = np.round(campaign.alpha_early, 2), campaign.best_validation_loss  # rounded: ties
    covariates = COVARIATES[:60, :2]
    groups = campaign.configuration
    draws = resampled(kind, x, y, covariates, groups, 20, seed=4)  # type: ignore[arg-type]
    for draw, counts in zip(draws, draw_groups(groups, 20, seed=4), strict=True):
        index = np.repeat(np.arange(60), counts.astype(int))
        a, b = x[index], y[index]
        if kind == "partial":
            given = sm.add_constant(covariates[index], has_constant="add")
            a, b = (values - given @ np.linalg.pinv(given) @ values for values in (a, b))
        peer = (scipy.stats.spearmanr if kind == "spearman" else scipy.stats.pearsonr)(a, b).statistic
        assert draw == pytest.approx(peer, abs=1e-8)


def test_intervals_know_that_seeds_are_no_independent_runs() -> None:
    clustered = correlate(CAMPAIGN.alpha_early, CAMPAIGN.best_validation_loss, CAMPAIGN.configuration, "pearson", 1000)
    alone = correlate(CAMPAIGN.alpha_early, CAMPAIGN.best_validation_loss, np.arange(216), "pearson", 1000)
    assert None not in (clustered.low, clustered.high, alone.low, alone.high)
    assert clustered.high - clustered.low > 1.5 * (alone.high - alone.low)  # type: ignore[operator]
    # Where nothing is to be found, p is below 5 % about as often as it says; that of runs, far more often.
    small = {"p_value": 0, "p_value_runs": 0}
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(36), 6)
    for _ in range(200):
        x, y = (random.normal(size=36)[groups] + 0.3 * random.normal(size=216) for _ in range(2))
        found = correlate(x, y, groups, "spearman", 200)
        for name in small:
            small[name] += getattr(found, name) < 0.05
    assert small["p_value"] / 200 <= 0.12
    assert small["p_value_runs"] / 200 >= 0.3


def test_errors_without_a_configuration_are_those_of_fitting_without_it() -> None:
    features = np.stack([CAMPAIGN.alpha_early, np.log(CAMPAIGN.loss_at_early_stop)], 1)
    target, groups = CAMPAIGN.last_validation_loss, CAMPAIGN.configuration
    errors = left_out_errors(features, target, groups)
    for group in (0, 7, 35):
        out = groups == group
        others = sm.OLS(target[~out], sm.add_constant(features[~out])).fit()
        expected = target[out] - others.predict(sm.add_constant(features[out], has_constant="add"))
        assert errors[out] == pytest.approx(expected, rel=1e-8)


def test_the_better_predictor_is_named() -> None:
    found = predict(
        CAMPAIGN.alpha_early, CAMPAIGN.loss_at_early_stop, CAMPAIGN.last_validation_loss, CAMPAIGN.configuration, 500
    )
    assert found.gain is not None and found.gain_high is not None
    assert found.root_mean_square["alpha_early"] < found.root_mean_square["mean"] < found.root_mean_square["loss"]
    assert found.gain < 0 and found.gain_high < 0
    assert found.num_configurations == 36 and not found.why


def test_h1_counts_every_run() -> None:
    made = rows()
    for row in made[:9]:
        row |= {"outcome": "diverged", "r_squared": None, "alpha_early": None}
    answer = answer_h1(Campaign.from_rows(made), SETTINGS)
    num_straight = sum(row["outcome"] == "fitted" and row["trial"] > 0 for row in made)
    assert (answer.pooled.num_runs, answer.pooled.num_fitted) == (216, 207)
    assert answer.pooled.num_straight == num_straight
    assert answer.pooled.share == num_straight / 216
    assert answer.pooled.interval == pytest.approx(proportion_confint(num_straight, 216, method="wilson"))
    assert answer.pooled.share_of_fitted == num_straight / 207
    assert answer.verdicts == {0.8: "undecided", 0.9: "no"}
    assert answer.outcomes == {"diverged": 9, "fitted": 207}
    assert answer.by_family["d"].num_runs == 54
    assert answer.straight_but_bent == pytest.approx(0.2, abs=0.02)
    assert answer.straight_but_exponential == 0
    assert "9 have no fit" in answer.sentence() and "over 90%: no" in answer.sentence()
    assert wilson(0, 0) is None


def test_h2_finds_what_is_there_and_nothing_else() -> None:
    strong = answer_h2(CAMPAIGN, SETTINGS)
    assert strong.verdict == "yes"
    assert strong.pooled.spearman.p_value < 1e-4  # type: ignore[operator]
    assert set(strong.by_family) == set("abcd") and strong.by_family["a"].pearson.num_runs == 54
    assert strong.pooled.partial.value == pytest.approx(strong.pooled.pearson.value, abs=0.1)
    nothing = answer_h2(Campaign.from_rows(rows(effect=0.0)), SETTINGS)
    assert nothing.verdict == "weak"
    assert "the plateau of the largest eigenvalue has a rank correlation of 1.00" in nothing.sentence()
    assert nothing.pivot.pearson.value == pytest.approx(1)


def test_the_sentences_say_what_they_rest_on() -> None:
    made = rows()
    for row in made:
        row |= {"delta_aic_two_power": 3.0, "momentum": 0.9, "batch_size": 32 if row["trial"] % 2 else 64}
    h1, h2 = (answer(Campaign.from_rows(made), SETTINGS) for answer in (answer_h1, answer_h2))
    assert "; none of the straight ones is fitted decisively better by two power laws." in h1.sentence()
    assert h2.given == ("learning rate", "weight decay", "batch size", "variant")
    given = "given learning rate, weight decay, batch size and variant Pearson's partial correlation is "
    assert given in h2.sentence() and "finished" not in h2.sentence()
    few = answer_h2(Campaign.from_rows(rows(4.0)[:12]), SETTINGS)
    assert few.sentence().split(": ", 2)[2].startswith("unknown, as 2 configurations are too few for an interval")
    for row in made[:3]:
        row |= {"status": "running"}
    made[0]["best_validation_loss"] = None
    h1, h2 = (answer(Campaign.from_rows(made), SETTINGS) for answer in (answer_h1, answer_h2))
    assert h1.sentence().endswith("; of the runs 3 have not finished.")
    assert h2.sentence().endswith("; of the runs 2 have not finished.")


def test_the_partial_correlation_is_given_every_setting_of_the_grid() -> None:
    made = rows(effect=0.0)
    for row in made:  # the momentum moves both, and nothing else does
        row["momentum"] = 0.9 if row["weight_decay"] == 1e-3 else 0.0
        row["weight_decay"] = 1e-3
        row["alpha_early"] += row["momentum"]
        row["best_validation_loss"] += row["momentum"]
    answer = answer_h2(Campaign.from_rows(made), SETTINGS)
    assert answer.pooled.pearson.value is not None and answer.pooled.pearson.value > 0.9
    assert answer.pooled.partial.value is not None and abs(answer.pooled.partial.value) < 0.3
    assert answer.is_between_kinds or answer.verdict != "yes"


@pytest.mark.parametrize(
    "made, verdict",
    [
        ([], "unknown"),
        (rows()[:1], "unknown"),
        (rows()[:2], "unknown"),
        (rows()[:6], "unknown"),  # one configuration: no interval, so no p value
        (rows(4.0)[:12], "unknown"),
        ([row | {"alpha_early": -0.5} for row in rows()], "unknown"),
        ([row | {"outcome": "diverged", "alpha_early": None} for row in rows()], "unknown"),
        (rows(4.0, families="a", trials=1), "yes"),
        (rows(4.0, families="a"), "yes"),
    ],
    ids=[
        "none",
        "one",
        "two",
        "one configuration",
        "two configurations",
        "same slope",
        "all diverged",
        "one seed",
        "one variant",
    ],
)
def test_small_campaigns_say_what_they_can(made: list[dict[str, Any]], verdict: str) -> None:
    campaign = Campaign.from_rows(made)
    straight, answer = answer_h1(campaign, SETTINGS), answer_h2(campaign, SETTINGS)
    assert answer.sentence().startswith("H2: ") and answer.sentence().endswith(".")
    assert straight.sentence().startswith("H1: ") and straight.sentence().endswith(".")
    assert answer.verdict == verdict
    rho = answer.pooled.spearman
    assert (rho.value is None or rho.p_value is None) == bool(rho.why)
    assert not any(isinstance(x, float) and math.isnan(x) for x in vars(rho).values())
