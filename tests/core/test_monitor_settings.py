"""When something is measured while a study trains, and what a study file may say about it."""

import itertools
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dd_core.study.calendar import Calendar
from dd_core.study.monitors import (
    CustomMonitor,
    HessianMonitor,
    MonitorSettings,
    NoiseMonitor,
    ValidationMonitor,
    due_steps,
    expected_steps,
    next_due,
)

EPOCHS = st.sampled_from(
    ["1 epoch", "2 epochs", "0.5 epochs", "1/4 epoch", "3/7 epochs", "1.25 epochs", "1/1000 epoch"]
)
INTERVALS = EPOCHS | st.integers(1, 40).map(lambda steps: f"{steps} steps")


def test_a_quarter_of_an_epoch_of_ten_steps() -> None:
    assert due_steps("1/4 epoch", Calendar(10, 1), 20) == [3, 5, 8, 10, 13, 15, 18, 20]
    assert due_steps("0.25 epochs", Calendar(10, 1), 20) == due_steps("1/4 epoch", Calendar(10, 1), 20)
    assert due_steps("500 steps", Calendar(391, 1), 1600) == [500, 1000, 1500]
    assert due_steps("2 epochs", Calendar(391, 1), 391 * 5) == [782, 1564]
    assert due_steps("1 epoch", Calendar(7, 1), 6) == []


@given(INTERVALS, st.integers(1, 60), st.integers(0, 300))
def test_a_step_is_due_if_a_multiple_of_the_interval_falls_into_it(interval: str, steps_per_epoch: int, num_steps: int):
    calendar = Calendar(steps_per_epoch, 1)
    number, unit = interval.split()
    period = Fraction(number) * (steps_per_epoch if unit.startswith("epoch") else 1)

    def holds_a_multiple(step: int) -> bool:
        near = round(step / period)
        return any(step - 1 < count * period <= step for count in range(near - 2, near + 3))

    expected = [step for step in range(1, num_steps + 1) if period < 1 or holds_a_multiple(step)]
    assert due_steps(interval, calendar, num_steps) == expected
    assert [step for step in range(1, num_steps + 1) if next_due(interval, calendar, step - 1) == step] == expected


