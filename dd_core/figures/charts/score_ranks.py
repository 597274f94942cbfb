"""Which images the main scores and memorisation itself put where: their ranks against each other, binned."""

import itertools
import math
from typing import Any

import altair as alt
import duckdb
import numpy as np
import scipy.stats

from dd_core.analysis.intervals import interval, signed
from dd_core.analysis.memorization.sentences import words_of
from dd_core.figures.drawing import style
from dd_core.figures.panels.image_means import TRUTH, ImageMeans, looked_at, read_means
from dd_core.figures.panels.memorization import class_ages_line
from dd_core.store.store import Store
from dd_core.study.study import Study

_SIDE, _GAP, _BINS = 96, 0.06, 12
# The scores that differ most in what they need; further ones would make the cells too small to read.
_MAIN = (
    "csl", "loss_sensitivity", "trace_sum", "finite_difference_sum", "forgetting_events", "learning_time",
    "area_under_margin", "confidence", "el2n", "final_loss",
)  # fmt: skip
_MOST = 6
_CONSTANT = 0.9  # of the images


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw the matrix for one arm: below the diagonal binned ranks, above it rank correlations."""
    arm = looked_at(connection, study)
    if arm is None:
        return None
    means = read_means(connection, study, arm)
    telling = [name for name in _MAIN if name in means.scores and is_telling(percent_ranks(means.oriented(name)))]
    names = [*([TRUTH] if means.source else []), *telling[:_MOST]]
    if len(names) < 2:
        return None
    ranks = {name: percent_ranks(means.oriented(name)) for name in names}
    pairs = {(a, b): rank_correlation(ranks[a], ranks[b]) for a, b in itertools.combinations(names, 2)}
    return style.finish(
        _matrix(names, ranks, pairs),
        headline(pairs, means),
        [
            "Below the diagonal: images by their ranks in two scores, from least to most memorised (left to right, "
            "bottom to top); a cell is the darker the more images it holds. Above: Spearman's \u03c1, 95 % interval "
            "over images (Bonett & Wright 2000)",
            f"{arm} \u00b7 {len(means.rows):,} images \u00b7 scores are means over the trials that trained on an image",
            *style.describe(study, [study.arms[arm].variant]),
            class_ages_line(study),
        ],
        characters=88,
    )  # fmt: skip


def percent_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks between 0 and 1, ties at their mean; NaN where the value is.

    Args:
        values: (images,).
    """
    known = np.isfinite(values)
    ranks = np.full(len(values), np.nan)
    ranks[known] = (scipy.stats.rankdata(values[known]) - 0.5) / max(known.sum(), 1)
    return ranks


def is_telling(ranks: np.ndarray) -> bool:
    """Whether a score orders images: no value is that of nine in ten or more, as of one that is a constant for most."""
    values, counts = np.unique(ranks[np.isfinite(ranks)], return_counts=True)
    return len(values) > 1 and counts.max() < _CONSTANT * counts.sum()


def rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Spearman's correlation and its 95 % interval by Fisher's z with Bonett & Wright's variance; NaN if undefined."""
    known = np.isfinite(x) & np.isfinite(y)
    num = int(known.sum())
    if num < 4 or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return math.nan, math.nan, math.nan
    rho = float(scipy.stats.spearmanr(x[known], y[known]).statistic)
    if abs(rho) > 1 - 1e-12:
        return rho, rho, rho
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (num - 3))
    return rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def headline(pairs: dict[tuple[str, str], tuple[float, float, float]], means: ImageMeans) -> str:
    """Which score orders images most as memorisation does, or else which two agree most; and which least."""
    known = {pair: own for pair, own in pairs.items() if not math.isnan(own[0])}
    if not known:
        return "No two scores can be compared"
    to_truth = {pair: own for pair, own in known.items() if pair[0] == TRUTH}

    def said(pair: tuple[str, str]) -> str:
        rho, low, high = known[pair]
        return f"\u03c1 = {signed(rho)} (95 % interval {interval(low, high)})"

    among = to_truth or known
    best, worst = (choose(among, key=lambda pair: among[pair][0]) for choose in (max, min))
    if to_truth:
        # As many intervals reach into that of the best.
        num = sum(own[2] >= among[best][1] for pair, own in among.items() if pair != best)
        text = f"Memorisation itself orders images most like {words_of(best[1])}, {said(best)}"
        text += f", not surely more than like {num} more" if num else ""
        return text if best == worst else f"{text}, and least like {words_of(worst[1])}, {said(worst)}"
    text = f"{words_of(best[0])} and {words_of(best[1])} order images most alike, {said(best)}"
    text = text[0].upper() + text[1:]
    return text if best == worst else f"{text}; {words_of(worst[0])} and {words_of(worst[1])} least, {said(worst)}"


