"""H1 and H2 of the loss-slope campaign, answered over its runs with their uncertainty."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.special

from dd_core.analysis.loss_slopes.campaign import Campaign
from dd_core.analysis.loss_slopes.correlation import KINDS, Correlation, categories, correlate, draw_groups
from dd_core.analysis.loss_slopes.knee import DECISIVE
from dd_core.analysis.loss_slopes.prediction import Prediction, predict
from dd_core.study.loss_slopes import LossSlopeSettings

__all__ = ["H1", "H2", "Campaign", "Correlations", "StraightRuns", "answer_h1", "answer_h2", "wilson"]

# Settings that may make runs of different kinds, in words.
_GIVEN = {
    "learning_rate": "learning rate", "weight_decay": "weight decay", "momentum": "momentum",
    "batch_size": "batch size", "label_noise": "label noise", "family": "variant", "k": "width",
}  # fmt: skip


def wilson(successes: int, num: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Wilson's (1927) score interval of a share; None for no trials."""
    if num == 0:
        return None
    squared = float(scipy.special.ndtri((1 + confidence) / 2)) ** 2 / num
    share = successes / num
    middle, half = share + squared / 2, math.sqrt(squared * (share * (1 - share) + squared / 4))
    low, high = ((middle + side * half) / (1 + squared) for side in (-1, 1))
    return low if successes else 0.0, high if successes < num else 1.0


@dataclass(frozen=True)
class StraightRuns:
    """How many runs are straight.

    Attributes:
        num_runs: all there are; those that diverged are among them.
        num_fitted: that have a fit.
        num_straight: with an R^2 of the straight segment that is high enough.
        share: straight ones of all; None without runs.
        interval: Wilson's, 95 %, as if runs were independent.
        clustered: bootstrap interval over configurations, 95 %; None for fewer than three.
        share_of_fitted: straight ones of the fitted.
        interval_of_fitted: Wilson's.
    """

    num_runs: int
    num_fitted: int
    num_straight: int
    share: float | None
    interval: tuple[float, float] | None
    clustered: tuple[float, float] | None
    share_of_fitted: float | None
    interval_of_fitted: tuple[float, float] | None


@dataclass(frozen=True)
class H1:
    """Is a training's loss one straight power law after burn-in?

    Attributes:
        threshold: R^2 from which on a run is straight.
        pooled: over all runs.
        by_family: the same of each variant.
        verdicts: for each share asked for: ``yes`` or ``no`` where Wilson's whole interval is on one side of it,
            otherwise ``undecided``, or ``no runs``.
        outcomes: how many runs have which outcome.
        straight_but_bent: share of straight runs of which two power laws are decisively (2 of AICc) better.
        straight_but_exponential: the same of the exponential.
        straight_but_correlated: share of straight runs whose neighbouring residuals correlate by more than 0.3.
        straight_but_not_normal: share of straight runs with a Q-Q correlation below 0.98.
        median_autocorrelation: of neighbouring residuals over straight runs.
        median_normality: of the Q-Q correlation over straight runs.
        num_unfinished: runs that are not over, or broke off before their end, and count as they are.
    """

    threshold: float
    pooled: StraightRuns
    by_family: Mapping[str, StraightRuns]
    verdicts: Mapping[float, str]
    outcomes: Mapping[str, int]
    straight_but_bent: float | None
    straight_but_exponential: float | None
    straight_but_correlated: float | None
    straight_but_not_normal: float | None
    median_autocorrelation: float | None
    median_normality: float | None
    num_unfinished: int

    def sentence(self) -> str:
        """The answer for people."""
        runs = self.pooled
        if runs.share is None or runs.interval is None:
            return "H1: there are no runs."
        low, high = runs.interval
        asked = ", ".join(f"over {share:.0%}: {verdict}" for share, verdict in self.verdicts.items())
        share = f"{runs.share:.0%}, 95 % interval {low:.0%} to {high:.0%}"
        text = (
            f"H1: {runs.num_straight} of {runs.num_runs} runs ({share}) "
            f"are straight after burn-in with R^2 >= {self.threshold:g} ({asked})"
        )
        if runs.num_fitted < runs.num_runs:
            text += f"; {runs.num_runs - runs.num_fitted} have no fit"
        if self.straight_but_bent == 0:
            text += "; none of the straight ones is fitted decisively better by two power laws"
        elif self.straight_but_bent is not None:
            text += (
                f"; yet two power laws fit {self.straight_but_bent:.0%} of the straight ones decisively better, "
                "which R^2 does not see"
            )
        return f"{text}{_unfinished(self.num_unfinished)}."


