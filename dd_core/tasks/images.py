"""Image classification: the images of a data set, augmented, and losses of stacked logits."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dd_core.data.augmentation import EpochPlan, PlainImages, TrainingImages, plan_epoch
from dd_core.data.datasets import load
from dd_core.data.trials import TrialData, trial_data
from dd_core.study.study import Study
from dd_core.tasks.base import Splits
from dd_core.tasks.losses import Loss


class Images:
    """The images and labels of some trials of a variant, resident on a device; see ``dd_core.tasks.base.Examples``.

    Inputs are (B, T*channels, H, W), channels-last, as stacked networks take them; targets are labels, int64 (B, T), or
    where classes come one group after the other, their ranks: of the classes of a task the first so many.
    """

    def __init__(self, study: Study, variant: str, trials: list[int], device: torch.device, dtype: torch.dtype):
        """Load the data.

        Args:
            study: gives data set, seed and schedule of classes.
            variant: gives label noise and augmentation.
            trials: numbers of the trials.
            device: where to.
            dtype: floating point type of the batches.
        """
        images = load(study.data.dataset).images
        self.data: list[TrialData] = [trial_data(study, variant, trial) for trial in trials]
        self.num_train, self.num_validation = len(self.data[0].train_ids), len(self.data[0].validation_ids)
        self._study, self._trials, self._device = study, trials, device
        self._augmentation = study.variants[variant].augmentation
        self._size: tuple[int, int] = images.shape[1:3]
        self._training = TrainingImages(images, self.data, self._augmentation, device, dtype)
        self._plain = PlainImages(images, [d.image_ids for d in self.data], self.data, device, dtype)
        targets = [d.given_labels if d.ranks is None else d.ranks[d.given_labels] for d in self.data]
        self._labels = torch.from_numpy(np.stack(targets, axis=1)).to(device)
        self._train_labels = self._labels[: self.num_train]
        first = self.data[0]
        self.whole = Splits(self.num_train, self.num_validation, len(first.test_ids), len(first.left_out_ids))

    def plan(self, epoch: int) -> EpochPlan:
        """Order, shifts and flips of an epoch."""
        number, seed = self.splits(epoch).num_train, self._study.seed
        return plan_epoch(seed, self._trials, number, epoch, self._augmentation, self._device, self._size)

    def batch(self, plan: EpochPlan, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Training images ``start:stop`` of the epoch, augmented, and their given labels."""
        return self._training.batch(plan, start, stop), self._train_labels.gather(0, plan.positions[start:stop])

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Training images at ``positions`` in the order of ``TrialData.train_ids``, and their given labels."""
        return self._plain.at(positions), self._train_labels.gather(0, positions)

    def splits(self, epoch: int) -> Splits:
        """All images there are, or of the classes seen, in the order of ``TrialData.image_ids``."""
        if self._study.data.classes is None:
            return self.whole
        seen = self.data[0].first_classes(self._study.num_classes_at(epoch))
        return Splits(len(seen.train_ids), len(seen.validation_ids), len(seen.test_ids))

    def places(self, splits: Splits) -> np.ndarray:
        """The first images of each split, int64."""
        whole = self.whole
        sizes = (whole.num_train, whole.num_validation, whole.num_test, whole.num_left_out)
        seen = (splits.num_train, splits.num_validation, splits.num_test, splits.num_left_out)
        return np.concatenate([start + np.arange(number) for start, number in zip(_starts(sizes), seen, strict=True)])

    def evaluated(self, splits: Splits, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images ``start:stop`` of these, with given labels; where nobody is trained on them, these are true."""
        if splits == self.whole:
            return self._plain.batch(start, stop), self._labels[start:stop]
        places = torch.from_numpy(self.places(splits)[start:stop]).to(self._device)
        return self._plain.at(places[:, None].expand(-1, len(self._trials))), self._labels[places]


def _starts(sizes: Sequence[int]) -> Iterator[int]:
    return itertools.accumulate(sizes[:-1], initial=0)


