"""What is said before a training begins and after it has ended, and who shares what in it."""

import dataclasses
from pathlib import Path

import pytest

from dd_assets.assets.resource_probe import ProbeConfig
from dd_assets.catalogue import catalogue
from dd_core.forecast.probe_table import Measurement, write_measurements
from dd_core.forecast.speed import Prediction
from dd_core.forecast.work import equivalent_images
from dd_core.jobs.forecast import Forecast, forecast
from dd_core.jobs.job import Job, TrainTask, training_job
from dd_core.machine.devices import Machine
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.tables.damage import sentences
from dd_core.words import counted, duration

CPU = Machine("cpu", num_gpus=0, num_cores=2)
GPUS = Machine("NVIDIA H200", num_gpus=2, num_cores=16)


def job_of(store: Store, study: Study, until: int = 4) -> Job:
    return training_job(store.root, study, [c for c in study.iter_checkpoints() if c.epoch <= until], 2, 1)


def expected_of(
    study: Study, machine: Machine, seconds: list[float | None], workers: int, **changes: object
) -> Forecast:
    """Of the study's first arms, each predicted to take so long, sharing devices so."""
    arms = list(study.arms.values())[: len(seconds)]
    tasks = tuple(
        TrainTask(study=study.name, variant="plain", k=arm.k, until=4, workers_per_device=workers, predicted_seconds=s)
        for arm, s in zip(arms, seconds, strict=True)
    )
    job = Job(root=Path("/nowhere"), studies={study.name: study}, tasks=tasks, num_workers=len(arms), threads=1)
    known = {arm: Prediction(s, "earlier runs") for arm, s in zip(arms, seconds, strict=True) if s is not None}
    return dataclasses.replace(Forecast(job, machine, known, price=None), **changes)  # type: ignore[arg-type]


def test_the_order_is_told(tiny_study: Study) -> None:
    assert expected_of(tiny_study, CPU, [5.0, 3.0], 2).order() == (
        "training on the 2 cores of this CPU with up to 2 workers, longest first by predicted cost (FLOPs x epochs), "
        "beginning with plain.k001"
    )
    assert (
        expected_of(tiny_study, GPUS, [5.0, 3.0], 1)
        .order()
        .startswith("training on 2 GPUs (NVIDIA H200) with up to 2 workers, longest first")
    )


def test_time_and_cost_are_told_before(make_study) -> None:  # type: ignore[no-untyped-def]
    study = make_study(widths=(1, 2, 3))
    on_cpu = expected_of(study, CPU, [60.0, 40.0, 30.0], 2)
    assert on_cpu.describe() == "predicted to take 70 s from earlier runs"
    assert on_cpu.metadata(Arm("plain", 2)) == {"predicted_seconds": 40.0}
    # All begin at once, two on one GPU and one on the other; the longest takes two hours, each with half a GPU.
    on_gpus = expected_of(study, GPUS, [7200.0, 3600.0, 3600.0], 2, price=3.0)
    assert on_gpus.describe() == (
        "predicted to take 2.0 h from earlier runs, 2 GPU-hours, which cost 6.00 at 3 per GPU-hour"
    )
    assert on_gpus.metadata(Arm("plain", 1)) == {"predicted_seconds": 7200.0, "predicted_cost": 3.0}
    assert expected_of(study, GPUS, [7200.0], 2).metadata(Arm("plain", 1)) == {"predicted_seconds": 7200.0}


def test_what_is_unknown_is_said_to_be(tiny_study: Study) -> None:
    partly = expected_of(tiny_study, CPU, [60.0, None], 2)
    assert partly.describe() == (
        "how long this takes is unknown: nothing has been trained or probed under such conditions yet; the asset "
        "resource_probe tells"
    )
    assert partly.metadata(Arm("plain", 2)) == {}
    assert partly.compare(92.0, {}) == "training took 92 s"


def test_how_far_off_it_was_is_told_after(tiny_study: Study) -> None:
    one = expected_of(tiny_study, CPU, [86.0], 2)
    for took, words in (
        (92.0, "7 % longer"),
        (43.0, "50 % shorter"),
        (86.1, "as predicted"),
        (1898.0, "22 times as long"),
    ):
        text = one.compare(took, {"tiny/plain.k001": took})
        assert text == f"training took {duration(took)}, predicted 86 s from earlier runs: {words}"
    two = expected_of(tiny_study, CPU, [80.0, 50.0], 2)
    assert two.compare(80.0, {"tiny/plain.k001": 60.0, "tiny/plain.k002": 60.0}) == (
        "training took 80 s, predicted 80 s from earlier runs: as predicted; "
        "single arms from 25 % shorter to 20 % longer"
    )
    assert two.compare(3.0, {"tiny/plain.k001": 3.0}) == "training took 3 s", "nothing to compare: one arm failed"


