"""Plain trainings of one trial, the peers of ``training.py``: with a DataLoader, or with the images in memory."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from dd_core.data.datasets import load
from dd_core.data.trials import trial_data
from dd_core.models.build import build
from dd_core.study.study import Arm, Study

# With fewer than four cores, whenever an epoch begins; four is what the loops replaced here have.
warnings.filterwarnings("ignore", message="This DataLoader will create 4 worker processes")


class Images(Dataset[tuple[Tensor, int]]):
    """A data set as torchvision's are: a PIL image at a time, through its transforms."""

    def __init__(self, study: Study, arm: Arm):
        """The training images of trial 0."""
        augmentation, data = study.variants[arm.variant].augmentation, trial_data(study, arm.variant, 0)
        self.images, self.labels = load(study.data.dataset).images[data.train_ids], data.train_labels
        steps = [
            transforms.RandomCrop(self.images.shape[1:3], padding=(augmentation.shift_x, augmentation.shift_y)),
            *([transforms.RandomHorizontalFlip()] if augmentation.flip else []),
            transforms.ToTensor(),
            transforms.Normalize((data.mean / 255).tolist(), (data.std / 255).tolist()),
        ]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        """Number of training images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An augmented image (channels, height, width) and its label."""
        return self.transform(Image.fromarray(self.images[index].squeeze())), int(self.labels[index])


class ImagesInMemory:
    """The same images as one tensor on the device, cropped and flipped a batch at a time."""

    def __init__(self, study: Study, arm: Arm, device: torch.device):
        """The training images of trial 0, padded."""
        self.variant, data = study.variants[arm.variant], trial_data(study, arm.variant, 0)
        images = torch.from_numpy(load(study.data.dataset).images[data.train_ids]).permute(0, 3, 1, 2)
        self.size, augmentation = images.shape[2:], self.variant.augmentation
        self.shifts = (augmentation.shift_y, augmentation.shift_x)
        self.padded = pad(images, (*self.shifts[1:] * 2, *self.shifts[:1] * 2)).contiguous().to(device)
        self.labels = torch.from_numpy(data.train_labels).to(device)
        self.mean, self.std = (torch.from_numpy(v).view(-1, 1, 1).to(device) for v in (data.mean, data.std))
        self.device = device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch."""
        channels = torch.arange(self.padded.shape[1], device=self.device)[:, None, None]
        for ids in torch.randperm(len(self.padded), device=self.device).split(self.variant.batch_size):
            corners = [torch.randint(0, 2 * shift + 1, (len(ids), 1), device=self.device) for shift in self.shifts]
            rows, columns = (c + torch.arange(n, device=self.device) for c, n in zip(corners, self.size, strict=True))
            if self.variant.augmentation.flip:
                flipped = torch.rand(len(ids), 1, device=self.device) < 0.5
                columns = torch.where(flipped, columns.flip(1), columns)
            images = self.padded[ids[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None]]
            yield (images.float() - self.mean) / self.std, self.labels[ids]


class PlainLoop:
    """An ordinary training: one network as PyTorch lays it out, ``torch.optim.Adam`` as it comes."""

    def __init__(self, study: Study, arm: Arm, num_steps: int, device: torch.device, in_memory: bool):
        """Network, optimiser and loader; ``num_steps`` are done at a time."""
        variant, channels = study.variants[arm.variant], load(study.data.dataset).images.shape[3]
        self.model = build(variant.architecture, arm.k, channels, 10).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=variant.optimizer.learning_rate)
        self.device, self.num_steps = device, num_steps
        self.is_narrow = variant.precision == "bfloat16"
        self.batches: Any = (
            ImagesInMemory(study, arm, device) if in_memory else self._loader(Images(study, arm), variant.batch_size)
        )

    def _loader(self, images: Images, size: int) -> DataLoader[tuple[Tensor, int]]:
        # An epoch has no more images than are asked for, or workers would go on loading while others are measured.
        seen = Subset(images, range(min(len(images), self.num_steps * size)))
        return DataLoader(
            seen,
            batch_size=size,
            shuffle=True,
            num_workers=4,
            persistent_workers=True,
            prefetch_factor=2,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="fork",  # the default of scripts on Linux; this process was spawned
        )

    def __call__(self) -> None:
        """Do the steps, epoch after epoch."""
        self.model.train()
        done = 0
        while done < self.num_steps:
            for images, labels in self.batches:
                self._step(images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True))
                done += 1
                if done == self.num_steps:
                    break

    def _step(self, images: Tensor, labels: Tensor) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_narrow):
            loss = cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()