class RepeatedImages:
    """The images and labels of the same trials several times over, for arms that share a network.

    What is random of a trial depends on its number alone, so each time they are the same.
    """

    def __init__(self, images: Images, times: int):
        """``images``: those of the trials once."""
        self._images, self._times = images, times
        self.data, self.whole = images.data * times, images.whole
        self.num_train, self.num_validation = images.num_train, images.num_validation

    def plan(self, epoch: int) -> EpochPlan:
        """Order, shifts and flips of an epoch, of the trials once."""
        return self._images.plan(epoch)

    def batch(self, plan: EpochPlan, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """As ``Images.batch``."""
        return self._repeated(*self._images.batch(plan, start, stop))

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Images.at``; the positions of a trial may differ from time to time."""
        found = [self._images.at(part) for part in positions.chunk(self._times, dim=1)]
        images = torch.cat([inputs.permute(0, 2, 3, 1) for inputs, _ in found], dim=3)
        return images.permute(0, 3, 1, 2), torch.cat([labels for _, labels in found], dim=1)

    def splits(self, epoch: int) -> Splits:
        """As ``Images.splits``."""
        return self._images.splits(epoch)

    def places(self, splits: Splits) -> np.ndarray:
        """As ``Images.places``."""
        return self._images.places(splits)

    def evaluated(self, splits: Splits, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """As ``Images.evaluated``."""
        return self._repeated(*self._images.evaluated(splits, start, stop))

    def _repeated(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        channels_last = images.permute(0, 2, 3, 1).repeat(1, 1, 1, self._times)
        return channels_last.permute(0, 3, 1, 2), labels.repeat(1, self._times)


class Classification:
    """One class for every image, by a loss of the study's choice; see ``dd_core.tasks.base.Task``.

    Outputs are those of a stacked network, (B, T, classes); targets are labels, int64 (B, T). Where classes come one
    group after the other, a loss sees the outputs of the classes of the task alone, in their order, and targets are
    ranks: for n classes everything is a problem of n classes.
    """

    def __init__(self, loss: Loss, orders: Tensor | None = None):
        """Take in all classes.

        Args:
            loss: of an image, from one network's outputs.
            orders: int64 (T, classes) on the device, each trial's classes in the order in which they come; None: all
                are there from the beginning.
        """
        self._loss, self._orders, self._seen = loss, orders, orders

    def restrict(self, num_classes: int) -> None:
        """Be about the first so many classes of each trial's order, if there is one."""
        with torch.inference_mode(False):  # an evaluation may be the first to ask, and training goes on with it
            self._seen = None if self._orders is None else self._orders[:, :num_classes].contiguous()

    def _of_task(self, outputs: Tensor) -> Tensor:
        return outputs if self._seen is None else outputs.gather(2, self._seen.expand(len(outputs), -1, -1))

    def losses(self, outputs: Tensor, targets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The loss that is trained, (B, T)."""
        outputs = self._of_task(outputs if dtype is None else outputs.to(dtype))
        return self._loss.losses(outputs.flatten(0, 1), targets.flatten()).view(targets.shape)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss that evaluations record, (B, T)."""
        return self._loss.scores(self._of_task(outputs).flatten(0, 1), targets.flatten()).view(targets.shape)

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether the largest output is that of the label."""
        return self._of_task(outputs).argmax(2) == targets

    def value(self, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
        """Margin: logit of the label minus the largest other (Pleiss et al. 2020); el2n (Paul et al. 2021).

        Returns:
            (B, T); a margin is NaN where there is no other class.
        """
        outputs, labels = self._of_task(outputs), targets[..., None]
        if name == "margin":
            if outputs.shape[2] == 1:  # there is no other
                return torch.full_like(targets, torch.nan, dtype=outputs.dtype)
            others = outputs.scatter(2, labels, -torch.inf).amax(2)
            return outputs.gather(2, labels)[..., 0] - others
        assert name == "el2n"
        of_label = torch.full_like(labels, -1, dtype=outputs.dtype)
        return torch.linalg.vector_norm(outputs.softmax(2).scatter_add(2, labels, of_label), dim=2)


def orders_of(data: Sequence[TrialData], device: torch.device) -> Tensor | None:
    """Each trial's classes in the order in which they come, int64 (T, classes); None without an order."""
    orders = [trial.order for trial in data if trial.order is not None]
    return torch.from_numpy(np.stack(orders)).to(device) if orders else None
