"""Optimisers of a stacked network whose trials have learning rates, weight decays and momenta of their own.

Each does what torch.optim's does for one network, with the same names of states, so that a trial may leave a stack or
join one. Trials with equal settings take torch's own, which are fused.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dd_core.models.stacking import by_trial


class PerTrial(torch.optim.Optimizer):
    """What both share: parameters and gradients as (T, n, ...), and settings that broadcast to them.

    Settings are tensors on the parameters' device, so that a CUDA graph reads what they are when it runs.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], num_trials: int, **settings: Any):
        """``settings``: of every group that does not say otherwise; (T,) tensors of the parameters' type, or numbers.

        Args:
            groups: of parameters, as torch.optim takes them.
            num_trials: T, the length of these tensors.
            settings: at least ``lr`` and ``weight_decay``, both (T,).
        """
        self._num_trials = num_trials
        super().__init__(groups, settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step along the gradients, which it leaves as they are."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(group, parameters, self._views([p.grad for p in parameters]))

    def _update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        raise NotImplementedError

    def _views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [by_trial(tensor.detach(), self._num_trials) for tensor in tensors]

    def _states(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        """The states of that name, zero at first, in the parameters' memory format."""
        for parameter in parameters:
            state = self.state[parameter]
            if name not in state:
                state[name] = torch.zeros_like(parameter, requires_grad=False)
        return self._views([self.state[parameter][name] for parameter in parameters])


def _spread(setting: Tensor, over: list[Tensor]) -> list[Tensor]:
    """(T,) as a view for each of these, (T, n, ...), that broadcasts to it."""
    views = {ndim: setting.view(-1, *[1] * (ndim - 1)) for ndim in {tensor.ndim for tensor in over}}
    return [views[tensor.ndim] for tensor in over]


class PerTrialSGD(PerTrial):
    """torch.optim.SGD, with momentum (T,) and ``nesterov``."""

    def _update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        weights = self._views(parameters)
        decay = _spread(group["weight_decay"], weights)
        direction = list(torch._foreach_addcmul(gradients, weights, decay))
        if group["has_momentum"]:
            momentum, buffers = _spread(group["momentum"], weights), self._states(parameters, "momentum_buffer")
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, direction)
            nesterov = group["nesterov"]
            direction = list(torch._foreach_addcmul(direction, buffers, momentum)) if nesterov else buffers
        torch._foreach_addcmul_(weights, direction, _spread(group["lr"], weights), -1)


class PerTrialAdam(PerTrial):
    """torch.optim.Adam, or AdamW where ``is_decoupled`` (eps 1e-8)."""

    def _update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        weights, rate = self._views(parameters), group["lr"]
        if group["is_decoupled"]:
            torch._foreach_mul_(weights, _spread(1 - rate * group["weight_decay"], weights))
        else:
            gradients = list(torch._foreach_addcmul(gradients, weights, _spread(group["weight_decay"], weights)))
        first, second = group["betas"]
        means, squares = self._states(parameters, "exp_avg"), self._states(parameters, "exp_avg_sq")
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        count = self._count(parameters).double()
        corrections = [(1 - beta**count).to(rate.dtype) for beta in (first, second)]
        scales = torch._foreach_sqrt(squares)
        torch._foreach_div_(scales, corrections[1].sqrt())
        torch._foreach_add_(scales, 1e-8)
        updates = torch._foreach_div(means, scales)
        torch._foreach_addcmul_(weights, updates, _spread(rate / corrections[0], weights), -1)

    def _count(self, parameters: list[Tensor]) -> Tensor:
        """Count this step, as torch does: for each parameter, on its device where that is a GPU. All are equal."""
        for parameter in parameters:
            if "step" not in self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        steps = [self.state[parameter]["step"] for parameter in parameters]
        torch._foreach_add_(steps, 1)
        return steps[0]
