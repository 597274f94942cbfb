"""The trials of an arm that share one stacked network: an epoch of training, an evaluation, their state as tensors."""

import contextlib
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dd_core.data.augmentation import PlainImages, TrainingImages, plan_epoch
from dd_core.data.datasets import load
from dd_core.data.randomness import torch_seed
from dd_core.data.trials import TrialData, trial_data
from dd_core.machine.memory import in_blocks
from dd_core.models.build import build_trials
from dd_core.models.stacking import by_trial, load_state
from dd_core.study.architectures import architecture_called
from dd_core.study.stacks import stacking
from dd_core.study.study import Arm, Study
from dd_core.tasks.base import losses_of
from dd_core.training.monitors import Moment, make_monitors
from dd_core.training.monitors.timetable import Readings
from dd_core.training.optimization import learning_rate
from dd_core.training.precision import tensor_cores
from dd_core.training.step import Stepper

__all__ = ["BatchMetrics", "Evaluation", "TrialStack", "stacking"]


@dataclass(frozen=True)
class BatchMetrics:
    """What every step of an epoch showed, step by step and trial by trial.

    Attributes:
        loss, accuracy: float64 (steps, trials), before the step.
        lr, time: float64 (steps,).
        readings: what monitors measured, see ``dd_core.training.monitors.timetable``.
    """

    loss: np.ndarray
    accuracy: np.ndarray
    lr: np.ndarray
    time: np.ndarray
    readings: Readings


@dataclass(frozen=True)
class Evaluation:
    """Per-image results of an evaluation; columns are the training, validation and test images, each in id order.

    Attributes:
        loss: float32 (trials, images), nats, of the given label.
        correct: bool (trials, images).
    """

    loss: np.ndarray
    correct: np.ndarray


