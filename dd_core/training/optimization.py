"""From a study's words to a torch optimiser, the learning rate of every step, and clipped gradients, trial by trial."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dd_core.models.stacking import by_trial
from dd_core.study.calendar import Calendar
from dd_core.study.recipe import Optimizer, Schedule
from dd_core.training.per_trial import PerTrialAdam, PerTrialSGD


def make_optimizer(model: nn.Module, settings: Optimizer, of_trials: Sequence[Optimizer] = ()) -> torch.optim.Optimizer:
    """Adam (eps 1e-8), AdamW or SGD, in torch's fused form, which needs no pass per parameter.

    Args:
        model: plain or stacked; no optimiser here mixes the entries of a tensor, so trials stay apart.
        settings: with ``decay_all`` false, vectors (biases, and scale and shift of normalisation) are not decayed.
        of_trials: settings of each trial, which may differ in learning rate, weight decay and momentum; none: they do
            not.
    """
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if not settings.decay_all:
        spared = {id(parameter) for parameter in _undecayed(model)}
        groups = [
            {"params": [p for p in model.parameters() if id(p) not in spared]},
            {"params": [p for p in model.parameters() if id(p) in spared], "weight_decay": 0.0},
        ]
    if of_trials:
        return _per_trial(model, groups, of_trials)
    common = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": True}
    if settings.name == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov, **common)  # type: ignore[arg-type]
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    on_gpu = next(model.parameters()).device.type == "cuda"
    return kind(groups, betas=settings.betas, capturable=on_gpu, **common)  # type: ignore[arg-type]


def _per_trial(model: nn.Module, groups: list[dict[str, Any]], of_trials: Sequence[Optimizer]) -> torch.optim.Optimizer:
    like = next(model.parameters()).detach()
    rates, decays, momenta = (
        like.new_tensor([getattr(settings, name) for settings in of_trials])
        for name in ("learning_rate", "weight_decay", "momentum")
    )
    for group in groups[1:]:
        group["weight_decay"] = torch.zeros_like(decays)
    common: dict[str, Any] = {"num_trials": len(of_trials), "lr": rates, "weight_decay": decays}
    settings = of_trials[0]
    if settings.name == "sgd":
        has_momentum = any(each.momentum for each in of_trials)
        return PerTrialSGD(groups, **common, momentum=momenta, has_momentum=has_momentum, nesterov=settings.nesterov)
    return PerTrialAdam(groups, **common, betas=settings.betas, is_decoupled=settings.name == "adamw")


def _undecayed(model: nn.Module) -> Iterable[nn.Parameter]:
    """Biases, and every parameter of a normalisation layer."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" or isinstance(module, _BatchNorm | nn.GroupNorm | nn.LayerNorm):
                yield parameter


def learning_rate(schedule: Schedule, base: float, step: int, calendar: Calendar, num_epochs: int) -> float:
    """The rate of the step after ``step`` steps have been done.

    Args:
        schedule: constant, cosine (Loshchilov & Hutter 2017, eq. 5, one cycle), step, inverse_sqrt (Nakkiran et al.
            2019, appendix B: base / sqrt(1 + floor(t / 512))). Warm-up is linear, (t + 1) / W at step t of W (Goyal et
            al. 2017, section 2.2), and the cosine begins after it. plateau: constant here.
        base: the optimiser's learning rate, lowered already where a plateau asked for it.
        step: steps done so far, 0 before the first.
        calendar: which steps belong to which epoch. Where it has several tasks and the schedule restarts, each task is
            a training of its own, from its first step to its last.
        num_epochs: of the whole training.
    """
    if schedule.restarts and calendar.num_tasks > 1:
        own, before, length = _task_alone(calendar, calendar.task_at(step + 1), num_epochs)
        return learning_rate(schedule, base, step - before, own, length)
    warmup = round(calendar.steps_until(schedule.warmup_epochs))
    if step < warmup:
        return base * (step + 1) / warmup
    if schedule.name == "cosine":
        progress = (step - warmup) / (calendar.steps_after(num_epochs) - warmup)
        return base * (schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * progress)))
    if schedule.name == "step":
        return base * schedule.factor ** sum(step >= calendar.steps_after(epoch) for epoch in schedule.milestones)
    if schedule.name == "inverse_sqrt":
        return base / math.sqrt(1 + step // schedule.period)
    return base


@functools.lru_cache(maxsize=256)
def _task_alone(calendar: Calendar, task: int, num_epochs: int) -> tuple[Calendar, int, int]:
    """A task's own calendar, the steps before it, and its epochs; kept, since every step asks."""
    epochs = calendar.epochs_of(task, num_epochs)
    own = Calendar(calendar.examples_of(epochs.start), calendar.batch_size)
    return own, calendar.steps_before(epochs.start), len(epochs)


def joint_norms(parts: Sequence[Tensor]) -> Tensor:
    """Each trial's Euclidean norm over all its parts, (T, n, ...) each: (T,) float64.

    Without a copy, and a call for each tensor. Squares are summed in float32 over one output channel at most: over the
    11 million weights of a ResNet18 such a sum is wrong by 4e-4 on a CPU.
    """
    vector_norm = torch.linalg.vector_norm
    matrices = (part if part.ndim > 1 else part[:, None] for part in parts)
    rows = [part if part.ndim == 2 else vector_norm(part, dim=tuple(range(2, part.ndim))) for part in matrices]
    return vector_norm(torch.cat(rows, dim=1), dim=1, dtype=torch.float64)


@torch.no_grad()
def gradient_norms(parameters: Iterable[Tensor], num_trials: int) -> Tensor:
    """Euclidean norm of each trial's gradient over all its parameters, (T,) float64; nothing is synchronised."""
    return joint_norms([by_trial(p.grad, num_trials) for p in parameters if p.grad is not None])


@torch.no_grad()
def clip_gradients(parameters: Sequence[Tensor], num_trials: int, largest: float) -> Tensor:
    """Scale each trial's gradient down to a norm, as torch.nn.utils.clip_grad_norm_ does for one network.

    Returns:
        The norms before, (trials,).
    """
    norms = gradient_norms(parameters, num_trials)
    factors = (largest / (norms + 1e-6)).clamp(max=1).to(parameters[0].dtype)
    if num_trials == 1:  # the same products in a few calls
        torch._foreach_mul_([parameter.grad for parameter in parameters if parameter.grad is not None], factors[0])
        return norms
    for parameter in parameters:
        if parameter.grad is not None:
            gradients = by_trial(parameter.grad, num_trials)
            gradients.mul_(factors.view(-1, *[1] * (gradients.ndim - 1)))
    return norms
