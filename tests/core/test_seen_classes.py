"""Curvature where classes come one group after the other: rows of what was seen, the loss of the outputs seen."""

import contextlib
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn.functional import cross_entropy

from dd_core.checks.seen_classes import seen_classes, verification_table
from dd_core.data.class_schedule import class_order
from dd_core.data.datasets import load
from dd_core.data.trials import TrialData, trial_data
from dd_core.models.build import network_of
from dd_core.models.outputs import Outputs, with_outputs
from dd_core.models.stacking import stack_states
from dd_core.results.by_trial import described
from dd_core.results.curvature_summary import rebuild
from dd_core.results.hessian import hessian_of_checkpoint
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.checkpoints import load_checkpoint, save_checkpoint, save_weights
from dd_core.store.provenance import checkpoint_manifest
from dd_core.store.store import Store
from dd_core.study import study as studies
from dd_core.study.classes import ClassSchedule
from dd_core.study.curvature import shards as usual_shards
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import read_parquet, write_parquet
from dd_core.tables.kinds import HESSIAN, PER_IMAGE_CURVATURE
from dd_core.tables.warehouse import connect

ARM = Arm("plain", 4)


def incremental(**changes: Any) -> Study:
    """Digits, two classes and two more every three epochs, eight training images of each."""
    content = {
        "name": "growing",
        "description": "made for tests",
        "data": {
            "dataset": "digits",
            "num_train": 80,
            "num_validation": 10,
            "classes": {"first": 2, "add": 2, "every": 3},
        },
        "variants": {
            "plain": {"architecture": "mlp", "batch_size": 8, "optimizer": {"name": "sgd", "learning_rate": 0.1}}
        },
        "widths": (4,),
        "trials": 2,
        "epochs": 15,
        "checkpoints": (0, 3, 4, 6, 15),
        "hessian": {"epochs": (4,), "num_images": None, "quantities": ("exact_trace", "eigenvalues"), "precision":
                    "float64", "num_eigenvalues": 3},
    }  # fmt: skip
    return Study.model_validate({**content, **changes})


def store_networks(store: Store, study: Study) -> None:
    """Checkpoints as of some training, of networks that are random."""
    for checkpoint in study.iter_checkpoints():
        torch.manual_seed(checkpoint.epoch)
        states = [network_of(study, checkpoint.arm).state_dict() for _ in range(study.trials)]
        path = save_weights(store, study, checkpoint, [(study.trials, stack_states(states))])
        save_checkpoint(store, study, checkpoint, {"weights": path}, {}, {}, "cpu", {})


@pytest.fixture
def study() -> Study:
    return incremental()


@pytest.fixture
def grown(store: Store, study: Study) -> Store:
    store_networks(store, study)
    return store


def rows_of(store: Store, study: Study, epoch: int) -> pd.DataFrame:
    return read_parquet(PER_IMAGE_CURVATURE.path(store, study, Checkpoint(ARM, epoch))).to_pandas()


def by_hand(weights: dict[str, Tensor], trial: int, outputs: Any) -> Any:
    """The network in float64 as a function of a flat image, written without the platform."""
    names = [f"layers.{layer}.{name}" for layer in (0, 2) for name in ("weight", "bias")]
    first, first_bias, last, last_bias = (weights[name][trial].double() for name in names)

    def logits(x: Tensor) -> Tensor:
        return ((x @ first.T + first_bias).clamp(min=0) @ last.T + last_bias)[..., outputs]

    return logits


def image(data: TrialData, position: int) -> Tensor:
    raw = load("digits").images[data.train_ids[position]].astype(np.float64)
    return torch.from_numpy((raw - data.mean) / data.std).flatten()


@pytest.mark.parametrize("logits", ["seen", "all"])
def test_rows_are_the_images_seen_and_values_those_of_a_dense_hessian_of_these_outputs(
    logits: str, grown: Store
) -> None:
    study = incremental(curvature={"logits": logits})
    # Seen, evaluated and active classes: upstream saves before it adds classes.
    for epoch, seen, evaluated, active in ((0, 0, 2, 2), (3, 2, 2, 4), (4, 4, 4, 4), (6, 4, 4, 6), (15, 10, 10, 10)):
        checkpoint = Checkpoint(ARM, epoch)
        assert compute_curvature(study, checkpoint, grown)
        rows = rows_of(grown, study, epoch)
        assert set(rows.num_seen_classes) == {seen}
        assert set(rows.num_active_classes) == {active}
        weights, _ = load_checkpoint(grown, study, checkpoint)
        for trial in range(2):
            data, own = trial_data(study, "plain", trial), rows[rows.trial == trial]
            assert data.order is not None
            assert own.image_id.tolist() == data.train_ids[: 8 * evaluated].tolist()
            assert set(own.true_label) == set(data.order[:evaluated].tolist())
            outputs = data.order[:evaluated].tolist() if logits == "seen" else list(range(10))
            network = by_hand(weights, trial, outputs)
            for position in (0, 8 * evaluated - 1):
                label = torch.tensor(outputs.index(data.train_labels[position]))
                x = image(data, position)

                def loss(x: Tensor, network: Any = network, label: Tensor = label) -> Tensor:
                    return cross_entropy(network(x), label)

                dense = hessian(loss, x)
                assert isinstance(dense, Tensor)
                row = own.iloc[position]
                assert row.loss == pytest.approx(loss(x).item(), rel=1e-5)
                assert row.trace == pytest.approx(dense.trace().item(), rel=1e-4)
                assert row.frobenius_norm == pytest.approx(dense.norm().item(), rel=1e-4)
                assert row.largest_eigenvalue == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=1e-4)


