"""What one trial sees of a data set: its split and its (partly wrong) training labels, fixed for all epochs."""

import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dd_core.data.class_schedule import balanced_splits, class_order
from dd_core.data.datasets import Dataset, load
from dd_core.data.duplicates import Copies, draw_copies, pixels_of
from dd_core.data.graphs.load import load_problems
from dd_core.data.label_noise import confusions, corrupt_labels
from dd_core.data.randomness import generator
from dd_core.errors import DataMissingError
from dd_core.study.recipe import Data
from dd_core.study.study import Study

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _none() -> "NDArray[np.int64]":
    return np.zeros(0, np.int64)


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
        mean, std: float32 (channels,), of the raw training pixels, or as the study says; images are standardised with
            these.
        left_out_ids: int64 (num_left_out,), training images of other trials, ascending; none without a subset.
        left_out_labels: int64 (num_left_out,), given labels, the same as where they are trained on.
        left_out_true_labels: int64 (num_left_out,).
        copies: images with pixels and label of another; None: there are none.
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
    left_out_ids: "NDArray[np.int64]" = field(default_factory=_none)
    left_out_labels: "NDArray[np.int64]" = field(default_factory=_none)
    left_out_true_labels: "NDArray[np.int64]" = field(default_factory=_none)
    copies: Copies | None = None
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

    def is_of_first_classes(self, number: int) -> "NDArray[np.bool_]":
        """Which of ``image_ids`` are those of ``first_classes``, bool (N,)."""
        seen = self.first_classes(number)
        names = ("train_ids", "validation_ids", "test_ids", "left_out_ids")
        return np.concatenate([np.arange(len(getattr(self, name))) < len(getattr(seen, name)) for name in names])

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
        """Training, then validation, then test images, then those left out, int64 (N,)."""
        return np.concatenate([self.train_ids, self.validation_ids, self.test_ids, self.left_out_ids])

    @property
    def given_labels(self) -> "NDArray[np.int64]":
        """The label that each of ``image_ids`` is trained or evaluated with, int64 (N,)."""
        return np.concatenate([self.train_labels, self.validation_labels, self.test_labels, self.left_out_labels])

    @property
    def true_labels(self) -> "NDArray[np.int64]":
        """The true label of each of ``image_ids``, int64 (N,)."""
        true = (self.true_train_labels, self.validation_labels, self.test_labels, self.left_out_true_labels)
        return np.concatenate(true)

    @property
    def splits(self) -> "NDArray[np.str_]":
        """The split that each of ``image_ids`` belongs to: train, validation, test or left_out."""
        sizes = [len(self.train_ids), len(self.validation_ids), len(self.test_ids), len(self.left_out_ids)]
        return np.repeat(["train", "validation", "test", "left_out"], sizes)


def trial_data(study: Study, variant: str, trial: int) -> TrialData:
    """The split and labels of a trial; the same for every width, so that arms differ by their model alone.

    Those used last are kept: the shards of a checkpoint ask for the same ones, and of CIFAR each takes half a second.

    Raises:
        DataMissingError: the data set is absent, or has fewer images than the study asks for.
    """
    recipe = study.variants[variant]
    if recipe.nsm is not None:
        return _trial_of_graphs(study.data, recipe.nsm.domain, study.seed, recipe.label_noise, trial)
    return _trial_data(study.data, study.seed, recipe.label_noise, recipe.label_noise_kind, trial, study.name)


