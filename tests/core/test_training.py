"""Training against a plain loop, exact resume, and tables that hold every step once whatever happened on the way."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dd_core.data.augmentation import plan_epoch
from dd_core.data.datasets import load
from dd_core.data.randomness import torch_seed
from dd_core.data.trials import TrialData, trial_data
from dd_core.models.build import build
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study.calendar import Calendar
from dd_core.study.former_names import as_now
from dd_core.study.recipe import Loss, Schedule
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.training.optimization import learning_rate
from dd_core.training.recorder import EVAL_METRICS
from dd_core.training.session import Session
from dd_core.training.train import ArmBusyError, arm_lock, train_arm
from dd_core.training.trial_stack import stacking

from .comparison import ARM, table

CPU = torch.device("cpu")
CONSTANT = {"schedule": {"name": "constant"}}
EVALUATED = tuple(as_now(dict.fromkeys(EVAL_METRICS)))


# Against a plain loop


def standardised(data: TrialData, images: np.ndarray) -> Tensor:
    """(N, H, W, C) raw values as a float64 batch (N, C, H, W)."""
    values = (images.astype(np.float64) - data.mean.astype(np.float64)) / data.std.astype(np.float64)
    return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous()


def plain_network(study: Study, arm: Arm, trial: int) -> nn.Module:
    torch.manual_seed(torch_seed(study.seed, trial, "initialisation"))
    return build(study.variants[arm.variant].architecture, arm.k, 1, 10).double()


def plain_loss(settings: Loss, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As torch has it."""
    if settings.name == "mean_squared_error":
        return torch.nn.functional.mse_loss(logits, torch.nn.functional.one_hot(labels, logits.shape[1]).to(logits))
    return torch.nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)(logits, labels)