def _matrix(
    names: list[str],
    ranks: dict[str, np.ndarray],
    pairs: dict[tuple[str, str], tuple[float, float, float]],
) -> style.Panel:
    """One chart in units of cells; column i and row i are of score i, row 0 on top."""
    cells: list[dict[str, Any]] = []
    words: list[dict[str, Any]] = []
    frames: list[dict[str, Any]] = []
    size = (1 - _GAP) / _BINS
    for (column, a), (row, b) in itertools.combinations(enumerate(names), 2):
        known = np.isfinite(ranks[a]) & np.isfinite(ranks[b])
        counts = np.histogram2d(ranks[a][known], ranks[b][known], bins=_BINS, range=[[0, 1], [0, 1]])[0]
        bottom = len(names) - 1 - row
        frames.append({"x": column, "y": bottom, "x2": column + 1 - _GAP, "y2": bottom + 1 - _GAP})
        for i, j in zip(*np.nonzero(counts), strict=True):
            x, y = column + i * size, bottom + j * size
            share = counts[i, j] / counts.sum()
            cells.append(
                {"x": round(x, 4), "x2": round(x + size, 4), "y": round(y, 4), "y2": round(y + size, 4)}
                | {"share": float(f"{share:.4g}"), "images": int(counts[i, j]), "pair": f"{_name(a)} / {_name(b)}"}
            )
        rho, low, high = pairs[a, b]
        if not math.isnan(rho):
            own = {"x": row + (1 - _GAP) / 2, "y": len(names) - 1 - column + (1 - _GAP) / 2}
            words.append(own | {"rho": signed(rho), "ends": interval(low, high)})
    domain = alt.Scale(domain=[0, len(names)], nice=False)
    x, y = alt.X("x:Q", scale=domain, axis=None), alt.Y("y:Q", scale=domain, axis=None)
    legend = alt.Legend(title="share of images", format=".1%", orient="bottom", gradientLength=240, tickCount=3)
    colour = alt.Color("share:Q", scale=alt.Scale(scheme="purples", type="sqrt", domainMin=0), legend=legend)
    frame = alt.Chart(style.data(frames)).mark_rect(filled=False, stroke="#CCCCCC")
    heat = alt.Chart(style.csv_data(cells)).mark_rect()
    text = alt.Chart(style.data(words))
    diagonal = [
        {
            "x": i + (1 - _GAP) / 2,
            "y": len(names) - 1 - i + (1 - _GAP) / 2,
            "name": "\n".join(style.wrap(_name(name), 15)),
        }
        for i, name in enumerate(names)
    ]
    labels = alt.Chart(style.data(diagonal)).mark_text(fontSize=11, fontWeight="bold", lineBreak="\n", lineHeight=13)
    return alt.layer(
        heat.encode(x=x, x2="x2:Q", y=y, y2="y2:Q", color=colour, tooltip=["pair:N", "images:Q"]),
        frame.encode(x=x, x2="x2:Q", y=y, y2="y2:Q"),
        text.mark_text(fontSize=16, dy=-5).encode(x=x, y=y, text="rho:N"),
        text.mark_text(fontSize=10, dy=12, color=style.GREY).encode(x=x, y=y, text="ends:N"),
        labels.encode(x=x, y=y, text="name:N"),
    ).properties(width=_SIDE * len(names), height=_SIDE * len(names))


def _name(score: str) -> str:
    return "memorisation itself" if score == TRUTH else words_of(score)
