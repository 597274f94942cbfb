"""Training on classes that come one group after the other: against a plain loop, whatever ends it, what it records."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dd_core.checks.metrics import metric_gaps
from dd_core.data.datasets import load
from dd_core.data.randomness import generator, torch_seed
from dd_core.data.trials import trial_data
from dd_core.errors import UserError
from dd_core.forecast.work import num_examples
from dd_core.models.build import build
from dd_core.store.best_checkpoints import load_best
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.parts import all_parts
from dd_core.store.store import Store, sha256_of
from dd_core.study.calendar import Calendar
from dd_core.study.recipe import Schedule
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.images import write_images
from dd_core.tables.warehouse import connect
from dd_core.training.optimization import learning_rate
from dd_core.training.session import Session
from dd_core.training.settling import progress_at
from dd_core.training.train import train_arm, train_together
from dd_core.training.train_part import train_part
from dd_core.training.trial_stack import TrialStack

from .comparison import Killed, assert_same_results, killer, table
from .test_resume import kill_before_step

CPU = torch.device("cpu")
ARM = Arm("plain", 2)
SGD = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}
STEP = {"name": "step", "milestones": [1], "factor": 0.2}
QUIET = {"validation": None, "norms": None, "hessian": None, "noise": None}
BUSY = {
    "validation": {"every": "1/2 epoch"},
    "norms": {"every": "1 step"},
    "hessian": {"every": "5 steps", "num_images": 12, "iterations": 2, "num_probes": 2},
    "noise": {"every": "1 epoch", "window": 128, "num_batches": 2},
}


def make(**changes: Any) -> Study:
    """Three tasks of two epochs: 3, 6 and 9 of ten digits, 8 training images of each, in batches of 10."""
    variant = {"architecture": "preact_resnet10", "batch_size": 10, "optimizer": SGD, "schedule": STEP}
    content = {
        "name": "tiny",
        "description": "made for tests",
        "data": {
            **{"dataset": "digits", "num_train": 80, "num_validation": 30},
            "classes": {"first": 3, "add": 3, "every": 2},
        },
        "variants": {"plain": {**variant, **changes.pop("variant", {})}},
        "widths": [2],
        "trials": 2,
        "epochs": 6,
        "checkpoints": [0, 2, 3, 6],
        "monitors": QUIET,
        **changes,
    }
    return Study.model_validate_json(json.dumps(content))


# Against a plain loop


def plainly(study: Study, trial: int, epochs: int) -> tuple[torch.nn.Module, list[tuple[float, float, float]]]:
    """One network in float64 and its steps: loss, accuracy, learning rate. As upstream, with logits[:, classes]."""
    data, variant = trial_data(study, "plain", trial), study.variants["plain"]
    values = (load("digits").images.astype(np.float64) - data.mean.astype(np.float64)) / data.std.astype(np.float64)
    images, labels = torch.from_numpy(values).permute(0, 3, 1, 2), load("digits").labels
    torch.manual_seed(torch_seed(study.seed, trial, "initialisation"))
    network = build("preact_resnet10", 2, 1, 10).double().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    order = generator(study.seed, trial, "class_order").permutation(10)
    history = []
    for epoch in range(1, epochs + 1):
        task = (epoch - 1) // 2
        classes = order[: 3 * (task + 1)]
        seen = np.concatenate([np.sort(data.train_ids[labels[data.train_ids] == label]) for label in classes])
        assert len(seen) == 24 * (task + 1)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 if (epoch - 1) % 2 == 0 else 0.1 * 0.2
        shuffled = seen[generator(study.seed, trial, "order", epoch).permutation(len(seen))]
        for start in range(0, len(seen), variant.batch_size):
            ids = shuffled[start : start + variant.batch_size]
            one_hot = torch.from_numpy((labels[ids][:, None] == classes).astype(float))
            optimizer.zero_grad()
            logits = network(images[ids])[:, classes]
            loss = torch.nn.functional.cross_entropy(logits, one_hot)
            loss.backward()
            optimizer.step()
            right = (logits.argmax(1) == one_hot.argmax(1)).double().mean()
            history.append((loss.item(), right.item(), optimizer.param_groups[0]["lr"]))
    return network, history


def test_two_tasks_are_those_of_a_plain_loop() -> None:
    study = make()
    stack = TrialStack(study, ARM, [0, 1], CPU, torch.float64)
    epochs = [stack.train_epoch(epoch) for epoch in range(1, 5)]
    for trial in range(2):
        network, history = plainly(study, trial, 4)
        loss, accuracy, rate = np.array(history).T
        np.testing.assert_allclose(np.concatenate([m.loss[:, trial] for m in epochs]), loss, rtol=0, atol=1e-10)
        np.testing.assert_allclose(np.concatenate([m.lr[:, trial] for m in epochs]), rate, rtol=1e-12)
        np.testing.assert_allclose(np.concatenate([m.accuracy[:, trial] for m in epochs]), accuracy, rtol=1e-6)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(stack.weights_of(trial)[name], tensor, rtol=0, atol=1e-10)
        assert_evaluation_is_of_the_classes_seen(study, stack, network, trial)


def assert_evaluation_is_of_the_classes_seen(
    study: Study, stack: TrialStack, network: torch.nn.Module, trial: int
) -> None:
    data, labels = stack.data[trial], load("digits").labels
    order = generator(study.seed, trial, "class_order").permutation(10)[:6]
    values = (load("digits").images.astype(np.float64) - data.mean.astype(np.float64)) / data.std.astype(np.float64)
    result = stack.evaluate(4)
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(values).permute(0, 3, 1, 2))[:, order]
    for place, image in enumerate(data.image_ids):
        if labels[image] not in order:
            assert np.isnan(result.loss[trial, place]) and not result.correct[trial, place]
            continue
        rank = list(order).index(labels[image])
        expected = torch.nn.functional.cross_entropy(logits[image], torch.tensor(rank)).item()
        assert result.loss[trial, place] == pytest.approx(expected, abs=1e-5)
        assert result.correct[trial, place] == (logits[image].argmax().item() == rank)


def test_the_learning_rate_restarts_with_every_task_as_upstreams() -> None:
    """shibhansh/loss-of-plasticity: 0.1, 0.02, 0.004, 0.0008 from epochs 0, 60, 120, 160 of each 200."""
    schedule = Schedule(name="step", milestones=(60, 120, 160), factor=0.2)
    calendar = Calendar(2250, 90, ((201, 4500), (401, 6750)))
    for epoch in range(1, 601):
        place = (epoch - 1) % 200
        expected = 0.1 if place < 60 else 0.02 if place < 120 else 0.004 if place < 160 else 0.0008
        for step in (calendar.steps_before(epoch), calendar.steps_after(epoch) - 1):
            assert learning_rate(schedule, 0.1, step, calendar, 600) == pytest.approx(expected, rel=1e-12)
    on = schedule.model_copy(update={"restarts": False})
    assert learning_rate(on, 0.1, calendar.steps_before(201), calendar, 600) == pytest.approx(0.0008)
    # A cosine ends with each task, the last wherever the study ends.
    cosine = Schedule(name="cosine", warmup_epochs=1.0)
    for first, last in ((1, 200), (201, 400), (401, 450)):
        rates = [learning_rate(cosine, 0.1, calendar.steps_before(e), calendar, 450) for e in range(first, last + 1)]
        assert rates[0] == pytest.approx(0.1 / calendar.steps_of(first)) and rates[1] == pytest.approx(0.1)
        assert rates[-1] < 3e-4 and all(np.diff(rates[1:]) < 0)


def test_neither_a_step_nor_a_task_of_a_job_counts_all_tasks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    study = make()
    calendar = study.calendar("plain")
    assert study.calendar("plain") is calendar
    schedule = study.variants["plain"].schedule
    rates = [learning_rate(schedule, 0.1, step, calendar, 6) for step in range(40)]
    monkeypatch.setattr(Calendar, "epochs_of", None)
    assert [learning_rate(schedule, 0.1, step, calendar, 6) for step in range(40)] == rates


def test_a_monitor_that_looks_at_classes_to_come_is_told_so() -> None:
    stack = TrialStack(make(), ARM, [0, 1], torch.device("cpu"), torch.float32)
    every = torch.arange(stack.num_train)[:, None].expand(-1, 2)
    with pytest.raises(UserError, match=r"example 79 .*, but task 1 has 24; .* calendar.examples_of\(epoch\)$"):
        stack.training_examples(every)
    stack.training_examples(every[: stack.calendar.examples_of(1)])


def test_micro_batches_and_shared_networks_change_nothing(store: Store) -> None:
    """Without BatchNorm, in float64."""
    study = make(variant={"network": {"norm": "none"}})
    whole, pieces = (TrialStack(study, ARM, [0, 1], CPU, torch.float64, size) for size in (None, 3))
    both = TrialStack(
        study, ARM, [0, 1], CPU, torch.float64, of_arms=[study.variants["plain"].optimizer, other_rate(study)]
    )
    for epoch in range(1, 5):
        ours, theirs, shared = (stack.train_epoch(epoch) for stack in (whole, pieces, both))
        np.testing.assert_allclose(ours.loss, theirs.loss, rtol=0, atol=1e-10)
        np.testing.assert_allclose(ours.loss, shared.loss[:, :2], rtol=0, atol=1e-10)
        assert not np.allclose(ours.loss, shared.loss[:, 2:]) or epoch == 1
        np.testing.assert_allclose(whole.evaluate(epoch).loss, both.evaluate(epoch).loss[:2], atol=1e-6)


def other_rate(study: Study) -> Any:
    return study.variants["plain"].optimizer.model_copy(update={"learning_rate": 0.01})


# Whatever ends it

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "interventions": {
        "interventions": {
            "best_weights": True,
            "head_reset": True,
            "shrink_and_perturb": {"noise": 1e-3, "shrink": 0.999},
            "continual_backprop": {"replacement_rate": 0.1, "maturity": 2},
        }
    },
    "plateau": {"schedule": {"name": "plateau", "patience": 0, "factor": 0.5, "threshold": 0.05}},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Study], Store]:
    """The results of one undisturbed training."""
    stores: dict[str, Store] = {}

    def of(study: Study) -> Store:
        key = study.model_dump_json()
        if key not in stores:
            stores[key] = Store(tmp_path_factory.mktemp("undisturbed"))
            train_arm(study, ARM, stores[key], 6)
        return stores[key]

    return of


def assert_same(store: Store, other: Store, study: Study) -> None:
    assert_same_results(store, other, study, ARM, study.checkpoints)
    best = [
        {path.name: sha256_of(path) for path in s.best_folder("tiny", ARM.key).glob("*.safetensors")}
        for s in (store, other)
    ]
    assert best[0] == best[1] and best[0]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_step_it_has_the_bits_of_an_undisturbed_one(
    kind: str, store: Store, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(variant=KINDS[kind], monitors=BUSY)
    random = np.random.default_rng(list(KINDS).index(kind))
    for step in [7, *random.integers(1, 18, size=3)]:  # the seventh is the first of the second task
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            kill_before_step(int(step), patch)
            train_arm(study, ARM, store, 6, resume_seconds=0)
    train_arm(study, ARM, store, 6, resume_seconds=0)
    assert_same(store, undisturbed(study), study)


@pytest.mark.parametrize("place", ["between its files", "before the resume point", "after it"])
def test_killed_at_a_boundary_it_ends_the_task_once(
    place: str, store: Store, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 2 ends the first task, and is a checkpoint."""
    study = make(variant=KINDS["interventions"], monitors=BUSY)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if place == "between its files":
            write = Store.write_manifest
            patch.setattr(Store, "write_manifest", lambda s, *a: _die() if "0002" in str(a[0]) else write(s, *a))
        if place == "before the resume point":
            keep = Session.save_resume_point
            patch.setattr(Session, "save_resume_point", lambda own: _die() if own.epoch == 2 else keep(own))
        train_arm(study, ARM, store, 6, resume_seconds=0, report=killer("progress", 2))
    train_arm(study, ARM, store, 6)
    assert_same(store, undisturbed(study), study)


