"""Classes that come one group after the other: their order, splits with equally many of each, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from dd_core.data.datasets import load
from dd_core.data.trials import TrialData, trial_data
from dd_core.errors import StudyError
from dd_core.study.datasets import DATASETS
from dd_core.study.files import read_study
from dd_core.study.study import Arm, Study

CONTENT: dict[str, Any] = {
    "description": "digits, two classes at a time",
    "data": {
        "dataset": "digits",
        "num_train": 400,
        "num_validation": 100,
        "classes": {"first": 2, "add": 2, "every": 3},
    },
    "variants": {
        "plain": {"architecture": "mlp", "batch_size": 32, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
    },
    "widths": [1],
    "trials": 2,
    "epochs": 15,
    "checkpoints": [0, 3, 15],
}


def written(folder: Path, **changes: Any) -> Study:
    """The study as a file, and read."""
    path = folder / "tiny.yaml"
    with path.open("w") as file:
        YAML().dump({**CONTENT, **changes}, file)
    return read_study(path)


def npy(header: str) -> bytes:
    """A file with this header and nothing behind it."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def with_classes(**classes: Any) -> dict[str, Any]:
    return {**CONTENT["data"], "classes": {"first": 2, "add": 2, "every": 3, **classes}}


def with_variant(**changes: Any) -> dict[str, Any]:
    return {"variants": {"plain": {**CONTENT["variants"]["plain"], **changes}}}


def test_splits_have_equally_many_images_of_every_class_in_the_order_of_the_classes(tmp_path: Path) -> None:
    study = written(tmp_path)
    trials = [trial_data(study, "plain", trial) for trial in range(2)]
    labels = load("digits").labels
    assert study.num_train_images == 400 and study.num_test_images == 10 * (174 - 50)
    for data in trials:
        assert data.order is not None and data.ranks is not None
        assert sorted(data.order) == list(range(10))
        for ids, own, per_class in (
            (data.train_ids, data.train_labels, 40),
            (data.validation_ids, data.validation_labels, 10),
            (data.test_ids, data.test_labels, 124),
        ):
            np.testing.assert_array_equal(labels[ids], own)
            np.testing.assert_array_equal(own, np.repeat(data.order, per_class))
            assert all((np.diff(block) > 0).all() for block in ids.reshape(10, per_class))
        assert len(set(data.image_ids)) == len(data.image_ids) == 10 * 174
        assert_is_prefix(data, data.first_classes(4), study.num_seen_images(4))
    assert not np.array_equal(trials[0].order, trials[1].order)


def assert_is_prefix(data: TrialData, seen: TrialData, num_train: int) -> None:
    """The images of four of ten classes."""
    assert num_train == 160
    np.testing.assert_array_equal(seen.train_ids, data.train_ids[:160])
    np.testing.assert_array_equal(seen.image_ids, np.r_[data.train_ids[:160], data.validation_ids[:40], seen.test_ids])
    assert set(seen.test_labels) == set(seen.true_train_labels) == set(data.order[:4])


def test_the_rarest_class_of_known_data_is_as_their_records_say() -> None:
    assert (np.bincount(load("digits").labels).min(), 0) == DATASETS["digits"].rarest
    assert all(record.rarest for record in DATASETS.values() if record.has_images)


