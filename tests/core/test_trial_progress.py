"""Decisions from evaluations: plateaus as torch makes them, early stopping, what counts as best."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dd_core.study.recipe import EarlyStopping, Optimizer, Schedule, Variant
from dd_core.training.trial_progress import TrialProgress

VALUES = st.lists(st.floats(0.01, 10), min_size=1, max_size=60)


def variant(schedule: Schedule | None = None, stopping: EarlyStopping | None = None) -> Variant:
    return Variant(
        architecture="cnn5",
        batch_size=32,
        optimizer=Optimizer(name="sgd", learning_rate=0.1),
        schedule=schedule or Schedule(),
        early_stopping=stopping,
    )


def metrics(value: float, metric: str = "loss_val_nats") -> dict[str, float]:
    return {"loss_val_nats": 1.0, "acc_val": 0.5, "train_loss": 1.0, "train_error": 0.5, "test_loss": 1.0} | {
        metric: value
    }


@given(VALUES, st.sampled_from(["loss_val_nats", "acc_val"]), st.integers(0, 4), st.floats(0, 0.3))
def test_a_plateau_lowers_the_rate_when_torchs_scheduler_does(
    values: list[float], metric: str, patience: int, threshold: float
) -> None:
    settings = Schedule(name="plateau", metric=metric, patience=patience, threshold=threshold, factor=0.5, smallest=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max" if metric == "acc_val" else "min",
        factor=0.5,
        patience=patience,
        threshold=threshold,
        min_lr=0.1,
        eps=0.0,
    )
    progress = TrialProgress()
    for epoch, value in enumerate(values, 1):
        reference.step(value)
        progress.decide(epoch, 10 * epoch, metrics(value, metric), variant(settings))
        assert progress.multiple == optimizer.param_groups[0]["lr"]


@given(VALUES, st.sampled_from(["loss_val_nats", "acc_val"]), st.integers(1, 5), st.floats(0, 1))
def test_a_trial_stops_after_as_many_evaluations_without_improvement_as_it_has_patience(
    values: list[float], metric: str, patience: int, min_delta: float
) -> None:
    settings = variant(stopping=EarlyStopping(metric=metric, patience=patience, min_delta=min_delta))
    progress = TrialProgress()
    for epoch, value in enumerate(values, 1):
        progress.decide(epoch, 10 * epoch, metrics(value, metric), settings)
    # By hand: the first position that is `patience` behind the last improvement on the best so far.
    best, since, expected = math.inf, 0, None
    for epoch, value in enumerate(values if metric != "acc_val" else [-v for v in values], 1):
        if epoch == 1 or best - value > min_delta:
            best, since = value, 0
        else:
            since += 1
        if since == patience:
            expected = epoch
            break
    assert (progress.ending.epoch if progress.ending else None) == expected
    if progress.ending:
        assert (progress.ending.status, progress.ending.step) == ("stopped early", 10 * progress.ending.epoch)
        assert not progress.is_training and not progress.has_diverged


@given(VALUES, st.integers(0, 4))
def test_best_and_last_are_never_confused_and_the_lowest_losses_are_kept(values: list[float], num_kept: int) -> None:
    progress = TrialProgress()
    for epoch, value in enumerate(values, 1):
        progress.note_evaluation(epoch, metrics(value), num_kept)
    assert progress.last["loss_val_nats"] == values[-1] and progress.last["epoch"] == len(values)
    assert progress.best["loss_val_nats"] == min(values)
    assert progress.best["epoch"] == 1 + int(np.argmin(values))
    assert progress.kept == sorted((value, epoch) for epoch, value in enumerate(values, 1))[:num_kept]


def test_without_validation_images_the_test_loss_says_what_was_best_and_nothing_is_kept() -> None:
    progress = TrialProgress()
    for epoch, value in enumerate([3.0, 1.0, 2.0]):
        progress.note_evaluation(epoch, metrics(math.nan) | {"test_loss": value}, 3)
    assert (progress.best["epoch"], progress.last["epoch"], progress.kept) == (1, 2, [])


@given(VALUES, st.integers(1, 3))
def test_progress_survives_its_json_exactly(values: list[float], patience: int) -> None:
    settings = variant(Schedule(name="plateau", patience=1), EarlyStopping(patience=patience))
    progress = TrialProgress()
    for epoch, value in enumerate(values, 1):
        progress.note_evaluation(epoch, metrics(value) | {"test_loss": math.nan}, 3)
        progress.decide(epoch, epoch, metrics(value), settings)
    again = TrialProgress.model_validate_json(progress.model_dump_json())
    assert again.model_dump_json() == progress.model_dump_json()
    assert again.kept == progress.kept and again.plateau == progress.plateau and again.ending == progress.ending
