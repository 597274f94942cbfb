"""What training costs: FLOPs against PyTorch's counter, times against what was measured, and the order of tasks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from dd_core.errors import UserError
from dd_core.forecast.work import (
    OVERHEAD_FLOPS,
    equivalent_images,
    num_evaluations,
    training_cost,
    training_flops,
    warning_of_size,
)
from dd_core.jobs.job import CheckpointTask, TrainTask, predicted_cost, training_job
from dd_core.models.build import build
from dd_core.store.store import Store
from dd_core.study.architectures import forward_flops
from dd_core.study.price import price_per_gpu_hour
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import read_parquet

ARCHITECTURES = ("preact_resnet18", "preact_resnet10", "cnn5")
# Height, width, channels, classes: both data sets, and sides that do not halve.
SHAPES = ((8, 8, 1, 10), (32, 32, 3, 100), (13, 11, 2, 7))

MakeStudy = Callable[..., Study]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_flops_are_those_that_pytorch_counts(architecture: str, k: int, shape: tuple[int, ...]) -> None:
    height, width, channels, classes = shape
    model = build(architecture, k, channels, classes).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, channels, height, width, device="meta"))
    assert forward_flops(architecture, k, (height, width, channels), classes) == counter.get_total_flops()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_takes_three_forward_passes_but_for_the_gradient_of_the_images(architecture: str) -> None:
    model = build(architecture, 2, 3, 10)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(torch.zeros(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    first_layer = 2 * 32 * 32 * 3 * 2 * 9
    assert counter.get_total_flops() == 2 * (3 * forward_flops(architecture, 2, (32, 32, 3), 10) - first_layer)


@given(
    every=st.integers(1, 5),
    checkpoints=st.sets(st.integers(0, 12), min_size=1),
    first=st.integers(0, 12),
    more=st.integers(0, 12),
)
def test_evaluations_are_counted_as_the_loop_makes_them(
    tiny_study: Study, every: int, checkpoints: set[int], first: int, more: int
) -> None:
    until = first + more
    study = tiny_study.model_copy(
        update={
            "evaluation": tiny_study.evaluation.model_copy(update={"every": every}),
            "checkpoints": tuple(sorted(checkpoints)),
        }
    )
    epochs = [0] if first == 0 else []
    epochs += [epoch for epoch in range(first + 1, until + 1) if epoch in checkpoints or epoch % every == 0]
    assert num_evaluations(study, first, until) == len(epochs)


def test_the_images_of_a_training_are_those_of_its_tables(tiny_study: Study, trained: Store) -> None:
    """image_progress has a row for each evaluated image; the cost is linear in both kinds of images."""
    arm = tiny_study.arms["plain.k001"]
    rows = [len(read_parquet(path)) for path in trained.table_folder("image_progress", "tiny", arm.key).iterdir()]
    trained_alone = 2 * 4 * 100 * (OVERHEAD_FLOPS + training_flops(tiny_study, arm))
    evaluated = sum(rows) * (OVERHEAD_FLOPS / 10 + training_flops(tiny_study, arm) / 3)
    assert training_cost(tiny_study, arm, 0, 4) == pytest.approx(trained_alone + evaluated)
    assert equivalent_images(tiny_study, arm, 0, 4) == pytest.approx(800 * (1 + evaluated / trained_alone))


@pytest.mark.parametrize(("dataset", "num_validation"), [("digits", 0), ("digits", 97), ("cifar10", 5000)])
def test_all_images_are_evaluated(make_study: MakeStudy, dataset: str, num_validation: int) -> None:
    """Of the digits all are; of CIFAR those trained on, those for validation and the 10,000 of the test set."""
    study = make_study(data={"dataset": dataset, "num_train": 1000, "num_validation": num_validation})
    arm = next(iter(study.arms.values()))
    once = training_cost(study, arm, 0, 0)
    images = {"digits": 1797, "cifar10": 1000 + 5000 + 10_000}[dataset]
    assert once == pytest.approx(2 * images * (OVERHEAD_FLOPS / 10 + training_flops(study, arm) / 3))


def test_the_gradient_of_every_image_takes_two_more_forward_passes(make_study: MakeStudy) -> None:
    evaluation = {"image_values": ("gradient_norm",), "image_progress": "checkpoints"}
    plain = make_study(checkpoints=(0, 4))
    study = make_study(checkpoints=(0, 4), evaluation=evaluation)
    arm = study.arms["plain.k001"]
    once, kept = training_cost(plain, arm, 0, 0), training_cost(study, arm, 0, 0)
    assert kept == 3 * once
    assert training_cost(study, arm, 1, 3) == training_cost(plain, arm, 1, 3)
    assert training_cost(study, arm, 3, 4) - training_cost(plain, arm, 3, 4) == pytest.approx(2 * once)


def digits_study(make_study: MakeStudy, **changes: Any) -> Study:
    return make_study(**{"data": {"dataset": "digits", "num_train": 1000}, "widths": (1, 4, 8, 16), **changes})


def test_relative_times_are_those_that_were_measured(make_study: MakeStudy) -> None:
    """ResNet10k on 8x8 digits, two trials on one thread of a CPU: 10, 12, 21, 47 s at k = 1, 4, 8, 16."""
    study = digits_study(make_study)
    costs = [training_cost(study, arm, 0, 4) for arm in study.arms.values()]
    scale = sum((10, 12, 21, 47)) / sum(costs)
    for cost, seconds in zip(costs, (10, 12, 21, 47), strict=True):
        assert cost * scale == pytest.approx(seconds, rel=0.08)


def test_tasks_come_longest_first_by_flops_times_epochs(make_study: MakeStudy) -> None:
    study = digits_study(make_study, widths=(16, 1, 8))
    wanted = [Checkpoint(Arm("plain", 16), 2), Checkpoint(Arm("plain", 8), 4), Checkpoint(Arm("plain", 1), 4)]
    job = training_job(Path("/nowhere"), study, wanted, 1, 1)
    assert [(task.k, task.until) for task in job.tasks if isinstance(task, TrainTask)] == [(16, 2), (8, 4), (1, 4)]
    # A narrow network trained for long takes longer than a wide one that is not.
    wanted[0] = Checkpoint(Arm("plain", 16), 0)
    job = training_job(Path("/nowhere"), study, wanted, 1, 1)
    assert [task.k for task in job.tasks] == [8, 1, 16]


@given(k=st.integers(1, 63), epochs=st.integers(1, 3))
def test_wider_and_longer_cost_more(tiny_study: Study, k: int, epochs: int) -> None:
    study = tiny_study.model_copy(update={"widths": tuple(range(1, 65))})
    tasks = [TrainTask(study="tiny", variant="plain", k=k + i, until=epochs + j) for i, j in ((0, 0), (1, 0), (0, 1))]
    least, wider, longer = (predicted_cost(study, task) for task in tasks)
    assert least < wider
    assert least < longer
    hessians = [CheckpointTask(kind="hessian", study="tiny", variant="plain", k=k + i, epoch=0) for i in (0, 1)]
    assert predicted_cost(study, hessians[0]) < predicted_cost(study, hessians[1])


def test_the_price_of_the_study_goes_before_that_of_the_environment(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    priced = tiny_study.model_copy(update={"price_per_gpu_hour": 3.0})
    monkeypatch.delenv("DD_PRICE_PER_GPU_HOUR", raising=False)
    assert (price_per_gpu_hour(tiny_study), price_per_gpu_hour(priced)) == (None, 3.0)
    monkeypatch.setenv("DD_PRICE_PER_GPU_HOUR", "2.5")
    assert (price_per_gpu_hour(tiny_study), price_per_gpu_hour(priced)) == (2.5, 3.0)


@pytest.mark.parametrize("text", ["two", "-1", "nan", "inf"])
def test_what_is_no_price_is_refused(text: str, tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_PRICE_PER_GPU_HOUR", text)
    with pytest.raises(UserError, match=f"^DD_PRICE_PER_GPU_HOUR must be a price, such as 2.5, not '{text}'$"):
        price_per_gpu_hour(tiny_study)


def test_a_grid_of_more_than_a_thousand_arms_says_its_size_and_cost(tiny_study: Study) -> None:
    assert warning_of_size(tiny_study) == ""
    plain = tiny_study.variants["plain"].model_dump()
    many = Study.model_validate({**tiny_study.model_dump(), "variants": {f"v{n}": plain for n in range(600)}})
    text = warning_of_size(many)
    assert text.startswith("tiny has 1,200 arms, 2,400 runs of 4 epochs.")
    one = sum(training_cost(tiny_study, arm, 0, 4) for arm in tiny_study.arms.values())
    assert f"{600 * one:.1e} floating-point operations" in text
