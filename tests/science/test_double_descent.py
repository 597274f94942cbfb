"""The platform's first claim, in a reduced form: the double descent of the quickstart recipe is really there."""

from dd_assets.catalogue import catalogue
from dd_assets.compute.local import run_job, this_machine
from dd_core.analysis.double_descent import find_double_descent, width_curves
from dd_core.jobs.job import training_job
from dd_core.store.store import Store


def test_quickstart_recipe_shows_double_descent(tmp_path):
    """Three of the seven widths: left of the threshold, at it, and far beyond it. `make quickstart` reports all."""
    full = catalogue().get("quickstart")
    content = {**full.model_dump(mode="json"), "checkpoints": [120], "widths": [2, 4, 12]}
    content["evaluation"] = {"every": 120, "image_progress": "checkpoints"}
    study = type(full).model_validate(content, strict=False)
    store = Store(tmp_path)
    job = training_job(tmp_path, study, list(study.iter_checkpoints()), *this_machine().workers_and_threads())
    assert [event.task for event in run_job(job) if event.name == "failed"] == []
    epoch, rows = width_curves(store, study)["preact-resnet10"]
    assert epoch == 120
    finding = find_double_descent(rows)
    assert finding is not None
    assert (finding.first_minimum.k, finding.peak.k, finding.widest.k) == (2, 4, 12)
    assert finding.rise >= 0.03
    assert finding.fall >= 0.03
    assert finding.widest.train_error < 0.01 < finding.peak.train_error < finding.first_minimum.train_error
