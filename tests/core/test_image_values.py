"""Further values of single images at evaluations: against plain networks, in the tables, through interruptions."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from dd_core.data.datasets import load
from dd_core.data.trials import trial_data
from dd_core.models.build import network_of
from dd_core.models.stacking import load_state
from dd_core.store.store import Store
from dd_core.study.recipe import Loss
from dd_core.study.study import Arm, Study
from dd_core.tables.files import read_parquet
from dd_core.tables.warehouse import connect
from dd_core.tasks.images import Classification
from dd_core.tasks.losses import make_loss
from dd_core.training.session import Session
from dd_core.training.train import train_arm
from tests.core.test_resume import Killed, kill_before_step

ARM = Arm("plain", 1)
VALUES = ("margin", "el2n", "gradient_norm")
SUBSET = {"dataset": "digits", "num_train": 60, "num_validation": 20, "subset": 0.7}


def plainly(study: Study, session: Session, trial: int) -> dict[str, np.ndarray]:
    """The values of one trial's images, one image at a time."""
    data, name = trial_data(study, "plain", trial), study.variants["plain"].loss.name
    network = network_of(study, ARM).double().eval()
    load_state(network, session.stacks[0].weights_of(trial))
    found: dict[str, list[float]] = {name: [] for name in VALUES}
    for image, label in zip(data.image_ids[:200], data.given_labels, strict=False):
        raw = torch.from_numpy(load("digits").images[[image]]).permute(0, 3, 1, 2).double()
        pixels = ((raw - float(data.mean[0])) / float(data.std[0])).requires_grad_()
        logits = network(pixels)[0]
        one_hot = torch.eye(10, dtype=torch.float64)[label]
        loss = -logits.log_softmax(0)[label] if name == "cross_entropy" else (logits - one_hot).square().mean()
        (gradient,) = torch.autograd.grad(loss, pixels)
        logits = logits.detach()
        others = torch.cat([logits[:label], logits[label + 1 :]])
        found["margin"].append(float(logits[label] - others.max()))
        found["el2n"].append(float((logits.softmax(0) - one_hot).norm()))
        found["gradient_norm"].append(float(gradient.norm()))
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("variant", [{}, {"architecture": "cnn5", "loss": {"name": "mean_squared_error"}}])
def test_values_of_a_stack_are_those_of_each_network_and_image_apart(
    variant: dict[str, Any], make_study: Any, store: Store
) -> None:
    study = make_study(variant, data=SUBSET, evaluation={"image_values": VALUES})
    session = Session(study, ARM, store, torch.device("cpu"), torch.float64)
    session.train_epoch()
    stack = session.stacks[0]
    inputs, targets = stack.examples.evaluated(stack.examples.splits(1), 0, 200)
    before = {name: tensor.clone() for name, tensor in stack.state().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in stack.model.parameters()]
    random = torch.random.get_rng_state()
    with stack.evaluating(), torch.inference_mode():
        outputs = stack.model(inputs)
        found = {name: stack.task.value(name, outputs, targets) for name in ("margin", "el2n")}
        found["gradient_norm"] = stack.gradient_norms(inputs, targets)
    assert torch.equal(random, torch.random.get_rng_state())
    for trial in range(2):
        for name, expected in plainly(study, session, trial).items():
            np.testing.assert_allclose(found[name][:, trial].numpy(), expected, rtol=0, atol=1e-10, err_msg=name)
    # And nothing is left of it.
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state().items())
    for parameter, grad in zip(stack.model.parameters(), grads, strict=True):
        assert (parameter.grad is None and grad is None) or torch.equal(parameter.grad, grad)
    recorded = stack.evaluate(1)
    assert recorded.loss.shape == recorded.values["margin"].shape == (2, 1797)
    for name in VALUES:
        np.testing.assert_allclose(recorded.values[name][:, :200], found[name].T.numpy(), rtol=1e-6)


def rows_of(store: Store, study: Study) -> Any:
    folder = store.table_folder("image_progress", study.name, ARM.key)
    return {path.name: read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


def test_recorded_values_survive_kills_and_leave_all_else_alone(
    make_study: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and losses are those of a study that does not ask; where it is killed changes no bit."""
    changes = {"data": SUBSET, "trials": 2, "checkpoints": (4,)}
    asked, plain = (make_study(evaluation={"every": 2, "image_values": values}, **changes) for values in (VALUES, ()))
    stores = {name: Store(tmp_path / name) for name in ("asked", "killed", "plain", "later")}
    train_arm(asked, ARM, stores["asked"], 4)
    train_arm(plain, ARM, stores["plain"], 4)
    for step in (3, 4):
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            kill_before_step(step, patch)
            train_arm(asked, ARM, stores["killed"], 4, resume_seconds=0)
    train_arm(asked, ARM, stores["killed"], 4, resume_seconds=0)
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        kill_before_step(5, patch)  # in epoch 3
        train_arm(plain, ARM, stores["later"], 4, resume_seconds=0)
    train_arm(asked, ARM, stores["later"], 4)
    rows = {name: rows_of(own, asked) for name, own in stores.items()}
    assert rows["killed"] == rows["asked"]
    for file, table in rows["asked"].items():
        assert set(table.column_names) - set(rows["plain"][file].column_names) == set(VALUES)
        assert table.drop_columns(list(VALUES)).equals(rows["plain"][file])
    late, whole = rows["later"]["0004.parquet"].to_pandas(), rows["asked"]["0004.parquet"].to_pandas()
    assert late[late.epoch <= 2].margin.isna().all()
    assert late[late.epoch > 2].equals(whole[whole.epoch > 2])
    right = whole[whole.margin != 0]
    assert ((right.margin > 0) == right.correct).all()
    with contextlib.closing(connect(stores["plain"])) as connection:
        assert connection.execute("SELECT count(*), count(margin) FROM image_progress").fetchall() == [
            (2 * 3 * 1797, 0)
        ]
    with contextlib.closing(connect(stores["asked"])) as connection:
        assert connection.execute("SELECT count(gradient_norm) FROM image_progress").fetchall() == [(2 * 3 * 1797,)]


def test_values_are_computed_where_they_are_kept_alone(make_study: Any, store: Store) -> None:
    evaluation = {"image_values": ("el2n",), "image_progress": "checkpoints"}
    study = make_study(data=SUBSET, evaluation=evaluation, checkpoints=(4,))
    session = Session(study, ARM, store, torch.device("cpu"))
    assert [set(session.stacks[0].evaluate(epoch).values) for epoch in (3, 4)] == [set(), {"el2n"}]


def test_with_one_class_there_is_no_margin() -> None:
    """The first task may have a single class."""
    task = Classification(make_loss(Loss()), torch.tensor([[2, 0, 1]]))
    task.restrict(1)
    assert task.value("margin", torch.randn(4, 1, 3), torch.zeros(4, 1, dtype=torch.int64)).isnan().all()
    task.restrict(2)
    outputs = torch.tensor([[[1.0, 9.0, 3.0]]])
    assert task.value("margin", outputs, torch.tensor([[0]])).item() == 2
