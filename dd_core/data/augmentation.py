"""Augmentation and standardisation of whole batches on the device, with no loop over images.

The shifts, crops and flips of an epoch are drawn on the CPU from (seed, trial, epoch), so a GPU and a laptop see the
same images, and an interrupted epoch can be repeated exactly.
"""

from dataclasses import dataclass

import numpy as np
import torch

from dd_core.data.duplicates import pixels_of
from dd_core.data.randomness import generator
from dd_core.data.resized_crop import draw_crops, source_pixels
from dd_core.data.trials import TrialData
from dd_core.study.recipe import Augmentation


@dataclass(frozen=True)
class EpochPlan:
    """What every trial sees in one epoch, in training order.

    Attributes:
        positions: int64 (num_train, trials), positions in the trial's training set.
        top, left: int64 (num_train, trials), corner of the crop in the padded image.
        flip: bool (num_train, trials).
        crop: int64 (num_train, trials, 4), top, left, height and width of what is enlarged; None: shifts instead.
    """

    positions: torch.Tensor
    top: torch.Tensor
    left: torch.Tensor
    flip: torch.Tensor
    crop: torch.Tensor | None = None


def plan_epoch(
    seed: int,
    trials: list[int],
    num_train: int,
    epoch: int,
    augmentation: Augmentation,
    device: torch.device,
    size: tuple[int, int] = (0, 0),
) -> EpochPlan:
    """Draw order, shifts, crops and flips of one epoch for the given trials.

    ``size``: height and width of an image, pixels; shifts need none.
    """
    columns: list[list[np.ndarray]] = [[], [], [], []]
    crops = []
    for trial in trials:
        order = generator(seed, trial, "order", epoch).permutation(num_train)
        random = generator(seed, trial, "augmentation", epoch)
        columns[0].append(order)
        columns[1].append(random.integers(0, 2 * augmentation.shift_y + 1, num_train))
        columns[2].append(random.integers(0, 2 * augmentation.shift_x + 1, num_train))
        columns[3].append(random.integers(0, 2, num_train).astype(bool) & augmentation.flip)
        if augmentation.resized_crop is not None:
            crops.append(draw_crops(random, num_train, *size, augmentation.resized_crop))
    every = [*columns, crops] if crops else columns
    return EpochPlan(*(torch.from_numpy(np.stack(column, axis=1)).to(device) for column in every))


