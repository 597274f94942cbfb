"""Epochs that grow: every question to the calendar has the answer of a list that writes all steps down."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dd_core.study.calendar import Calendar
from dd_core.study.classes import ClassSchedule


@st.composite
def calendars(draw: st.DrawFn) -> tuple[Calendar, list[int]]:
    """A calendar, and the examples of each of its epochs."""
    tasks = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 12)), min_size=1, max_size=4))
    examples = [size for length, size in tasks for _ in range(length)]
    starts = np.cumsum([1, *(length for length, _ in tasks)])
    growth = tuple((int(first), size) for first, (_, size) in zip(starts[1:-1], tasks[1:], strict=True))
    return Calendar(tasks[0][1], draw(st.integers(1, 5)), growth), examples


@given(calendars())
def test_a_growing_calendar_is_the_list_of_its_steps(case: tuple[Calendar, list[int]]) -> None:
    calendar, examples = case
    steps = [epoch for epoch, size in enumerate(examples, 1) for _ in range(0, size, calendar.batch_size)]
    for epoch, size in enumerate(examples, 1):
        own = [number for number, of in enumerate(steps, 1) if of == epoch]
        assert (calendar.examples_of(epoch), calendar.steps_of(epoch)) == (size, len(own))
        assert (calendar.steps_before(epoch), calendar.steps_after(epoch)) == (own[0] - 1, own[-1])
        assert [calendar.batch_of(step)[0] for step in own] == list(range(0, size, calendar.batch_size))
        assert calendar.batch_of(own[-1])[1] == size
        assert {calendar.task_at(step) for step in own} == {calendar.task_of(epoch)}
        assert epoch in calendar.epochs_of(calendar.task_of(epoch), len(examples))
        for index, step in enumerate(own, 1):
            time = epoch - 1 + Fraction(index, len(own))
            assert (calendar.epoch_of(step), calendar.time_of(step), calendar.step_at(time)) == (epoch, time, step)
            assert round(calendar.steps_until(float(time))) == step
        assert calendar.examples_within(own[-1]) == sum(examples[:epoch])
    epochs, numbers = np.arange(1, len(examples) + 1), np.arange(1, len(steps) + 1)
    np.testing.assert_array_equal(calendar.epoch_of(numbers), steps)
    np.testing.assert_array_equal(calendar.steps_before(epochs), [calendar.steps_before(int(e)) for e in epochs])


def test_what_was_seen_lags_behind_what_is_active_at_boundaries_alone() -> None:
    """Seed 002's table: at epoch 200 five classes were seen and ten are active; at 4000 all hundred."""
    schedule = ClassSchedule(first=5, add=5, every=200)
    told = {epoch: (schedule.seen(epoch, 100), schedule.active(epoch, 100)) for epoch in (0, 1, 199, 200, 201, 4000)}
    assert told == {0: (0, 5), 1: (5, 5), 199: (5, 5), 200: (5, 10), 201: (10, 10), 4000: (100, 100)}
    assert schedule.num_tasks(100) == 20
    differ = [e for e in range(1, 4001) if schedule.seen(e, 100) != schedule.active(e, 100)]
    assert differ == list(range(200, 3801, 200))
    # 500 images of each class: the document's 21 checkpoints are not 1,050,000 rows.
    assert sum(500 * schedule.active(epoch, 100) for epoch in range(0, 4001, 200)) == 575_000
