"""Is a whole campaign fit to be analysed: is every run there, every metric at its frequency, every value possible?

The loss-slope campaign asks this before it draws conclusions, and answers GO or NO-GO. GO: no run is missing or
incomplete, every key was logged as often as the study asks for, no value is impossible, and more than half of the
fitted runs have an R^2 above 0.95. What is merely suspicious raises an alert: large losses, knees outside 1 to 20
epochs, more than 10 % of runs failed, slow runs, odd checkpoints. A loss that diverges is a result: it counts as
failed, and nothing else.

The campaign's own reading is ``strict``: accuracies of 0 and 1, rates of 0 and knees at epoch 1 are out of range,
though a batch of 128 images can be all right and a cosine ends at 0; and whatever is out of range is NO-GO, not an
alert.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import duckdb

from dd_core.analysis.loss_slope_report import CURRENT, query, rows_of
from dd_core.checks.endings import failures, incomplete_runs, odd_sizes, slow_runs
from dd_core.checks.integrity import metric_gaps
from dd_core.checks.logged import logged_gaps
from dd_core.checks.sentences import Gap, sentences
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.words import counted

CAMPAIGN_TABLES = ("loss_slopes", "training_batches", "training_evals", "training_monitors", "image_progress", "runs")
GOOD_R_SQUARED = 0.95
_LARGEST_LOSS = 10.0
_KNEES = (1.0, 20.0)


@dataclass
class Verdict:
    """What was found; problems are sentences.

    Attributes:
        study: its name.
        num_expected: runs that the study asks for.
        statuses, outcomes: number of runs by how the training ended, and by what the analysis made of it.
        missing: runs that never began.
        incomplete, num_incomplete: runs that began, did not come to their end and did not diverge; how many.
        gaps: metrics that are not there at their frequency.
        impossible: values that no training gives.
        out_of_range: values outside the campaign's bounds.
        alerts: what a person should look at.
        r_squared: of the fitted runs, ascending.
        strict: whether what is out of range is a reason for NO-GO.
    """

    study: str
    num_expected: int
    statuses: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    num_incomplete: int = 0
    gaps: list[str] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)
    out_of_range: list[str] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)
    r_squared: list[float] = field(default_factory=list)
    strict: bool = False

    @property
    def num_runs(self) -> int:
        """Runs that began."""
        return self.outcomes.total()

    @property
    def num_good(self) -> int:
        """Fitted runs with an R^2 above 0.95."""
        return sum(value > GOOD_R_SQUARED for value in self.r_squared)

    @property
    def reasons(self) -> list[str]:
        """Why it is NO-GO; none: it is GO."""
        found = []
        if self.num_runs < self.num_expected:
            found.append(f"{self.num_expected - self.num_runs} of {self.num_expected} runs are missing")
        if self.num_incomplete:
            are = "is" if self.num_incomplete == 1 else "are"
            found.append(f"{self.num_incomplete} of {self.num_expected} runs {are} incomplete")
        reasons = {"gaps": "not every metric is there at its frequency", "impossible": "values are impossible"}
        if self.strict:
            reasons["out_of_range"] = "values are out of range"
        for name, reason in reasons.items():
            if problems := getattr(self, name):
                found.append(f"{reason} ({counted(len(problems), 'problem')})")
        if not self.r_squared:
            found.append("no run has a fit")
        elif 2 * self.num_good <= len(self.r_squared):
            found.append(f"R^2 is above {GOOD_R_SQUARED} in only {self.num_good} of {len(self.r_squared)} fitted runs")
        return found

    @property
    def is_go(self) -> bool:
        """Whether the runs may be analysed."""
        return not self.reasons


def examine(store: Store, study: Study, connection: duckdb.DuckDBPyConnection, *, strict: bool = False) -> Verdict:
    """Look at all runs of a study, trained here or imported.

    Args:
        store: where they lie.
        study: says which runs there must be, and in its ``monitors`` how often each metric.
        connection: has the views of ``CAMPAIGN_TABLES``; of ``loss_slopes`` with the study's current rows.
        strict: the campaign's own reading of the bounds, see above.
    """
    rows = rows_of(study, connection)
    trials = sorted({row["trial"] for row in rows}) if study.imported else list(study.trial_numbers)
    trials += [-1] * (study.trials - len(trials))  # of imported studies whose arms all lack the same one
    verdict = Verdict(study.name, len(study.arms) * len(trials), strict=strict)
    verdict.statuses.update(row["status"] for row in rows)
    verdict.outcomes.update(row["outcome"] for row in rows)
    verdict.r_squared = sorted(row["r_squared"] for row in rows if row["r_squared"] is not None)
    began = {(row["arm"], row["trial"]) for row in rows}
    absent = [
        Gap(arm, trial, "the run", "missing") for arm in study.arms for trial in trials if (arm, trial) not in began
    ]
    verdict.missing = sentences(absent)
    incomplete = incomplete_runs(study, connection, rows)
    verdict.incomplete, verdict.num_incomplete = sentences(incomplete), len(incomplete)
    verdict.gaps = logged_gaps(study, connection, rows) if study.imported else metric_gaps(store, study, connection)[0]
    _look_at_values(verdict, study, connection, {(row["arm"], row["trial"]): row for row in rows})
    _look_at_knees(verdict, rows)
    verdict.alerts = [*failures(rows), *slow_runs(study, connection), *odd_sizes(store, study, connection)]
    return verdict


def _look_at_values(
    verdict: Verdict,
    study: Study,
    connection: duckdb.DuckDBPyConnection,
    runs: dict[tuple[str, int], dict[str, Any]],
) -> None:
    """Values of batches: those that cannot be, and those outside the campaign's bounds."""
    ends = "train_error IN (0, 1)" if verdict.strict else "false"
    numbers = query(
        connection,
        study,
        f"""SELECT arm, trial,
            count(*) FILTER (NOT is_number AND step < last_number) AS "a loss that is no number",
            count(*) FILTER (train_loss < 0) AS "a negative loss",
            count(*) FILTER (train_error NOT BETWEEN 0 AND 1) AS "an error outside 0 to 1",
            count(*) FILTER (learning_rate < 0) AS "a negative learning rate",
            count(*) FILTER (train_loss = 0) AS "a loss of exactly 0",
            count(*) FILTER (is_number AND train_loss >= $largest) AS "a loss of {_LARGEST_LOSS:g} nats or more",
            count(*) FILTER ({ends}) AS "an error of 0 or 1",
            count(*) FILTER ({str(verdict.strict).lower()} AND learning_rate = 0) AS "a learning rate of 0"
        FROM (SELECT *, max(step) FILTER (is_number) OVER (PARTITION BY arm, trial) AS last_number
              FROM (SELECT *, coalesce(isfinite(train_loss), false) AS is_number FROM training_batches
                    WHERE {CURRENT})) GROUP BY arm, trial ORDER BY arm, trial""",
        largest=_LARGEST_LOSS,
    )
    impossible: list[Gap] = []
    unusual: list[Gap] = []
    for row in numbers:
        arm, trial = row.pop("arm"), row.pop("trial")
        has_diverged = runs.get((arm, trial), {}).get("outcome") == "diverged"
        for position, (what, number) in enumerate(row.items()):
            if number and not (has_diverged and what.startswith("a loss")):
                gap = Gap(arm, trial, what, f"at {counted(number, 'step')}")
                (impossible if position < 4 else unusual).append(gap)
    verdict.impossible += sentences(impossible)
    verdict.out_of_range += sentences(unusual)


def _look_at_knees(verdict: Verdict, rows: list[dict[str, Any]]) -> None:
    low, high = _KNEES
    fitted = [row for row in rows if row["outcome"] == "fitted"]
    never = sum(row["knee_epoch"] is None for row in fitted)
    known = [row["knee_epoch"] for row in fitted if row["knee_epoch"] is not None]
    outside = sum(not (low < knee < high if verdict.strict else low <= knee <= high) for knee in known)
    if never + outside:
        verdict.out_of_range.append(
            f"the knee (AIC) of {never + outside} of {len(fitted)} fitted runs is not within {low:g} to {high:g} epochs"
            + (f"; {never} have none" if never else "")
        )
