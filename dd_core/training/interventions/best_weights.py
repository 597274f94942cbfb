"""At the end of a task every trial goes back to the weights of its best validation accuracy in this task."""

import math

import torch
from torch import Tensor

from dd_core.models.stacking import by_trial
from dd_core.training.interventions.base import Intervention, Trained


class BestWeights(Intervention):
    """Weights and buffers of the task's best regular evaluation, of several alike the first.

    As in the code of Dohare et al. 2024 (``early_stopping``), the optimiser goes on with what it remembers of the last
    step: it points where training went, and learning rates begin anew anyway. That code saves the network of a task's
    last epoch after it has gone back, and also goes back after the last task; here a checkpoint holds what was trained,
    and whose loss was recorded.
    """

    def __init__(self, stack: Trained):
        """Nothing has been evaluated."""
        super().__init__(stack)
        self._accuracies = [-math.inf] * self.num_trials
        self._best: dict[str, Tensor] = {}

    @torch.no_grad()
    def note_evaluation(self, position: int, accuracy: float) -> None:
        """Keep a trial's weights if they are better than all before in this task."""
        if not accuracy > self._accuracies[position]:
            return
        self._accuracies[position] = accuracy
        for name, tensor in self.stack.model.state_dict().items():
            if name not in self._best:
                self._best[name] = tensor.clone()
            self._of(self._best[name], position).copy_(self._of(tensor, position))

    @torch.no_grad()
    def end_task(self, task: int) -> None:
        """Go back, and forget; a trial that was never evaluated stays as it is."""
        for position, accuracy in enumerate(self._accuracies):
            if accuracy > -math.inf:
                for name, tensor in self.stack.model.state_dict().items():
                    self._of(tensor, position).copy_(self._of(self._best[name], position))
        self._accuracies = [-math.inf] * self.num_trials
        self._best = {}

    def _of(self, tensor: Tensor, position: int) -> Tensor:
        return by_trial(tensor, self.num_trials)[position]

    def state(self) -> dict[str, Tensor]:
        """Accuracies and weights."""
        best = {f"weights.{name}": tensor for name, tensor in self._best.items()}
        return {"accuracies": torch.tensor(self._accuracies, dtype=torch.float64), **best}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        self._accuracies = tensors["accuracies"].tolist()
        own = self.stack.model.state_dict()
        self._best = {name: tensors[f"weights.{name}"].to(own[name]) for name in own if f"weights.{name}" in tensors}
