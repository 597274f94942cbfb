"""The parameters of a stack as vectors, (T, P): row t is trial t's network, in the order of ``model.parameters()``.

And what is drawn for them: functions of (seed, trial, step), the same on every device.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dd_core.data.randomness import Purpose, generator
from dd_core.training.monitors.base import Watched


def drawn(stack: Watched, purpose: Purpose, step: int, draw: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
    """What ``draw`` makes of every trial's random numbers for that step, (T, ...), on the device."""
    # Several arms that share a network have the same trials.
    of_trial = {trial: draw(generator(stack.study.seed, trial, purpose, step)) for trial in dict.fromkeys(stack.trials)}
    tensor = torch.from_numpy(np.stack([of_trial[trial] for trial in stack.trials]))
    # From pinned memory a copy need not wait for what the GPU still has to do.
    return tensor.pin_memory().to(stack.device, non_blocking=True) if stack.device.type == "cuda" else tensor


def random_signs(stack: Watched, step: int, number: int, size: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Independent Rademacher vectors, (T, size) each; they travel as bits and become numbers on the device."""
    shape = (number, -(-size // 8))
    bits = drawn(stack, "monitor_signs", step, lambda random: random.integers(0, 256, shape, np.uint8))
    places = torch.arange(8, dtype=torch.uint8, device=stack.device)
    for index in range(number):
        signs = (bits[:, index, :, None] >> places) & 1
        yield signs.flatten(1)[:, :size].to(dtype).mul_(2).sub_(1)
