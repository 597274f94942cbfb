"""Training against a plain loop, exact resume, and tables that hold every step once whatever happened on the way."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dd_core.data.augmentation import plan_epoch
from dd_core.data.datasets import load
from dd_core.data.randomness import torch_seed
from dd_core.data.trials import TrialData, trial_data
from dd_core.errors import StaleError
from dd_core.models import build
from dd_core.store import Store
from dd_core.studies import Arm, Checkpoint, Schedule, Study
from dd_core.tables import read_parquet
from dd_core.training import train_arm
from dd_core.training.checkpoints import load_checkpoint
from dd_core.training.ledger import RunRecord
from dd_core.training.optimization import learning_rate
from dd_core.training.recorder import EVAL_METRICS
from dd_core.training.session import ArmBusyError, Session, arm_lock
from dd_core.training.stack import TrialStack, stacking
from dd_core.warehouse import connect

CPU = torch.device("cpu")
ARM = Arm("plain", 2)
METRIC_TABLES = ("training_batches", "training_evals", "image_progress")
CONSTANT = {"schedule": {"name": "constant"}}


# Against a plain loop


def standardised(data: TrialData, images: np.ndarray) -> Tensor:
    """(N, H, W, C) raw values as a float64 batch (N, C, H, W)."""
    values = (images.astype(np.float64) - data.mean.astype(np.float64)) / data.std.astype(np.float64)
    return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous()


def plain_network(study: Study, arm: Arm, trial: int) -> nn.Module:
    torch.manual_seed(torch_seed(study.seed, trial, "initialisation"))
    return build(study.variants[arm.variant].architecture, arm.k, 1, 10).double()


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
            loss = cross_entropy(logits, torch.tensor(labels))
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
        ours = recorded[:, [4 + trial, 6 + trial, 2]]
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
        np.testing.assert_allclose(own.loss_train_nats, [h[0] for h in history], rtol=0, atol=1e-10)


# What is written


def table(store: Store, study: Study, arm: Arm, name: str) -> pd.DataFrame:
    """All parts of a table of one arm."""
    parts = [read_parquet(path) for path in sorted(store.table_folder(name, study.name, arm.key).glob("*.parquet"))]
    return pa.concat_tables([p.replace_schema_metadata() for p in parts]).to_pandas()


def test_evaluations_are_what_a_plain_network_with_the_checkpoints_weights_says(
    trained: Store, tiny_study: Study
) -> None:
    evals, images = (table(trained, tiny_study, ARM, name) for name in ("training_evals", "image_progress"))
    pixels = load("digits").images
    for epoch in (0, 2, 4):
        weights, manifest = load_checkpoint(trained, tiny_study, Checkpoint(ARM, epoch))
        means = []
        for trial in range(2):
            data = trial_data(tiny_study, "plain", trial)
            network = build("preact_resnet10", 2, 1, 10).double()
            state = {name: tensor[trial].double() for name, tensor in weights.items()}
            assert set(state) == set(network.state_dict())
            network.load_state_dict(state, strict=False)  # torch would like to see its batch counters
            network.eval()
            losses, wrong = {}, {}
            for split, ids, labels in (
                ("train", data.train_ids, data.train_labels),
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
                value
                for split, subset in (
                    ("train", slice(None)),
                    ("train", ~noisy),
                    ("train", noisy),
                    ("test", slice(None)),
                )
                for value in (wrong[split][subset].mean(), losses[split][subset].mean())
            ]
            (row,) = evals.query("epoch == @epoch and trial == @trial").to_dict("records")
            assert row["step"] == 4 * epoch
            np.testing.assert_allclose([row[name] for name in EVAL_METRICS], expected, rtol=1e-5, atol=1e-12)
            means.append(expected)
        headline = [manifest["headline"][name] for name in EVAL_METRICS]
        np.testing.assert_allclose(headline, np.mean(means, axis=0), rtol=1e-5, atol=1e-12)


def test_without_noise_or_test_images_their_metrics_are_not_numbers(make_study: Any, store: Store) -> None:
    study = make_study({"label_noise": 0.0, "batch_size": 599}, data={"dataset": "digits"}, checkpoints=(0,))
    train_arm(study, Arm("plain", 1), store, 0)
    row = table(store, study, Arm("plain", 1), "training_evals").iloc[0]
    undefined = {name for name in EVAL_METRICS if np.isnan(row[name])}
    assert undefined == {"train_error_noisy", "train_loss_noisy", "test_error", "test_loss"}
    assert row.train_error_clean == row.train_error


def test_batches_are_recorded_with_their_recipe_in_nats_and_bits(trained: Store, tiny_study: Study) -> None:
    rows = table(trained, tiny_study, ARM, "training_batches")
    assert len(rows) == 2 * 4 * 4
    np.testing.assert_allclose(rows.loss_train_bits * np.log(2), rows.loss_train_nats, rtol=1e-14)
    assert set(rows.recipe) == {tiny_study.recipe_hash(ARM)}
    assert (rows.time.diff()[rows.trial == 0].dropna() >= 0).all()
    expected = [learning_rate(Schedule(name="cosine"), 0.002, step, 4, 4) for step in range(16)]
    np.testing.assert_allclose(rows[rows.trial == 1].sort_values("step").lr, expected, rtol=1e-15)


def test_evaluations_may_be_rarer_and_images_kept_for_checkpoints_alone(make_study: Any, store: Store) -> None:
    study = make_study(evaluation={"every": 3, "image_progress": "checkpoints"})
    train_arm(study, ARM, store, 4)
    assert sorted(table(store, study, ARM, "training_evals").epoch.unique()) == [0, 2, 3, 4]
    assert sorted(table(store, study, ARM, "image_progress").epoch.unique()) == [0, 2, 4]


# Exact resume


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Study], Store]:
    """The results of one undisturbed training of a study's second arm to its end."""
    stores: dict[str, Store] = {}

    def of(study: Study) -> Store:
        key = study.model_dump_json()
        if key not in stores:
            stores[key] = Store(tmp_path_factory.mktemp("undisturbed"))
            train_arm(study, ARM, stores[key], study.epochs)
        return stores[key]

    return of


