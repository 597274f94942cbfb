"""Memorisation and influence themselves, from many trainings on random subsets (Feldman & Zhang 2020, equations 1, 2).

    mem(i) = P[network is right on i | trained with i] - P[right on i | trained without]
    infl(i, j) = P[right on test image j | trained with i] - P[right on j | without]

over the randomness of the subset and of the training. The estimate is unbiased for sets of the subset's size: with
``subset: 0.7`` it says how much is memorised with 0.7 of the images, which is more than with all of them (an image has
fewer that resemble it). The largest of many estimates overstate: they are the largest by chance, too.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """A difference of two shares for each image, or each pair of images.

    Attributes:
        share_in, share_out: right with the image in training and without; NaN where there is no such trial.
        value: the difference; NaN where a side is missing.
        standard_error: of it.
        num_in, num_out: trials.
    """

    share_in: np.ndarray
    share_out: np.ndarray
    value: np.ndarray
    standard_error: np.ndarray
    num_in: np.ndarray
    num_out: np.ndarray


def memorization(is_in: np.ndarray, is_right: np.ndarray) -> Difference:
    """Memorisation of each image.

    Args:
        is_in: bool (trials, images): trained on it.
        is_right: (trials, images): 1.0 right, 0.0 wrong at the end, NaN unknown (diverged), which counts on no side.
    """
    known = ~np.isnan(is_right)
    right = np.nan_to_num(is_right)
    sides = [(known & side).astype(float) for side in (is_in, ~is_in)]
    return _difference(*((side * right).sum(0) for side in sides), *(side.sum(0) for side in sides))


def influence(is_in: np.ndarray, is_right: np.ndarray) -> Difference:
    """Influence of each training image on each test image, arrays (images, test images); one product of matrices.

    Args:
        is_in: bool (trials, images).
        is_right: (trials, test images), as in ``memorization``.
    """
    return _influence(_sides(is_in), is_right)


def _sides(is_in: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trials with and without, (images, trials); sums of so few ones are exact in float32."""
    return is_in.T.astype(np.float32), (~is_in).T.astype(np.float32)


def _influence(sides: tuple[np.ndarray, np.ndarray], is_right: np.ndarray) -> Difference:
    known, right = (~np.isnan(is_right)).astype(np.float32), np.nan_to_num(is_right).astype(np.float32)
    sums = [(side @ values).astype(float) for values in (right, known) for side in sides]
    return _difference(*sums)


@dataclass(frozen=True)
class Strongest:
    """The largest influences on each test image, all (most, test images), largest first; NaN comes last.

    Attributes:
        places: int64, the training images.
        value: the influences.
        standard_error: of each.
    """

    places: np.ndarray
    value: np.ndarray
    standard_error: np.ndarray


def strongest(is_in: np.ndarray, is_right: np.ndarray, most: int, num_pairs: int = 500_000) -> Strongest:
    """The largest of ``influence``, without ever holding many more than so many pairs (about 90 bytes each).

    Args:
        is_in: bool (trials, images).
        is_right: (trials, test images), as in ``memorization``.
        most: training images for each test image.
        num_pairs: of training and test images at a time.
    """
    (_, num_images), num_tests = is_in.shape, is_right.shape[1]
    most = min(most, num_images)
    found = Strongest(np.zeros((most, num_tests), np.int64), *np.full((2, most, num_tests), np.nan))
    if not most:
        return found
    sides, step = _sides(is_in), max(1, num_pairs // num_images)
    for start in range(0, num_tests, step):
        own = slice(start, start + step)
        part = _influence(sides, is_right[:, own])
        places = found.places[:, own] = largest_influences(part.value, most)
        found.value[:, own] = np.take_along_axis(part.value, places, 0)
        found.standard_error[:, own] = np.take_along_axis(part.standard_error, places, 0)
    return found


def _difference(right_in: np.ndarray, right_out: np.ndarray, num_in: np.ndarray, num_out: np.ndarray) -> Difference:
    with np.errstate(invalid="ignore", divide="ignore"):
        share_in, share_out = right_in / num_in, right_out / num_out
    value = share_in - share_out
    error = np.sqrt(_variance(right_in, num_in) + _variance(right_out, num_out))
    return Difference(
        share_in, share_out, value, np.where(np.isnan(value), np.nan, error), num_in.astype(int), num_out.astype(int)
    )


def _variance(right: np.ndarray, num: np.ndarray) -> np.ndarray:
    """Variance of a share: binomial, with one right and one wrong trial added.

    Agresti & Caffo 2000, "Simple and effective confidence intervals for proportions and differences of proportions":
    without them a share of 0 or 1 would seem to have no error.
    """
    share = (right + 1) / (num + 2)
    variance: np.ndarray = share * (1 - share) / (num + 2)
    return variance


def reliability(is_in: np.ndarray, is_right: np.ndarray, num_splits: int = 20, seed: int = 0) -> float:
    """The correlation that two such estimates would have with each other, each of as many trials as there are.

    Mean over random halves of the trials of the correlation of their estimates, stepped up by Spearman and Brown:
    2 r / (1 + r). The correlation of anything with the estimate is at most its square root. NaN where undefined.
    """
    random, found = np.random.default_rng(seed), []
    for _ in range(num_splits):
        order = random.permutation(len(is_in))
        halves = [order[: len(order) // 2], order[len(order) // 2 :]]
        first, second = (memorization(is_in[half], is_right[half]).value for half in halves)
        known = ~np.isnan(first) & ~np.isnan(second)
        if known.sum() > 2 and np.ptp(first[known]) > 0 and np.ptp(second[known]) > 0:
            found.append(np.corrcoef(first[known], second[known])[0, 1])
    if not found:
        return np.nan
    half = float(np.mean(found))
    return 2 * half / (1 + half)


def largest_influences(values: np.ndarray, most: int) -> np.ndarray:
    """The training images of the largest influence on each test image, int64 (most, test images), largest first.

    NaN comes last; ties in the order of the images.
    """
    keys = -np.where(np.isnan(values), -np.inf, values)
    most = min(most, len(keys))
    found = np.zeros((most, keys.shape[1]), np.int64)
    if most:
        bounds = np.partition(keys, most - 1, axis=0)[most - 1]
        for test, bound in enumerate(bounds):
            reaching = np.flatnonzero(keys[:, test] <= bound)  # with ties, more than asked for
            found[:, test] = reaching[np.argsort(keys[reaching, test], kind="stable")[:most]]
    return found
