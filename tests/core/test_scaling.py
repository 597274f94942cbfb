"""The simulation behind benchmarks/scaling.py: what it plays is counted by hand, and its total is figure1_cost.py's."""

import itertools
import math
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dd_core.jobs.job import Job, TrainTask
from dd_core.jobs.placement import makespan
from dd_core.study.files import read_study
from dd_core.study.study import Study

REPOSITORY = Path(__file__).parent.parent.parent
sys.path.append(str(REPOSITORY / "benchmarks"))

import figure1_cost  # noqa: E402
import scaling_workloads as workloads  # noqa: E402
from scaling_simulation import Conditions, median_of, play, play_pod  # noqa: E402


@pytest.fixture(scope="module")
def figure1() -> Study:
    return read_study(REPOSITORY / "dd_assets" / "studies" / "double_descent.yaml")


def of_seconds(study: Study, seconds: list[float]) -> workloads.Workload:
    ordered = sorted(seconds, reverse=True)
    tasks = tuple(TrainTask(study=study.name, variant="plain", k=1, until=1) for _ in ordered)
    job = Job(root="/nowhere", studies={study.name: study}, tasks=tasks, num_workers=8, threads=1)
    return workloads.Workload("", "", job, tuple(ordered), 60.0)


class _Lives:
    """Instead of a random generator: how long a pod lives, one life after the other, then for ever."""

    def __init__(self, *seconds: float):
        """As they are given."""
        self._seconds = itertools.chain(seconds, itertools.repeat(math.inf))

    def exponential(self, mean: float) -> float:
        """The next life."""
        return next(self._seconds)


@pytest.mark.parametrize(
    ("resume_seconds", "expected"),
    [(30.0, 10 + 70 + 10 + 40), (math.inf, 10 + 70 + 10 + 100)],
    ids=["goes on from 60 s", "begins anew"],
)
def test_an_evicted_pod_does_again_what_came_after_its_resume_point(resume_seconds: float, expected: float) -> None:
    conditions = Conditions(start_seconds=10.0, hours_between_evictions=1.0)
    lives: Any = _Lives(70.0)
    assert play_pod([100.0, 50.0], resume_seconds, conditions, lives) == (expected, 1)


def test_what_waited_when_a_pod_was_evicted_is_done_whole() -> None:
    lives: Any = _Lives(70.0)
    # Eight tasks of 100 s run, each keeps 60 s; the ninth begins 40 s after the second start.
    seconds, _ = play_pod([100.0] * 9, 30.0, Conditions(hours_between_evictions=1.0), lives)
    assert seconds == 70 + 40 + 100


@given(seconds=st.lists(st.floats(1, 1e5), min_size=1, max_size=100), num_gpus=st.sampled_from([8, 16, 64]))
def test_no_job_is_better_than_its_bound_and_one_pod_is_as_forecast(
    tiny_study: Study, seconds: list[float], num_gpus: int
) -> None:
    workload = of_seconds(tiny_study, seconds)
    result = play(workload, num_gpus, Conditions(), 0)
    assert 0 < result.efficiency <= workload.bound(num_gpus) * (1 + 1e-9) <= 1 + 2e-9
    assert result.efficiency == pytest.approx(sum(seconds) / num_gpus / (result.hours * 3600))
    # Graham (1969): a list schedule takes at most the mean load and the longest task together.
    assert result.hours * 3600 <= (sum(seconds) / num_gpus + max(seconds)) * (1 + 1e-9)
    forecast = makespan([Fraction(1)] * len(seconds), 8, 8, workload.seconds)
    assert play(workload, 8, Conditions(start_seconds=7), 0).hours * 3600 == pytest.approx(forecast + 7)


def test_real_times_have_the_predicted_mean_and_the_given_spread(tiny_study: Study) -> None:
    workload = of_seconds(tiny_study, [3600.0] * 8)
    slowest = [play(workload, 8, Conditions(sigma=0.1), seed).hours for seed in range(400)]
    assert play(workload, 8, Conditions(sigma=0.1), 3) == play(workload, 8, Conditions(sigma=0.1), 3)
    # The largest of 8 normal values is 1.4236 on average (Tippett 1925).
    assert np.log(slowest).mean() == pytest.approx(0.1 * 1.4236 - 0.005, abs=0.01)


def test_the_laws_are_those_cited(figure1: Study) -> None:
    b200, cpu = workloads.LAWS
    assert 50_000 * b200(40) == pytest.approx(7.16 / 4)
    assert 50_000 * (b200(1) + b200(40)) / 2 == pytest.approx(227 / 160)
    total = figure1_cost.hours((209e-6, 1 / 71e9), figure1_cost.WIDTHS)
    for workload in workloads.figure1(cpu, figure1):
        assert sum(workload.seconds) / 3600 == pytest.approx(total, rel=1e-9)


def test_64_gpus_are_balanced_where_no_task_is_too_long(figure1: Study) -> None:
    for law in workloads.LAWS:
        parts, arms, trainings = workloads.figure1(law, figure1)
        assert [len(each.seconds) for each in (parts, arms, trainings)] == [296, 64, 320]
        assert parts.bound(64) == 1
        assert median_of(parts, 64, Conditions(), 1).efficiency > 0.95
        assert median_of(trainings, 64, Conditions(), 1).efficiency > 0.95
        # The five trials of the widest arm take longer than what a GPU has to do on average.
        assert median_of(arms, 64, Conditions(), 1).efficiency == pytest.approx(arms.bound(64), rel=0.01)
        assert arms.bound(64) < 0.6
    for num_checkpoints, trials in ((1, 1), (1, 5), (21, 1)):
        assert median_of(workloads.curvature(figure1, num_checkpoints, trials), 64, Conditions(), 1).spread < 1 / 0.95