def test_an_order_from_a_file_is_that_order_and_in_the_recipe(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(10)
    np.save(tmp_path / "order.npy", order)
    np.save(tmp_path / "index-0.npy", order)
    np.save(tmp_path / "index-1.npy", order[::-1])
    arm = Arm("plain", 1)
    drawn, fixed = written(tmp_path), written(tmp_path, data=with_classes(order="order.npy"))
    each = written(tmp_path, data=with_classes(order="index-{trial}.npy"))
    np.testing.assert_array_equal(trial_data(fixed, "plain", 1).order, order)
    np.testing.assert_array_equal(trial_data(each, "plain", 0).order, order)
    np.testing.assert_array_equal(trial_data(each, "plain", 1).order, order[::-1])
    assert len({study.recipe_hash(arm) for study in (drawn, fixed, each)}) == 3
    assert "order" not in fixed.recipe(arm)["data"]["classes"]  # a path holds on one machine only
    # A job carries what the files said, and needs them no more; a file of no trial changes nothing.
    jobs = fixed.model_dump_json(), each.model_dump_json()
    np.save(tmp_path / "index-2.npy", order)
    assert written(tmp_path, data=with_classes(order="index-{trial}.npy")).recipe_hash(arm) == each.recipe_hash(arm)
    for path in tmp_path.glob("*.npy"):
        path.unlink()
    assert [Study.model_validate_json(job).recipe(arm) for job in jobs] == [fixed.recipe(arm), each.recipe(arm)]
    assert json.loads(jobs[1])["data"]["classes"]["found"][1]["classes"] == order[::-1].tolist()


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 8], r"order.npy lists class 8 2 times; each comes once"),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], r"order.npy lists 10 classes, 10 among them, but not class 0"),
        ([0, 1, 2], r"order.npy lists 3 classes, digits has 10"),
        ([[0, 1], [2, 3]], r"order.npy is not one row of whole numbers"),
        ([0.0, 1.0], r"order.npy is not one row of whole numbers"),
        (b"nothing", r"order.npy is no .npy file of whole numbers"),
        (b"PK\x03\x04", r"order.npy is no .npy file of whole numbers"),
        (npy("((((("), r"order.npy is no .npy file of whole numbers \(.*EOF in multi-line"),
        (npy("{'descr': '<i8', 'fortran_order': False, 1: ()}"), r"order.npy is no .npy file of whole numbers"),
        (npy("{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,)}"), r"order.npy is no .npy file"),
        (np.array([{}], dtype=object), r"order.npy is no .npy file of whole numbers \(.*allow_pickle"),
        (None, r"order.npy cannot be read \(No such file or directory\)"),
    ],
)
def test_an_order_that_cannot_be_used_is_one_sentence(tmp_path: Path, classes: Any, sentence: str) -> None:
    if isinstance(classes, bytes):
        (tmp_path / "order.npy").write_bytes(classes)
    elif classes is not None:
        np.save(tmp_path / "order.npy", classes)
    with pytest.raises(StudyError, match=sentence) as found:
        written(tmp_path, data=with_classes(order="order.npy"))
    assert "\n" not in str(found.value)


def test_an_order_in_the_home_of_nobody_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"data.classes: order: .*home"):
        written(tmp_path, data=with_classes(order="~nobody-of-this-name/order.npy"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": with_classes(first=11)}, r"data.classes.first: 11 are more than the 10 of digits"),
        ({"data": with_classes(every=16)}, r"data.classes.every: a task of 16 epochs is longer than the study, 15"),
        ({"data": with_classes() | {"num_train": 405}}, r"data.num_train: 405 images are not equally many"),
        ({"data": with_classes() | {"num_validation": 7}}, r"data.num_validation: 7 images are not equally many"),
        (
            {"data": with_classes() | {"num_train": 1700, "num_validation": 90}},
            r"170 images .* than the rarest .*, 174",
        ),
        (with_variant(batch_size=81), r"batch_size: 81 images in a batch but only 80 to train on in the first task"),
        (with_variant(label_noise=0.2), r"label_noise: and data.classes cannot be combined"),
        (with_variant(early_stopping={"patience": 2}), r"early_stopping: and data.classes cannot be combined"),
        (
            with_variant(schedule={"name": "step", "milestones": [3]}),
            r"epoch 3 is not before .* of a task, 3",
        ),
        (with_variant(schedule={"warmup_epochs": 3.0}), r"warmup_epochs: 3 is not before the last epoch of a task, 3"),
        (
            with_variant(architecture="preact_resnet10", batch_size=53),
            r"batch_size: with 53 the last batch of an epoch of task 2 would be a single image",
        ),
        ({"data": with_classes(found=[])}, r"found: is what the platform finds out"),
        ({"data": with_classes() | {"duplicates": {"exact": 5}}}, r"data.duplicates: and data.classes cannot be"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        written(tmp_path, **changes)


def test_a_trial_without_a_file_of_its_own_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "index-0.npy", np.arange(10))
    with pytest.raises(StudyError, match=r"index-1.npy is not there"):
        written(tmp_path, data=with_classes(order="index-{trial}.npy"))
