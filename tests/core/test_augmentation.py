"""Augmented batches against a loop over images, and the order of an epoch as a function of (seed, trial, epoch)."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from dd_core.data.augmentation import EpochPlan, PlainImages, TrainingImages, plan_epoch
from dd_core.data.resized_crop import draw_crops
from dd_core.data.trials import TrialData
from dd_core.study.recipe import Augmentation, ResizedCrop

CPU = torch.device("cpu")
FULL = Augmentation(shift_x=2, shift_y=1, flip=True)


def made_up(num_trials: int, channels: int, shared: bool, num_train: int = 11) -> tuple[np.ndarray, list[TrialData]]:
    """Random images that are higher than wide, and trials with their own training images and statistics."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (30, 6, 5, channels), dtype=np.uint8)
    trials = []
    for trial in range(num_trials):
        ids = np.arange(num_train) if shared else np.sort(random.permutation(30)[:num_train])
        labels = random.integers(0, 10, num_train)
        mean = (100 + trial + np.arange(channels)).astype(np.float32)
        std = (10 + trial + np.arange(channels)).astype(np.float32)
        trials.append(TrialData(ids, ids[:0], ids, labels, labels, labels[:0], labels, mean, std))
    return images, trials


def one_by_one(
    images: np.ndarray, trials: list[TrialData], plan: EpochPlan, pad: tuple[int, int], start: int, stop: int
) -> torch.Tensor:
    """The same batch image by image with torchvision: pad, crop, flip, standardise."""
    height, width, channels = images.shape[1:]
    batch = torch.empty(stop - start, len(trials) * channels, height, width, dtype=torch.float64)
    for row, position in enumerate(range(start, stop)):
        for t, data in enumerate(trials):
            image = torch.from_numpy(images[data.train_ids[plan.positions[position, t]]]).permute(2, 0, 1)
            image = tv.pad(image, [pad[0], pad[1]])
            image = tv.crop(image, int(plan.top[position, t]), int(plan.left[position, t]), height, width)
            if plan.flip[position, t]:
                image = tv.hflip(image)
            standard = tv.normalize(image.double(), data.mean.tolist(), data.std.tolist())
            batch[row, t * channels : (t + 1) * channels] = standard
    return batch


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("num_trials", "channels"), [(1, 1), (1, 3), (3, 1), (3, 3)])
@pytest.mark.parametrize("augmentation", [FULL, Augmentation(shift_y=2), Augmentation(flip=True)])
def test_a_batch_is_what_torchvision_makes_image_by_image(
    num_trials: int, channels: int, shared: bool, augmentation: Augmentation
) -> None:
    images, trials = made_up(num_trials, channels, shared)
    plan = plan_epoch(0, list(range(num_trials)), 11, 1, augmentation, CPU)
    loader = TrainingImages(images, trials, augmentation, CPU, torch.float64)
    for start, stop in ((0, 4), (4, 8), (8, 11)):
        expected = one_by_one(images, trials, plan, (augmentation.shift_x, augmentation.shift_y), start, stop)
        torch.testing.assert_close(loader.batch(plan, start, stop), expected, rtol=1e-14, atol=1e-14)


def test_colour_batches_are_channels_last_for_speed() -> None:
    images, trials = made_up(2, 3, shared=False)
    plan = plan_epoch(0, [0, 1], 11, 1, FULL, CPU)
    for batch in (
        TrainingImages(images, trials, FULL, CPU, torch.float32).batch(plan, 0, 4),
        PlainImages(images, [t.train_ids for t in trials], trials, CPU, torch.float32).batch(0, 4),
    ):
        assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shared", [False, True])
def test_without_shift_and_flip_training_images_are_the_plain_images_in_another_order(shared: bool) -> None:
    images, trials = made_up(2, 3, shared)
    nothing = Augmentation()
    plan = plan_epoch(0, [0, 1], 11, 1, nothing, CPU)
    augmented = TrainingImages(images, trials, nothing, CPU, torch.float64).batch(plan, 0, 11)
    plain = PlainImages(images, [t.train_ids for t in trials], trials, CPU, torch.float64).batch(0, 11)
    for t in range(2):
        own = slice(3 * t, 3 * t + 3)
        assert torch.equal(augmented[:, own], plain[plan.positions[:, t], own])


def test_plain_images_are_standardised_with_each_trials_own_statistics_and_equal_when_asked_again() -> None:
    images, trials = made_up(2, 3, shared=False)
    ids = [np.array([3, 1, 29]), np.array([0, 0, 5])]
    loader = PlainImages(images, ids, trials, CPU, torch.float64)
    batch = loader.batch(0, 2)
    assert batch.shape == (2, 6, 6, 5)
    for t, data in enumerate(trials):
        for row in range(2):
            expected = (images[ids[t][row]].astype(np.float64) - data.mean) / data.std
            np.testing.assert_allclose(batch[row, 3 * t : 3 * t + 3].permute(1, 2, 0), expected, rtol=1e-14)
    assert torch.equal(loader.batch(0, 2), batch)
    assert loader.batch(2, 4).shape[0] == 1


