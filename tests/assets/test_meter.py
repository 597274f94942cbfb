"""The line of progress: which arm, how good it is, how much is left."""

from collections.abc import Callable
from pathlib import Path

from dd_assets.steps.follow import _Meter
from dd_core.events import Finished, Progress, Started
from dd_core.jobs.job import CheckpointTask, training_job
from dd_core.study.study import Study
from dd_core.words import duration


def test_the_line_names_the_arm_with_its_latest_loss_and_error(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    study = make_study()
    job = training_job(tmp_path, study, list(study.iter_checkpoints()), 1, 1)
    first, second = (task.name for task in job.tasks)
    meter = _Meter(job)
    meter.update(Started(task=first))
    assert meter.describe().startswith("0 of 2 arms")
    meter.update(Progress(task=first, epoch=4, train_loss=1.2345, train_error=0.5, test_error=0.306))
    assert ", test error 31 %, loss 1.23, plain.k002 epoch 4 of 4" in meter.in_a_bar(), "a narrow terminal shows this"
    meter.update(Finished(task=first, seconds=1.0))
    assert meter.describe().startswith("plain.k002 epoch 4 of 4: loss 1.23, test error 31 % - 1 of 2 arms")
    meter.update(Progress(task=second, epoch=1, train_loss=123.4, train_error=0.004))
    assert meter.describe().startswith("plain.k001 epoch 1 of 4: loss 123, training error 0.4 % - ")
    meter.update(Progress(task=second, epoch=2))
    assert meter.describe().startswith("plain.k001 epoch 2 of 4 - 1 of 2 arms")


def test_results_beside_are_counted_and_are_no_part_of_the_work(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    study = make_study()
    job = training_job(tmp_path, study, list(study.iter_checkpoints()), 1, 1)
    result = CheckpointTask(kind="per_image_curvature", study="tiny", variant="plain", k=2, epoch=4)
    meter = _Meter(job.model_copy(update={"beside": (result, result.model_copy(update={"kind": "hessian"}))}))
    meter.update(Finished(task=job.tasks[0].name, seconds=1.0))
    before = meter.fraction
    event = Finished(task=result.name, number=2, seconds=1.0)
    assert meter.beside(event) == result and meter.beside(Finished(task="", number=1, seconds=1.0)) is None
    meter.update_beside(event, result)
    assert 0 < meter.fraction == before < 1
    assert "1 of 2 arms and 1 of 2 results done" in meter.describe()
    meter.update(Finished(task=job.tasks[1].name, seconds=1.0))
    assert meter.describe().endswith("2 of 2 arms and 1 of 2 results done, 100 % of the work, about 0 s left")


def test_no_duration_is_rounded_to_one_that_has_another_unit() -> None:
    assert [duration(seconds) for seconds in (-1, 119.4, 119.7, 7169, 7199)] == [
        "0 s",
        "119 s",
        "2 min",
        "119 min",
        "2.0 h",
    ]
