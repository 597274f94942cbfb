"""What may go wrong inside a training: a trial diverges, memory runs out; and what ends a trial in good order."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from dd_core.errors import UserError
from dd_core.events import Event
from dd_core.results.hessian import hessian_of_checkpoint
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.best_checkpoints import load_best
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import read_parquet
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.training.monitors.hessian import Hessian
from dd_core.training.session import Session
from dd_core.training.step import Stepper
from dd_core.training.train import train_arm
from dd_core.training.trial_stack import TrialStack

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
ARM = Arm("plain", 2)


def table(store: Store, study: Study, name: str, arm: Arm = ARM) -> pd.DataFrame:
    """All files of an arm's part of a table, in their order."""
    folder = store.table_folder(name, study.name, arm.key)
    return pd.concat([read_parquet(path).to_pandas() for path in sorted(folder.glob("*.parquet"))], ignore_index=True)


def ends(store: Store, study: Study) -> pd.DataFrame:
    """How attempts ended, by attempt and trial."""
    runs = table(store, study, "runs")
    return runs[runs.status != "running"].sort_values(["attempt", "trial"], ignore_index=True)


def poison(monkeypatch: pytest.MonkeyPatch, trial: int, step: int, value: float) -> None:
    """Make the weights of one trial of every stack of two unusable right before a step."""
    usual, count = Stepper.__call__, iter(range(1, 10_000))

    def call(stepper: Stepper, *arguments: Any) -> tuple[Tensor, Tensor]:
        if next(count) == step:
            with torch.no_grad():
                weight = stepper._parameters[0]
                weight.unflatten(0, (2, -1))[trial].fill_(value)
        return usual(stepper, *arguments)

    monkeypatch.setattr(Stepper, "__call__", call)


# Divergence


