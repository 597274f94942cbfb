"""How the runs of a campaign ended: which are not done, how many failed, which were slow, whose checkpoints are odd."""

from collections import Counter
from math import isfinite
from statistics import median
from typing import Any

import duckdb

from dd_core.analysis.loss_slope_report import CURRENT, query
from dd_core.checks.sentences import Gap, sentences
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Study

_MOST_FAILED = 0.1
_SLOW_SECONDS, _SLOW_EPOCHS = 3600.0, 5.0
# Sizes of one arm's checkpoints may differ by their headers.
_SIZE_TOLERANCE = 0.01
_FAILED = ("diverged", "failed", "interrupted", "running", "unknown")
_DONE = ("stopped early", "diverged")


def incomplete_runs(study: Study, connection: duckdb.DuckDBPyConnection, rows: list[dict[str, Any]]) -> list[Gap]:
    """The runs that neither reached the study's last epoch nor stopped early or diverged.

    One that finished may have done so before the study was prolonged. Of an imported run nothing says how it ended.
    Others log every few steps and count from 0 or from 1, so it reached the last epoch as soon as it has a loss there.

    Args:
        study: any, trained here or imported.
        connection: has the views of its metrics.
        rows: its runs, of ``loss_slopes``.
    """
    more = {
        True: f"SELECT arm, trial, epoch FROM training_batches WHERE {CURRENT}",
        False: f"SELECT arm, trial, last_epoch AS epoch FROM runs WHERE status = 'finished' AND {CURRENT}",
    }
    parts = f"SELECT arm, trial, epoch FROM training_evals WHERE {CURRENT} UNION ALL {more[bool(study.imported)]}"
    sql = f"SELECT arm, trial, max(epoch) AS epoch FROM ({parts}) GROUP BY arm, trial"
    seen = {(row["arm"], row["trial"]): row["epoch"] or 0 for row in query(connection, study, sql)}
    found = []
    for row in rows:
        last = row["last_epoch"] or 0.0
        reached = max(last, seen.get((row["arm"], row["trial"]), 0))
        if row["status"] in _DONE or row["outcome"] == "diverged" or reached >= study.epochs:
            continue
        state = "" if study.imported else f"{row['status']}, "
        until = f"its losses end at epoch {last:.3g} of {study.epochs}" if last else "it has no losses"
        found.append(Gap(row["arm"], row["trial"], "the run", f"incomplete: {state}{until}"))
    return found


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """An alert if more than 10 % of the runs failed, did not end, or diverged, by their training or their losses."""
    ends = ["diverged" if row["outcome"] == "diverged" else row["status"] for row in rows]
    failed = Counter({name: ends.count(name) for name in _FAILED if name in ends})
    number = failed.total()
    if number <= _MOST_FAILED * len(rows):
        return []
    how = ", ".join(f"{count} {name}" for name, count in failed.items())
    verb = "failed or did not end" if {"running", "unknown"} & failed.keys() else "failed"
    return [f"{number} of {len(rows)} runs {verb} ({100 * number / len(rows):.0f} %): {how}"]


def slow_runs(study: Study, connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Runs that took an hour and had not done five epochs."""
    lasting = {
        True: f"""SELECT arm, trial, max(time) - min(time) AS seconds, max(epoch) AS epochs
            FROM training_batches WHERE {CURRENT} GROUP BY ALL""",
        False: f"SELECT arm, trial, seconds, last_epoch - first_epoch AS epochs FROM runs WHERE {CURRENT}",
    }
    of_kind = lasting[bool(study.imported)]
    sql = f"SELECT * FROM ({of_kind}) WHERE seconds > $seconds AND epochs < $epochs ORDER BY arm, trial"
    rows = query(connection, study, sql, seconds=_SLOW_SECONDS, epochs=_SLOW_EPOCHS)
    slow = [
        Gap(row["arm"], row["trial"], "the run", f"slow: {row['seconds']:.0f} s for {row['epochs']} epochs")
        for row in rows
    ]
    return sentences(slow)


def odd_sizes(store: Store, study: Study, connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Checkpoints that differ in size from the others of their arm, or could not hold all parameters."""
    sizes: dict[str, list[float]] = {}
    if study.imported:
        sql = f"SELECT arm, value FROM training_monitors WHERE metric = 'checkpoint_size_mb' AND {CURRENT}"
        for row in query(connection, study, sql):
            if row["value"] is not None and isfinite(row["value"]):
                sizes.setdefault(row["arm"], []).append(row["value"])
    else:
        for checkpoint, manifest in trained_checkpoints(store, study).items():
            if live := len(manifest.live_trials):
                bytes_ = sum(entry.bytes for entry in manifest.weights)
                sizes.setdefault(checkpoint.arm.key, []).append(bytes_ / live / 1e6)
    sql = f"SELECT arm, max(num_parameters) AS number FROM runs WHERE {CURRENT} GROUP BY arm"
    smallest = {row["arm"]: 4e-6 * (row["number"] or 0) for row in query(connection, study, sql)}
    odd = []
    for arm, own in sizes.items():
        usual = median(own)
        if any(abs(size - usual) > _SIZE_TOLERANCE * usual for size in own) or min(own) < smallest.get(arm, 0):
            odd.append(
                f"{arm}: checkpoints of a run have {min(own):.3g} to {max(own):.3g} MB"
                + (f", its parameters {smallest[arm]:.3g} MB" if smallest.get(arm) else "")
            )
    return odd
