"""What one trial sees of a data set: its split and its (partly wrong) training labels, fixed for all epochs."""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dd_core.data.class_schedule import balanced_splits, class_order
from dd_core.data.datasets import Dataset, load
from dd_core.data.randomness import generator
from dd_core.errors import DataMissingError
from dd_core.study.recipe import Data
from dd_core.study.study import Study

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TrialData:
    """The split and labels of one trial.

    Where classes come one group after the other, ids ascend within each class, and classes stand in the order in which
    they come: the images of the first classes are then the first of each split, equally many of each class.

    Attributes:
        train_ids: int64 (num_train,), image_id of the training images, ascending.
        validation_ids: int64 (num_validation,), ascending.
        test_ids: int64 (num_test,), ascending.
        train_labels: int64 (num_train,), given labels, some of them wrong.
        true_train_labels: int64 (num_train,).
        validation_labels: int64 (num_validation,), always true.
        test_labels: int64 (num_test,), always true.
        mean, std: float32 (channels,), of the raw training pixels; images are standardised with these.
        order: int64 (num_classes,), the classes in the order in which they come; None: all are there from the first.
    """

    train_ids: "NDArray[np.int64]"
    validation_ids: "NDArray[np.int64]"
    test_ids: "NDArray[np.int64]"
    train_labels: "NDArray[np.int64]"
    true_train_labels: "NDArray[np.int64]"
    validation_labels: "NDArray[np.int64]"
    test_labels: "NDArray[np.int64]"
    mean: "NDArray[np.float32]"
    std: "NDArray[np.float32]"
    order: "NDArray[np.int64] | None" = None

    def first_classes(self, number: int) -> "TrialData":
        """The images of the first classes in the order alone; all, where all are there from the beginning."""
        if self.order is None:
            return self
        parts = {
            name: getattr(self, name)[: number * len(getattr(self, name)) // len(self.order)]
            for split in ("train", "validation", "test")
            for name in (f"{split}_ids", f"{split}_labels")
        }
        parts["true_train_labels"] = self.true_train_labels[: len(parts["train_labels"])]
        return dataclasses.replace(self, **parts)

    @property
    def ranks(self) -> "NDArray[np.int64] | None":
        """The place of every class in the order, int64 (num_classes,), from 0; None without one."""
        return None if self.order is None else np.argsort(self.order)

    @property
    def is_noisy(self) -> "NDArray[np.bool_]":
        """Which training images carry a wrong label, bool (num_train,)."""
        return self.train_labels != self.true_train_labels

    @property
    def image_ids(self) -> "NDArray[np.int64]":
        """Training, then validation, then test images, int64 (num_train + num_validation + num_test,)."""
        return np.concatenate([self.train_ids, self.validation_ids, self.test_ids])

    @property
    def splits(self) -> "NDArray[np.str_]":
        """The split that each of ``image_ids`` belongs to: train, validation or test."""
        sizes = [len(self.train_ids), len(self.validation_ids), len(self.test_ids)]
        return np.repeat(["train", "validation", "test"], sizes)


def corrupt_labels(
    labels: "NDArray[np.int64]", noise: float, num_classes: int, random: np.random.Generator
) -> "NDArray[np.int64]":
    """Replace exactly round(noise * N) labels by a uniformly drawn other class.

    Nakkiran et al. 2019, section 4: "label noise" is a uniformly random INCORRECT label, sampled once.
    """
    chosen = random.permutation(len(labels))[: round(noise * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + random.integers(1, num_classes, size=len(chosen))) % num_classes
    return noisy


def trial_data(study: Study, variant: str, trial: int) -> TrialData:
    """The split and labels of a trial; the same for every width, so that arms differ by their model alone.

    Those used last are kept: the shards of a checkpoint ask for the same ones, and of CIFAR each takes half a second.

    Raises:
        DataMissingError: the data set is absent, or has fewer images than the study asks for.
    """
    return _trial_data(study.data, study.seed, study.variants[variant].label_noise, trial, study.name)


@lru_cache(maxsize=16)
def _trial_data(data: Data, seed: int, noise: float, trial: int, study: str) -> TrialData:
    dataset = load(data.dataset)
    available = np.arange(dataset.num_official_train)
    num_train, num_validation = data.num_train, data.num_validation
    if (num_train or 0) + num_validation > len(available):
        raise DataMissingError(
            f"study {study} asks for {(num_train or 0) + num_validation} training and validation images, "
            f"{dataset.name} has {len(available)}"
        )
    order = None
    if data.classes is not None:
        order = class_order(data.classes, seed, trial, dataset.num_classes)
        shuffled = generator(seed, trial, "split").permutation(available)
        splits = balanced_splits(dataset.labels, len(available), shuffled, data.images_of_each_class, order)
    else:
        splits = _splits(data, seed, trial, dataset)
    train, validation, test = splits
    true_labels = dataset.labels[train]
    labels = corrupt_labels(true_labels, noise, dataset.num_classes, generator(seed, trial, "label_noise"))
    mean, std = _channel_statistics(dataset, train)
    return TrialData(
        train_ids=train,
        validation_ids=validation,
        test_ids=test,
        train_labels=labels,
        true_train_labels=true_labels,
        validation_labels=dataset.labels[validation],
        test_labels=dataset.labels[test],
        mean=mean,
        std=std,
        order=order,
    )


def _splits(data: Data, seed: int, trial: int, dataset: Dataset) -> "list[NDArray[np.int64]]":
    """Training, validation and test images, ids ascending."""
    available = np.arange(dataset.num_official_train)
    num_train, num_validation = data.num_train, data.num_validation
    parts = [available, available[:0], available[:0]]
    if num_train is not None or num_validation:
        shuffled = generator(seed, trial, "split").permutation(available)
        num_train = num_train or len(available) - num_validation
        parts = [np.sort(part) for part in np.split(shuffled, [num_train, num_train + num_validation])]
    # Images a CIFAR study leaves out of training are left out altogether: its test set is the official one.
    official_test = np.arange(dataset.num_official_train, len(dataset.labels))
    return [*parts[:2], official_test if len(official_test) else parts[2]]


def _channel_statistics(
    dataset: Dataset, train: "NDArray[np.int64]"
) -> tuple["NDArray[np.float32]", "NDArray[np.float32]"]:
    """Mean and standard deviation per channel from exact integer histograms (no copy of the images as floats)."""
    values = np.arange(256, dtype=np.float64)
    means, stds = [], []
    for channel in range(dataset.images.shape[-1]):
        counts = np.bincount(dataset.images[train, :, :, channel].reshape(-1), minlength=256)
        mean = (counts * values).sum() / counts.sum()
        means.append(mean)
        stds.append(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
    # A channel without any contrast would divide by zero; leave it as it is instead.
    deviations = np.array(stds, dtype=np.float32)
    return np.array(means, dtype=np.float32), np.where(deviations > 0, deviations, np.float32(1))
