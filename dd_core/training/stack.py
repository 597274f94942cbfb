"""The trials of an arm that share one stacked network: an epoch of training, an evaluation, their state as tensors."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dd_core.data.augmentation import PlainImages, TrainingImages, plan_epoch
from dd_core.data.datasets import load
from dd_core.data.trials import TrialData, trial_data
from dd_core.models import build_trials, load_state
from dd_core.studies import Arm, Study
from dd_core.training.optimization import clip_gradients, learning_rate, make_optimizer

# Beyond this width one network fills the machine and grouped convolutions bring nothing; more than eight at a time
# bring nothing at any width (benchmarks/training.py). The grouping depends on the study alone, so that results do too.
_WIDEST_STACK = 16
_LARGEST_STACK = 8


def stacking(study: Study, arm: Arm) -> list[list[int]]:
    """Which trials of an arm share a network."""
    size = _LARGEST_STACK if arm.k <= _WIDEST_STACK else 1
    trials = list(range(study.trials))
    return [trials[start : start + size] for start in range(0, len(trials), size)]


@dataclass(frozen=True)
class BatchMetrics:
    """What every step of an epoch showed, step by step and trial by trial.

    Attributes:
        loss, accuracy: float64 (steps, trials), before the step.
        lr, time: float64 (steps,).
    """

    loss: np.ndarray
    accuracy: np.ndarray
    lr: np.ndarray
    time: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """Per-image results of an evaluation; columns are the training images, then the test images, in id order.

    Attributes:
        loss: float32 (trials, images), nats, of the given label.
        correct: bool (trials, images).
    """

    loss: np.ndarray
    correct: np.ndarray


class TrialStack:
    """Model, optimiser and data of some trials of one arm on one device."""

    def __init__(self, study: Study, arm: Arm, trials: list[int], device: torch.device, dtype: torch.dtype):
        """Load the data and initialise the networks."""
        self.study, self.trials, self.device = study, trials, device
        self.variant = study.variants[arm.variant]
        images = load(study.data.dataset).images
        self.data: list[TrialData] = [trial_data(study, arm.variant, trial) for trial in trials]
        self.num_train = len(self.data[0].train_ids)
        self.steps_per_epoch = -(-self.num_train // self.variant.batch_size)
        self.train_images = TrainingImages(images, self.data, self.variant.augmentation, device, dtype)
        ids = [np.concatenate([d.train_ids, d.test_ids]) for d in self.data]
        self.eval_images = PlainImages(images, ids, self.data, device, dtype)
        given = np.stack([d.train_labels for d in self.data], axis=1)
        self.train_labels = torch.from_numpy(given).to(device)
        test = np.stack([d.test_labels for d in self.data], axis=1)
        self.eval_labels = torch.cat([self.train_labels, torch.from_numpy(test).to(device)])
        self.model = build_trials(study, arm, trials).to(device, dtype)
        self.optimizer = make_optimizer(self.model, self.variant.optimizer)

    def train_epoch(self, epoch: int) -> BatchMetrics:
        """One pass over the training images; ``epoch`` is 1 for the first. Synchronises the device once, at the end."""
        self.model.train()
        plan = plan_epoch(self.study.seed, self.trials, self.num_train, epoch, self.variant.augmentation, self.device)
        size = self.variant.batch_size
        base, largest_norm = self.variant.optimizer.learning_rate, self.variant.optimizer.clip_norm
        parameters = list(self.model.parameters())
        losses, hits, rates, times = [], [], [], []
        for index in range(self.steps_per_epoch):
            start, stop = index * size, min((index + 1) * size, self.num_train)
            step = (epoch - 1) * self.steps_per_epoch + index
            rate = learning_rate(self.variant.schedule, base, step, self.steps_per_epoch, self.study.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            labels = self.train_labels.gather(0, plan.positions[start:stop])
            logits = self.model(self.train_images.batch(plan, start, stop))
            # The sum over trials leaves each trial the gradient of its own mean loss.
            loss = _cross_entropy(logits, labels).mean(0)
            self.optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            if largest_norm is not None:
                clip_gradients(parameters, len(self.trials), largest_norm)
            self.optimizer.step()
            losses.append(loss.detach())
            hits.append((logits.detach().argmax(2) == labels).sum(0) / (stop - start))
            rates.append(rate)
            times.append(time.time())
        return BatchMetrics(
            torch.stack(losses).double().cpu().numpy(),
            torch.stack(hits).double().cpu().numpy(),
            np.array(rates),
            np.array(times),
        )

    @torch.inference_mode()
    def evaluate(self) -> Evaluation:
        """Loss and correctness of every training and test image, BatchNorm in eval mode, no augmentation."""
        self.model.eval()
        # Large enough to drown the calls, small enough for memory at any width.
        size = 600 if self.device.type == "cpu" else 2000
        losses, hits = [], []
        for start in range(0, self.eval_images.num_images, size):
            stop = start + size
            logits = self.model(self.eval_images.batch(start, stop))
            labels = self.eval_labels[start:stop]
            losses.append(_cross_entropy(logits, labels))
            hits.append(logits.argmax(2) == labels)
        return Evaluation(
            torch.cat(losses).float().T.contiguous().cpu().numpy(), torch.cat(hits).T.contiguous().cpu().numpy()
        )

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers and optimiser state, as tensors on the device."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, entries in self.optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        load_state(self.model, {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, entry = name.split(".", 2)
                parameter = parameters[int(index)]
                if tensor.shape == parameter.shape:
                    # Fused optimisers walk through memory: moments must lie there in the parameter's own order.
                    tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
                entries.setdefault(int(index), {})[entry] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, T, C) logits and (B, T) labels to (B, T) losses."""
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