def _die() -> None:
    raise Killed


def test_parts_have_the_bits_of_one_training(store: Store, undisturbed: Any) -> None:
    """Plateaus need a network for each trial; the second part is trained first."""
    study = make(variant=KINDS["plateau"], monitors=BUSY)
    parts = all_parts(store, study, ARM)
    assert len(parts) == 2
    for part in reversed(parts):
        numbers = part.study.trial_numbers
        train_part(study, ARM, store, 6, range(numbers[0], numbers[-1] + 1))
    for name in ("training_evals", "class_progress", "image_progress", "training_monitors"):
        ours, theirs = (table(s, study, ARM, name) for s in (store, undisturbed(study)))
        assert len(ours) and ours.to_csv() == theirs.to_csv(), name


def test_arms_that_share_a_network_go_on_with_the_same_bits(store: Store) -> None:
    rates = {name: {**SGD, "learning_rate": rate} for name, rate in (("slow", 0.01), ("fast", 0.1))}
    first = make(monitors=BUSY)
    variants = {name: first.variants["plain"].model_dump(mode="json") | {"optimizer": rates[name]} for name in rates}
    study = Study.model_validate_json(json.dumps({**first.model_dump(mode="json"), "variants": variants}))
    arms, other = list(study.arms.values()), Store(store.root / "other")
    train_together(study, arms, other, 6)
    with pytest.raises(Killed):
        train_together(study, arms, store, 6, resume_seconds=0, report=killer("progress", 2))
    train_together(study, arms, store, 6)
    for arm in arms:
        assert_same_results(store, other, study, arm, study.checkpoints)


