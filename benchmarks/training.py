"""Samples per second of the stacked trainer against plain PyTorch loops that train the same trials one by one.

Two plain loops: a Dataset with torchvision's per-sample transforms (RandomCrop with padding, ToTensor, Normalize), as
the systems this one replaces have it, and one with the same transforms hand-written in NumPy, which is faster. A
DataLoader without workers (with workers it is slower for images this small), one model at a time, torch.optim.Adam as
it comes. All run on one thread, as each of our workers does. Keys: ``k2`` and so on are ours over the faster loop, the
NumPy one; ``k2_torchvision`` ours over the other. At least 2 is wanted.
"""

import functools
import itertools
import statistics

import numpy as np
import torch
from common import interleaved, median_ratio, parse_arguments, write_json
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dd_core.data.datasets import load
from dd_core.data.trials import TrialData, trial_data
from dd_core.jobs.worker import prepare_process
from dd_core.models import build
from dd_core.studies import Arm, Study
from dd_core.training.stack import TrialStack, stacking


def make_study(trials: int) -> Study:
    """The quickstart recipe."""
    return Study.model_validate_json(
        '{"name": "benchmark", "description": "quickstart recipe", "data": {"dataset": "digits", "num_train": 1000},'
        '"variants": {"preact-resnet10": {"architecture": "preact_resnet10", "label_noise": 0.2, "batch_size": 100,'
        '"optimizer": {"name": "adam", "learning_rate": 0.002}, "schedule": {"name": "cosine"},'
        '"augmentation": {"shift_x": 1}}}, "widths": [1, 2, 4, 8, 16], "trials": ' + str(trials) + ","
        '"epochs": 120, "checkpoints": [120]}'
    )


class PlainDataset(Dataset):
    """One image at a time: shift by -1, 0 or 1 pixel, standardise."""

    def __init__(self, data: TrialData, use_torchvision: bool):
        """Keep the training images as uint8."""
        self.images = load("digits").images[data.train_ids]
        self.data = data
        self.random = np.random.default_rng(0)
        scale = 255  # ToTensor divides by it
        self.transform = use_torchvision and transforms.Compose(
            [
                transforms.ToTensor(),
                transforms.RandomCrop((8, 8), padding=(1, 0)),
                transforms.Normalize((data.mean / scale).tolist(), (data.std / scale).tolist()),
            ]
        )

    def __len__(self) -> int:
        """Number of training images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """A (1, 8, 8) image and its label."""
        if self.transform:
            return self.transform(self.images[index]), int(self.data.train_labels[index])
        padded = np.pad(self.images[index], ((0, 0), (1, 1), (0, 0)))
        left = self.random.integers(0, 3)
        image = (padded[:, left : left + 8].astype(np.float32) - self.data.mean) / self.data.std
        return torch.from_numpy(image).permute(2, 0, 1), int(self.data.train_labels[index])


class PlainTrial:
    """One trial of the plain loop."""

    def __init__(self, study: Study, arm: Arm, trial: int, use_torchvision: bool):
        """An ordinary model, optimiser and loader."""
        data = trial_data(study, arm.variant, trial)
        self.model = build("preact_resnet10", arm.k, 1, 10)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-3)
        self.loader = DataLoader(PlainDataset(data, use_torchvision), batch_size=100, shuffle=True)

    def train_epoch(self) -> None:
        """One epoch."""
        self.model.train()
        for images, labels in self.loader:
            loss = torch.nn.functional.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()


def main() -> None:
    """Run and print."""
    arguments = parse_arguments(__doc__)
    prepare_process(threads=1)  # as our workers do; the plain loops gain from it too
    trials = 2
    study = make_study(trials)
    ratios = {}
    print(
        f"{trials} trials, ResNet10k on 8x8 digits, batch 100, one thread; training images per second over all trials"
    )
    print("    k   torchvision loop   NumPy loop   stacked   over torchvision   over NumPy (smallest to largest)")
    for k in study.widths:
        seconds = _measure(study, Arm("preact-resnet10", k), arguments.repeats or (5 if arguments.quick else 15))
        rates = {name: trials * 1000 / statistics.median(values) for name, values in seconds.items()}
        over_torchvision, _, _ = median_ratio(seconds["torchvision"], seconds["ours"])
        median, low, high = median_ratio(seconds["numpy"], seconds["ours"])
        print(
            f"{k:5d} {rates['torchvision']:18,.0f} {rates['numpy']:12,.0f} {rates['ours']:9,.0f} "
            f"{over_torchvision:18.2f} {median:12.2f} ({low:.2f} to {high:.2f})",
            flush=True,
        )
        ratios[f"k{k}"] = median
        ratios[f"k{k}_torchvision"] = over_torchvision
    write_json(arguments.json, ratios, trials=trials)


def _measure(study: Study, arm: Arm, repeats: int) -> dict[str, list[float]]:
    """Seconds per epoch of all trials, interleaved."""
    stacks = [TrialStack(study, arm, group, torch.device("cpu"), torch.float32) for group in stacking(study, arm)]
    plain = {
        name: [PlainTrial(study, arm, trial, name == "torchvision") for trial in range(study.trials)]
        for name in ("torchvision", "numpy")
    }
    epoch = itertools.count(1)

    def ours() -> None:
        number = next(epoch)
        for stack in stacks:
            stack.train_epoch(number)

    def theirs(name: str) -> None:
        for trial in plain[name]:
            trial.train_epoch()

    candidates = {name: functools.partial(theirs, name) for name in plain}
    return interleaved({**candidates, "ours": ours}, repeats)


if __name__ == "__main__":
    main()