class TrialStack:
    """Model, optimiser, data and monitors of some trials of one arm on one device.

    Attributes:
        num_train, num_validation: images of each trial.
        multiple: of the learning rate, where the schedule is a plateau.
    """

    def __init__(
        self,
        study: Study,
        arm: Arm,
        trials: list[int],
        device: torch.device,
        dtype: torch.dtype,
        micro_batch: int | None = None,
    ):
        """Load the data and initialise the networks.

        Args:
            study: what to train.
            arm: which arm of it.
            trials: numbers of the trials.
            device: where to.
            dtype: of the weights.
            micro_batch: images at a time, default the batch.
        """
        self.study, self.trials, self.device = study, trials, device
        self.variant = study.variants[arm.variant]
        images = load(study.data.dataset).images
        self.data: list[TrialData] = [trial_data(study, arm.variant, trial) for trial in trials]
        self.num_train, self.num_validation = len(self.data[0].train_ids), len(self.data[0].validation_ids)
        self.steps_per_epoch = -(-self.num_train // self.variant.batch_size)
        self.train_images = TrainingImages(images, self.data, self.variant.augmentation, device, dtype)
        self.eval_images = PlainImages(images, [d.image_ids for d in self.data], self.data, device, dtype)
        given = np.stack([d.train_labels for d in self.data], axis=1)
        true = [np.concatenate([d.validation_labels, d.test_labels]) for d in self.data]
        self.train_labels = torch.from_numpy(given).to(device)
        self.eval_labels = torch.cat([self.train_labels, torch.from_numpy(np.stack(true, axis=1)).to(device)])
        self.model = build_trials(study, arm, trials).to(device, dtype)
        micro_batch = micro_batch or self.variant.batch_size
        self.stepper = Stepper(self.model, self.variant, len(trials), device, micro_batch)
        # What a network draws for itself, as dropout does, is a function of the step, so that resuming is exact.
        self._draws = architecture_called(self.variant.architecture).draws_random_numbers
        self.multiple = 1.0
        self.monitors = make_monitors(self)
        # Large enough to drown the calls, small enough for memory at any width.
        self._eval_size = 600 if device.type == "cpu" else 2000

    def train_epoch(self, epoch: int, ended: Collection[int] = ()) -> BatchMetrics:
        """One pass over the training images; ``epoch`` is 1 for the first. Waits for the device once, at the end.

        Args:
            epoch: the order and the augmentation are functions of it.
            ended: positions in the stack of trials that have ended: they are carried along, and their weights put
                back at the end.
        """
        kept = [(t, self.weights_of(t)) for t in ended]
        metrics = self._run(epoch, self.steps_per_epoch)
        for trial, tensors in kept:
            self._put_back(trial, tensors)
        return metrics

    def run_steps(self, num_steps: int) -> None:
        """Train for some steps of the first epochs, to see how long they take."""
        for epoch in range(1, -(-num_steps // self.steps_per_epoch) + 1):
            self._run(epoch, min(num_steps - (epoch - 1) * self.steps_per_epoch, self.steps_per_epoch))

    def _run(self, epoch: int, num_steps: int) -> BatchMetrics:
        self.model.train()
        plan = plan_epoch(self.study.seed, self.trials, self.num_train, epoch, self.variant.augmentation, self.device)

        def batch(start: int, stop: int) -> tuple[Tensor, Tensor]:
            images = self.train_images.batch(plan, start, stop)
            return images, self.train_labels.gather(0, plan.positions[start:stop])

        size, base = self.variant.batch_size, self.variant.optimizer.learning_rate * self.multiple
        first = (epoch - 1) * self.steps_per_epoch
        losses, accuracies, rates, times = [], [], [], []
        with tensor_cores(self.variant.precision):
            for index in range(num_steps):
                start, stop = index * size, min((index + 1) * size, self.num_train)
                done = first + index
                rate = learning_rate(self.variant.schedule, base, done, self.steps_per_epoch, self.study.epochs)
                if self._draws:
                    torch.manual_seed(torch_seed(self.study.seed, self.trials[0], "network", done))
                loss, accuracy = self.stepper(batch, start, stop, rate)
                self._observe(done + 1, epoch, loss)
                losses.append(loss)
                accuracies.append(accuracy)
                rates.append(rate)
                times.append(time.time())
            return BatchMetrics(
                torch.stack(losses).double().cpu().numpy(),
                torch.stack(accuracies).double().cpu().numpy(),
                np.array(rates),
                np.array(times),
                self.monitors.collect(),
            )

    def _observe(self, step: int, epoch: int, loss: Tensor) -> None:
        self.monitors.after_step(step, lambda: Moment(step, epoch, loss, self.stepper.gradient_norms))

    def diverge(self, position: int) -> None:
        """Leave a trial without weights: what is left of them after its loss was not finite means nothing."""
        for tensor in self._tensors_of(position).values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, BatchNorm uses its running statistics and leaves them alone, and products are not rounded."""
        was_training = self.model.training
        self.model.eval()
        try:
            with tensor_cores("float32"):
                yield
        finally:
            self.model.train(was_training)

    @torch.inference_mode()
    def evaluate(self) -> Evaluation:
        """Loss and correctness of every image, BatchNorm in eval mode, no augmentation, float32 in any precision."""
        with self.evaluating():
            parts = list(in_blocks(self._evaluate_block, self.eval_images.num_images, self._eval_size))
        losses, hits = zip(*parts, strict=True)
        return Evaluation(
            torch.cat(losses).float().T.contiguous().cpu().numpy(), torch.cat(hits).T.contiguous().cpu().numpy()
        )

    def _evaluate_block(self, start: int, stop: int, size: int) -> tuple[Tensor, Tensor]:
        logits = self.model(self.eval_images.batch(start, stop))
        labels = self.eval_labels[start:stop]
        return losses_of(logits, labels), logits.argmax(2) == labels

    def training_images(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Training images, not augmented: (B, T*channels, H, W), and their given labels (B, T).

        ``positions``: int64 (B, T) on the device, of each trial's images among its training images in id order.
        """
        return self.eval_images.at(positions), self.train_labels.gather(0, positions)

    def validation_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All validation images, batch by batch, with true labels."""
        end = self.num_train + self.num_validation
        for start in range(self.num_train, end, self._eval_size):
            stop = min(start + self._eval_size, end)
            yield self.eval_images.batch(start, stop), self.eval_labels[start:stop]

    def _tensors_of(self, position: int) -> dict[str, Tensor]:
        """Views of one trial's weights and buffers, by name."""
        count = len(self.trials)
        return {name: by_trial(t.detach(), count)[position] for name, t in self.model.state_dict().items()}

    def weights_of(self, position: int) -> dict[str, Tensor]:
        """One trial's weights and buffers as those of a plain network, copied."""
        return {name: tensor.clone() for name, tensor in self._tensors_of(position).items()}

    def _put_back(self, position: int, tensors: dict[str, Tensor]) -> None:
        for name, view in self._tensors_of(position).items():
            view.copy_(tensors[name])

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers, optimiser and monitors, as tensors on the device."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= self.stepper.state()
        return tensors | {f"monitors.{name}": tensor for name, tensor in self.monitors.state().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        load_state(self.model, part("model."))
        self.stepper.load_state(tensors)
        self.monitors.load_state(part("monitors."))
