"""From a study's words to a torch optimiser and the learning rate of every step."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from dd_core.studies import Optimizer, Schedule


def make_optimizer(parameters: Iterable[Tensor], settings: Optimizer) -> torch.optim.Optimizer:
    """Adam (betas .9, .999, eps 1e-8) or SGD, in torch's fused form, which needs no pass per parameter."""
    common = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": True}
    if settings.name == "adam":
        return torch.optim.Adam(parameters, **common)  # type: ignore[arg-type]
    return torch.optim.SGD(parameters, momentum=settings.momentum, **common)  # type: ignore[arg-type]


def learning_rate(schedule: Schedule, base: float, step: int, total_steps: int) -> float:
    """The rate of the step after ``step`` steps have been done.

    Args:
        schedule: constant, cosine (Loshchilov & Hutter 2017, eq. 5, one cycle to 0) or inverse_sqrt (Nakkiran et al.
            2019, appendix B: base / sqrt(1 + floor(t / 512))).
        base: the optimiser's learning rate.
        step: steps done so far, 0 before the first.
        total_steps: steps of the whole training.
    """
    if schedule.name == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    if schedule.name == "inverse_sqrt":
        return base / math.sqrt(1 + step // schedule.period)
    return base