def _unfinished(num: int) -> str:
    """A clause on runs whose curves go on, or should have."""
    return f"; of the runs {num} {'has' if num == 1 else 'have'} not finished" if num else ""


def answer_h1(campaign: Campaign, settings: LossSlopeSettings) -> H1:
    """Count straight runs; runs without a fit count as not straight."""
    straight = campaign.fitted & (campaign.r_squared >= settings.straight_r_squared)
    pooled = _straight_runs(campaign, straight, settings)
    families = {name: campaign.family == name for name in campaign.families}
    names, counts = np.unique(campaign.outcome.astype(str), return_counts=True)
    some = campaign[straight]
    return H1(
        settings.straight_r_squared,
        pooled,
        {name: _straight_runs(campaign[runs], straight[runs], settings) for name, runs in families.items()},
        {share: _verdict(pooled.interval, share) for share in settings.straight_shares},
        dict(zip(map(str, names), map(int, counts), strict=True)),
        _share(some.delta_aic_two_power, some.delta_aic_two_power < -DECISIVE),
        _share(some.delta_aic_exponential, some.delta_aic_exponential < -DECISIVE),
        _share(some.residual_autocorrelation, some.residual_autocorrelation > 0.3),
        _share(some.residual_normality, some.residual_normality < 0.98),
        _median(some.residual_autocorrelation),
        _median(some.residual_normality),
        int(campaign.unfinished.sum()),
    )


def _straight_runs(campaign: Campaign, straight: np.ndarray, settings: LossSlopeSettings) -> StraightRuns:
    num, num_fitted, num_straight = len(campaign), int(campaign.fitted.sum()), int(straight.sum())
    clustered, groups = None, campaign.configuration
    if num and groups.max() >= 2:
        weights = draw_groups(groups, settings.bootstrap_samples)
        low, high = np.percentile(weights @ straight / weights.sum(1), [2.5, 97.5])
        clustered = float(low), float(high)
    return StraightRuns(
        num,
        num_fitted,
        num_straight,
        num_straight / num if num else None,
        wilson(num_straight, num),
        clustered,
        num_straight / num_fitted if num_fitted else None,
        wilson(num_straight, num_fitted),
    )


def _verdict(interval: tuple[float, float] | None, share: float) -> str:
    if interval is None:
        return "no runs"
    return "yes" if interval[0] > share else "no" if interval[1] <= share else "undecided"


def _share(values: np.ndarray, which: np.ndarray) -> float | None:
    known = np.isfinite(values)
    return float(which[known].mean()) if known.any() else None