class TrainingImages:
    """The padded uint8 training images of several trials, resident on the device.

    Trials that see the same images (CIFAR's official split) share one copy.
    """

    def __init__(
        self,
        images: np.ndarray,
        trials: list[TrialData],
        augmentation: Augmentation,
        device: torch.device,
        dtype: torch.dtype,
    ):
        """Pad once with the background (raw value 0), as torchvision's RandomCrop does before normalisation.

        Args:
            images: uint8 (N, height, width, channels), the whole data set.
            trials: whose training images to keep.
            augmentation: sets the padding.
            device: where the images live.
            dtype: floating point type of the batches.
        """
        pad = ((0, 0), (augmentation.shift_y,) * 2, (augmentation.shift_x,) * 2, (0, 0))
        images, rows = pixels_of(images, [trial.copies for trial in trials], [trial.train_ids for trial in trials])
        shared = all(np.array_equal(own, rows[0]) for own in rows)
        blocks = [np.pad(images[own], pad) for own in (rows[:1] if shared else rows)]
        self.height, self.width = images.shape[1:3]
        self.padded = torch.from_numpy(np.concatenate(blocks)).to(device)
        sizes = [0 if shared else len(block) for block in blocks]
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if not shared else np.zeros(len(trials), int)
        self.offsets = torch.as_tensor(offsets, device=device)
        self.mean, self.std = standardisation(trials, device, dtype)
        self.rows = torch.arange(self.height, device=device)
        self.columns = torch.arange(self.width, device=device)

    def batch(self, plan: EpochPlan, start: int, stop: int) -> torch.Tensor:
        """Images ``start:stop`` of the epoch, cropped, flipped and standardised.

        Returns:
            (stop - start, trials * channels, height, width), channels-last: trial by trial, as stacked models take it.
        """
        index = plan.positions[start:stop] + self.offsets
        if plan.crop is not None:
            return self._resized(index, plan.crop[start:stop], plan.flip[start:stop])
        rows = plan.top[start:stop, :, None] + self.rows
        columns = torch.where(plan.flip[start:stop, :, None], self.columns.flip(0), self.columns)
        columns = columns + plan.left[start:stop, :, None]
        # (B, T, H, W, C) -> (B, H, W, T, C), which is channels-last memory for (B, T*C, H, W).
        raw = self.padded[index[:, :, None, None], rows[:, :, :, None], columns[:, :, None, :]]
        return _standardise(raw.permute(0, 2, 3, 1, 4), self.mean, self.std)

    def _resized(self, index: torch.Tensor, crop: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        """The crops of images enlarged to their size: first along columns, then along rows."""
        dtype = self.mean.dtype
        top, left, high, wide = crop.unbind(-1)
        above, below, share = source_pixels(top, high, self.height, None, dtype)  # (B, T, H)
        before, after, part = source_pixels(left, wide, self.width, flip, dtype)  # (B, T, W)

        def row(rows: torch.Tensor) -> torch.Tensor:
            at = (index[:, :, None, None], rows[:, :, :, None])
            first, second = (self.padded[(*at, columns[:, :, None, :])] for columns in (before, after))
            return torch.lerp(first.to(dtype), second.to(dtype), part[:, :, None, :, None])

        values = torch.lerp(row(above), row(below), share[:, :, :, None, None])  # (B, T, H, W, C)
        return _standardise(values.permute(0, 2, 3, 1, 4), self.mean, self.std)


def standardisation(
    trials: list[TrialData], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of several trials as (trials, channels) tensors."""
    mean = torch.from_numpy(np.stack([trial.mean for trial in trials])).to(device, dtype)
    return mean, torch.from_numpy(np.stack([trial.std for trial in trials])).to(device, dtype)


class PlainImages:
    """Images without augmentation for a stacked model, standardised batch by batch on the device.

    Every trial contributes the same number of images, in the order of its ids.
    """

    # Digits fit easily and are evaluated every epoch: keep their batches. CIFAR is standardised again each time.
    _KEEP_BYTES = 64 << 20

    def __init__(
        self,
        images: np.ndarray,
        ids: list[np.ndarray],
        trials: list[TrialData],
        device: torch.device,
        dtype: torch.dtype,
    ):
        """Put the images the trials need on the device as uint8.

        Args:
            images: uint8 (N, height, width, channels), the whole data set.
            ids: for every trial the image ids, all of the same length.
            trials: give mean and deviation, and say which images are copies.
            device: where the images live.
            dtype: floating point type of the batches.
        """
        self.num_images = len(ids[0])
        images, rows = pixels_of(images, [trial.copies for trial in trials], ids)
        self.raw = torch.from_numpy(images).to(device)
        self.ids = torch.from_numpy(np.stack(rows, axis=1)).to(device)
        self.mean, self.std = standardisation(trials, device, dtype)
        self._batches: dict[tuple[int, int], torch.Tensor] = {}
        floats = self.ids.numel() * self.raw[0].numel()
        self._keep = floats * self.mean.element_size() <= self._KEEP_BYTES

    def batch(self, start: int, stop: int) -> torch.Tensor:
        """Images ``start:stop`` of every trial: (B, trials * channels, height, width), channels-last."""
        kept = self._batches.get((start, stop))
        if kept is not None:
            return kept
        with torch.inference_mode(False):  # what is kept may be asked for by an evaluation, then by a derivative
            raw = self.raw[self.ids[start:stop]]  # (B, T, H, W, C)
            batch = _standardise(raw.permute(0, 2, 3, 1, 4), self.mean, self.std)
        if self._keep:
            self._batches[start, stop] = batch
        return batch

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """Images at ``positions``, int64 (B, trials), of each trial's ids: as ``batch`` gives them."""
        raw = self.raw[self.ids.gather(0, positions)]
        return _standardise(raw.permute(0, 2, 3, 1, 4), self.mean, self.std)


def _standardise(raw: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """(B, H, W, T, C), raw values, to (B, T*C, H, W) floating point, keeping the memory layout."""
    batch, height, width, trials, channels = raw.shape
    values = (raw.to(mean.dtype) - mean) / std
    flat = values.reshape(batch, height, width, trials * channels)
    return flat.permute(0, 3, 1, 2)
