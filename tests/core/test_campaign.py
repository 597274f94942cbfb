"""GO or NO-GO over a whole campaign: what is planted in the tables is found, and nothing else."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dd_core.checks.campaign import CAMPAIGN_TABLES, Verdict, examine
from dd_core.checks.campaign_report import report_of
from dd_core.results.loss_slopes import rebuild
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.tables.warehouse import connect

from .exchanged import batch, evaluation, monitor, write_rows

MakeStudy = Callable[..., Study]
ONE, TWO = Arm("plain", 1), Arm("plain", 2)


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    """Imported: two arms, two trials, ten epochs of twenty steps; its program measured nothing but batches."""
    monitors = dict.fromkeys(("validation", "norms", "hessian", "noise"))
    return make_study(imported=True, epochs=10, checkpoints=(10,), monitors=monitors)


def losses(trial: int, num: int = 200) -> list[dict[str, Any]]:
    """Batches of a run with a power law."""
    random = np.random.default_rng(trial)
    values = 2.2 * np.arange(1, num + 1) ** -0.4 * np.exp(0.02 * random.normal(size=num))
    return [
        {**batch(trial, step, value, epoch=1 + (step - 1) // 20), "learning_rate": 0.1}
        for step, value in enumerate(values.tolist(), start=1)
    ]


def write(store: Store, study: Study, **changes: list[dict[str, Any]]) -> None:
    """Batches of all four runs; ``changes``: of the arm ``one``."""
    write_rows(store, study, TWO, "training_batches", [*losses(0), *losses(1)])
    write_rows(store, study, ONE, "training_batches", changes.get("one", [*losses(0), *losses(1)]))


def verdict_on(store: Store, study: Study, *, strict: bool = False) -> Verdict:
    rebuild(store, study)
    with contextlib.closing(connect(store, CAMPAIGN_TABLES)) as connection:
        return examine(store, study, connection, strict=strict)


def test_a_campaign_with_everything_in_its_place_is_go(store: Store, study: Study) -> None:
    write(store, study)
    verdict = verdict_on(store, study)
    assert (verdict.num_runs, verdict.num_expected, verdict.num_good) == (4, 4, 4)
    assert (verdict.missing, verdict.gaps, verdict.impossible, verdict.alerts, verdict.reasons) == ([], [], [], [], [])
    report = report_of(verdict)
    assert report.splitlines()[0] == "tiny: 4 of 4 runs"
    assert report.endswith("\nGO")


def test_a_trained_study_is_examined_by_its_own_calendar(trained: Store, tiny_study: Study) -> None:
    verdict = verdict_on(trained, tiny_study)
    assert (verdict.num_runs, verdict.num_expected, verdict.missing, verdict.gaps) == (4, 4, [], [])
    next(trained.table_folder("training_batches", "tiny", "plain.k001").glob("0002*")).unlink()
    (gap,) = verdict_on(trained, tiny_study).gaps
    assert gap.startswith("plain.k001 trials 0 and 1: every metric of training_batches is missing at steps 1 to 8")


def test_missing_runs_are_named(store: Store, study: Study) -> None:
    write(store, study, one=losses(1))
    verdict = verdict_on(store, study)
    assert verdict.missing == ["plain.k001 trial 0: the run is missing"]
    assert verdict.reasons == ["1 of 4 runs are missing"]
    assert "NO-GO: 1 of 4 runs are missing" in report_of(verdict)


def test_every_metric_is_asked_for_at_its_own_frequency(store: Store, make_study: MakeStudy) -> None:
    monitors = {"validation": {"every": "1/4 epoch"}, "norms": None, "hessian": None, "noise": None}
    study = make_study(imported=True, epochs=10, checkpoints=(10,), monitors=monitors)
    write(store, study)
    for arm, every in ((ONE, 10), (TWO, 5)):  # a quarter of an epoch is five steps
        readings = [monitor(t, s, "validation_loss", 1.0) for t in (0, 1) for s in range(every - 1, 200, every)]
        write_rows(store, study, arm, "training_monitors", readings)
    verdict = verdict_on(store, study)
    assert verdict.gaps == [
        "no run has validation_error; if its program did not measure that, say so in the study file, by null "
        "under monitors",
        "plain.k001 trials 0 and 1: validation_loss is there 20 of 40 times",
    ]
    assert verdict.reasons == ["not every metric is there at its frequency (2 problems)"]


IMPOSSIBLE = {
    "a loss that is no number": {"train_loss": None},
    "a negative loss": {"train_loss": -0.1},
    "an error outside 0 to 1": {"train_error": 1.2},
    "a negative learning rate": {"learning_rate": -1.0},
}
UNUSUAL = {
    "a loss of exactly 0": {"train_loss": 0.0},
    "a loss of 10 nats or more": {"train_loss": 12.0},
}


def test_values_that_cannot_be_are_reasons_and_those_out_of_bounds_are_not(store: Store, study: Study) -> None:
    rows = [*losses(0), *losses(1)]
    for place, change in enumerate(UNUSUAL.values(), start=100):
        rows[place] |= change
    write(store, study, one=rows)
    verdict = verdict_on(store, study)
    assert (verdict.impossible, verdict.is_go) == ([], True)
    assert "plain.k001 trial 0: a loss of exactly 0 and a loss of 10 nats or more are at 1 step" in verdict.out_of_range
    assert not verdict_on(store, study, strict=True).is_go

    for place, change in enumerate(IMPOSSIBLE.values(), start=300):  # of trial 1
        rows[place] |= change
    write(store, study, one=rows)
    verdict = verdict_on(store, study)
    assert verdict.impossible == [
        f"plain.k001 trial 1: {', '.join([*IMPOSSIBLE][:-1])} and a negative learning rate are at 1 step"
    ]
    assert verdict.reasons == ["values are impossible (1 problem)"]


def test_an_infinite_loss_is_no_number(store: Store, study: Study) -> None:
    rows = [*losses(0), *losses(1)]
    rows[100] |= {"train_loss": np.inf}
    rows[300] |= {"train_loss": np.nan}
    write(store, study, one=rows)
    verdict = verdict_on(store, study)
    assert verdict.impossible == ["plain.k001 trials 0 and 1: a loss that is no number is at 1 step"]
    assert not [sentence for sentence in verdict.out_of_range if "nats" in sentence]


def test_bounds_are_the_campaigns_when_strict(store: Store, study: Study) -> None:
    rows = [*losses(0), *losses(1)]
    rows[50] |= {"train_error": 1.0}
    rows[-1] |= {"learning_rate": 0.0}
    write(store, study, one=rows)
    sentences = {
        "plain.k001 trial 0: an error of 0 or 1 is at 1 step",
        "plain.k001 trial 1: a learning rate of 0 is at 1 step",
    }
    assert not sentences & set(verdict_on(store, study).out_of_range)
    assert sentences <= set(verdict_on(store, study, strict=True).out_of_range)


def test_a_run_that_diverged_counts_as_failed_and_nothing_else(store: Store, study: Study) -> None:
    end = [{**batch(0, 61 + i, 0.0, epoch=4), "train_loss": value} for i, value in enumerate((50.0, np.inf, None))]
    write(store, study, one=[*losses(0, 60), *end, *losses(1)])
    verdict = verdict_on(store, study)
    assert verdict.outcomes == {"fitted": 3, "diverged": 1}
    assert verdict.impossible == []
    assert verdict.alerts == ["1 of 4 runs failed (25 %): 1 diverged"]
    assert verdict.is_go


def test_runs_that_did_not_come_to_their_end_are_no_go(store: Store, study: Study) -> None:
    write(store, study, one=[*losses(0, 165), *losses(1)])
    verdict = verdict_on(store, study)
    assert verdict.incomplete == ["plain.k001 trial 0: the run is incomplete: its losses end at epoch 8.25 of 10"]
    assert verdict.reasons == ["1 of 4 runs is incomplete"]
    assert "  - plain.k001 trial 0: the run is incomplete" in report_of(verdict)


def test_imported_runs_that_log_seldom_are_complete_with_a_loss_in_the_last_epoch(store: Store, study: Study) -> None:
    seldom = [row for trial in (0, 1) for row in losses(trial) if row["step"] % 15 == 0]  # the last is step 195
    write(store, study, one=seldom)
    assert verdict_on(store, study).incomplete == []


def of_trained(
    store: Store, study: Study, statuses: tuple[str, str], outcome: tuple[str, str] = ("fitted", "fitted")
) -> Verdict:
    """On two trials of an arm, as the table of their analysis says how they ended."""
    rows = [
        {"trial": t, "status": status, "outcome": how, "last_epoch": 3.0, "r_squared": 0.99, "knee_epoch": 2.0}
        for t, (status, how) in enumerate(zip(statuses, outcome, strict=True))
    ]
    for arm in (ONE, TWO):
        write_rows(store, study, arm, "loss_slopes", rows)
    with contextlib.closing(connect(store, CAMPAIGN_TABLES)) as connection:
        return examine(store, study, connection)


def test_runs_that_finished_before_the_study_was_prolonged_are_incomplete(store: Store, make_study: MakeStudy) -> None:
    study = make_study(epochs=10, checkpoints=(10,))
    attempts = [{"trial": t, "attempt": 1, "status": "finished", "last_epoch": epoch} for t, epoch in ((0, 10), (1, 3))]
    for arm in (ONE, TWO):
        write_rows(store, study, arm, "runs", attempts, part="attempt-0001.end")
    verdict = of_trained(store, study, ("finished", "finished"))
    assert verdict.incomplete == [
        f"{arm} trial 1: the run is incomplete: finished, its losses end at epoch 3 of 10"
        for arm in ("plain.k001", "plain.k002")
    ]
    assert verdict.alerts == []


@pytest.mark.parametrize("status", ["running", "failed", "interrupted", "unknown"])
def test_trained_runs_without_an_end_are_failures_and_incomplete(
    store: Store, make_study: MakeStudy, status: str
) -> None:
    study = make_study(epochs=10, checkpoints=(10,))
    verdict = of_trained(store, study, ("stopped early", status))
    assert verdict.incomplete == [
        f"{arm} trial 1: the run is incomplete: {status}, its losses end at epoch 3 of 10"
        for arm in ("plain.k001", "plain.k002")
    ]
    assert "2 of 4 runs are incomplete" in verdict.reasons
    verb = "failed" if status in ("failed", "interrupted") else "failed or did not end"
    assert verdict.alerts == [f"2 of 4 runs {verb} (50 %): 2 {status}"]


def test_runs_whose_losses_diverged_are_failures_once_and_complete(store: Store, make_study: MakeStudy) -> None:
    study = make_study(epochs=10, checkpoints=(10,))
    verdict = of_trained(store, study, ("finished", "diverged"), ("diverged", "diverged"))
    assert verdict.incomplete == []
    assert verdict.alerts == ["4 of 4 runs failed (100 %): 4 diverged"]


def test_columns_that_no_run_has_are_not_asked_for_and_others_are(store: Store, study: Study) -> None:
    without = [{**row, "time": None, "weight_decay": None, "train_error": None} for t in (0, 1) for row in losses(t)]
    write_rows(store, study, TWO, "training_batches", [{**row, "learning_rate": None} for row in without])
    write_rows(store, study, ONE, "training_batches", without)
    verdict = verdict_on(store, study)
    assert verdict.gaps == ["plain.k002 trials 0 and 1: learning_rate is missing"]


def test_a_trial_with_evaluations_alone_is_there_without_losses(store: Store, study: Study) -> None:
    write(store, study, one=losses(0))
    evaluations = [evaluation(1, epoch, 1.0) for epoch in range(1, 11)]
    write_rows(store, study, ONE, "training_evals", evaluations)
    verdict = verdict_on(store, study)
    assert (verdict.missing, verdict.incomplete) == ([], [])
    assert verdict.outcomes == {"fitted": 3, "no losses": 1}
    assert verdict.gaps == ["plain.k001 trial 1: train_loss is missing"]


def test_checkpoints_of_unknown_size_are_left_out(store: Store, study: Study) -> None:
    write(store, study)
    sizes = [monitor(0, step, "checkpoint_size_mb", size) for step, size in ((20, 44.7), (40, None), (60, np.nan))]
    write_rows(store, study, TWO, "training_monitors", sizes)
    write_rows(store, study, ONE, "training_monitors", [monitor(0, 20, "checkpoint_size_mb", None)])
    assert verdict_on(store, study).alerts == []


def test_slow_runs_and_odd_checkpoints_raise_alerts(store: Store, study: Study) -> None:
    slow = [{**row, "time": 1e9 + 100.0 * row["step"]} for row in losses(0, 60)]
    write(store, study, one=[*slow, *losses(1)])
    sizes = [monitor(0, step, "checkpoint_size_mb", 44.7) for step in (20, 40)]
    write_rows(store, study, TWO, "training_monitors", [*sizes, monitor(1, 60, "checkpoint_size_mb", 21.0)])
    assert verdict_on(store, study).alerts == [
        "plain.k001 trial 0: the run is slow: 5900 s for 3 epochs",
        "plain.k002: checkpoints of a run have 21 to 44.7 MB",
    ]


def test_poor_fits_are_no_go(store: Store, study: Study) -> None:
    random = np.random.default_rng(0)
    noise = [{**row, "train_loss": float(random.uniform(1, 2))} for row in (*losses(0), *losses(1))]
    for arm in (ONE, TWO):
        write_rows(store, study, arm, "training_batches", noise)
    verdict = verdict_on(store, study)
    assert verdict.reasons == ["R^2 is above 0.95 in only 0 of 4 fitted runs"]


def test_nothing_is_no_go(store: Store, study: Study) -> None:
    verdict = verdict_on(store, study)
    assert verdict.reasons == ["4 of 4 runs are missing", "no run has a fit"]
    assert "R^2: no run has a fit" in report_of(verdict)