@given(st.integers(1, 12), st.integers(0, 200), st.integers(1, 5))
def test_parts_of_an_epoch_are_as_many_as_asked_for_and_the_last_is_its_end(parts: int, more: int, epochs: int) -> None:
    steps_per_epoch = parts + more
    due = due_steps(f"1/{parts} epoch", Calendar(steps_per_epoch, 1), epochs * steps_per_epoch)
    assert len(due) == parts * epochs
    for epoch in range(1, epochs + 1):
        within = [step for step in due if (epoch - 1) * steps_per_epoch < step <= epoch * steps_per_epoch]
        assert len(within) == parts
        assert within[-1] == epoch * steps_per_epoch
    gaps = [after - before for before, after in itertools.pairwise(due)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


@given(INTERVALS, st.integers(1, 60), st.integers(0, 300), st.integers(0, 300))
def test_what_is_due_does_not_depend_on_how_long_the_training_will_be(interval: str, size: int, few: int, more: int):
    longer = due_steps(interval, Calendar(size, 1), few + more)
    assert due_steps(interval, Calendar(size, 1), few) == [step for step in longer if step <= few]


NO_INTERVALS = (
    "0 steps",
    "0.0 epochs",
    "-1 epoch",
    "1.5 steps",
    "1/0 epoch",
    "1/00 epoch",
    "0/4 epoch",
    "500",
    "epoch",
)
NO_INTERVALS += ("1/4", "1e3 steps", "1 epoch ", "1  epoch", "every epoch", "1 hour", "nan epochs", ".5 epochs")


@pytest.mark.parametrize("interval", NO_INTERVALS)
def test_what_is_no_interval_is_refused(interval: str) -> None:
    with pytest.raises(ValidationError, match=r"interval"):
        ValidationMonitor(every=interval)


@given(st.text(alphabet="0123456789./ stepochs", max_size=14))
def test_any_other_text_is_an_interval_or_refused_with_a_reason(text: str) -> None:
    try:
        ValidationMonitor(every=text)
    except ValidationError:
        return
    assert next_due(text, Calendar(7, 1), 0) > 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"hessian": {"num_images": 0}}, "num_images"),
        ({"hessian": {"lambda_max": "arnoldi"}}, "'lanczos' or 'power_iteration'"),
        ({"hessian": {"hutch_trace": "hutch_plus_plus", "num_probes": 5}}, "num_probes: hutch_plus_plus .* at least 6"),
        ({"hessian": {"iterations": 1}}, "greater than or equal to 2"),
        ({"noise": {"window": 99}}, "greater than or equal to 128"),
        ({"noise": {"num_batches": 1}}, "greater than or equal to 2"),
        ({"noise": {"decay": 1.0}}, "less than 1"),
        ({"noise": {"psd": "welch"}}, "'density', 'periodogram' or 'ratio'"),
        ({"norms": {"sometimes": "1 epoch"}}, "Extra inputs"),
        ({"spectra": {}}, "Extra inputs"),
        ({"custom": {"Own": {"use": "a.b:C", "every": "1 epoch"}}}, "custom.Own: a name is"),
        ({"custom": {"noise": {"use": "a.b:C", "every": "1 epoch"}}}, "custom.noise: there is a monitor of that name"),
        ({"custom": {"own": {"use": "a.b.C", "every": "1 epoch"}}}, "name the class as package.module:Class"),
        ({"custom": {"own": {"use": "a.b:C"}}}, "Field required"),
    ],
)
def test_impossible_monitors_are_refused_with_the_reason(content: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        MonitorSettings.model_validate(content)


def test_by_default_metrics_are_expected_when_the_campaign_logged_them() -> None:
    expected = expected_steps(MonitorSettings(), True, Calendar(391, 1), 391 * 4)
    quarters = (98, 196, 294, 391, 489, 587, 685, 782, 880, 978, 1076, 1173, 1271, 1369, 1467, 1564)
    steps = {metric: tuple(due) for metric, due in expected.items()}
    assert steps == {
        **dict.fromkeys(("validation_loss", "validation_error", "gradient_norm", "weight_norm"), quarters),
        **dict.fromkeys(("largest_eigenvalue", "largest_eigenvalue_residual", "hessian_trace"), (500, 1000, 1500)),
        **dict.fromkeys(("gradient_variance", "spectral_density_tail", "residual_power"), (782, 1564)),
    }


def test_the_spectrum_of_the_losses_is_expected_from_a_hundred_steps_on() -> None:
    settings = MonitorSettings(noise=NoiseMonitor(every="30 steps"))
    expected = expected_steps(settings, False, Calendar(10, 1), 200)
    assert expected["gradient_variance"] == [30, 60, 90, 120, 150, 180]
    assert expected["spectral_density_tail"] == expected["residual_power"] == [120, 150, 180]
    exact = expected_steps(MonitorSettings(noise=NoiseMonitor(every="50 steps")), False, Calendar(10, 1), 200)
    assert exact["spectral_density_tail"] == [100, 150, 200]


def test_what_is_off_or_the_users_own_is_not_expected() -> None:
    own = CustomMonitor(use="a.b:C", every="1 epoch")
    settings = MonitorSettings(norms=None, hessian=HessianMonitor(every="1 epoch"), noise=None, custom={"own": own})
    assert expected_steps(settings, False, Calendar(5, 1), 10) == {
        "largest_eigenvalue": [5, 10],
        "largest_eigenvalue_residual": [5, 10],
        "hessian_trace": [5, 10],
    }
    assert set(expected_steps(settings, True, Calendar(5, 1), 10)) > {"validation_loss", "validation_error"}


def test_monitors_are_no_part_of_the_recipe(make_study: Any) -> None:
    """They leave no trace in the weights (test_monitors), so results stay valid when they are changed."""
    study, other = make_study(), make_study(monitors=MonitorSettings(hessian=None))
    assert [study.recipe_hash(arm) for arm in study.arms.values()] == [
        other.recipe_hash(arm) for arm in other.arms.values()
    ]