def assert_same_results(store: Store, other: Store, study: Study, arm: Arm = ARM, epochs: Any = (0, 2, 4)) -> None:
    """Weights bit for bit; tables value for value (but the time), in the same order within each file's trials."""
    for epoch in epochs:
        ours, _ = load_checkpoint(store, study, Checkpoint(arm, epoch))
        theirs, _ = load_checkpoint(other, study, Checkpoint(arm, epoch))
        assert set(ours) == set(theirs)
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
    for name in METRIC_TABLES:
        keys = ["trial", "epoch", "step" if name == "training_batches" else "epoch"]
        keys += ["image_id"] if name == "image_progress" else []
        ours_, theirs_ = (
            table(s, study, arm, name).sort_values(keys, ignore_index=True).drop(columns="time", errors="ignore")
            for s in (store, other)
        )
        assert not ours_.duplicated(list(dict.fromkeys(keys))).any(), name
        pd.testing.assert_frame_equal(ours_, theirs_, check_exact=True, check_categorical=False, obj=name)


class Killed(BaseException):
    """Stands for the end of the process."""


def killer(event: str, epoch: int) -> Any:
    def report(news: dict[str, Any]) -> None:
        if news["event"] == event and news["epoch"] == epoch:
            raise Killed

    return report


@pytest.mark.parametrize("recipe", ["adam cosine", "sgd momentum cosine", "cnn5 with all augmentation"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_training_goes_on_after_any_epoch_as_if_nothing_had_happened(
    stop: int, recipe: str, make_study: Any, store: Store, undisturbed: Any
) -> None:
    study = make_study(RECIPES[recipe])
    with pytest.raises(Killed):
        train_arm(study, ARM, store, 4, resume_seconds=0, report=killer("progress", stop))
    seen: list[dict[str, Any]] = []
    train_arm(study, ARM, store, 4, report=seen.append)
    assert [news["epoch"] for news in seen if news["event"] == "progress"] == list(range(stop + 1, 5))
    assert_same_results(store, undisturbed(study), study)


def test_training_survives_an_end_after_every_epoch(tiny_study: Study, store: Store, trained: Store) -> None:
    other = Store(store.root / "other")
    for stop in range(1, 5):
        with pytest.raises(Killed):
            train_arm(tiny_study, ARM, other, 4, resume_seconds=0, report=killer("progress", stop))
    train_arm(tiny_study, ARM, other, 4)
    assert_same_results(other, trained, tiny_study)


@pytest.mark.parametrize("epoch", [2, 4])
@pytest.mark.parametrize("place", ["save_checkpoint", "save_resume_point"])
def test_an_end_between_the_files_of_a_checkpoint_costs_nothing_but_time(
    place: str, epoch: int, tiny_study: Study, trained: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store(trained.root / "other")
    usual = getattr(Session, place)

    def die(session: Session, *arguments: Any) -> None:
        if session.epoch == epoch:
            if place == "save_checkpoint":  # metrics and weights are written, their manifest is not
                monkeypatch.setattr(Store, "write_manifest", lambda *_: (_ for _ in ()).throw(Killed))
                usual(session, *arguments)
            raise Killed
        usual(session, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Session, place, die)
        train_arm(tiny_study, ARM, other, 4)
    monkeypatch.undo()
    with pytest.raises(StaleError):
        load_checkpoint(other, tiny_study, Checkpoint(ARM, epoch if place == "save_checkpoint" else epoch + 1))
    train_arm(tiny_study, ARM, other, 4)
    assert_same_results(other, trained, tiny_study)


def test_training_to_an_earlier_epoch_first_changes_nothing(tiny_study: Study, trained: Store) -> None:
    other = Store(trained.root / "other")
    for until in (0, 2, 4):
        train_arm(tiny_study, ARM, other, until)
    assert_same_results(other, trained, tiny_study)


def test_the_order_in_which_arms_train_changes_nothing(tiny_study: Study, trained: Store) -> None:
    other = Store(trained.root / "other")
    torch.manual_seed(99)
    train_arm(tiny_study, Arm("plain", 1), other, 4)
    assert_same_results(other, trained, tiny_study, Arm("plain", 1))


def test_what_is_trained_is_not_trained_again(tiny_study: Study, trained: Store) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.root.rglob("*") if path.suffix != ".lock"}
    for until in (4, 2):
        train_arm(tiny_study, ARM, trained, until, report=lambda news: pytest.fail(f"trained again: {news}"))
    after = {path: path.stat().st_mtime_ns for path in trained.root.rglob("*") if path.is_file()}
    assert {path: time for path, time in after.items() if path.suffix != ".lock"}.items() <= before.items()


def harm_checkpoint(store: Store, study: Study) -> Path:
    path = store.checkpoint_path(study.name, Checkpoint(ARM, 2))
    path.write_bytes(path.read_bytes()[:-8] + b"\x00" * 8)
    return path


def harm_metrics(store: Store, study: Study) -> Path:
    path = store.table_folder("training_batches", study.name, ARM.key) / "0002.parquet"
    path.unlink()
    return path


def harm_manifest(store: Store, study: Study) -> Path:
    path = store.checkpoint_manifest_path(study.name, Checkpoint(ARM, 0))
    path.write_text("{")
    return path


@pytest.mark.parametrize("harm", [harm_checkpoint, harm_metrics, harm_manifest])
def test_harmed_results_are_noticed_and_made_again_with_the_same_bits(
    harm: Any, tiny_study: Study, trained: Store, undisturbed: Any
) -> None:
    harm(trained, tiny_study)
    notes: list[str] = []
    train_arm(tiny_study, ARM, trained, 4, report=lambda news: notes.append(news.get("text", "")))
    assert "from the beginning, because" in notes[0]
    assert_same_results(trained, undisturbed(tiny_study), tiny_study)


@pytest.mark.parametrize("harm", ["truncated", "altered", "absent"])
def test_a_harmed_resume_point_costs_nothing_but_time(harm: str, tiny_study: Study, trained: Store) -> None:
    other = Store(trained.root / "other")
    train_arm(tiny_study, ARM, other, 2)
    path = other.resume_path(tiny_study.name, ARM.key)
    content = path.read_bytes()
    if harm == "absent":
        path.unlink()
    else:
        path.write_bytes(content[:-100] if harm == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    seen: list[dict[str, Any]] = []
    train_arm(tiny_study, ARM, other, 4, report=seen.append)
    assert any(news["event"] == "note" for news in seen) == (harm != "absent")
    assert_same_results(other, trained, tiny_study)


# Studies that change


def test_another_checkpoint_epoch_is_trained_for_and_leaves_the_others_bits_alone(
    make_study: Any, trained: Store, undisturbed: Any
) -> None:
    study = make_study(checkpoints=(0, 1, 2, 3, 4))
    train_arm(study, ARM, trained, 4)
    assert_same_results(trained, undisturbed(study), study, epochs=range(5))


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize(
    ("checkpoints", "harmed"),
    [((0, 1, 2, 3, 4), None), ((0, 3, 4), None), ((1, 4), None), ((0, 4), 0), ((2, 4), 4), ((4,), 4)],
    ids=str,
)
def test_changed_checkpoint_epochs_leave_every_step_once_even_if_training_is_interrupted(
    checkpoints: tuple[int, ...], harmed: int | None, stop: int, make_study: Any, trained: Store, undisturbed: Any
) -> None:
    study = make_study(checkpoints=checkpoints)
    if harmed is not None:  # so that it is trained again although no epoch is new
        trained.checkpoint_manifest_path("tiny", Checkpoint(ARM, harmed)).unlink()
    with pytest.raises(Killed):
        train_arm(study, ARM, trained, 4, resume_seconds=0, report=killer("progress", stop))
    train_arm(study, ARM, trained, 4)
    assert_same_results(trained, undisturbed(study), study, epochs=checkpoints)


def test_fewer_checkpoint_epochs_need_no_training(make_study: Any, trained: Store, undisturbed: Any) -> None:
    study = make_study(checkpoints=(0, 4))
    train_arm(study, ARM, trained, 4, report=lambda news: pytest.fail(f"trained again: {news}"))
    assert_same_results(trained, undisturbed(study), study, epochs=(0, 4))


def test_a_study_with_a_constant_rate_goes_on_where_it_ended(make_study: Any, store: Store, undisturbed: Any) -> None:
    short, long = make_study(CONSTANT), make_study(CONSTANT, epochs=6, checkpoints=(0, 2, 4, 6))
    train_arm(short, ARM, store, 4)
    seen: list[dict[str, Any]] = []
    train_arm(long, ARM, store, 6, report=seen.append)
    assert [news["epoch"] for news in seen if news["event"] == "progress"] == [5, 6]
    assert_same_results(store, undisturbed(long), long, epochs=(0, 2, 4, 6))


def test_a_changed_recipe_retires_what_the_old_one_made(make_study: Any, trained: Store) -> None:
    old, new = make_study(), make_study({"label_noise": 0.1})
    weights, _ = load_checkpoint(trained, old, Checkpoint(ARM, 4))
    with pytest.raises(StaleError, match="another recipe"):
        load_checkpoint(trained, new, Checkpoint(ARM, 4))
    notes: list[str] = []
    train_arm(new, ARM, trained, 2, report=lambda news: notes.append(news.get("text", "")))
    retired = trained.root / "retired" / "tiny" / ARM.key / old.recipe_hash(ARM)
    assert str(retired) in notes[0]
    assert (retired / "checkpoints" / "tiny" / ARM.key / "0004.safetensors").is_file()
    for name in (*METRIC_TABLES, "runs"):
        rows = table(trained, new, ARM, name)
        assert set(rows.recipe) == {new.recipe_hash(ARM)}, name
    with pytest.raises(StaleError, match="not been trained"):
        load_checkpoint(trained, new, Checkpoint(ARM, 4))
    fresh, _ = load_checkpoint(trained, new, Checkpoint(ARM, 2))
    assert not torch.equal(fresh["linear.weight"], weights["linear.weight"])
    # The other arm is retired when it is its turn, not before.
    assert load_checkpoint(trained, old, Checkpoint(Arm("plain", 1), 4))


def test_a_changed_data_set_makes_checkpoints_stale(
    tiny_study: Study, trained: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(load("digits").__dict__, "sha256", "of other images")
    with pytest.raises(StaleError, match="another data_sha256"):
        load_checkpoint(trained, tiny_study, Checkpoint(ARM, 4))


# The table of runs, and the lock


def runs_of(store: Store) -> pd.DataFrame:
    """The table as its view shows it, by attempt and trial."""
    with contextlib.closing(connect(store)) as connection:
        return connection.sql("SELECT * FROM runs ORDER BY attempt, trial").to_arrow_table().to_pandas()


def test_no_file_of_runs_is_ever_written_again(tiny_study: Study, store: Store) -> None:
    """Whoever reads the table while an attempt ends must not find a file changed under them."""
    with pytest.raises(Killed):
        train_arm(tiny_study, ARM, store, 4, resume_seconds=0, report=killer("progress", 3))
    folder = store.table_folder("runs", tiny_study.name, ARM.key)
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    assert set(before) == {"attempt-0001.start.parquet", "attempt-0001.end.parquet"}
    train_arm(tiny_study, ARM, store, 4)
    after = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    assert {name: after[name] for name in before} == before
    assert len(after) == 4


def test_an_attempt_killed_before_its_end_was_written_is_ended_although_nothing_is_left_to_train(
    tiny_study: Study, store: Store
) -> None:
    train_arm(tiny_study, ARM, store, 4)
    (store.table_folder("runs", tiny_study.name, ARM.key) / "attempt-0001.end.parquet").unlink()
    assert set(runs_of(store).status) == {"running"}
    train_arm(tiny_study, ARM, store, 4)
    assert runs_of(store).status.tolist() == ["interrupted", "interrupted"]


def test_every_attempt_is_a_row_per_trial_that_says_how_it_ended(tiny_study: Study, store: Store) -> None:
    with pytest.raises(Killed):
        train_arm(tiny_study, ARM, store, 4, resume_seconds=0, report=killer("progress", 3))
    train_arm(tiny_study, ARM, store, 4)
    runs = runs_of(store)
    assert runs.attempt.tolist() == [1, 1, 2, 2]
    assert runs.trial.tolist() == [0, 1, 0, 1]
    assert runs.status.tolist() == ["failed", "failed", "finished", "finished"]
    assert runs.reason.tolist()[0].startswith("Killed")
    assert runs.reason.isna().tolist() == [False, False, True, True]
    assert runs.first_epoch.tolist() == [0, 0, 3, 3]
    assert runs.last_epoch.tolist() == [3, 3, 4, 4]
    assert set(runs.num_parameters) == {sum(p.numel() for p in build("preact_resnet10", 2, 1, 10).parameters())}
    images = (runs.last_epoch - runs.first_epoch) * 200
    np.testing.assert_allclose(runs.samples_per_second * runs.seconds, images, rtol=1e-9)
    assert (runs.ended_at >= runs.started_at.dt.floor("ms")).all()
    evals = table(store, tiny_study, ARM, "training_evals").query("epoch == 4")
    np.testing.assert_allclose(runs.test_error[runs.attempt == 2], evals.test_error.mean(), rtol=1e-12)


def test_an_attempt_that_vanished_without_a_word_is_marked_by_the_next(tiny_study: Study, store: Store) -> None:
    stacks = [TrialStack(tiny_study, ARM, [0, 1], CPU, torch.float32)]
    RunRecord.open(store, tiny_study, ARM, 0, "cpu", stacks)
    running = runs_of(store)
    assert set(running.status) == {"running"}
    assert running[["ended_at", "seconds", "reason"]].isna().all().all()
    train_arm(tiny_study, ARM, store, 0)
    runs = runs_of(store)
    assert runs.status.tolist() == ["interrupted", "interrupted", "finished", "finished"]
    assert runs.attempt.tolist() == [1, 1, 2, 2]
    assert runs.started_at.tolist()[:2] == running.started_at.tolist()
    assert runs.ended_at.isna().tolist() == [True, True, False, False]


def test_two_processes_never_train_one_arm(tiny_study: Study, store: Store) -> None:
    with arm_lock(store, tiny_study, ARM, wait=False), pytest.raises(ArmBusyError, match=r"plain\.k002 of tiny"):
        train_arm(tiny_study, ARM, store, 4, wait=False)
    train_arm(tiny_study, ARM, store, 0, wait=False)