def _median(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


@dataclass(frozen=True)
class Correlations:
    """Correlations of one column with another, by three readings; see ``Correlation``."""

    pearson: Correlation
    spearman: Correlation
    partial: Correlation


@dataclass(frozen=True)
class H2:
    """Does the early slope predict the best validation loss?

    Attributes:
        pooled: correlations of ``alpha_early`` with ``best_validation_loss`` over all runs; ``partial`` is
            Pearson's, given the settings ``given``, each as categories.
        by_family: the same within each variant.
        verdict: ``yes``: Spearman's |rho| is at least ``strong_correlation`` and its p value at most ``significance``;
            ``weak``: |rho| below ``weak_correlation``, the campaign's reason to turn to the largest eigenvalue;
            ``no``: neither, as |rho| lies between or p is too large; ``unknown``: there is no rho, or too few
            configurations for p.
        pivot: correlations of ``largest_eigenvalue_plateau_epoch`` with ``best_validation_loss``.
        prediction: of ``last_validation_loss`` for configurations that were not seen.
        strong: |rho| asked for.
        weak: |rho| of the pivot.
        given: settings that differ among the runs, in words.
        num_unfinished: of the runs correlated, those that are not over, or broke off: their best loss may not be.
    """

    pooled: Correlations
    by_family: Mapping[str, Correlations]
    verdict: str
    pivot: Correlations
    prediction: Prediction
    strong: float
    weak: float
    given: tuple[str, ...]
    num_unfinished: int

    @property
    def is_between_kinds(self) -> bool:
        """Whether runs correlate because they are of different kinds: no more given their settings."""
        partial = self.pooled.partial
        if self.verdict != "yes" or partial.low is None or partial.high is None:
            return False
        return partial.low <= 0 <= partial.high

    @property
    def given_in_words(self) -> str:
        """What the partial correlation is given: ``learning rate, weight decay and width``."""
        *most, last = self.given or ("nothing",)
        return f"{', '.join(most)} and {last}" if most else last

    def sentence(self) -> str:
        """The answer for people."""
        rho = self.pooled.spearman
        if rho.value is None:
            return f"H2: unknown. {rho.why}"
        interval = f", 95 % interval {rho.low:.2f} to {rho.high:.2f}" if rho.low is not None else ""
        p = f", p = {rho.p_value:.2g}" if rho.p_value is not None else ""
        text = (
            f"H2: the early slope and the best validation loss have a rank correlation of {rho.value:.2f}{interval}{p} "
            f"({rho.num_runs} runs of {rho.num_configurations} configurations): {self.verdict}"
        )
        if self.verdict == "unknown":
            text += f", as {rho.why[:1].lower()}{rho.why[1:].rstrip('.')}"
        partial = self.pooled.partial
        if partial.value is not None and self.given:
            text += f"; given {self.given_in_words} Pearson's partial correlation is {partial.value:.2f}"
            text += f" ({partial.low:.2f} to {partial.high:.2f})" if partial.low is not None else ""
            text += ", so it is the kinds of runs that differ" if self.is_between_kinds else ""
        error = self.prediction.root_mean_square
        if error:
            text += (
                f"; for unseen configurations the slope predicts the final loss to {error['alpha_early']:.3f} nats, "
                f"the loss at the same epoch to {error['loss']:.3f}"
            )
        if self.verdict == "weak":
            pivot = self.pivot.spearman
            text += "; the plateau of the largest eigenvalue " + (
                f"has a rank correlation of {pivot.value:.2f}"
                if pivot.value is not None
                else "is not known of enough runs"
            )
        return f"{text}{_unfinished(self.num_unfinished)}."


def answer_h2(campaign: Campaign, settings: LossSlopeSettings) -> H2:
    """Correlate early slopes with best validation losses, over runs that have both."""
    campaign = campaign[campaign.fitted]
    samples = settings.bootstrap_samples

    def correlations(runs: Campaign, x: np.ndarray, *given: np.ndarray) -> Correlations:
        covariates, groups = categories(*given), runs.configuration
        pearson, spearman, partial = (
            correlate(x, runs.best_validation_loss, groups, kind, samples, covariates) for kind in KINDS
        )
        return Correlations(pearson, spearman, partial)

    def all_given(runs: Campaign) -> tuple[np.ndarray, ...]:
        return tuple(getattr(runs, name) for name in _GIVEN)

    pooled = correlations(campaign, campaign.alpha_early, *all_given(campaign))
    by_family = {}
    for name in campaign.families:
        runs = campaign[campaign.family == name]
        by_family[name] = correlations(runs, runs.alpha_early, *all_given(runs))
    used = campaign[np.isfinite(campaign.alpha_early) & np.isfinite(campaign.best_validation_loss)]
    differ = (words for name, words in _GIVEN.items() if categories(getattr(used, name)).shape[1])
    return H2(
        pooled,
        by_family,
        _strength(pooled.spearman, settings),
        correlations(campaign, campaign.largest_eigenvalue_plateau_epoch, *all_given(campaign)),
        predict(
            campaign.alpha_early,
            campaign.loss_at_early_stop,
            campaign.last_validation_loss,
            campaign.configuration,
            samples,
        ),
        settings.strong_correlation,
        settings.weak_correlation,
        tuple(differ),
        int(used.unfinished.sum()),
    )


def _strength(rho: Correlation, settings: LossSlopeSettings) -> str:
    if rho.value is None or rho.p_value is None:
        return "unknown"
    if abs(rho.value) < settings.weak_correlation:
        return "weak"
    is_strong = abs(rho.value) >= settings.strong_correlation and rho.p_value <= settings.significance
    return "yes" if is_strong else "no"