def test_shards_of_the_images_seen_make_what_one_range_makes(
    grown: Store, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(ARM, 6)
    compute_curvature(study, checkpoint, grown)
    whole = PER_IMAGE_CURVATURE.path(grown, study, checkpoint).read_bytes()
    PER_IMAGE_CURVATURE.manifest_path(grown, study, checkpoint).unlink()
    monkeypatch.setattr(studies, "shards", lambda *arguments: usual_shards(*arguments, target=20))
    assert study.curvature_ranges(6) == [(0, 16), (16, 32), (32, 48), (48, 64)]
    assert study.curvature_ranges(15)[-1] == (140, 160)
    for rows in reversed(study.curvature_ranges(6)):
        assert compute_curvature(study, checkpoint, grown, rows=rows)
    assert PER_IMAGE_CURVATURE.path(grown, study, checkpoint).read_bytes() == whole


def test_the_summary_says_what_was_seen_and_what_is_active(grown: Store, study: Study) -> None:
    for epoch in (3, 4):
        compute_curvature(study, Checkpoint(ARM, epoch), grown)
    rebuild(grown, study)
    path = grown.table_folder("curvature", study.name, ARM.key) / "summary.parquet"
    rows = read_parquet(path).to_pandas()
    columns = ["epoch", "num_images", "num_seen_classes", "num_active_classes"]
    assert rows[rows.trial == 1][columns].to_numpy().tolist() == [[3, 16, 2, 4], [4, 32, 4, 4]]


def test_the_hessian_in_the_weights_is_that_of_the_images_and_outputs_seen(grown: Store, study: Study) -> None:
    checkpoint = Checkpoint(ARM, 4)
    hessian_of_checkpoint(study, checkpoint, grown)
    rows = read_parquet(HESSIAN.path(grown, study, checkpoint)).to_pandas()
    weights, _ = load_checkpoint(grown, study, checkpoint)
    for trial in range(2):
        data = trial_data(study, "plain", trial)
        assert data.order is not None
        seen = data.order[:4].tolist()
        images = torch.stack([image(data, position) for position in range(32)])
        labels = torch.tensor([seen.index(label) for label in data.train_labels[:32]])
        shapes = {name: tensor[trial].shape for name, tensor in weights.items()}
        flat = torch.cat([tensor[trial].double().flatten() for tensor in weights.values()])

        def loss(
            flat: Tensor, shapes: Any = shapes, images: Tensor = images, labels: Any = labels, seen: Any = seen
        ) -> Tensor:
            parts = flat.split([shape.numel() for shape in shapes.values()])
            tensors = {n: part.view(1, *shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
            return cross_entropy(by_hand(tensors, 0, seen)(images), labels)

        dense = hessian(loss, flat)
        assert isinstance(dense, Tensor)
        row = rows[rows.trial == trial].iloc[0]
        assert row.num_images == 32
        assert row.trace == pytest.approx(dense.trace().item(), rel=1e-8)
        assert row.eigenvalues == pytest.approx(torch.linalg.eigvalsh(dense).flip(0)[:3].tolist(), rel=1e-5)


class _Scaled(nn.Module):
    """Its last layer is no linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.linear(x.flatten(1))


def test_outputs_are_those_asked_for_whatever_the_last_layer_is() -> None:
    images = torch.randn(5, 1, 2, 2)
    for network in (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), _Scaled()):
        expected = network(images)[:, [2, 0]]
        some = with_outputs(network, [2, 0], images[:1])
        assert isinstance(some, Outputs) == isinstance(network, _Scaled)
        torch.testing.assert_close(some(images), expected)


def test_the_check_prints_the_table_of_verification_and_flags_classes_never_seen(
    grown: Store, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epoch in (0, 3, 4, 15):
        compute_curvature(study, Checkpoint(ARM, epoch), grown)

    def checked() -> tuple[list[str], str]:
        with contextlib.closing(connect(grown, ("per_image_curvature",))) as connection:
            problems, rows, num_files = seen_classes(grown, study, connection)
        assert num_files == 4
        return problems, verification_table(rows)

    asked: list[int] = []

    def counted(schedule: ClassSchedule, seed: int, trial: int, num_classes: int) -> np.ndarray:
        asked.append(trial)
        return class_order(schedule, seed, trial, num_classes)

    monkeypatch.setattr("dd_core.checks.seen_classes.class_order", counted)
    problems, table = checked()
    assert asked == [0, 1]  # of four files
    assert problems == []
    assert table.splitlines()[2:] == [
        "| 0 | 0 | 2 | 32 | 32 |",
        "| 3 | 2 | 4 | 32 | 32 |",
        "| 4 | 4 | 4 | 64 | 64 |",
        "| 15 | 10 | 10 | 160 | 160 |",
    ]
    # What published code would have computed at epoch 3: two trials of the classes of the next task as well.
    path = PER_IMAGE_CURVATURE.path(grown, study, Checkpoint(ARM, 3))
    other = read_parquet(PER_IMAGE_CURVATURE.path(grown, study, Checkpoint(ARM, 4)))
    position, field = other.column_names.index("epoch"), other.schema.field("epoch")
    write_parquet(path, other.set_column(position, field, pa.array([3] * 64, field.type)))
    grown.manifest_path(path).unlink()
    weights = checkpoint_manifest(grown, study, Checkpoint(ARM, 3))
    about = described(PER_IMAGE_CURVATURE, study, Checkpoint(ARM, 3), weights, {})
    grown.write_manifest(grown.manifest_path(path), {**about, "rows": {"table": 64}}, {"table": path})
    problems, table = checked()
    assert len(problems) == 2
    assert "plain.k004|0003, trial 0: 16 rows are of classes never seen by then" in problems[0]
    assert problems[0].endswith("those of the next task, as published code counts")
    assert "| 3 | 2 | 4 | 32 | 64 |" in table