def train_plainly(study: Study, arm: Arm, trial: int, epochs: int) -> tuple[nn.Module, list[list[float]]]:
    """One network, one image after another, torch's reference optimisers and schedulers.

    Returns:
        The network, and for every step its loss, accuracy and learning rate.
    """
    variant, data, images = study.variants[arm.variant], trial_data(study, arm.variant, trial), load("digits").images
    settings, shift = variant.optimizer, variant.augmentation
    network = plain_network(study, arm, trial).train()
    common: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "foreach": False}
    optimizer: torch.optim.Optimizer
    if settings.name == "adam":
        optimizer = torch.optim.Adam(network.parameters(), betas=(0.9, 0.999), eps=1e-8, **common)
    else:
        optimizer = torch.optim.SGD(network.parameters(), momentum=settings.momentum, **common)
    num_train = len(data.train_ids)
    steps = -(-num_train // variant.batch_size)
    scheduler: Any = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    if variant.schedule.name == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=study.epochs * steps)
    history = []
    for epoch in range(1, epochs + 1):
        plan = plan_epoch(study.seed, [trial], num_train, epoch, shift, CPU)
        for start in range(0, num_train, variant.batch_size):
            batch, labels = [], []
            for i in range(start, min(start + variant.batch_size, num_train)):
                position = int(plan.positions[i, 0])
                padded = np.pad(images[data.train_ids[position]], ((shift.shift_y,) * 2, (shift.shift_x,) * 2, (0, 0)))
                top, left = int(plan.top[i, 0]), int(plan.left[i, 0])
                image = padded[top : top + 8, left : left + 8]
                batch.append(image[:, ::-1] if plan.flip[i, 0] else image)
                labels.append(int(data.train_labels[position]))
            logits = network(standardised(data, np.stack(batch)))
            loss = plain_loss(variant.loss, logits, torch.tensor(labels))
            hits = (logits.argmax(1) == torch.tensor(labels)).double().mean()
            history.append([loss.item(), hits.item(), optimizer.param_groups[0]["lr"]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return network, history


# The biases of cnn5's convolutions have no gradient but rounding, which Adam would blow up to its own scale: SGD there.
RECIPES = {
    "adam constant": CONSTANT,
    "adam cosine": {"schedule": {"name": "cosine"}},
    "adam decay": {**CONSTANT, "optimizer": {"name": "adam", "learning_rate": 0.002, "weight_decay": 0.01}},
    "sgd momentum cosine": {
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.001},
        "schedule": {"name": "cosine"},
    },
    "resnet18": {"architecture": "preact_resnet18"},
    "smoothed labels": {"loss": {"label_smoothing": 0.1}},
    "squared error": {"loss": {"name": "mean_squared_error"}},
    "cnn5 with all augmentation": {
        "architecture": "cnn5",
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "augmentation": {"shift_x": 2, "shift_y": 1, "flip": True},
    },
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_stacked_training_is_the_training_of_each_network_apart(recipe: str, make_study: Any, store: Store) -> None:
    """Weights, losses, accuracies and rates after two epochs of 32 + 32 + 32 + 4 images, float64."""
    study = make_study(RECIPES[recipe])
    session = Session(study, ARM, store, CPU, torch.float64)
    session.train_epoch()
    session.train_epoch()
    state = session.stacks[0].model.state_dict()
    recorded = np.concatenate(session.recorder.batches)
    for trial in range(2):
        network, history = train_plainly(study, ARM, trial, epochs=2)
        ours = recorded[:, [3 + trial, 5 + trial, 7 + trial]]
        np.testing.assert_allclose(ours, history, rtol=0, atol=1e-10)
        for name, tensor in network.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                assert (state[name].chunk(2)[trial] - tensor).abs().max() < 1e-10, name
    np.testing.assert_array_equal(recorded[:, 0], [1, 1, 1, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(recorded[:, 1], np.arange(1, 9))


def test_trials_beyond_one_stack_train_the_same_way_and_keep_their_order(make_study: Any, store: Store) -> None:
    study = make_study(RECIPES["cnn5 with all augmentation"], trials=9, data={"dataset": "digits", "num_train": 40})
    arm = Arm("plain", 1)
    assert stacking(study, arm) == [[0, 1, 2, 3, 4, 5, 6, 7], [8]]
    assert stacking(study, Arm("plain", 17)) == [[trial] for trial in range(9)]
    train_arm(study, arm, store, 2, dtype=torch.float64)
    weights, _ = load_checkpoint(store, study, Checkpoint(arm, 2))
    losses = table(store, study, arm, "training_batches")
    for trial in (0, 7, 8):
        network, history = train_plainly(study, arm, trial, epochs=2)
        for name, tensor in network.state_dict().items():
            assert (weights[name][trial] - tensor).abs().max() < 1e-10, name
        own = losses[losses.trial == trial].sort_values("step")
        np.testing.assert_allclose(own.train_loss, [h[0] for h in history], rtol=0, atol=1e-10)


# What is written


def test_evaluations_are_what_a_plain_network_with_the_checkpoints_weights_says(make_study: Any, store: Store) -> None:
    study = make_study(data={"dataset": "digits", "num_train": 100, "num_validation": 50})
    train_arm(study, ARM, store, 4)
    evals, images = (table(store, study, ARM, name) for name in ("training_evals", "image_progress"))
    pixels = load("digits").images
    for epoch in (0, 2, 4):
        weights, manifest = load_checkpoint(store, study, Checkpoint(ARM, epoch))
        means = []
        for trial in range(2):
            data = trial_data(study, "plain", trial)
            network = build("preact_resnet10", 2, 1, 10).double()
            state = {name: tensor[trial].double() for name, tensor in weights.items()}
            assert set(state) == set(network.state_dict())
            network.load_state_dict(state, strict=False)  # torch would like to see its batch counters
            network.eval()
            losses, wrong = {}, {}
            for split, ids, labels in (
                ("train", data.train_ids, data.train_labels),
                ("validation", data.validation_ids, data.validation_labels),
                ("test", data.test_ids, data.test_labels),
            ):
                with torch.no_grad():
                    logits = network(standardised(data, pixels[ids]))
                target = torch.from_numpy(labels)
                losses[split] = cross_entropy(logits, target, reduction="none").numpy()
                wrong[split] = (logits.argmax(1) != target).numpy()
                shown = images.query("epoch == @epoch and trial == @trial and split == @split").set_index("image_id")
                np.testing.assert_array_equal(np.sort(shown.index), ids)
                np.testing.assert_allclose(shown.loc[ids].loss, losses[split], rtol=1e-4, atol=1e-5)
                np.testing.assert_array_equal(shown.loc[ids].correct, ~wrong[split])
            noisy = data.true_train_labels != data.train_labels
            expected = [
                *(wrong["train"].mean(), losses["train"].mean()),
                *(wrong["train"][~noisy].mean(), losses["train"][~noisy].mean()),
                *(wrong["train"][noisy].mean(), losses["train"][noisy].mean()),
                *(losses["validation"].mean(), wrong["validation"].mean()),
                *(wrong["test"].mean(), losses["test"].mean()),
            ]
            (row,) = evals.query("epoch == @epoch and trial == @trial").to_dict("records")
            assert row["step"] == 4 * epoch
            np.testing.assert_allclose([row[name] for name in EVALUATED], expected, rtol=1e-5, atol=1e-12)
            means.append(expected)
        headline = [manifest.headline[name] for name in EVALUATED]
        np.testing.assert_allclose(headline, np.mean(means, axis=0), rtol=1e-5, atol=1e-12)


def test_without_noise_or_test_images_their_metrics_are_not_numbers(make_study: Any, store: Store) -> None:
    study = make_study({"label_noise": 0.0, "batch_size": 599}, data={"dataset": "digits"}, checkpoints=(0,))
    train_arm(study, Arm("plain", 1), store, 0)
    row = table(store, study, Arm("plain", 1), "training_evals").iloc[0]
    undefined = {name for name in EVALUATED if np.isnan(row[name])}
    noisy, validation = {"train_error_noisy", "train_loss_noisy"}, {"validation_loss", "validation_error"}
    assert undefined == noisy | validation | {"test_error", "test_loss"}
    assert row.train_error_clean == row.train_error


def test_batches_are_recorded_with_their_recipe(trained: Store, tiny_study: Study) -> None:
    rows = table(trained, tiny_study, ARM, "training_batches")
    assert len(rows) == 2 * 4 * 4
    assert rows.train_error.between(0, 1).all() and (rows.train_loss > 0).all()
    assert set(rows.recipe) == {tiny_study.recipe_hash(ARM)}
    assert (rows.time.diff()[rows.trial == 0].dropna() >= 0).all()
    expected = [learning_rate(Schedule(name="cosine"), 0.002, step, Calendar(4, 1), 4) for step in range(16)]
    np.testing.assert_allclose(rows[rows.trial == 1].sort_values("step").learning_rate, expected, rtol=1e-15)


def test_evaluations_may_be_rarer_and_images_kept_for_checkpoints_alone(make_study: Any, store: Store) -> None:
    study = make_study(evaluation={"every": 3, "image_progress": "checkpoints"})
    train_arm(study, ARM, store, 4)
    assert sorted(table(store, study, ARM, "training_evals").epoch.unique()) == [0, 2, 3, 4]
    assert sorted(table(store, study, ARM, "image_progress").epoch.unique()) == [0, 2, 4]


# The lock


def test_two_processes_never_train_one_arm(tiny_study: Study, store: Store) -> None:
    with arm_lock(store, tiny_study, ARM, wait=False), pytest.raises(ArmBusyError, match=r"plain\.k002 of tiny"):
        train_arm(tiny_study, ARM, store, 4, wait=False)
    train_arm(tiny_study, ARM, store, 0, wait=False)