@lru_cache(maxsize=16)
def _trial_data(data: Data, seed: int, noise: float, noise_kind: str, trial: int, study: str) -> TrialData:
    dataset = load(data.dataset)
    available = np.arange(dataset.num_official_train)
    num_train, num_validation = data.num_train, data.num_validation
    if (num_train or 0) + num_validation > len(available):
        raise DataMissingError(
            f"study {study} asks for {(num_train or 0) + num_validation} training and validation images, "
            f"{dataset.name} has {len(available)}"
        )
    # With a subset trials differ in what they leave out alone: memorisation is the difference that an image makes, and
    # must not be mixed with that of its label.
    drawn_for = trial if data.subset is None else 0
    order = None
    if data.classes is not None:
        order = class_order(data.classes, seed, trial, dataset.num_classes)
        shuffled = generator(seed, trial, "split").permutation(available)
        splits = balanced_splits(dataset.labels, len(available), shuffled, data.images_of_each_class, order)
    else:
        splits = _splits(data, seed, drawn_for, dataset)
    train, validation, test = splits
    true_labels = dataset.labels[train]
    taken_for, random = confusions(noise_kind, data.record), generator(seed, drawn_for, "label_noise")
    labels = corrupt_labels(true_labels, noise, dataset.num_classes, random, taken_for)
    copies = None
    if data.duplicates is not None:
        random = generator(seed, drawn_for, "duplicates")
        highest = data.record.highest
        copies = draw_copies(data.duplicates, dataset.images, dataset.labels, train, highest, random)
        places = np.searchsorted(train, [copies.ids, copies.sources])
        labels[places[0]] = labels[places[1]]
    is_left_out = np.zeros(len(train), bool)
    if data.subset is not None:
        drawn = generator(seed, trial, "subset").permutation(len(train))
        is_left_out[drawn[data.num_trained(len(train)) :]] = True
    train, left_out = train[~is_left_out], train[is_left_out]
    pixels, (rows,) = pixels_of(dataset.images, [copies], [train])
    mean, std = _channel_statistics(pixels, rows)
    if (fixed := data.standardisation) is not None:
        scaled = [np.array(own) * data.record.highest for own in (fixed.mean, fixed.std)]
        mean, std = (own.astype(np.float32) for own in scaled)
    return TrialData(
        train_ids=train,
        validation_ids=validation,
        test_ids=test,
        train_labels=labels[~is_left_out],
        true_train_labels=true_labels[~is_left_out],
        validation_labels=dataset.labels[validation],
        test_labels=dataset.labels[test],
        mean=mean,
        std=std,
        left_out_ids=left_out,
        left_out_labels=labels[is_left_out],
        left_out_true_labels=true_labels[is_left_out],
        copies=copies,
        order=order,
    )


@lru_cache(maxsize=16)
def _trial_of_graphs(data: Data, domain: str, seed: int, noise: float, trial: int) -> TrialData:
    """Graphs take the place of images: ``image_id`` is the index of a problem; there is nothing to standardise by."""
    assert data.graphs is not None and data.num_train is not None
    sizes = [data.num_train, data.num_validation, data.graphs.num_test]
    problems = load_problems(data.graphs, domain, seed, sum(sizes))
    shuffled = generator(seed, trial, "split").permutation(sum(sizes))
    train, validation, test = (np.sort(part) for part in np.split(shuffled, np.cumsum(sizes)[:2]))
    labels = problems.labels
    noisy = corrupt_labels(labels[train], noise, data.record.num_classes, generator(seed, trial, "label_noise"))
    nothing = np.zeros(0, np.float32)
    return TrialData(train, validation, test, noisy, labels[train], labels[validation], labels[test], nothing, nothing)


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
    images: "NDArray[np.uint8]", rows: "NDArray[np.int64]"
) -> tuple["NDArray[np.float32]", "NDArray[np.float32]"]:
    """Mean and standard deviation per channel from exact integer histograms (no copy of the images as floats)."""
    values = np.arange(256, dtype=np.float64)
    means, stds = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[rows, :, :, channel].reshape(-1), minlength=256)
        mean = (counts * values).sum() / counts.sum()
        means.append(mean)
        stds.append(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
    # A channel without any contrast would divide by zero; leave it as it is instead.
    deviations = np.array(stds, dtype=np.float32)
    return np.array(means, dtype=np.float32), np.where(deviations > 0, deviations, np.float32(1))
