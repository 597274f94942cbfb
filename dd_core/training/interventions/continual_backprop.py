"""Continual backprop (Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632, algorithm 1).

After every step of the optimiser a small share of each layer's mature units, those of the lowest utility, begin anew. A
unit is a channel of a convolution or an output of a linear layer; its utility is the running average of its mean
absolute activation (over batch and positions, behind ReLU and pooling) times the summed magnitude of the weights that
read it, with Adam's correction of the bias.

A new unit is what a freshly initialised network has in its place: incoming weights, bias, and its entries of the
normalisation. That is how published code does it where biases begin at zero (res_gnt.py, gnt.py). Its outgoing weights
are zero, so what the network computes changes by what it loses alone. Where the sources differ:

- Published code keeps a running average of the product in feed-forward networks and, in ResNets, a sum of activations
  that never decays. Here it is the paper's average everywhere.
- The paper counts a share of the mature units, as here; published code for convolutions takes that share of all.
- In feed-forward networks the next layer's bias takes over the mean of what a removed unit gave; published code means
  to do so, but sets the mean to zero before it is used.
- The optimiser forgets the moments of what begins anew. Published code does that for its Adam; the momentum of its SGD
  goes on. (Adam's number of steps is one for a whole tensor: new entries begin as if their moments had been small.)
- Channels that residual sums share: published code replaces them too, their incoming weights and normalisation, and
  takes only the next convolution for their reader. The sum carries the new unit on to other readers at once, so the
  network changes. ``shared_units`` does that; without it only the units inside the blocks are replaced.
"""

import torch
from torch import Tensor

from dd_core.models.build import build_trials
from dd_core.models.hidden_units import hidden_units
from dd_core.training.interventions.base import Intervention, Trained
from dd_core.training.interventions.unit_layer import Turnover, UnitLayer


class ContinualBackprop(Intervention):
    """See the module. The number of replaced units is known without the device, so nothing waits for it."""

    def __init__(self, stack: Trained, replacement_rate: float, maturity: int, decay: float, shared_units: bool):
        """Settings as in the study file."""
        super().__init__(stack)
        chosen = [units for units in hidden_units(stack.model) if shared_units or not units.is_shared]
        self._layers = [UnitLayer(stack.model, units, self.num_trials, decay, maturity) for units in chosen]
        self._turnovers = [Turnover(layer.num_units, replacement_rate, maturity) for layer in self._layers]
        self._maturity = maturity
        self._fresh: tuple[int, dict[str, Tensor]] = -1, {}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Take note of the step, and replace what is due: in all layers by what they were before, then in order."""
        for layer in self._layers:
            layer.learn()
        counts = [turnover.count(step) for turnover in self._turnovers]
        due = [(layer, layer.least_useful(n, step)) for layer, n in zip(self._layers, counts, strict=True) if n]
        for layer, chosen in due:
            layer.renew(chosen, self._freshly_initialised(step), self.stack.stepper.optimizer, step)

    def _freshly_initialised(self, step: int) -> dict[str, Tensor]:
        """Networks drawn for every ``maturity`` steps, in which no unit is replaced twice: no draw is used again."""
        period = step // self._maturity
        if self._fresh[0] != period:
            stack = self.stack
            model = build_trials(stack.study, stack.arm, stack.trials, "new_units", period)
            like = next(stack.model.parameters())
            self._fresh = period, model.to(like.device, like.dtype).state_dict()
        return self._fresh[1]

    def state(self) -> dict[str, Tensor]:
        """The state of every layer's units, and the part of a unit that is due."""
        found: dict[str, Tensor] = {}
        for index, (layer, turnover) in enumerate(zip(self._layers, self._turnovers, strict=True)):
            found |= {f"{index}.{name}": tensor for name, tensor in layer.state().items()}
            found[f"{index}.debt"] = torch.tensor([turnover.debt], dtype=torch.float64)
        return found

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        for index, (layer, turnover) in enumerate(zip(self._layers, self._turnovers, strict=True)):
            prefix = f"{index}."
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            layer.load_state(own)
            turnover.load(own["debt"].item(), own["births"][0].tolist())
