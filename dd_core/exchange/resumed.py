"""Logs of runs that went on from a checkpoint: what they told before and tell again, and records without a value."""

from dataclasses import replace

import numpy as np

from dd_core.exchange.columns import PLACE_KEYS
from dd_core.exchange.reading import NO_STEP, MetricFile, Series
from dd_core.words import counted


def latest(file: MetricFile, run: np.ndarray, epoch: np.ndarray, step: np.ndarray) -> tuple[MetricFile, list[str]]:
    """Without what a run that went on from an earlier place has told anew, and without what it had told beyond it."""
    place = np.where(step == NO_STEP, epoch, step)
    is_kept = np.ones(len(epoch), dtype=bool)
    for one in np.unique(run, axis=0):
        rows = np.flatnonzero((run == one).all(axis=1))
        goes_back = np.diff(place[rows]) < 0
        restarts = np.where(goes_back, place[rows][1:], np.iinfo(np.int64).max)
        # The earliest place from which it is told anew later: what stood there and beyond was left behind.
        is_kept[rows[:-1]] = place[rows][:-1] < np.minimum.accumulate(restarts[::-1])[::-1]
    series, superseded = {}, np.zeros(len(epoch), dtype=bool)
    where = np.concatenate([run, epoch[:, None], step[:, None]], axis=1)
    for key, told in file.series.items():
        kept = is_kept[told.rows]
        if key not in PLACE_KEYS:
            # Of several values at one place the last.
            at = where[told.rows[kept]][::-1]
            last = np.zeros(len(at), dtype=bool)
            last[np.unique(at, axis=0, return_index=True)[1]] = True
            positions = np.flatnonzero(kept)
            kept[positions[~last[::-1]]] = False
            superseded[told.rows[~kept]] = True
            told = Series(told.rows[kept], told.values[kept])
        series[key] = told
    lines = file.lines[superseded].tolist()
    again = counted(len(lines), "row that comes", "rows that come")
    left_out = [f"{again} again later: {file.path}:{spans(lines)}"] if lines else []
    return replace(file, series=series), left_out


def spans(lines: list[int]) -> str:
    """Numbers of lines for a message."""
    text = ", ".join(map(str, lines[:8]))
    return text if len(lines) <= 8 else f"{text}, …"


def is_used(file: MetricFile) -> np.ndarray:
    """Whether each record still has a value."""
    used = np.zeros(len(file.lines), dtype=bool)
    for key, series in file.series.items():
        if key not in PLACE_KEYS:
            used[series.rows] = True
    return used
