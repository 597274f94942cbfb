"""Wrong labels that are not uniform: which class is taken for which, in how many images."""

from typing import Any

import numpy as np
import pytest

from dd_core.data.datasets import load
from dd_core.data.label_noise import confusions, corrupt_labels
from dd_core.data.trials import trial_data
from dd_core.errors import DataMissingError
from dd_core.store.store import Store
from dd_core.study.datasets import DATASETS
from dd_core.tables.files import read_parquet
from dd_core.training.train import train_arm

# As the authors of CIFAR-100 list its superclasses; its classes are numbered in the order of the alphabet.
SUPERCLASSES = """
beaver dolphin otter seal whale
aquarium_fish flatfish ray shark trout
orchid poppy rose sunflower tulip
bottle bowl can cup plate
apple mushroom orange pear sweet_pepper
clock keyboard lamp telephone television
bed chair couch table wardrobe
bee beetle butterfly caterpillar cockroach
bear leopard lion tiger wolf
bridge castle house road skyscraper
cloud forest mountain plain sea
camel cattle chimpanzee elephant kangaroo
fox porcupine possum raccoon skunk
crab lobster snail spider worm
baby boy girl man woman
crocodile dinosaur lizard snake turtle
hamster mouse rabbit shrew squirrel
maple_tree oak_tree palm_tree pine_tree willow_tree
bicycle bus motorcycle pickup_truck train
lawn_mower rocket streetcar tank tractor
"""


def test_classes_of_cifar100_are_taken_for_the_next_of_their_superclass() -> None:
    groups = [line.split() for line in SUPERCLASSES.split("\n") if line]
    names = sorted(name for group in groups for name in group)
    assert len(names) == len(set(names)) == 100
    expected = {
        names.index(own): names.index(other)
        for group in map(sorted, groups)
        for own, other in zip(group, group[1:] + group[:1], strict=True)
    }
    assert DATASETS["cifar100"].taken_for == expected


def test_classes_of_cifar10_and_digits_are_taken_for_those_of_the_paper() -> None:
    """Patrini et al. 2017, section 5."""
    record = DATASETS["cifar10"]
    names = {record.class_names[own]: record.class_names[other] for own, other in record.taken_for.items()}
    assert names == {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
    for name in ("mnist", "digits"):
        np.testing.assert_array_equal(confusions("asymmetric", DATASETS[name]), [0, 1, 7, 8, 4, 6, 5, 1, 8, 9])


@pytest.mark.parametrize(("kind", "dataset"), [("pair_flip", "fashion_mnist"), ("asymmetric", "cifar100")])
def test_exactly_the_given_share_of_labels_is_that_of_the_class_they_are_taken_for(kind: str, dataset: str) -> None:
    record = DATASETS[dataset]
    taken_for = confusions(kind, record)
    assert taken_for is not None
    if kind == "pair_flip":
        np.testing.assert_array_equal(taken_for, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    labels = np.random.default_rng(0).integers(0, record.num_classes, 1000)
    few, many = (
        corrupt_labels(labels, noise, record.num_classes, np.random.default_rng(1), taken_for) for noise in (0.1, 0.3)
    )
    assert (few != labels).sum() == 100
    assert (many != labels).sum() == 300
    assert ((few != labels) <= (many != labels)).all()
    np.testing.assert_array_equal(many[many != labels], taken_for[labels[many != labels]])


def test_images_with_asymmetric_labels_are_drawn_from_classes_that_are_taken_for_another() -> None:
    taken_for = confusions("asymmetric", DATASETS["cifar10"])
    assert taken_for is not None
    labels = np.repeat(np.arange(10), 100)
    noisy = corrupt_labels(labels, 0.5, 10, np.random.default_rng(0), taken_for)
    assert set(labels[noisy != labels]) == {2, 3, 4, 5, 9}
    assert (noisy != labels).sum() == 500
    with pytest.raises(DataMissingError, match="501 of 1000 images shall have a wrong label, but only 500 are"):
        corrupt_labels(labels, 0.501, 10, np.random.default_rng(0), taken_for)


def test_the_kind_changes_the_labels_alone_and_stands_in_the_runs(make_study: Any, store: Store) -> None:
    studies = {
        kind: make_study({"label_noise_kind": kind, "architecture": "cnn5"}, widths=(1,), epochs=1, checkpoints=(1,))
        for kind in ("symmetric", "pair_flip", "asymmetric")
    }
    trials = {kind: trial_data(study, "plain", 1) for kind, study in studies.items()}
    for kind, data in trials.items():
        np.testing.assert_array_equal(data.train_ids, trials["symmetric"].train_ids)
        taken_for = confusions(kind, DATASETS["digits"])
        assert data.is_noisy.sum() == 20
        if taken_for is not None:
            wrong = data.is_noisy
            np.testing.assert_array_equal(data.train_labels[wrong], taken_for[data.true_train_labels[wrong]])
        np.testing.assert_array_equal(data.true_train_labels, load("digits").labels[data.train_ids])
    study = studies["pair_flip"]
    train_arm(study, study.arms["plain.k001"], store, until=1)
    for path in store.table_folder("runs", study.name, "plain.k001").glob("*.parquet"):
        assert read_parquet(path)["label_noise_kind"].to_pylist() == ["pair_flip"] * 2


def test_a_data_set_of_which_nobody_says_what_is_taken_for_what_is_refused(make_study: Any) -> None:
    with pytest.raises(ValueError, match="label_noise_kind: nobody says which classes of svhn are taken for which"):
        make_study({"label_noise_kind": "asymmetric"}, data={"dataset": "svhn"})


def test_a_kind_of_no_noise_is_refused(make_study: Any) -> None:
    with pytest.raises(ValueError, match="label_noise_kind: pair_flip changes nothing without label_noise"):
        make_study({"label_noise": 0.0, "label_noise_kind": "pair_flip"})
