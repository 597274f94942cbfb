"""The line of progress: which arm, how good it is, how much is left."""

from collections.abc import Callable
from pathlib import Path

from dd_assets.steps.follow import _Meter
from dd_core.events import Finished, Progress, Started
from dd_core.jobs.job import training_job
from dd_core.study.study import Study


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
    meter.update(Finished(task=first, seconds=1.0))
    assert meter.describe().startswith("plain.k002 epoch 4 of 4: loss 1.23, test error 31 % - 1 of 2 arms")
    meter.update(Progress(task=second, epoch=1, train_loss=0.00123, train_error=0.25))
    assert meter.describe().startswith("plain.k001 epoch 1 of 4: loss 0.00123, training error 25 % - ")
    meter.update(Progress(task=second, epoch=2))
    assert meter.describe().startswith("plain.k001 epoch 2 of 4 - 1 of 2 arms")
