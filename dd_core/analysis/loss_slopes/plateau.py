"""When a trajectory, such as the largest Hessian eigenvalue, stops changing."""

import numpy as np

RELATIVE_CHANGE = 0.05
NUM_EPOCHS = 3


def plateau_by_change(epoch: np.ndarray, value: np.ndarray) -> float | None:
    """First epoch from which the mean of an epoch changes by less than 5 % for three epochs on end; None: never.

    Args:
        epoch: (n,), times of the measurements, ascending.
        value: (n,), positive.
    """
    number = np.ceil(epoch - 1e-9).astype(np.int64)
    numbers, start = np.unique(number, return_index=True)
    if len(numbers) < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        means = np.add.reduceat(value, start) / np.diff(np.append(start, len(number)))
        calm = np.abs(np.diff(means) / means[:-1]) < RELATIVE_CHANGE
    for first in range(len(calm)):
        stop = first
        while stop < len(calm) and calm[stop]:
            stop += 1
        if stop > first and numbers[stop] - numbers[first] >= NUM_EPOCHS:
            return float(numbers[first])
    return None


def plateau_by_pelt(epoch: np.ndarray, value: np.ndarray) -> float | None:
    """Last change point of the mean of log value, by PELT with an l2 cost (Killick et al. 2012; ``ruptures``).

    The penalty is 3 log n times the noise's variance, from the differences of neighbours, robustly. None for fewer
    than 8 measurements, or without a change point.
    """
    if len(value) < 8:
        return None
    import ruptures

    y = np.log(value)
    noise = np.median(np.abs(np.diff(y) - np.median(np.diff(y)))) / 0.6744897501960817 / np.sqrt(2)
    penalty = 3 * np.log(len(y)) * max(float(noise), 1e-6) ** 2
    ends = ruptures.Pelt(model="l2", min_size=3, jump=1).fit(y[:, None]).predict(pen=penalty)
    return float(epoch[ends[-2]]) if len(ends) > 1 else None


def plateau_epoch(epoch: np.ndarray, value: np.ndarray, method: str) -> float | None:
    """By ``relative_change`` or ``pelt``; measurements that are not positive and finite are left out."""
    order = np.argsort(epoch, kind="stable")
    epoch, value = np.asarray(epoch, dtype=np.float64)[order], np.asarray(value, dtype=np.float64)[order]
    good = np.isfinite(epoch) & np.isfinite(value) & (value > 0)
    return (plateau_by_pelt if method == "pelt" else plateau_by_change)(epoch[good], value[good])
