"""What the ledger says about time and money: amounts by width and ending, attempts, and the words for them.

Attempts of the study's present recipe count. Those of an earlier one are moved out of the table with its results.
"""

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import fetch
from dd_core.study.study import Study

LOST = ("failed", "interrupted")

# A row of the table is a trial, but its times are those of the attempt: every trial gets an equal share of them.
_SPENT = """
    SELECT variant, k, status, sum({seconds} / num_trials) AS seconds, sum(cost / num_trials) AS cost
    FROM (SELECT *, count(*) OVER (PARTITION BY arm, attempt) AS num_trials FROM rows)
    WHERE {seconds} > 0 GROUP BY ALL ORDER BY variant, k, status
"""
_ATTEMPTS = """
    SELECT arm, attempt, epoch_ms(max(ended_at)) AS ended, max({seconds}) AS seconds, max(seconds) AS wall_seconds,
           max(predicted_seconds) AS predicted_seconds, max(gpu_seconds) AS gpu_seconds,
           coalesce(
               max(status) FILTER (list_contains($lost, status)), max(status) FILTER (status = 'finished'), min(status)
           ) AS status,
           bool_or(status = 'running') AS is_running
    FROM rows GROUP BY arm, attempt ORDER BY ended, arm, attempt
"""


@dataclass(frozen=True)
class Spending:
    """What the table says.

    Attributes:
        on_gpu: whether seconds are those of GPUs; if not, wall time of workers on CPUs.
        parts: seconds and cost by variant, k and status.
        attempts: one row for each, in the order in which they ended.
    """

    on_gpu: bool
    parts: list[dict[str, Any]]
    attempts: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        """In all."""
        return sum(float(row["seconds"]) for row in self.parts)

    @property
    def cost(self) -> float | None:
        """In all, in the currency of the price; None if nothing had a price, as CPUs have none."""
        costs = [row["cost"] for row in self.parts if row["cost"] is not None and self.on_gpu]
        return sum(costs) if costs else None

    @property
    def unit(self) -> tuple[str, float]:
        """The unit of time for amounts, and its seconds."""
        return unit_for(self.seconds)

    @property
    def what(self) -> str:
        """What is spent, with its unit."""
        return f"{'GPU' if self.on_gpu else 'CPU worker'} {self.unit[0]}"


def read_spending(connection: duckdb.DuckDBPyConnection, study: Study) -> Spending:
    """The attempts of the study's present recipe; time on CPUs counts only if none of it was on a GPU."""
    found = fetch(connection, study, "runs", "SELECT coalesce(bool_or(gpu_seconds > 0), false) AS on_gpu FROM rows")
    on_gpu = bool(found and found[0]["on_gpu"])
    seconds = "gpu_seconds" if on_gpu else "seconds"
    return Spending(
        on_gpu,
        fetch(connection, study, "runs", _SPENT.format(seconds=seconds)),
        fetch(connection, study, "runs", _ATTEMPTS.format(seconds=seconds), lost=list(LOST)),
    )


def unit_for(seconds: float) -> tuple[str, float]:
    """The unit in which so many seconds are no small number, and its seconds."""
    sizes = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
    return next((name, size) for name, size in sizes.items() if seconds >= 1.5 * size or size == 1)


def headline(spending: Spending) -> str:
    """One sentence: what was spent, and which share of it brought no trained network."""
    total = f"Training took {style.number(spending.seconds / spending.unit[1], 3)} {spending.what}"
    share = Counter[str]()
    for row in spending.parts:
        share[row["status"]] += row["seconds"] / spending.seconds
    lost = sum(share[status] for status in LOST)
    parts = [f"{style.percent(lost, 2) if lost else 'none'} of them in attempts that failed or were interrupted"]
    if share["diverged"]:
        parts.append(f"{style.percent(share['diverged'], 2)} in trials that diverged")
    cost = "" if spending.cost is None else f"; it cost {style.number(spending.cost, 3)}"
    return f"{total}, {style.listed(parts)}{cost}"


def remarks(spending: Spending) -> list[str]:
    """What the numbers are and what is not in them, for the subtitle."""
    what = (
        "wall time times the attempt's share of a GPU" if spending.on_gpu else "wall time of workers, each on one arm"
    )
    found = [f"{spending.what}: {what}; an attempt's time is shared equally among its trials"]
    killed = [row for row in spending.attempts if row["status"] == "interrupted"]
    if killed:
        unknown = sum(row["seconds"] is None for row in killed)
        of_these = f"; {unknown} of {len(killed)} wrote none" if unknown else ""
        found.append(f"Of interrupted attempts the time up to the last resume point is known{of_these}")
    running = sum(row["is_running"] for row in spending.attempts)
    if running:
        found.append(f"{running} {'attempt is' if running == 1 else 'attempts are'} running and not counted")
    if spending.on_gpu:
        on_cpu = sum(row["wall_seconds"] or 0.0 for row in spending.attempts if not row["gpu_seconds"])
        if on_cpu:
            found.append(
                f"Not shown: {style.number(on_cpu / spending.unit[1], 3)} {spending.unit[0]} of workers on CPUs"
            )
    ratios = [row["wall_seconds"] / row["predicted_seconds"] for row in predicted(spending)]
    if ratios:
        low, middle, high = (style.number(value, 3) for value in (min(ratios), statistics.median(ratios), max(ratios)))
        found.append(f"Actual over predicted time of attempts that ran to their end: median {middle}, {low} to {high}")
    return found


def predicted(spending: Spending) -> list[dict[str, Any]]:
    """The attempts that ran to their end and had a prediction."""
    return [
        row
        for row in spending.attempts
        if row["predicted_seconds"] and row["wall_seconds"] and row["status"] not in (*LOST, "running")
    ]