@pytest.mark.parametrize("architecture", ["preact_resnet10", "preact_resnet18", "cnn5"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverging_trial_leaves_the_others_untouched_to_the_bit(
    value: float, architecture: str, make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study({"architecture": architecture})
    undisturbed = Store(store.root / "undisturbed")
    train_arm(study, ARM, undisturbed, 4)
    poison(monkeypatch, trial=0, step=6, value=value)
    news: list[Event] = []
    train_arm(study, ARM, store, 4, report=news.append)
    for epoch in (0, 2, 4):
        ours, manifest = load_checkpoint(store, study, Checkpoint(ARM, epoch))
        theirs, _ = load_checkpoint(undisturbed, study, Checkpoint(ARM, epoch))
        for name, tensor in theirs.items():
            assert torch.equal(ours[name][1], tensor[1]), (epoch, name)
            assert epoch == 0 or ours[name][0].isnan().all()
        assert manifest.live_trials == ([0, 1] if epoch == 0 else [1])
    for name in ("training_batches", "training_evals", "training_monitors", "image_progress"):
        here, there = (table(s, study, name).drop(columns="time", errors="ignore") for s in (store, undisturbed))
        pd.testing.assert_frame_equal(
            here[here.trial == 1].reset_index(drop=True), there[there.trial == 1].reset_index(drop=True)
        )
        assert np.isfinite(here.select_dtypes("number").drop(columns="standard_error", errors="ignore").fillna(0)).all(
            axis=None
        )
    assert any("trial 0 diverged in epoch 2" in getattr(event, "text", "") for event in news)


def test_a_diverged_trial_is_told_with_its_step_and_leaves_no_row_after_it(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study()
    poison(monkeypatch, trial=1, step=7, value=math.nan)
    train_arm(study, ARM, store, 4)
    runs = ends(store, study)
    assert runs.status.tolist() == ["finished", "diverged"]
    assert runs.end_step.tolist()[1] == 7 and runs.end_epoch.tolist()[1] == 2 and runs.end_step.isna()[0]
    assert runs.reason[1] == "its batch loss became nan at step 7"
    assert runs.last_train_loss.notna().all() and runs.best_epoch[1] <= 1
    batches = table(store, study, "training_batches")
    assert batches[batches.trial == 1].step.tolist() == [1, 2, 3, 4, 5, 6]
    assert batches[batches.trial == 0].step.tolist() == list(range(1, 17))
    evals = table(store, study, "training_evals")
    assert evals[evals.trial == 1].epoch.tolist() == [0, 1] and evals[evals.trial == 0].epoch.tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    images = table(store, study, "image_progress")
    assert sorted(set(images[images.trial == 1].epoch)) == [0, 1]


def test_weights_that_diverge_in_an_epochs_last_step_are_noticed_by_the_evaluation(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study({"optimizer": {"name": "sgd", "learning_rate": 0.01}, "schedule": {"name": "constant"}})
    usual = TrialStack.train_epoch

    def train_epoch(stack: TrialStack, epoch: int, ended: Any = ()) -> Any:
        metrics = usual(stack, epoch, ended)
        if epoch == 3:
            with torch.no_grad():
                next(stack.model.parameters()).unflatten(0, (2, -1))[0].fill_(math.nan)
        return metrics

    monkeypatch.setattr(TrialStack, "train_epoch", train_epoch)
    train_arm(study, ARM, store, 4)
    runs = ends(store, study)
    assert runs.status.tolist() == ["diverged", "finished"]
    assert (runs.end_step[0], runs.reason[0]) == (13, "its training loss became nan at step 13")
    batches = table(store, study, "training_batches")
    assert batches[batches.trial == 0].step.max() == 12


def test_when_every_trial_has_diverged_the_arm_ends_quickly_and_in_good_order(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study({"optimizer": {"name": "sgd", "learning_rate": 1e30}, "schedule": {"name": "constant"}})
    epochs = []
    usual = TrialStack.train_epoch
    monkeypatch.setattr(TrialStack, "train_epoch", lambda *a: epochs.append(a[1]) or usual(*a))
    train_arm(study, ARM, store, 4)
    assert epochs == [1]
    assert ends(store, study).status.tolist() == ["diverged", "diverged"]
    weights, manifest = load_checkpoint(store, study, Checkpoint(ARM, 4))
    assert manifest.live_trials == [] and next(iter(weights.values())).isnan().all()
    train_arm(study, ARM, store, 4)  # and it is not trained again
    assert len(ends(store, study)) == 2


def test_curvature_and_hessian_are_of_the_trials_that_have_weights(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(trials=2, hessian={"num_images": 20, "num_eigenvalues": 1, "quantities": ("eigenvalues",)})
    poison(monkeypatch, trial=0, step=6, value=math.nan)
    train_arm(study, ARM, store, 4)
    last = Checkpoint(ARM, 4)
    compute_curvature(study, last, store)
    rows = read_parquet(store.result_path("per_image_curvature", study.name, last)).to_pandas()
    assert set(rows.trial) == {1} and len(rows) == 100 and np.isfinite(rows.trace).all()
    manifest = PER_IMAGE_CURVATURE.manifest(store, study, last)
    assert manifest is not None and manifest.rows["table"] == 100
    hessian_of_checkpoint(study, last, store)
    assert read_parquet(store.result_path("hessian_spectra", study.name, last))["trial"].to_pylist() == [1]


def test_a_checkpoint_without_any_weights_is_not_looked_at(make_study: Any, store: Store) -> None:
    study = make_study({"optimizer": {"name": "sgd", "learning_rate": 1e30}, "schedule": {"name": "constant"}})
    train_arm(study, ARM, store, 4)
    assert PER_IMAGE_CURVATURE.missing(store, study) == [Checkpoint(ARM, 0)]
    for look in (compute_curvature, hessian_of_checkpoint):
        with pytest.raises(UserError, match=r"every trial of plain\.k002\|0004 of tiny has diverged"):
            look(study, Checkpoint(ARM, 4), store)


# Early stopping and plateaus


VALIDATED = {"data": {"dataset": "digits", "num_train": 100, "num_validation": 60}}


def test_a_stopped_trial_keeps_its_weights_and_its_evaluations_while_others_train(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = {"metric": "loss_val_nats", "patience": 1}
    study = make_study({"early_stopping": stopping}, **VALIDATED, epochs=6, checkpoints=(0, 2, 4, 6))
    usual = Session._note

    def note(session: Session, trial: int, metrics: dict[str, float]) -> None:
        # Trial 0 gets worse from epoch 3 on, trial 1 always better.
        loss = 1 / (1 + session.epoch) if trial or session.epoch < 3 else 2.0
        usual(session, trial, {**metrics, "loss_val_nats": loss})

    monkeypatch.setattr(Session, "_note", note)
    train_arm(study, ARM, store, 6)
    runs = ends(store, study)
    assert runs.status.tolist() == ["stopped early", "finished"]
    assert runs.last_epoch.tolist() == [6, 6], "what was asked for, from which the view costs takes what was saved"
    assert (runs.end_epoch[0], runs.end_step[0], runs.best_epoch[0]) == (3, 12, 2)
    assert "loss_val_nats has not improved on 0.333333 for 1 evaluations" in runs.reason[0]
    four, _ = load_checkpoint(store, study, Checkpoint(ARM, 4))
    six, manifest = load_checkpoint(store, study, Checkpoint(ARM, 6))
    assert all(torch.equal(four[name][0], tensor[0]) for name, tensor in six.items())
    assert not any(torch.equal(four[name][1], tensor[1]) for name, tensor in six.items() if tensor.ndim > 3)
    assert manifest.live_trials == [0, 1] and manifest.ended[0].epoch == 3
    evals = table(store, study, "training_evals")
    stopped = evals[(evals.trial == 0) & (evals.epoch >= 3)]
    assert stopped.epoch.tolist() == [3, 4, 5, 6] and set(stopped.step) == {12}
    assert stopped[["train_loss", "test_error", "validation_error"]].nunique().tolist() == [1, 1, 1]
    batches = table(store, study, "training_batches")
    assert batches[batches.trial == 0].step.max() == 12 and batches[batches.trial == 1].step.max() == 24


def test_an_arm_whose_trials_have_all_ended_is_not_evaluated_again_but_its_rows_go_on(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = {"metric": "loss_val_nats", "patience": 1, "min_delta": 100.0}
    study = make_study({"early_stopping": stopping}, **VALIDATED, epochs=6, checkpoints=(0, 6))
    usual, evaluated = TrialStack.evaluate, []

    def evaluate(stack: TrialStack, epoch: int) -> Any:
        evaluated.append(epoch)
        return usual(stack, epoch)

    monkeypatch.setattr(TrialStack, "evaluate", evaluate)
    train_arm(study, ARM, store, 6)
    assert evaluated == [0, 1, 2], "all have stopped after two evaluations"
    evals = table(store, study, "training_evals")
    assert evals[evals.trial == 1].epoch.tolist() == list(range(7))
    images = table(store, study, "image_progress")
    last, stopped = (images[images.epoch == epoch].reset_index(drop=True) for epoch in (6, 2))
    assert last.drop(columns="epoch").equals(stopped.drop(columns="epoch"))


def test_a_plateau_lowers_the_rate_of_one_trial_alone(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = {"name": "plateau", "patience": 0, "factor": 0.5, "metric": "train_loss"}
    study = make_study({"schedule": schedule})
    usual = Session._note

    def note(session: Session, trial: int, metrics: dict[str, float]) -> None:
        usual(session, trial, {**metrics, "train_loss": 1.0 if trial == 0 else 1 / (1 + session.epoch)})

    monkeypatch.setattr(Session, "_note", note)
    train_arm(study, ARM, store, 4)
    batches = table(store, study, "training_batches")
    rates = {t: batches[batches.trial == t].groupby("epoch").learning_rate.first().tolist() for t in (0, 1)}
    assert rates == {0: [0.002, 0.002, 0.001, 0.0005], 1: [0.002] * 4}


def test_the_best_checkpoints_are_those_with_the_lowest_validation_loss(make_study: Any, store: Store) -> None:
    study = make_study(**VALIDATED, epochs=6, checkpoints=(0, 6), keep_best=2)
    train_arm(study, ARM, store, 6)
    evals = table(store, study, "training_evals")
    files = {path.name for path in store.best_folder(study.name, ARM.key).glob("*.safetensors")}
    expected = set()
    for trial in (0, 1):
        own = evals[(evals.trial == trial) & (evals.epoch > 0)].sort_values("validation_loss")
        expected |= {f"trial-{trial:03d}.epoch-{epoch:04d}.safetensors" for epoch in own.epoch[:2]}
        weights, manifest = load_best(store, study, ARM, trial)
        assert manifest.epoch == own.epoch.iloc[0] and manifest.loss_val_nats == own.validation_loss.iloc[0]
        if manifest.epoch == 6:
            last, _ = load_checkpoint(store, study, Checkpoint(ARM, 6))
            assert all(torch.equal(weights[name], last[name][trial]) for name in last)
    assert files == expected


def test_without_validation_images_no_best_is_kept_and_asking_for_it_is_explained(
    trained: Store, tiny_study: Study
) -> None:
    assert not trained.best_folder("tiny", ARM.key).exists()
    with pytest.raises(UserError, match=r"no best checkpoint of trial 1 of plain\.k002.*num_validation"):
        load_best(trained, tiny_study, ARM, 1)


# Out of memory


def short_of_memory(monkeypatch: pytest.MonkeyPatch, largest: int) -> list[int]:
    """A device whose memory does for so many images at a time; returns a list of the sizes tried."""
    usual, tried = Stepper._forward_backward, []

    def forward_backward(stepper: Stepper, images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
        tried.append(len(images))
        if len(images) > largest:
            raise torch.OutOfMemoryError(f"no memory for {len(images)} images\nand a long table")
        return usual(stepper, images, labels, share)

    monkeypatch.setattr(Stepper, "_forward_backward", forward_backward)
    return tried


def test_out_of_memory_halves_the_images_at_a_time_and_is_told(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study({"batch_size": 100})
    tried = short_of_memory(monkeypatch, largest=30)
    news: list[Event] = []
    train_arm(study, ARM, store, 4, report=news.append)
    assert tried[:2] == [100, 50] and set(tried[2:]) == {25}
    runs = ends(store, study)
    assert runs.status.tolist() == ["failed"] * 4 + ["finished"] * 2
    assert runs.micro_batch_size.tolist() == [100, 100, 50, 50, 25, 25]
    assert runs.reason[0] == "out of memory with 100 images at a time (no memory for 100 images)"
    notes = [event.text for event in news if event.name == "note"]
    assert len(notes) == 2 and "with 25, whose gradients are added up" in notes[1] and "BatchNorm sees 25" in notes[1]
    assert len(table(store, study, "training_batches")) == 2 * 4


def test_memory_that_runs_out_late_costs_what_came_after_the_last_resume_point(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study()
    train_arm(study, ARM, store, 2)
    tried = short_of_memory(monkeypatch, largest=16)
    train_arm(study, ARM, store, 4)
    assert tried[:3] == [32, 16, 16]
    assert ends(store, study).first_epoch.tolist() == [0, 0, 2, 2, 2, 2]
    assert sorted(table(store, study, "training_batches").query("trial == 0").step) == list(range(1, 17))


def test_memory_that_runs_out_in_a_monitor_is_told_with_its_name(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer images at a time would not help, so the training must not fall to 16 of them first."""

    def measure(monitor: Hessian, moment: Any) -> Any:
        raise torch.OutOfMemoryError("no memory for 20 vectors\nand a long table")

    monkeypatch.setattr(Hessian, "measure", measure)
    news: list[Event] = []
    message = r"monitor hessian at step \d+ \(no memory for 20 vectors\); .* monitors: {hessian: null}"
    with pytest.raises(UserError, match=message):
        train_arm(make_study(monitors={"hessian": {"every": "1 epoch"}}), ARM, store, 4, report=news.append)
    assert not any(event.name == "note" for event in news)


def test_too_little_memory_for_16_images_fails_with_the_numbers(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, largest=15)
    message = r"plain\.k002 cannot be trained with 16 images at a time \(no memory for 16 images\)"
    with pytest.raises(UserError, match=message):
        train_arm(make_study(), ARM, store, 4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(precision: str, make_study: Any, store: Store) -> None:
    """In a network whose BatchNorm is fixed they are the same thing; float64, one step."""
    study = make_study({"precision": precision})
    states = []
    for micro_batch in (32, 16, 5):
        stack = TrialStack(study, ARM, [0, 1], CPU, torch.float64, micro_batch)
        usual = stack.model.train
        stack.model.train = lambda mode=True, usual=usual: usual(False)  # type: ignore[method-assign]
        stack.run_steps(1)
        states.append({name: p.detach().clone() for name, p in stack.model.named_parameters()})
        losses = stack.stepper.gradient_norms()
        assert losses.shape == (2,)
    for state in states[1:]:
        for name, tensor in states[0].items():
            limit = 1e-12 if precision == "float32" else 5e-3
            assert (state[name] - tensor).abs().max() < limit, name


def test_manifests_of_ended_trials_are_json(make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study()
    poison(monkeypatch, trial=0, step=1, value=math.nan)
    train_arm(study, ARM, store, 2)
    path = Path(store.checkpoint_manifest_path(study.name, Checkpoint(ARM, 2)))
    ended = json.loads(path.read_text(encoding="utf-8"))["ended"]
    assert ended == {
        "0": {"status": "diverged", "epoch": 1, "step": 1, "reason": "its batch loss became nan at step 1"}
    }