# What it records


@pytest.fixture(scope="module")
def recorded(undisturbed: Any) -> Store:
    study = make(monitors=BUSY)
    store = undisturbed(study)
    write_images(store, study)
    return store


def test_everything_recorded_is_of_the_classes_seen(recorded: Store) -> None:
    study = make(monitors=BUSY)
    with contextlib.closing(connect(recorded)) as sql:
        assert metric_gaps(recorded, study, sql) == ([], 2)
        images = "image_progress p JOIN images i USING (study, variant, trial, image_id)"
        # By SQL over single images: evaluations, and class_progress.
        wrong = sql.sql(
            f"""WITH by_split AS (
                SELECT p.trial, p.epoch, avg(p.loss) FILTER (p.split = 'train') AS train_loss,
                    1 - avg(p.correct::INT) FILTER (p.split = 'test') AS test_error,
                    1 - avg(p.correct::INT) FILTER (p.split = 'validation') AS validation_error, max(class_rank) AS last
                FROM {images} GROUP BY ALL)
            SELECT count(*), count(*) FILTER (abs(e.train_loss - b.train_loss) > 1e-6
                OR last <> 2 + 3 * ((e.epoch > 2)::INT + (e.epoch > 4)::INT)
                OR abs(e.test_error - b.test_error) + abs(e.validation_error - b.validation_error) > 1e-9)
            FROM training_evals e JOIN by_split b USING (trial, epoch)"""
        ).fetchall()
        assert wrong == [(14, 0)]
        wrong = sql.sql(
            f"""WITH by_class AS (
                SELECT p.trial, p.epoch, p.split, true_label, class_rank, avg(p.loss) AS loss,
                    avg(p.correct::INT) AS accuracy, count(*) AS number FROM {images} GROUP BY ALL)
            SELECT count(*), count(*) FILTER (abs(c.loss - b.loss) > 1e-6 OR abs(c.accuracy - b.accuracy) > 1e-9
                OR c.class_label <> b.true_label OR c.num_images <> b.number OR c.task <> c.class_rank // 3 + 1)
            FROM class_progress c FULL JOIN by_class b USING (trial, epoch, split, class_rank)"""
        ).fetchall()
        assert wrong == [(2 * 3 * (3 * 3 + 2 * 6 + 2 * 9), 0)]
        seen = sql.sql(
            "SELECT epoch, count(*) FILTER (is_seen) / 2 // 174, count(*) FILTER (is_active) / 2 // 174 "
            "FROM images_by_epoch GROUP BY epoch ORDER BY epoch"
        ).fetchall()
        assert seen == [(0, 0, 3), (2, 3, 6), (3, 6, 6), (6, 9, 10)]
        # The validation monitor, which goes its own way, says the same at the end of an epoch.
        differ = sql.sql(
            "SELECT count(*), max(abs(m.value - e.validation_error)) FROM training_monitors m JOIN training_evals e "
            "USING (trial, epoch, step) WHERE metric = 'validation_error'"
        ).fetchall()
        assert differ[0] == (12, pytest.approx(0, abs=1e-7))
        rates = sql.sql(
            "SELECT DISTINCT round(learning_rate, 6) AS rate FROM training_batches ORDER BY rate"
        ).fetchall()
        assert rates == [(0.02,), (0.1,)]


