"""Stacks, moments and monitors for the tests of monitors, and what one network alone would do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dd_core.data.datasets import load
from dd_core.data.trials import TrialData
from dd_core.models.build import build
from dd_core.models.stacking import load_state
from dd_core.study.monitors import (
    HessianMonitor,
    MonitorEntry,
    MonitorSettings,
    NoiseMonitor,
)
from dd_core.training.monitors import Measurement, Moment, Monitor
from dd_core.training.monitors.hessian import Hessian
from dd_core.training.monitors.noise import Noise
from dd_core.training.monitors.norms import Norms
from dd_core.training.monitors.validation import Validation
from dd_core.training.trial_stack import TrialStack

MakeStudy = Callable[..., Any]
OFF = {"validation": None, "norms": None, "hessian": None, "noise": None}
# Cheap, and often.
BUSY: dict[str, Any] = {
    "validation": {"every": "1 steps"},
    "norms": {"every": "1 steps"},
    "hessian": {"every": "3 steps", "num_images": 20, "iterations": 3, "num_probes": 6},
    "noise": {"every": "2 steps", "num_batches": 2, "window": 128},
}


def make_stack(
    make_study: MakeStudy,
    trials: tuple[int, ...] = (0, 1),
    k: int = 1,
    steps: int = 6,
    dtype: torch.dtype = torch.float64,
    monitors: dict[str, Any] | None = None,
    epochs: int = 4,
    **variant: Any,
) -> TrialStack:
    """Some trials of the tiny study, with 70 validation images, after some steps of training."""
    study = make_study(
        variant,
        data={"dataset": "digits", "num_train": 100, "num_validation": 70},
        monitors=MonitorSettings.model_validate(OFF if monitors is None else monitors),
        epochs=epochs,
        checkpoints=(0, epochs),
        widths=(k,),
    )
    stack = TrialStack(study, study.arms[f"plain.k{k:03d}"], list(trials), torch.device("cpu"), dtype)
    stack.run_steps(steps)
    return stack


def options(entry: MonitorEntry) -> dict[str, Any]:
    return entry.model_dump(exclude={"every"})


def plain_network(stack: TrialStack, position: int) -> nn.Module:
    """One trial's network on its own, in eval mode."""
    arm = next(iter(stack.study.arms.values()))
    model = build(stack.variant.architecture, arm.k, 1, 10).double()
    load_state(model, stack.weights_of(position))
    return model.eval()


def plain_images(data: TrialData, ids: np.ndarray) -> Tensor:
    raw = load("digits").images[ids].astype(np.float64)
    return torch.from_numpy((raw - data.mean) / data.std).permute(0, 3, 1, 2)


def training_set(stack: TrialStack, position: int, number: int) -> tuple[Tensor, Tensor]:
    """A trial's first training images and given labels."""
    data = stack.data[position]
    return plain_images(data, data.train_ids[:number]), torch.from_numpy(data.train_labels[:number])


def moment(stack: TrialStack, step: int = 6) -> Moment:
    return Moment(step, 1, torch.ones(len(stack.trials), dtype=torch.float64), stack.stepper.gradient_norms)


def values_and_errors(measurement: Measurement) -> dict[str, tuple[Tensor, Tensor]]:
    pairs = {name: got if isinstance(got, tuple) else (got, torch.zeros_like(got)) for name, got in measurement.items()}
    return {name: (value.double(), error.double()) for name, (value, error) in pairs.items()}


def all_monitors(stack: TrialStack, **changes: dict[str, Any]) -> dict[str, Monitor]:
    few: dict[str, Any] = {"num_images": 20, "iterations": 4, "num_probes": 6, **changes.get("hessian", {})}
    return {
        "validation": Validation(stack),
        "norms": Norms(stack),
        "hessian": Hessian(stack, **{**options(HessianMonitor()), **few}),
        "noise": Noise(stack, **{**options(NoiseMonitor(num_batches=3)), **changes.get("noise", {})}),
    }


def feed(monitor: Monitor, losses: Tensor, first_step: int = 1) -> Moment:
    """Show a monitor batch losses (n, T)."""
    now = Moment(0, 1, losses[0], losses[0])
    for index, loss in enumerate(losses):
        now = Moment(first_step + index, 1, loss, loss)
        monitor.observe(now)
    return now


def some_losses(num: int, trials: int = 2, seed: int = 0) -> np.ndarray:
    """A power law with noise that is not white, (num, trials)."""
    noise = np.random.default_rng(seed).normal(size=(num + 1, trials))
    return np.exp(0.1 * (noise[1:] + 0.7 * noise[:-1])) * (np.arange(num)[:, None] + 2.0) ** -0.3
