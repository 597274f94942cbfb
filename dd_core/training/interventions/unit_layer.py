"""The hidden units of one layer in all trials: how useful each is, how old, and how some of them begin anew.

The formulas are those of Dohare et al. 2024, "Loss of plasticity in deep continual learning" (Nature 632), algorithm 1.
"""

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dd_core.models.hidden_units import HiddenUnits
from dd_core.models.stacking import StackedLinear, by_trial
from dd_core.training.interventions.base import remembered


class Turnover:
    """How many units of a layer begin anew after each step: ``replacement_rate`` of the mature ones, in whole units.

    That does not depend on which they are, so every trial replaces equally many at the same steps, and the host knows
    without asking the device.
    """

    def __init__(self, num_units: int, replacement_rate: float, maturity: int):
        """All units are born before the first step."""
        self._rate, self._maturity = replacement_rate, maturity
        self.debt = 0.0
        self._set([0] * num_units)

    def _set(self, births: list[int]) -> None:
        self._young = deque(sorted(births))  # of those that are not known to be mature
        self._num_mature = 0

    def load(self, debt: float, births: list[int]) -> None:
        """Go on from an interruption: the part of a unit that is due, and the step at which each unit began."""
        self.debt = debt
        self._set(births)

    def count(self, step: int) -> int:
        """How many begin anew after a step; call it for every step, in order."""
        while self._young and step - self._young[0] > self._maturity:
            self._young.popleft()
            self._num_mature += 1
        self.debt += self._rate * self._num_mature
        number = int(self.debt)
        self.debt -= number
        self._num_mature -= number
        self._young.extend([step] * number)
        return number


class UnitLayer:
    """The units of a layer; n of them in each of T trials."""

    def __init__(self, model: nn.Module, units: HiddenUnits, num_trials: int, decay: float, maturity: int):
        """Look at what the layer that reads them is given, from now on, while the network trains."""
        self._num_trials, self._decay, self._maturity = num_trials, decay, maturity
        own = [name for name in (units.incoming, units.normalisation) if name]
        self._made = {
            f"{name}.{key}": tensor
            for name in own
            for key, tensor in model.get_submodule(name).state_dict(keep_vars=True).items()
        }
        reader = model.get_submodule(units.outgoing)
        assert isinstance(reader.weight, nn.Parameter)
        self._reading = reader.weight
        weights = self._weights = by_trial(reader.weight.detach(), num_trials)  # (T, outputs, n, ...)
        self.num_units = weights.shape[2]
        self._utility = weights.new_zeros(num_trials, self.num_units)
        self._births = torch.zeros_like(self._utility, dtype=torch.int64)
        self._sums, self._num_summed = torch.zeros_like(self._utility), weights.new_zeros(())
        is_linear = isinstance(model.get_submodule(units.incoming), StackedLinear)
        bias = reader.bias if is_linear else None
        self._bias = by_trial(bias.detach(), num_trials) if isinstance(bias, Tensor) else None
        self._mean = torch.zeros_like(self._utility)  # of the activation, for the bias
        reader.register_forward_pre_hook(self._look)

    @torch.no_grad()
    def _look(self, reader: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add up the activations of a part of a batch; may become a part of a CUDA graph."""
        if not reader.training:
            return
        if isinstance(reader, StackedLinear):
            sums = torch.linalg.vector_norm(inputs[0], 1, dim=1, dtype=self._sums.dtype)
        else:
            others = [dim for dim in range(inputs[0].ndim) if dim != 1]
            sums = torch.linalg.vector_norm(inputs[0], 1, dim=others, dtype=self._sums.dtype)
        self._sums += sums.view_as(self._sums)
        self._num_summed += inputs[0].numel() // self._sums.numel()

    def learn(self) -> None:
        """Take in a step: mean absolute activation times the sum of the absolute weights that read it."""
        activity = self._sums / self._num_summed
        others = [dim for dim in range(self._weights.ndim) if dim not in (0, 2)]
        contribution = activity * torch.linalg.vector_norm(self._weights, 1, dim=others)
        self._utility.lerp_(contribution, 1 - self._decay)
        self._mean.lerp_(activity, 1 - self._decay)
        self._sums.zero_()
        self._num_summed.zero_()

    def least_useful(self, count: int, step: int) -> Tensor:
        """So many mature units of each trial, of the lowest utility, int64 (T, count); the first of several alike."""
        ages = step - self._births
        # A trial that has diverged must not choose young units: how many are mature is known from the choices.
        utility = (self._utility / self._weight_of(ages)).nan_to_num()
        return torch.where(ages > self._maturity, utility, torch.inf).argsort(dim=1, stable=True)[:, :count]

    def _weight_of(self, ages: Tensor) -> Tensor:
        """What a running average that began with 0 has of the average so many steps later."""
        return 1 - self._decay ** ages.to(self._utility.dtype)

    def renew(self, chosen: Tensor, fresh: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, step: int) -> None:
        """Let units begin anew, read by nobody; the optimiser forgets what it knows of them.

        Where one linear layer feeds another, the bias of the second takes over the mean of what is no longer read.

        Args:
            chosen: (T, count).
            fresh: weights and buffers of networks that are freshly initialised.
            optimizer: of all parameters.
            step: after which it happens.
        """
        trials = torch.arange(self._num_trials, device=chosen.device)[:, None]
        for name, tensor in self._made.items():
            self._by_trial(tensor)[trials, chosen] = self._by_trial(fresh[name])[trials, chosen]
            if isinstance(tensor, nn.Parameter):
                for memory in remembered(optimizer, tensor, self._num_trials):
                    memory[trials, chosen] = 0
        if self._bias is not None:
            mean = self._mean[trials, chosen] / self._weight_of(step - self._births[trials, chosen])
            self._bias += (self._weights[trials, :, chosen] * mean[..., None]).sum(1)
        for tensor in (self._weights, *remembered(optimizer, self._reading, self._num_trials)):
            tensor[trials, :, chosen] = 0
        self._utility[trials, chosen] = 0
        self._mean[trials, chosen] = 0
        self._births[trials, chosen] = step

    def _by_trial(self, tensor: Tensor) -> Tensor:
        return by_trial(tensor.detach(), self._num_trials)

    def state(self) -> dict[str, Tensor]:
        """Utilities, mean activations, and the steps at which units began, (T, n) each."""
        return {"utility": self._utility, "mean": self._mean, "births": self._births}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])
        self._sums.zero_()
        self._num_summed.zero_()
