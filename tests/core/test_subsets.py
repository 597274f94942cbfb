"""Random subsets of the training images: what differs between trials, and how images left out are evaluated."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from dd_core.checks.metrics import metric_gaps
from dd_core.data.datasets import load
from dd_core.data.trials import trial_data
from dd_core.models.build import network_of
from dd_core.models.stacking import load_state
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint
from dd_core.tables.files import read_parquet
from dd_core.tables.images import write_images
from dd_core.tables.warehouse import connect
from dd_core.training.train import train_arm

SUBSET = {"dataset": "digits", "num_train": 100, "num_validation": 20, "subset": 0.7}


def test_trials_with_a_subset_differ_in_what_they_leave_out_alone(make_study: Any) -> None:
    """Or memorisation, the difference between trials, would be that of other labels as well."""
    study = make_study(data=SUBSET, trials=40)
    trials = [trial_data(study, "plain", trial) for trial in range(40)]
    first = trials[0]
    of_pool = [{}, {}]
    for data in trials:
        assert [len(ids) for ids in (data.train_ids, data.left_out_ids)] == [70, 30]
        np.testing.assert_array_equal(data.validation_ids, first.validation_ids)
        np.testing.assert_array_equal(data.test_ids, first.test_ids)
        assert sorted(data.image_ids) == list(range(1797))
        ids = np.concatenate([data.train_ids, data.left_out_ids])
        given = np.concatenate([data.train_labels, data.left_out_labels])
        of_pool.append(dict(zip(ids.tolist(), given.tolist(), strict=True)))
        np.testing.assert_array_equal(data.true_labels, load("digits").labels[data.image_ids])
    assert of_pool[2:] == [of_pool[2]] * 40
    wrong = sum(given != load("digits").labels[image] for image, given in of_pool[2].items())
    assert wrong == 20
    assert len({tuple(data.train_ids) for data in trials}) == 40
    counts = np.bincount(np.concatenate([data.train_ids for data in trials]), minlength=1797)[list(of_pool[2])]
    # Binomial: 28 of 40 with a deviation of 2.9.
    assert counts.min() >= 14
    assert counts.max() < 40
    pixels = load("digits").images[first.train_ids].astype(np.float64)
    np.testing.assert_allclose(first.mean, [pixels.mean()], rtol=1e-6)


def test_images_left_out_are_evaluated_with_their_given_labels_and_are_no_part_of_any_metric(
    make_study: Any, store: Store
) -> None:
    study = make_study(data=SUBSET, widths=(1,), epochs=2, checkpoints=(2,))
    arm = study.arms["plain.k001"]
    train_arm(study, arm, store, until=2)
    assert write_images(store, study) == 2 * 1797
    images = read_parquet(store.table_folder("images", "tiny") / "plain.parquet").to_pandas()
    rows = read_parquet(store.table_folder("image_progress", "tiny", arm.key) / "0002.parquet").to_pandas()
    evals = read_parquet(store.table_folder("training_evals", "tiny", arm.key) / "0002.parquet").to_pandas()
    weights, _ = load_checkpoint(store, study, Checkpoint(arm, 2))
    for trial in range(2):
        own = rows[(rows.trial == trial) & (rows.epoch == 2)].merge(images, on=["trial", "image_id", "split"])
        assert own.split.value_counts().to_dict() == {"test": 1677, "train": 70, "left_out": 30, "validation": 20}
        data = trial_data(study, "plain", trial)
        network = network_of(study, arm).eval()
        load_state(network, {name: tensor[trial] for name, tensor in weights.items()})
        raw = torch.from_numpy(load("digits").images[own.image_id]).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            outputs = network((raw - float(data.mean[0])) / float(data.std[0]))
        given = torch.tensor(own.given_label.tolist())
        expected = torch.nn.functional.cross_entropy(outputs, given, reduction="none").numpy()
        np.testing.assert_allclose(own.loss, expected, rtol=1e-3, atol=1e-5)
        recorded = evals[(evals.trial == trial) & (evals.epoch == 2)].iloc[0]
        for split, loss in (("train", "train_loss"), ("validation", "validation_loss"), ("test", "test_loss")):
            np.testing.assert_allclose(recorded[loss], own[own.split == split].loss.mean(), rtol=1e-5)
        left_out = own[own.split == "left_out"]
        np.testing.assert_array_equal(left_out.is_noisy, left_out.given_label != left_out.true_label)
    with contextlib.closing(connect(store)) as connection:
        assert metric_gaps(store, study, connection) == ([], 2)


def test_a_subset_may_lack_wrong_labels_without_a_gap_being_found(make_study: Any, store: Store) -> None:
    """One wrong label of a hundred, which a trial trains on or not."""
    study = make_study({"label_noise": 0.01}, data=SUBSET, widths=(1,), trials=8, epochs=1, checkpoints=(1,))
    train_arm(study, study.arms["plain.k001"], store, until=1)
    has = {bool(trial_data(study, "plain", trial).is_noisy.any()) for trial in range(8)}
    assert has == {True, False}
    with contextlib.closing(connect(store)) as connection:
        assert metric_gaps(store, study, connection) == ([], 8)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"subset": 0.001}, "data.subset: 0.001 of 100 images are 0 to train on and 100 to leave out"),
        ({"subset": 0.999}, "data.subset: 0.999 of 100 images are 100 to train on and 0 to leave out"),
        ({"subset": 0.3}, "variants.plain.batch_size: 32 images in a batch but only 30 to train on"),
    ],
)
def test_a_subset_that_cannot_be_is_one_sentence(make_study: Any, data: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_study(data={"dataset": "digits", "num_train": 100, **data})


def test_predictions_of_what_was_left_out_take_a_subset(make_study: Any) -> None:
    with pytest.raises(
        ValueError, match=r"memorization\.out_of_fold: without data\.subset there is no trial that left"
    ):
        make_study(memorization={"out_of_fold": True})


def test_a_thousand_networks_are_no_mistake(make_study: Any) -> None:
    assert make_study(trials=1000).trials == 1000
    with pytest.raises(ValueError, match=r"trials: Input should be less than or equal to 1000 \(got 1001\)"):
        make_study(trials=1001)
