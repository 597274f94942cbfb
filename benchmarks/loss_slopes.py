"""The analysis of loss curves against the plain way, on one thread.

The plain way is what one writes in a notebook: a Python loop over all breaks with ``numpy.polyfit`` on both sides, a
loop over bootstrap samples with ``numpy.polyfit`` or ``scipy.stats.spearmanr``. Both find the same: breaks are compared
first, and bootstrap intervals to a few percent. All work is interleaved; a ratio is the plain way's seconds over ours,
so above 1 we are faster; at least 20 is wanted of the break.

Keys: ``break_N``, N points; ``run_N``, a run of N steps with all models, errors and the window scan, against no more
than its break by the loop over steps; ``slope_bootstrap`` and ``rank_bootstrap``, 2,000 samples each. Seconds of a run
of 20,000 steps (at most 1 is wanted) and of 216 runs on two processes (at most 120) are printed, too.

``--recovery`` prints instead how well parameters are found of 1,000 curves each whose parameters are known.
"""

import functools
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import scipy.stats
from common import interleaved, load_average, median_ratio, parse_arguments, write_json

from dd_core.analysis.loss_slopes.breaks import split_profile, two_power_fit
from dd_core.analysis.loss_slopes.correlation import correlate
from dd_core.analysis.loss_slopes.criteria import criteria
from dd_core.analysis.loss_slopes.curved_fits import offset_fit
from dd_core.analysis.loss_slopes.errors import block_length, effective_sample_size, moving_block_draws
from dd_core.analysis.loss_slopes.fits import Fit, linear_fit
from dd_core.analysis.loss_slopes.points import Sampling, make_points
from dd_core.analysis.loss_slopes.run import Run, analyse_run
from dd_core.study.loss_slopes import LossSlopeSettings

FEWEST = 15
SAMPLES = 2000


def noise(shape: tuple[int, int], memory: float, seed: int) -> np.ndarray:
    """Rows of first-order autoregressive noise of standard deviation 1."""
    shocks = np.random.default_rng(seed).normal(size=(shape[0], shape[1] + 500)) * math.sqrt(1 - memory**2)
    return scipy.signal.lfilter([1], [1, -memory], shocks, axis=1)[:, 500:]


