"""Tasks dealt out to machines: each to one, balanced, and the same whoever asks; ranks evenly over machines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dd_core.errors import UserError
from dd_core.jobs.division import divided
from dd_core.jobs.job import CheckpointTask, Job, TrainTask, by_machines, probe_jobs, result_job, training_job
from dd_core.machine.devices import Machine
from dd_core.study.resources import Resources, largest
from dd_core.study.study import Study


def job_of(study: Study, seconds: list[float], workers_per_device: int | None, num_workers: int) -> Job:
    tasks = [
        TrainTask(
            study="tiny",
            variant="plain",
            k=number + 1,
            until=4,
            workers_per_device=workers_per_device,
            predicted_seconds=value,
        )
        for number, value in enumerate(sorted(seconds, reverse=True))
    ]
    return Job(root="/nowhere", studies={"tiny": study}, tasks=tuple(tasks), num_workers=num_workers, threads=1)


@given(
    seconds=st.lists(st.floats(0.1, 100), min_size=1, max_size=60),
    num_places=st.integers(1, 9),
    num_gpus=st.integers(0, 4),
    workers_per_gpu=st.sampled_from([None, 1, 2, 3]),
)
def test_every_task_has_one_place_and_none_is_overloaded(
    tiny_study: Study, seconds: list[float], num_places: int, num_gpus: int, workers_per_gpu: int | None
) -> None:
    machine = Machine("gpu", num_gpus, 4, num_places=num_places)
    num_workers = (num_gpus or 1) * (workers_per_gpu or 1)
    job = divided(job_of(tiny_study, seconds, workers_per_gpu, num_workers), machine)
    assert sorted(number for place in job.places for number in place) == list(range(len(seconds)))
    assert all(place for place in job.places), "no machine is asked for without work"
    assert all(list(place) == sorted(place) for place in job.places), "longest first at each"
    slots = (num_gpus or 1) * (workers_per_gpu or 1)
    # Graham (1969): a list schedule takes at most the mean load and the longest task together.
    mean, longest = sum(seconds) / (num_places * slots), max(seconds)
    loads = [sum(job.tasks[n].predicted_seconds for n in place) / slots for place in job.places]  # type: ignore[union-attr,misc]
    assert max(loads) <= (mean + longest) * (1 + 1e-9)
    assert divided(job, machine) == job, "the same whoever divides it"


def test_without_predictions_the_costs_decide(make_study) -> None:  # type: ignore[no-untyped-def]
    study = make_study(widths=(1, 2, 8))
    job = training_job("/nowhere", study, [c for c in study.iter_checkpoints() if c.epoch == 4], 1, 1)
    places = divided(job, Machine("cpu", 0, 1, num_places=2)).places
    assert [[job.tasks[number].k for number in place] for place in places] == [[8], [2, 1]]


def test_the_same_request_has_the_same_name_whatever_is_finished(tiny_study: Study) -> None:
    checkpoints = [("tiny", c) for c in tiny_study.iter_checkpoints()]
    first = result_job("per_image_curvature", "/nowhere", {"tiny": tiny_study}, checkpoints, 2, 1).model_copy(
        update={"request": "e" * 64}
    )
    later = first.model_copy(update={"tasks": first.tasks[2:]})
    assert first.name == later.name == "dd-curvature-tiny-eeeeeeeeee"
    assert first.digest != later.digest
    long = first.model_copy(update={"tasks": tuple(t.model_copy(update={"study": "a_" * 60}) for t in first.tasks)})
    assert len(long.name) <= 52
    assert long.name.replace("-", "").isalnum()


def hessian(study: Study, ranks: int) -> Job:
    task = CheckpointTask(kind="hessian", study="tiny", variant="plain", k=1, epoch=4, ranks=ranks)
    return Job(root="/nowhere", studies={"tiny": study}, tasks=(task, task), num_workers=2, threads=1)


@pytest.mark.parametrize(("ranks", "num_places"), [(2, 1), (4, 1), (8, 2), (6, 2), (12, 3)])
def test_ranks_are_shared_evenly_by_few_machines(tiny_study: Study, ranks: int, num_places: int) -> None:
    machine = Machine("NVIDIA H200", 4, 16, num_places=3)
    assert divided(hessian(tiny_study, ranks), machine).places == ((0, 1),) * num_places


@pytest.mark.parametrize("ranks", [5, 7, 16])
def test_ranks_that_cannot_be_shared_are_refused(tiny_study: Study, ranks: int) -> None:
    with pytest.raises(UserError, match=f"hessian.ranks is {ranks}, but 3 pods with 4 GPUs or workers each"):
        divided(hessian(tiny_study, ranks), Machine("NVIDIA H200", 4, 16, num_places=3))


def test_tasks_of_different_ranks_become_jobs_of_their_own(tiny_study: Study) -> None:
    one, two = hessian(tiny_study, 1), hessian(tiny_study, 2)
    both = one.model_copy(update={"tasks": one.tasks + two.tasks, "request": "f" * 64})
    parts = by_machines(both)
    assert [(part.ranks, len(part.tasks)) for part in parts] == [(1, 2), (2, 2)]
    assert len({part.name for part in parts}) == 2
    assert by_machines(one) == [one]


def test_studies_that_want_different_products_of_gpu_become_jobs_of_their_own(tiny_study: Study) -> None:
    dear = tiny_study.model_copy(update={"name": "dear", "resources": Resources(gpu="NVIDIA-H200", pods=3)})
    studies = {study.name: study for study in (tiny_study, dear)}
    checkpoints = [(name, checkpoint) for name in studies for checkpoint in list(tiny_study.iter_checkpoints())[:2]]
    both = result_job("per_image_curvature", "/data", studies, checkpoints, 1, 1)
    parts = by_machines(both.model_copy(update={"request": "f" * 64}))
    wants = {task.study: part.resources for part in parts for task in part.tasks}
    assert len(parts) == len({part.name for part in parts}) == 2
    assert wants == {tiny_study.name: None, "dear": dear.resources}
    arms = [(study, next(iter(study.arms.values()))) for study in studies.values()]
    probes = probe_jobs("/data", arms, (1,), 2.0)
    assert [(set(probe.studies), probe.resources) for probe in probes] == [
        ({tiny_study.name}, None),
        ({"dear"}, dear.resources),
    ]
    assert len(probe_jobs("/data", arms[:1] * 2, (1,), 2.0)) == 1
    assert largest([Resources(gpu="a", pods=1), Resources(gpu="b", pods=2)]) == Resources(pods=2)
    assert largest([Resources(gpu="a"), Resources(pods=2)]) == Resources(gpu="a", pods=2)


def test_resources_of_the_study_come_before_those_of_the_place() -> None:
    place = Resources(pods=4, gpus_per_pod=8, memory_gib_per_pod=64.0)
    assert place.overridden_by(Resources(pods=2)) == Resources(pods=2, gpus_per_pod=8, memory_gib_per_pod=64.0)
    assert place.overridden_by(None) == place
    assert largest([None, Resources(pods=2, hours=3.0), Resources(pods=5)]) == Resources(pods=5, hours=3.0)
    assert largest([None, None]) is None