def test_what_is_missing_of_an_epoch_is_named(recorded: Store, tmp_path: Path) -> None:
    """A study that had tasks of one epoch would have evaluated more classes."""
    study = make(monitors=BUSY)
    longer = study.model_copy(
        update={"data": study.data.model_copy(update={"classes": study.data.classes.model_copy(update={"every": 3})})}
    )
    counted, images_at = [], Study.num_images_evaluated_at
    with contextlib.closing(connect(recorded)) as sql, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Study, "recipe_hash", lambda self, arm: study_hash)
        patch.setattr(Study, "num_images_evaluated_at", lambda *given: counted.append(given[1]) or images_at(*given))
        (problems, _) = metric_gaps(recorded, longer, sql)
    assert any("image_progress is of another number of images than 522 at epoch 3" in text for text in problems)
    assert any("class_progress is of another number of rows than 9 at epoch 3" in text for text in problems)
    assert counted[:7] == [0, 1, 2, 3, 4, 5, 6] and counted.count(1) == 1  # once for both trials


study_hash = make(monitors=BUSY).recipe_hash(ARM)


def test_the_best_checkpoints_are_those_of_the_last_task(recorded: Store) -> None:
    """Losses of three classes and of nine do not compare."""
    study = make(monitors=BUSY)
    for trial in range(2):
        assert load_best(recorded, study, ARM, trial)[1].epoch > 4
        progress = progress_at(recorded, study, Checkpoint(ARM, 6))[trial]
        assert [epoch for _, epoch in progress.kept] and all(epoch > 4 for _, epoch in progress.kept)
        assert progress_at(recorded, study, Checkpoint(ARM, 2))[trial].best["epoch"] in (0, 1, 2)


