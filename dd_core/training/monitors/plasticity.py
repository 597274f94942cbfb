"""How able a network still is to learn: units that do nothing, and how many directions its features have.

Both are measured on training images, not augmented, in eval mode, as Dohare et al. 2024, "Loss of plasticity in deep
continual learning" (Nature 632), do in the analysis of incremental CIFAR-100 (post_run_analysis.py).
"""

import numpy as np
import torch
from torch import Tensor

from dd_core.data.randomness import generator
from dd_core.models.last_linear import Calls, watching_linears
from dd_core.study.monitors import PlasticityMonitor
from dd_core.training.monitors.base import Measurement, Moment, Monitor, Watched
from dd_core.training.monitors.relu_units import ReluUnits

# Large enough to drown the calls, small enough for memory at any width.
_IMAGES_AT_A_TIME = 250


class Plasticity(Monitor):
    """``dormant_units``, ``effective_rank`` and ``stable_rank``. The ranks' decomposition waits for a GPU.

    dormant_units: the share of units that are not zero on less than ``threshold`` of the images and positions. A unit
    is a channel, or an output of a linear layer, behind a ReLU; a module that is called twice makes two layers. In a
    ReLU behind which no convolution follows an image counts if any position is not zero, as pooling shows it to the
    last layer. Only modules (nn.ReLU) are seen: a network that has none has no such metric.

    The ranks are those of the penultimate features, (B, features): what the last linear layer is given. effective_rank:
    exp of the entropy of the singular values, divided by their sum (Roy & Vetterli 2007, "The effective rank").
    stable_rank: how many of the largest singular values make 99 % of their sum. Both are 0 where all features are. A
    network without a linear layer (nn.Linear) has neither.
    """

    metrics = tuple(PlasticityMonitor.first_steps)

    def __init__(self, stack: Watched, num_images: int, threshold: float):
        """Draw, once, in which order the images of each trial are taken; the first that the network has seen count."""
        super().__init__(stack)
        self._num_images, self._threshold = num_images, threshold
        seed, count = stack.study.seed, stack.num_train
        self._orders = [generator(seed, trial, "monitor_images").permutation(count) for trial in stack.trials]

    @torch.no_grad()
    def measure(self, moment: Moment) -> Measurement:
        """All (T,) float64; NaN for a trial whose features are not finite."""
        model, num_trials = self.stack.model, len(self.stack.trials)
        units, parts = ReluUnits(model, num_trials), []
        with self.stack.evaluating(), units.watching(), watching_linears(model) as calls:
            for chosen in self._positions(moment.epoch).split(_IMAGES_AT_A_TIME):
                units.begin(len(chosen))
                model(self.stack.training_examples(chosen)[0])
                parts += _features(calls, num_trials)
        found: dict[str, Tensor] = {}
        if (dormant := units.share_of_dormant(self._threshold)) is not None:
            found["dormant_units"] = dormant
        if parts:
            features = torch.cat(parts, 1)
            is_sound = features.isfinite().flatten(1).all(1)
            found = {name: torch.where(is_sound, value, torch.nan) for name, value in (found | ranks(features)).items()}
        return dict(found)

    def _positions(self, epoch: int) -> Tensor:
        """Positions among the images trained on in an epoch, which come first: (B, T) on the device."""
        num_seen = self.stack.calendar.examples_of(epoch)
        chosen = np.stack([order[order < num_seen][: self._num_images] for order in self._orders], axis=1)
        return torch.from_numpy(chosen).to(self.stack.device)


def _features(calls: Calls, num_trials: int) -> list[Tensor]:
    """What the last linear layer was given, (T, B, features); of tokens each counts as an image."""
    if not calls.name:
        return []
    given = calls.features
    if given.ndim == 2:  # (B, T * features)
        return [given.unflatten(1, (num_trials, -1)).transpose(0, 1)]
    return [given.flatten(1, -2) if len(given) == num_trials else given.flatten(0, -2).unsqueeze(0)]


def ranks(features: Tensor) -> dict[str, Tensor]:
    """``effective_rank`` and ``stable_rank`` of the features of each trial, (T, B, F) to (T,) float64."""
    values = torch.linalg.svdvals(features.double().nan_to_num(posinf=0, neginf=0))  # descending
    total = values.sum(1, keepdim=True)
    shares = values / total.where(total > 0, torch.ones_like(total))
    entropy = torch.special.entr(shares).sum(1)
    number = (shares.cumsum(1) < 0.99).sum(1) + 1
    is_zero = total[:, 0] == 0
    return {
        "effective_rank": torch.where(is_zero, 0, entropy.exp()),
        "stable_rank": torch.where(is_zero, 0, number.double()),
    }
