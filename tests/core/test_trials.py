"""What a trial sees: its split and its label noise, drawn once, the same for every width."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from dd_core.data import trials as trials_module
from dd_core.data.datasets import Dataset, load
from dd_core.data.label_noise import corrupt_labels
from dd_core.data.randomness import generator, torch_seed
from dd_core.data.trials import trial_data
from dd_core.errors import DataMissingError
from dd_core.store.store import Store
from dd_core.study.recipe import Data
from dd_core.study.study import Study
from dd_core.tables.files import read_parquet
from dd_core.tables.images import write_images


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2, 0.333, 0.999])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_exactly_the_given_share_of_labels_is_wrong(noise: float, classes: int) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 1000)
    before = labels.copy()
    noisy = corrupt_labels(labels, noise, classes, random)
    assert (noisy != labels).sum() == round(noise * 1000)
    assert noisy.min() >= 0
    assert noisy.max() < classes
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize(
    ("noise", "images", "wrong"),
    [(0.25, 7, 2), (0.2, 9, 2), (0.1, 14, 1), (0.29, 100, 29), (0.07, 100, 7), (0.15, 4_999, 750), (0.01, 20, 0)],
)
def test_the_number_of_wrong_labels_is_rounded(noise: float, images: int, wrong: int) -> None:
    """Neither cut off nor rounded up; 0.29 * 100 is 28.999999999999996."""
    labels = np.zeros(images, np.int64)
    assert (corrupt_labels(labels, noise, 10, np.random.default_rng(0)) != labels).sum() == wrong


def test_a_wrong_label_is_uniform_over_the_other_classes() -> None:
    labels = np.repeat(np.arange(10), 20_000)
    noisy = corrupt_labels(labels, 0.5, 10, np.random.default_rng(0))
    wrong = noisy != labels
    counts = np.zeros((10, 10))
    np.add.at(counts, (labels[wrong], noisy[wrong]), 1)
    assert counts.diagonal().sum() == 0
    for true in range(10):
        assert chisquare(np.delete(counts[true], true)).pvalue > 1e-4
    # And every image is as likely as any other to be chosen.
    assert chisquare(wrong.reshape(100, -1).sum(1)).pvalue > 1e-4


def test_split_and_labels_are_fixed_and_shared_by_all_widths(make_study: Any) -> None:
    first, again = trial_data(make_study(), "plain", 1), trial_data(make_study(widths=(7,)), "plain", 1)
    for name in ("train_ids", "test_ids", "train_labels", "true_train_labels", "test_labels", "mean", "std"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_train_and_test_images_are_disjoint_ascending_and_complete(tiny_study: Study) -> None:
    for trial in range(2):
        data = trial_data(tiny_study, "plain", trial)
        assert (len(data.train_ids), len(data.test_ids)) == (100, 1697)
        np.testing.assert_array_equal(np.sort(np.concatenate([data.train_ids, data.test_ids])), np.arange(1797))
        assert (np.diff(data.train_ids) > 0).all()
        assert (np.diff(data.test_ids) > 0).all()


def test_labels_belong_to_the_images_and_test_labels_are_true(tiny_study: Study) -> None:
    data, labels = trial_data(tiny_study, "plain", 0), load("digits").labels
    np.testing.assert_array_equal(data.true_train_labels, labels[data.train_ids])
    np.testing.assert_array_equal(data.test_labels, labels[data.test_ids])
    assert data.is_noisy.sum() == 20


def test_images_are_standardised_by_the_training_pixels_alone(tiny_study: Study) -> None:
    data = trial_data(tiny_study, "plain", 0)
    pixels = load("digits").images[data.train_ids].astype(np.float64)
    np.testing.assert_allclose(data.mean, [pixels.mean()], rtol=1e-6)
    np.testing.assert_allclose(data.std, [pixels.std()], rtol=1e-6)
    standardised = (pixels - data.mean) / data.std
    assert abs(standardised.mean()) < 1e-6
    assert abs(standardised.std() - 1) < 1e-6
    assert data.mean.dtype == data.std.dtype == np.float32


def colourful(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A small stand-in for CIFAR with an official test set and a third channel without contrast."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    images[..., 1] //= 2
    images[..., 2] = 7
    dataset = Dataset("cifar10", images, random.integers(0, 10, 30), 20, 10)
    monkeypatch.setattr(trials_module, "load", lambda name: dataset)
    return dataset


def test_cifar_keeps_its_official_test_set_and_standardises_each_channel(
    make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = colourful(monkeypatch)
    for num_train in (12, 20, None):
        study = make_study({"batch_size": 4}, data={"dataset": "cifar10", "num_train": num_train})
        data = trial_data(study, "plain", 0)
        assert len(data.train_ids) == (num_train or 20)
        assert data.train_ids.max() < 20
        np.testing.assert_array_equal(data.test_ids, np.arange(20, 30))
        pixels = dataset.images[data.train_ids].astype(np.float64)
        np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(data.std, [*pixels.std((0, 1, 2))[:2], 1], rtol=1e-6)


def test_trials_and_seeds_differ_in_split_and_noise(make_study: Any) -> None:
    seen = [trial_data(make_study(seed=seed), "plain", trial) for seed in (0, 1) for trial in (0, 1)]
    assert len({tuple(data.train_ids) for data in seen}) == 4
    assert len({tuple(data.is_noisy) for data in seen}) == 4


def test_more_or_less_noise_leaves_the_split_alone(make_study: Any) -> None:
    little, much = (trial_data(make_study({"label_noise": noise}), "plain", 0) for noise in (0.1, 0.4))
    np.testing.assert_array_equal(little.train_ids, much.train_ids)
    assert (little.is_noisy <= much.is_noisy).all()


def test_asking_for_more_images_than_there_are_is_one_sentence(make_study: Any) -> None:
    data = Data.model_validate({"dataset": "digits", "num_train": 1790, "num_validation": 8})
    study = make_study().model_copy(update={"data": data})  # a study file could not say so
    with pytest.raises(DataMissingError, match="asks for 1798 training and validation images, digits has 1797"):
        trial_data(study, "plain", 0)


def test_every_random_stream_is_its_own() -> None:
    purposes = ("split", "label_noise", "initialisation", "order", "augmentation")
    seeds = {
        (seed, trial, purpose, epoch): generator(seed, trial, purpose, epoch).integers(2**63)
        for seed in (0, 1, 2**63 - 1)
        for trial in (0, 1)
        for purpose in purposes
        for epoch in (0, 1)
    }
    assert len(set(seeds.values())) == len(seeds)
    assert 0 <= torch_seed(0, 0, "order") < 2**63


def test_random_streams_are_those_of_earlier_versions() -> None:
    """Stored weights belong to these numbers; if they change, TRAINER_VERSION must."""
    assert generator(0, 0, "split").integers(1000, size=3).tolist() == [850, 636, 511]
    assert generator(1, 2, "augmentation", 3).integers(1000, size=3).tolist() == [246, 3, 256]


def test_the_table_of_images_lists_every_image_of_every_trial_with_its_labels(store: Store, tiny_study: Study) -> None:
    assert write_images(store, tiny_study) == 2 * 1797
    path: Path = store.table_folder("images", "tiny") / "plain.parquet"
    table = read_parquet(path).to_pandas()
    for trial in range(2):
        data = trial_data(tiny_study, "plain", trial)
        rows = table[table.trial == trial].set_index("image_id")
        assert sorted(rows.index) == list(range(1797))
        train = rows.loc[data.train_ids]
        assert (train.split == "train").all()
        np.testing.assert_array_equal(train.given_label, data.train_labels)
        np.testing.assert_array_equal(train.true_label, data.true_train_labels)
        np.testing.assert_array_equal(train.is_noisy, data.is_noisy)
        assert (rows.loc[data.test_ids].split == "test").all()
        np.testing.assert_array_equal(rows.loc[data.test_ids].true_label, data.test_labels)
    assert table.is_noisy.sum() == 40


def test_the_table_of_images_is_written_again_only_where_it_is_wrong(make_study: Any, store: Store) -> None:
    study = make_study()
    write_images(store, study)
    (path,) = store.table_folder("images", study.name).glob("*.parquet")
    before, content = path.stat().st_ino, path.read_bytes()
    write_images(store, study)
    assert path.stat().st_ino == before
    path.write_bytes(content[: len(content) // 2])
    write_images(store, study)
    assert path.read_bytes() == content