@pytest.mark.parametrize(
    ("seconds", "words"), [(-0.4, "0 s"), (92.4, "92 s"), (600.0, "10 min"), (7199.0, "2.0 h"), (9000.0, "2.5 h")]
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_without_tables_nothing_is_known_and_the_usual_rule_holds(tiny_study: Study, store: Store) -> None:
    expected = forecast(store, tiny_study, job_of(store, tiny_study), CPU)
    assert expected.predictions == {}
    assert [(task.workers_per_device, task.threads, task.predicted_seconds) for task in expected.tasks] == [
        (2, 1, None),
        (2, 1, None),
    ]
    assert expected.job.num_workers == 2


def test_the_probe_decides_who_shares_and_how_long_it_takes(tiny_study: Study, store: Store) -> None:
    """The wide arm was fastest alone, with both cores."""
    narrow, wide = tiny_study.arms.values()
    for arm, speeds in ((narrow, {1: 100.0, 2: 180.0}), (wide, {1: 90.0, 2: 80.0})):
        rows = [
            Measurement(tiny_study, arm, count, CPU.threads(count), "ok", "cpu", speed, 10**9, 1.0, 5)
            for count, speed in speeds.items()
        ]
        write_measurements(store, CPU, rows)
    expected = forecast(store, tiny_study, job_of(store, tiny_study), CPU)
    assert [(task.arm, task.workers_per_device, task.threads) for task in expected.tasks] == [
        (wide, 1, 2),
        (narrow, 2, 1),
    ]
    for arm, speed in ((wide, 90), (narrow, 180 / 2)):
        images = equivalent_images(tiny_study, arm, 0, 4)
        assert expected.predictions[arm].seconds == pytest.approx(images / speed)
    both = [prediction.seconds for prediction in expected.predictions.values()]
    assert expected.seconds == pytest.approx(sum(both)), "one after the other"
    assert expected.describe().startswith("predicted to take")
    on_gpus = forecast(store, tiny_study, job_of(store, tiny_study), GPUS)
    assert on_gpus.predictions == {}, "of another kind of machine"
    assert [task.workers_per_device for task in on_gpus.tasks] == [1, 1], "a GPU for each of the two"


def test_what_one_arm_of_a_grid_was_probed_at_holds_for_its_whole_family(store: Store) -> None:
    """The loss-slope campaign's four variants, each with its own number of workers on a GPU."""
    study = catalogue().get("loss_slope")
    best = {"s-core": 3, "s-bn-off": 2, "s-narrow": 4, "s-adamw": 3}
    chosen = ProbeConfig(studies=["loss_slope"]).arms_of([study])
    assert {study.families[arm.variant] for _, arm in chosen} == set(best)
    assert len(chosen) == 4
    for of, arm in chosen:
        speeds = {count: 100.0 * min(count, best[study.families[arm.variant]]) for count in range(1, 6)}
        measured = (Measurement(of, arm, n, GPUS.threads(n), "ok", "H100", s, 10**9, 1.0, 5) for n, s in speeds.items())
        write_measurements(store, GPUS, list(measured))
    expected = forecast(store, study, job_of(store, study, 50), GPUS)
    shared = {(study.families[task.variant], task.workers_per_device) for task in expected.tasks}
    assert shared == set(best.items())
    assert len({task.arm for task in expected.tasks}) == 36


def test_earlier_runs_tell_how_long_the_next_take(make_study, trained: Store) -> None:  # type: ignore[no-untyped-def]
    """Both arms have been trained to epoch 4, with a schedule that changes no speed."""
    machine = Machine("cpu", num_gpus=0, num_cores=1)
    predictions = []
    for epochs in (4, 8):
        study = make_study({"schedule": {"name": "constant"}}, epochs=epochs, checkpoints=(0, epochs))
        predictions.append(forecast(trained, study, job_of(trained, study, epochs), machine).predictions)
    assert {prediction.source for prediction in predictions[0].values()} == {"earlier runs"}
    for arm, prediction in predictions[0].items():
        assert predictions[1][arm].seconds == pytest.approx(2 * prediction.seconds)


def test_only_what_is_left_to_train_takes_time(tiny_study: Study, trained: Store) -> None:
    """Its last checkpoint is lost, its resume point is there: training would only look at what it has."""
    expected = forecast(trained, tiny_study, job_of(trained, tiny_study), Machine("cpu", 0, 1))
    assert [prediction.seconds for prediction in expected.predictions.values()] == [0.0, 0.0]
    finished = {task.name: 1.0 for task in expected.tasks}
    assert expected.compare(1.0, finished).endswith("predicted 0 s from earlier runs: it was to take no time")


def test_a_damaged_table_keeps_nothing_from_being_trained(tiny_study: Study, store: Store) -> None:
    path = store.table_folder("runs", "tiny", "plain.k001") / "attempt-0001.end.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1 and nothing more PAR1")
    expected = forecast(store, tiny_study, job_of(store, tiny_study), CPU)
    assert len(expected.tasks) == 2
    assert expected.describe().startswith("how long this takes is unknown: ")
    assert any(str(path) in sentence for sentence in sentences(store, [tiny_study]))


def test_one_thing_is_no_plural() -> None:
    assert [counted(number, "arm") for number in (0, 1, 2, 1296)] == ["0 arms", "1 arm", "2 arms", "1,296 arms"]
    assert counted(2, "part of an arm", "parts of arms") == "2 parts of arms"