def run_of(num_steps: int, seed: int = 0) -> Run:
    """50 epochs of a loss that has its knee in the fourth; validation every quarter of an epoch."""
    step = np.arange(1, num_steps + 1)
    knee = num_steps / 50 * 3.5
    x = np.log(step / knee)
    loss = np.exp(0.3 + np.where(x < 0, -0.12, -0.45) * x + 0.1 * noise((1, num_steps), 0.3, seed)[0])
    sparse = step[num_steps // 200 - 1 :: num_steps // 200]
    return Run(step, loss, num_steps / 50, sparse, loss[sparse - 1], sparse, 40 * (1 - np.exp(-sparse / knee)))


def plain_break(x: np.ndarray, y: np.ndarray) -> int:
    """Points before the best break, by a loop."""
    best, lowest = 0, math.inf
    for place in range(FEWEST, len(x) - FEWEST + 1):
        rss = 0.0
        for part in (slice(place), slice(place, None)):
            line = np.polyfit(x[part], y[part], 1)
            rss += float(((y[part] - np.polyval(line, x[part])) ** 2).sum())
        if rss < lowest:
            best, lowest = place, rss
    return best


def our_break(x: np.ndarray, y: np.ndarray) -> int:
    """The same by running sums."""
    return int(np.argmin(split_profile(x, y, np.ones(len(x)), FEWEST)))


def plain_slope_bootstrap(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """95 % interval of a slope by moving blocks of residuals, sample by sample."""
    line = np.polyfit(x, y, 1)
    fitted = np.polyval(line, x)
    residuals = y - fitted - (y - fitted).mean()
    random, length = np.random.default_rng(0), block_length(residuals)
    slopes = []
    for _ in range(SAMPLES):
        starts = random.integers(0, len(x) - length + 1, -(-len(x) // length))
        drawn = np.concatenate([residuals[start : start + length] for start in starts])[: len(x)]
        slopes.append(np.polyfit(x, fitted + drawn, 1)[0])
    low, high = np.percentile(slopes, [2.5, 97.5])
    return float(low), float(high)


def our_slope_bootstrap(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The same, all samples at once."""
    slope, intercept = np.polyfit(x, y, 1)
    influence = np.linalg.pinv(np.stack([x, np.ones(len(x))], 1))
    draws = moving_block_draws(influence, y - slope * x - intercept, SAMPLES)
    low, high = np.percentile(draws[:, 0], [2.5, 97.5])
    return float(slope + low), float(slope + high)


def campaign(num_groups: int = 36, trials: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slopes, losses and configurations of 216 runs."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(num_groups), trials)
    x = random.normal(size=num_groups)[groups] + 0.3 * random.normal(size=len(groups))
    return x, x + random.normal(size=len(groups)), groups


def plain_rank_bootstrap(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """95 % interval of Spearman's correlation over configurations drawn one by one."""
    random, names = np.random.default_rng(0), np.unique(groups)
    found = []
    for _ in range(SAMPLES):
        drawn = random.choice(names, len(names))
        rows = np.concatenate([np.flatnonzero(groups == name) for name in drawn])
        found.append(scipy.stats.spearmanr(x[rows], y[rows]).statistic)
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def our_rank_bootstrap(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """The same at once, and with it the p value, which takes as many samples again."""
    found = correlate(x, y, groups, "spearman", SAMPLES)
    assert found.low is not None and found.high is not None
    return found.low, found.high


def speeds(quick: bool, repeats: int) -> dict[str, float]:
    """Print seconds and ratios; ratios by key."""
    settings = LossSlopeSettings()
    cases: dict[str, dict[str, Callable[[], Any]]] = {}
    for num, size in (("200", None), ("2000" if quick else "20000", 2000 if quick else 20_000)):
        run = run_of(20_000 if size is None else size)
        points = make_points(run.step, run.loss, 240 if size is None else None)
        x, y = points.log_time[-200:] if size is None else points.log_time, points.log_loss
        y = y[-200:] if size is None else y
        breaks = {"plain": plain_break, "ours": our_break}
        cases[f"break_{num}"] = {name: functools.partial(function, x, y) for name, function in breaks.items()}
        if size is not None:
            ours = functools.partial(analyse_run, run, settings)
            cases[f"run_{num}"] = {"plain": cases[f"break_{num}"]["plain"], "ours": ours}
    x, y = points.log_time[-1000:], points.log_loss[-1000:]
    pairs = {"plain": plain_slope_bootstrap, "ours": our_slope_bootstrap}
    cases["slope_bootstrap"] = {name: functools.partial(function, x, y) for name, function in pairs.items()}
    ranks = {"plain": plain_rank_bootstrap, "ours": our_rank_bootstrap}
    cases["rank_bootstrap"] = {name: functools.partial(function, *campaign()) for name, function in ranks.items()}
    ratios = {}
    for key, candidates in cases.items():
        if key.startswith("break"):
            assert candidates["plain"]() == candidates["ours"](), key
        if key.endswith("bootstrap"):
            assert np.allclose(candidates["plain"](), candidates["ours"](), rtol=0.1), key
        seconds = interleaved(candidates, repeats)
        ratios[key], low, high = median_ratio(seconds["plain"], seconds["ours"])
        plain, ours_seconds = (statistics.median(seconds[name]) for name in ("plain", "ours"))
        print(
            f"{key:16s} plain {plain:8.3f} s   ours {ours_seconds:8.4f} s   plain / ours {ratios[key]:8.1f} "
            f"({low:.1f} to {high:.1f})",
            flush=True,
        )
    return ratios


def analyse_seeds(seeds: range) -> int:
    """Analyse as many runs of 20,000 steps; returns the number of fits."""
    settings = LossSlopeSettings()
    return sum(len(analyse_run(run_of(20_000, seed), settings)[1]) for seed in seeds)


def whole_runs(quick: bool, repeats: int) -> dict[str, float]:
    """Print and return seconds of a run of 20,000 steps with each setting, and of a campaign on two processes."""
    run, found = run_of(20_000), {}
    changes: dict[str, dict[str, Any]] = {
        "defaults": {},
        "block_bootstrap": {"standard_error": "block_bootstrap"},
        "every step, smooth break": {"points": "all", "smooth_break": True},
    }
    settings = {name: LossSlopeSettings().model_copy(update=change) for name, change in changes.items()}
    seconds = interleaved({name: functools.partial(analyse_run, run, s) for name, s in settings.items()}, repeats)
    for name, values in seconds.items():
        found[name] = statistics.median(values)
        print(f"a run of 20,000 steps, {name}: {found[name]:.3f} s (at most 1 is wanted)")
    num = 24 if quick else 216
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(analyse_seeds, [range(1), range(1)])
        started = time.perf_counter()
        pool.map(analyse_seeds, [range(part, num, 2) for part in range(2)])
        found["campaign"] = time.perf_counter() - started
    print(f"{num} runs on two processes: {found['campaign']:.1f} s (of 216 at most 120 are wanted)")
    return found


STEPS = np.arange(1, 3001)  # of curves with known parameters
TRUTHS: dict[str, tuple[np.ndarray, dict[str, float]]] = {
    "exponential": (0.7 - STEPS / 1500, {"intercept": 0.7, "slope": -1 / 1500}),
    "power": (1 - 0.4 * np.log(STEPS), {"intercept": 1.0, "slope": -0.4}),
    "power_offset": (np.log(3 * STEPS**-0.6 + 0.1), {"intercept": math.log(3), "slope": -0.6, "offset": 0.1}),
    "two_power": (
        np.where(STEPS < 300, -0.1, -0.5) * np.log(STEPS / 300),
        {"slope": -0.1, "slope_after": -0.5, "break_epoch": 300.0},
    ),
}


def all_models(log_loss: np.ndarray, sampling: Sampling) -> dict[str, Fit | None]:
    """Every model fitted to one curve."""
    points = sampling.points(STEPS, np.exp(log_loss))
    return {
        "power": linear_fit(points),
        "exponential": linear_fit(points, "exponential"),
        "power_offset": offset_fit(points),
        "two_power": two_power_fit(points),
    }


def best_model(fits: dict[str, Fit | None], effective: bool) -> str:
    """The lowest AICc."""
    known = {name: fit for name, fit in fits.items() if fit is not None}
    size = effective_sample_size(min(known.values(), key=lambda fit: fit.rss).standardised) if effective else None
    values = {n: criteria(f.rss, len(f.points), f.num_parameters, size).aicc for n, f in known.items()}
    return min(values, key=lambda name: values[name] if math.isfinite(values[name]) else math.inf)


def recovery(num: int) -> None:
    """The table: bias, spread, mean standard error and coverage of each parameter; how often the true model wins."""
    for memory in (0.0, 0.5, 0.9):
        for truth, (log_loss, parameters) in TRUTHS.items():
            found: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in parameters}
            best = {True: 0, False: 0}
            for row in 0.1 * noise((num, len(STEPS)), memory, 11):
                fits = all_models(log_loss + row, Sampling())
                fit = fits[truth]
                assert fit is not None
                for effective in best:
                    best[effective] += best_model(fits, effective) == truth
                for name, true in parameters.items():
                    covers = fit.low[name] <= true <= fit.high[name]
                    found[name].append((fit.value[name], fit.standard_error[name], covers))
            print(
                f"{truth}, autocorrelation {memory:g}: the true model has the lowest AICc in {best[True] / num:.1%} of "
                f"{num} curves (counting points as independent {best[False] / num:.1%})"
            )
            for name, rows in found.items():
                value, error, covered = (np.array(column) for column in zip(*rows, strict=True))
                print(
                    f"   {name:12s} true {parameters[name]:10.5g}   mean {value.mean():10.5g}   spread "
                    f"{value.std():9.3g}   mean error {error.mean():9.3g}   in its 95 % interval {covered.mean():6.1%}",
                    flush=True,
                )


def machine() -> str:
    """Its processor's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores; numpy {np.__version__}"


def main() -> None:
    """Run and print."""
    arguments = parse_arguments(__doc__, {"recovery": "print how well known parameters are found, instead"})
    print(f"{machine()}; {load_average()}")
    if arguments.recovery:
        recovery(50 if arguments.quick else 1000)
        return
    repeats = arguments.repeats or (3 if arguments.quick else 5)
    ratios = speeds(arguments.quick, repeats)
    write_json(arguments.json, ratios, seconds=whole_runs(arguments.quick, repeats))


if __name__ == "__main__":
    main()