def test_a_large_set_is_not_kept_in_memory_but_gives_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    images, trials = made_up(1, 3, shared=False)
    kept = PlainImages(images, [trials[0].train_ids], trials, CPU, torch.float32)
    monkeypatch.setattr(PlainImages, "_KEEP_BYTES", 0)
    fresh = PlainImages(images, [trials[0].train_ids], trials, CPU, torch.float32)
    assert fresh.batch(0, 5) is not fresh.batch(0, 5)
    assert kept.batch(0, 5) is kept.batch(0, 5)
    assert torch.equal(fresh.batch(0, 5), kept.batch(0, 5))


def test_every_offset_and_flip_occurs_equally_often() -> None:
    plan = plan_epoch(0, [0, 1], 30_000, 1, FULL, CPU)
    for t in range(2):
        joint = torch.stack([plan.top[:, t], plan.left[:, t], plan.flip[:, t].long()], dim=1)
        values, counts = joint.unique(dim=0, return_counts=True)
        assert len(values) == 3 * 5 * 2
        # Binomial with n = 30000, p = 1/30: 1000 +- 31; five deviations.
        assert (counts - 1000).abs().max() < 160


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_epoch_shows_every_image_once(epoch: int) -> None:
    plan = plan_epoch(0, [0, 1], 11, epoch, FULL, CPU)
    assert torch.equal(plan.positions.sort(0).values, torch.arange(11)[:, None].expand(11, 2))


def as_tuple(plan: EpochPlan) -> tuple[Any, ...]:
    return tuple(tuple(t.flatten().tolist()) for t in (plan.positions, plan.top, plan.left, plan.flip))


def test_an_epoch_depends_on_seed_trial_and_epoch_alone() -> None:
    plans = {
        (seed, trial, epoch): as_tuple(plan_epoch(seed, [trial], 50, epoch, FULL, CPU))
        for seed in (0, 1)
        for trial in (0, 1)
        for epoch in (1, 2)
    }
    for part in range(4):
        assert len({plan[part] for plan in plans.values()}) == len(plans)
    for (seed, trial, epoch), plan in plans.items():
        assert as_tuple(plan_epoch(seed, [trial], 50, epoch, FULL, CPU)) == plan
        together = plan_epoch(seed, [5, trial], 50, epoch, FULL, CPU)
        second = (t[:, 1:] for t in (together.positions, together.top, together.left, together.flip))
        assert as_tuple(EpochPlan(*second)) == plan


def test_turning_the_flip_off_leaves_order_and_shifts_alone() -> None:
    flipped = plan_epoch(0, [0], 50, 1, FULL, CPU)
    plain = plan_epoch(0, [0], 50, 1, FULL.model_copy(update={"flip": False}), CPU)
    assert not plain.flip.any()
    assert as_tuple(plain)[:3] == as_tuple(flipped)[:3]


@pytest.mark.parametrize("shared", [False, True])
def test_resized_crops_are_what_torchvision_makes_image_by_image(shared: bool) -> None:
    augmentation = Augmentation(resized_crop=ResizedCrop(), flip=True)
    images, trials = made_up(2, 3, shared)
    height, width = images.shape[1:3]
    plan = plan_epoch(0, [0, 1], 11, 1, augmentation, CPU, (height, width))
    assert plan.crop is not None
    batch = TrainingImages(images, trials, augmentation, CPU, torch.float64).batch(plan, 3, 9)
    for row, position in enumerate(range(3, 9)):
        for t, data in enumerate(trials):
            image = torch.from_numpy(images[data.train_ids[plan.positions[position, t]]]).permute(2, 0, 1).double()
            image = tv.resized_crop(image, *plan.crop[position, t].tolist(), [height, width], antialias=True)
            if plan.flip[position, t]:
                image = tv.hflip(image)
            expected = tv.normalize(image, data.mean.tolist(), data.std.tolist())
            torch.testing.assert_close(batch[row, 3 * t : 3 * t + 3], expected, rtol=0, atol=1e-12)
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("size", "settings"),
    [((32, 32), ResizedCrop()), ((12, 40), ResizedCrop(scale=(0.5, 1.0))), ((40, 6), ResizedCrop(scale=(0.9, 1.0)))],
)
def test_crops_are_distributed_as_torchvision_draws_them(size: tuple[int, int], settings: ResizedCrop) -> None:
    """The last two are so long that many attempts, or all, fail and the middle is taken."""
    number = 4000
    ours = draw_crops(np.random.default_rng(0), number, *size, settings)
    torch.manual_seed(0)
    image = torch.zeros(1, *size)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(settings.scale), list(settings.ratio)) for _ in range(number)]
    )
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    area = (lambda crops: crops[:, 2] * crops[:, 3])(ours), (lambda crops: crops[:, 2] * crops[:, 3])(theirs)
    assert ks_2samp(*area).pvalue > 1e-3
    assert ((ours[:, :2] >= 0) & (ours[:, :2] + ours[:, 2:] <= size)).all()


def test_crops_are_a_function_of_seed_trial_and_epoch() -> None:
    augmentation = Augmentation(resized_crop=ResizedCrop())

    def crops(seed: int, trials: list[int], epoch: int) -> torch.Tensor:
        crop = plan_epoch(seed, trials, 20, epoch, augmentation, CPU, (32, 32)).crop
        assert crop is not None
        return crop

    assert torch.equal(crops(0, [3], 2)[:, 0], crops(0, [1, 3], 2)[:, 1])
    for other in (crops(1, [3], 2), crops(0, [4], 2), crops(0, [3], 1)):
        assert not torch.equal(crops(0, [3], 2), other)
