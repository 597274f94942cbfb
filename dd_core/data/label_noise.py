"""Wrong labels: which images get one, and which label it is."""

from typing import TYPE_CHECKING

import numpy as np

from dd_core.errors import DataMissingError
from dd_core.study.datasets import DatasetRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray


def confusions(kind: str, record: DatasetRecord) -> "NDArray[np.int64] | None":
    """The class that each class is taken for, int64 (num_classes,), itself where it is not; None: for any other.

    Args:
        kind: as ``label_noise_kind``: symmetric, pair_flip (the next class; Han et al. 2018, Co-teaching) or asymmetric
            (the class it resembles; Patrini et al. 2017).
        record: of the data set.
    """
    if kind == "symmetric":
        return None
    classes = np.arange(record.num_classes)
    if kind == "pair_flip":
        return (classes + 1) % record.num_classes
    return np.array([record.taken_for.get(label, label) for label in classes.tolist()])


def corrupt_labels(
    labels: "NDArray[np.int64]",
    noise: float,
    num_classes: int,
    random: np.random.Generator,
    taken_for: "NDArray[np.int64] | None" = None,
) -> "NDArray[np.int64]":
    """Replace exactly round(noise * N) labels by that of another class.

    Nakkiran et al. 2019, section 4: "label noise" is a uniformly random INCORRECT label, sampled once. Where only some
    classes are taken for another, the images are drawn from these, so that ``noise`` is the share of wrong labels for
    every kind; Patrini et al. 2017 give the share among these classes instead, which is larger.

    Args:
        labels: int64 (N,), true ones.
        noise: share of all labels, fraction.
        num_classes: labels run from 0 to one less.
        random: where it is drawn from.
        taken_for: as ``confusions`` gives it; None: any other class, uniformly.

    Raises:
        DataMissingError: fewer images are of classes that are taken for another.
    """
    number, drawn = round(noise * len(labels)), random.permutation(len(labels))
    noisy = labels.copy()
    if taken_for is None:
        chosen = drawn[:number]
        noisy[chosen] = (labels[chosen] + random.integers(1, num_classes, size=len(chosen))) % num_classes
        return noisy
    chosen = drawn[(taken_for[labels] != labels)[drawn]][:number]
    if len(chosen) < number:
        raise DataMissingError(
            f"label_noise: {number} of {len(labels)} images shall have a wrong label, but only {len(chosen)} are of a "
            "class that is taken for another (label_noise_kind); choose less noise"
        )
    noisy[chosen] = taken_for[labels[chosen]]
    return noisy