def test_costs_count_the_images_of_every_epoch(recorded: Store) -> None:
    study = make(monitors=BUSY)
    assert num_examples(study, ARM, 1, 5) == 24 + 48 + 48 + 72
    runs = table(recorded, study, ARM, "runs")
    ended = runs[runs.status == "finished"]
    np.testing.assert_allclose(ended.samples_per_second * ended.seconds, 2 * 2 * (24 + 48 + 72))


def test_the_hessian_monitor_looks_at_equally_many_images_of_every_class() -> None:
    stack = TrialStack(make(monitors=BUSY), ARM, [0, 1], CPU, torch.float64)
    for epoch, classes in ((1, 3), (3, 6)):
        targets = hessian_targets(stack, epoch)
        assert targets.bincount().tolist() == [12 // classes] * classes


def hessian_targets(stack: TrialStack, epoch: int) -> Tensor:
    """The ranks of the classes of the images of the first trial."""
    monitor = dict(stack.monitors._entries)["hessian"][1]
    positions = monitor._positions(epoch)  # type: ignore[attr-defined]
    return stack.examples.at(positions[:, None].expand(-1, 2))[1][:, 0]


def test_a_checkpoint_at_a_boundary_holds_what_was_trained(undisturbed: Any) -> None:
    """Interventions at the end of a task come after it."""
    study = make(variant={"interventions": {"head_reset": True}})
    weights, _ = load_checkpoint(undisturbed(study), study, Checkpoint(ARM, 2))
    plain, _ = load_checkpoint(undisturbed(make()), make(), Checkpoint(ARM, 2))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in weights.items())
    later, _ = load_checkpoint(undisturbed(study), study, Checkpoint(ARM, 3))
    other, _ = load_checkpoint(undisturbed(make()), make(), Checkpoint(ARM, 3))
    assert not torch.equal(later["linear.weight"], other["linear.weight"])
