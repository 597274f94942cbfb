"""How a loss fluctuates around its fit: its power spectral density (Welch), and the level of its noise."""

import math
from typing import Literal

import numpy as np
import scipy.signal

PSD_TAIL = (0.3, 0.5)  # cycles per step
RESID_POWER = (0.02, 0.1)
_NORMAL_MAD = 0.6744897501960817


def segment_length(num: int) -> int:
    """Steps of a segment of Welch's: the largest power of 2 of a clamp of num / 8 to 64 .. 1024, at most num."""
    return min(num, 2 ** int(math.log2(min(max(num / 8, 64), 1024)))) if num else 0


def welch_psd(series: np.ndarray, window: Literal["hann", "boxcar"] = "hann") -> tuple[np.ndarray, np.ndarray, bool]:
    """One-sided power spectral density of a series of neighbouring steps.

    Segments overlap by half with a Hann window, not at all with a boxcar. White noise of variance v has the density 2v.

    Returns:
        Frequencies in cycles per step; density, units squared per (cycle per step); and whether there are enough steps:
        at least four segments' worth.
    """
    length = segment_length(len(series))
    if length < 2:
        return np.zeros(0), np.zeros(0), False
    overlap = length // 2 if window == "hann" else 0
    frequency, density = scipy.signal.welch(series, window=window, nperseg=length, noverlap=overlap)
    return frequency, density, len(series) >= 4 * length


def band_mean(frequency: np.ndarray, density: np.ndarray, band: tuple[float, float]) -> float:
    """Mean density over a band, both ends included; NaN without a bin there."""
    inside = (frequency >= band[0] - 1e-12) & (frequency <= band[1] + 1e-12)
    return float(density[inside].mean()) if inside.any() else math.nan


def longest_stretch(step: np.ndarray) -> slice:
    """The longest stretch of neighbouring steps, each one more than the last."""
    if not len(step):
        return slice(0, 0)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(step) != 1) + 1, [len(step)]])
    longest = int(np.argmax(np.diff(edges)))
    return slice(int(edges[longest]), int(edges[longest + 1]))


def robust_scale(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """1.4826 times the median distance from the median: the standard deviation of normal values."""
    centre = np.median(values, axis=axis, keepdims=True)
    return np.asarray(np.median(np.abs(values - centre), axis=axis) / _NORMAL_MAD)


def noise_floor(values: np.ndarray, method: Literal["percentile", "minimum", "median", "hybrid"] = "median") -> float:
    """The level that values lie at when nothing but noise is there, after outliers (robust z of 2 or more) are gone.

    ``percentile``: the tenth; ``minimum``: the smallest mean of eight neighbours (minimum statistics, Martin 2001,
    without its bias correction); ``median``; ``hybrid``: .4, .35 and .25 of these, as the campaign weights them. All
    but the median lie below the level by construction, more so the more values there are; so it is the default.
    NaN without values.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan
    scale = float(robust_scale(values))
    if scale > 0:
        values = values[np.abs(values - np.median(values)) < 2 * scale]
    width = min(8, len(values))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    levels = {
        "percentile": float(np.percentile(values, 10)),
        "minimum": float((sums[width:] - sums[:-width]).min() / width),
        "median": float(np.median(values)),
    }
    levels["hybrid"] = 0.4 * levels["percentile"] + 0.35 * levels["minimum"] + 0.25 * levels["median"]
    return levels[method]


def batch_noise_floor(
    residuals: np.ndarray, method: Literal["percentile", "minimum", "median", "hybrid"] = "median", width: int = 64
) -> float:
    """Noise floor of the batch loss: of its robust standard deviations over stretches of ``width`` steps.

    Of the last quarter of the residuals (at least one stretch), in their unit; NaN for fewer residuals than ``width``.
    """
    num = max(len(residuals) // 4 // width, 1)
    if len(residuals) < width:
        return math.nan
    return noise_floor(robust_scale(residuals[-num * width :].reshape(num, width), axis=1), method)
