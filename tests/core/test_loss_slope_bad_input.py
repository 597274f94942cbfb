"""Curves that cannot be fitted, or not wholly: a named outcome and a sentence, never an exception."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dd_core.analysis.loss_slopes.run import Run, analyse_run
from dd_core.study.loss_slopes import LossSlopeSettings
from dd_core.tables.loss_slopes import LOSS_SLOPE_FITS, LOSS_SLOPES

SETTINGS = LossSlopeSettings()
NONE = np.zeros(0)
NUM = 2000
STEP = np.arange(1, NUM + 1)
LOSS = 3 * STEP**-0.3 * np.exp(0.05 * np.random.default_rng(0).normal(size=NUM))


def analyse(
    step: np.ndarray = STEP, loss: np.ndarray = LOSS, per_epoch: float = 100.0, **more: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    none = dict.fromkeys(("val_step", "val_loss", "lambda_step", "largest_eigenvalue"), NONE)
    return analyse_run(Run(step, loss, per_epoch, **(none | more)), SETTINGS)


def changed(where: slice, value: float) -> np.ndarray:
    loss = LOSS.copy()
    loss[where] = value
    return loss


CASES: dict[str, tuple[np.ndarray, np.ndarray, str]] = {
    "none": (NONE, NONE, "no losses"),
    "nine": (STEP[:9], LOSS[:9], "too few points"),
    "constant": (STEP, np.full(NUM, 2.3), "constant loss"),
    "all nan": (STEP, np.full(NUM, math.nan), "not finite"),
    "mostly infinite": (STEP, changed(slice(0, 1500), math.inf), "not finite"),
    "diverged at step 3": (STEP, changed(slice(2, None), math.nan), "diverged"),
    "diverged, finite": (STEP, 2.0 * 1.01**STEP, "diverged"),
    "zero": (STEP, np.zeros(NUM), "not positive"),
    "negative": (STEP, -LOSS, "not positive"),
    "steps restart every epoch": (np.tile(np.arange(1, 101), 20), LOSS, "steps not ascending"),
    "one step": (np.ones(NUM), LOSS, "steps not ascending"),
    "steps are no numbers": (np.full(NUM, math.nan), LOSS, "no losses"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_curve_that_cannot_be_fitted_says_why(case: str) -> None:
    step, loss, outcome = CASES[case]
    columns, rows = analyse(step, loss)
    assert columns["outcome"] == outcome
    assert columns["reason"].endswith(".")
    assert rows == []
    assert columns["alpha_early"] is None and columns["alpha_full"] is None
    assert columns["num_steps"] == len(loss)


def test_a_training_that_diverged_is_believed_and_keeps_its_validation() -> None:
    columns, rows = analyse(status="diverged", val_step=STEP[99::100], val_loss=LOSS[99::100])
    assert columns["outcome"] == "diverged" and not rows
    assert columns["best_validation_loss"] == LOSS[99::100].min()


def test_a_window_outside_the_run_is_null_and_the_rest_is_there() -> None:
    columns, rows = analyse(STEP[:800], LOSS[:800])
    assert columns["outcome"] == "fitted"
    assert columns["alpha_early"] is None and columns["alpha_early_low"] is None
    assert "Epochs 5 to 15 are not all in the run" in columns["reason"]
    assert columns["alpha_full"] == pytest.approx(-0.3, abs=0.02)
    assert {row["segment"] for row in rows} == {"whole", "straight"}


def test_one_epoch_is_fitted() -> None:
    columns, _ = analyse(per_epoch=float(NUM))
    assert columns["outcome"] == "fitted" and columns["last_epoch"] == 1
    assert columns["alpha_full"] == pytest.approx(-0.3, abs=0.02)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0, 1e3])
def test_single_bad_losses_are_left_out_and_counted(value: float) -> None:
    columns, _ = analyse(loss=changed(slice(100, 1900, 100), value))
    assert columns["outcome"] == "fitted"
    assert columns["num_left_out"] == 18
    assert columns["reason"].startswith("18 losses ")
    assert columns["alpha_full"] == pytest.approx(-0.3, abs=0.02)


def test_order_and_repetition_of_steps_change_nothing() -> None:
    order = np.random.default_rng(0).permutation(NUM)
    expected, expected_rows = analyse()
    shuffled, rows = analyse(STEP[order], LOSS[order])
    assert shuffled["reason"] == "Steps were not in order and have been sorted."
    assert rows == expected_rows
    # A resumed training recorded some steps before its checkpoint otherwise: what came last counts.
    resumed, rows = analyse(np.concatenate([STEP[:900], STEP[600:]]), np.concatenate([LOSS[:900] / 2, LOSS[600:]]))
    assert resumed["num_left_out"] == 300
    twice, rows = analyse(np.tile(STEP, 3), np.tile(LOSS, 3))
    assert rows == expected_rows and twice["num_left_out"] == 2 * NUM
    same = ("num_steps", "num_left_out", "reason")
    assert {k: v for k, v in twice.items() if k not in same} == {k: v for k, v in expected.items() if k not in same}


def test_the_columns_are_those_of_the_tables() -> None:
    columns, rows = analyse(val_step=STEP[99::100], val_loss=LOSS[99::100])
    names = [column.name for column in LOSS_SLOPES.columns]
    wanted = names[names.index("outcome") :]
    assert sorted(columns) == sorted(set(wanted) - {"validation_is_test", "source_sha256"})
    names = [column.name for column in LOSS_SLOPE_FITS.columns]
    assert all(sorted(row) == sorted(names[names.index("segment") :]) for row in rows)


NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=64)
LOSSES = st.floats(0.001, 6) | st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf, 1e-300, 1e300])


@settings(max_examples=60, deadline=None)
@given(
    curve=st.lists(st.tuples(st.integers(-3, 400), LOSSES), max_size=400),
    per_epoch=st.sampled_from([0.0, 1.0, 2.5, 7.0, 1000.0, math.nan]),
    points=st.sampled_from(["all", "log_spaced"]),
    knee=st.sampled_from(["aic", "loss", "break"]),
    error=st.sampled_from(["newey_west", "independent", "block_bootstrap"]),
    other=st.lists(st.tuples(st.integers(0, 90), NUMBERS), max_size=20),
    plateau=st.sampled_from(["relative_change", "pelt"]),
)
def test_nothing_raises(
    curve: list, per_epoch: float, points: str, knee: str, error: str, other: list, plateau: str
) -> None:
    options = {"points": points, "knee": knee, "standard_error": error, "plateau": plateau, "smooth_break": True}
    more = {"early": (1.0, 4.0), "starts": (1.0, 2.0), "scan_stops": (4.0, 9.0), "bootstrap_samples": 100}
    wanted = LossSlopeSettings.model_validate(options | more)
    step, loss = (np.array([pair[i] for pair in curve], dtype=float) for i in (0, 1))
    others = [np.array([pair[i] for pair in other], dtype=float) for i in (0, 1)]
    columns, rows = analyse_run(Run(step, loss, per_epoch, *others, *others), wanted)
    assert columns["num_left_out"] <= columns["num_steps"] == len(curve)
    assert (columns["outcome"] == "fitted") == bool(rows)
    assert columns["outcome"] == "fitted" or columns["reason"]
    for values in (columns, *rows):
        assert all(value is None or isinstance(value, str) or math.isfinite(value) for value in values.values())
