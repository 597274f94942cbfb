"""Several arms in one stacked network: computed once, seen by each arm as a stack of its own trials.

The arms differ in learning rate, weight decay and momentum alone, and have places in the network. What is computed for
a place depends on how many there are, to the last bit, but not on what is in the others. So an arm whose trials need
not be trained just now, because it has got further than the others or is finished, leaves its place to be computed in
vain, and its values are put back when the others have caught up: whatever each arm has reached, all go on with the bits
of a training that was never interrupted.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from dd_core.data.trials import TrialData
from dd_core.models.stacking import by_trial
from dd_core.study.calendar import Calendar
from dd_core.study.recipe import Precision
from dd_core.study.study import Arm, Study
from dd_core.training.trial_stack import BatchMetrics, Evaluation, TrialStack, beginning_with


class SharedStack:
    """The network, and what was computed last."""

    def __init__(
        self,
        study: Study,
        arms: Sequence[Arm],
        places: Sequence[str],
        device: torch.device,
        dtype: torch.dtype,
        micro_batch: int | None = None,
    ):
        """Load the data and initialise the networks.

        Args:
            study: what to train.
            arms: to be trained.
            places: the variant of every place, those of these arms among them. The others' recipes do not matter: they
                may have been changed, or be gone.
            device: where to.
            dtype: of the weights.
            micro_batch: examples at a time, default the batch.
        """
        self.places, self.num_trials = list(places), study.trials
        first, trained = arms[0], {arm.variant for arm in arms}
        settings = [study.variants[name if name in trained else first.variant].optimizer for name in places]
        self.stack = TrialStack(study, first, list(study.trial_numbers), device, dtype, micro_batch, settings)
        self.epoch = 0
        self._evaluated: tuple[int, Evaluation] | None = None
        self._metrics: BatchMetrics | None = None

    def part(self, arm: Arm) -> "ArmInStack":
        """What an arm sees of it."""
        first = self.places.index(arm.variant) * self.num_trials
        return ArmInStack(self, slice(first, first + self.num_trials))

    def train_epoch(self, epoch: int, ended: Collection[int]) -> None:
        """Compute an epoch for all places; ``ended`` as in ``TrialStack.train_epoch``."""
        self.epoch, self._metrics = epoch, self.stack.train_epoch(epoch, ended)

    def metrics(self, epoch: int) -> BatchMetrics:
        """What the epoch showed that was trained last."""
        assert self._metrics is not None and self.epoch == epoch
        return self._metrics

    def evaluation(self, epoch: int) -> Evaluation:
        """The evaluation of all places, computed when the first arm asks for it."""
        if self._evaluated is None or self._evaluated[0] != epoch:
            self._evaluated = epoch, self.stack.evaluate(epoch)
        return self._evaluated[1]


class ArmInStack:
    """The trials of one arm in a shared network; what ``Session`` asks of a ``TrialStack``.

    Attributes:
        shared: the network.
        trials: their numbers.
        data: split and given labels of each.
    """

    def __init__(self, shared: SharedStack, places: slice):
        """``places``: of the arm's trials among all of the network."""
        self.shared, self._stack, self._places = shared, shared.stack, places
        self.trials: list[int] = self._stack.trials[places]
        self.data: list[TrialData] = self._stack.data[places]
        self.calendar: Calendar = self._stack.calendar
        self.num_train, self.num_parameters = self._stack.num_train, self._stack.num_parameters
        self.multiple = 1.0  # of a plateau, which shared networks do not have

    def places_of(self, positions: Collection[int]) -> list[int]:
        """Where in the whole network trials of the arm are."""
        return [self._places.start + position for position in positions]

    def set_micro_batch(self, size: int) -> None:
        """Examples at a time from now on, of all places."""
        self._stack.set_micro_batch(size)

    @property
    def precision(self) -> Precision:
        """In which all places train."""
        return self._stack.precision

    def compute_in(self, precision: Precision) -> None:
        """Train all places in a precision from now on."""
        self._stack.compute_in(precision)

    def train_epoch(self, epoch: int, ended: Collection[int] = ()) -> BatchMetrics:
        """The arm's part of what ``SharedStack.train_epoch`` has computed, which has been told who has ended."""
        whole, places = self.shared.metrics(epoch), self._places
        count = len(self._stack.trials)
        columns = [0, 1, *range(2 + places.start, 2 + places.stop)]
        columns += range(2 + count + places.start, 2 + count + places.stop)
        return BatchMetrics(
            whole.loss[:, places],
            whole.accuracy[:, places],
            whole.lr[:, places],
            whole.time,
            {metric: rows[:, columns] for metric, rows in whole.readings.items()},
        )

    def evaluate(self, epoch: int) -> Evaluation:
        """As ``TrialStack.evaluate``."""
        whole = self.shared.evaluation(epoch)
        values = {name: found[self._places] for name, found in whole.values.items()}
        return Evaluation(whole.loss[self._places], whole.correct[self._places], values)

    def diverge(self, position: int) -> None:
        """As ``TrialStack.diverge``."""
        self._stack.diverge(self._places.start + position)

    def weights_of(self, position: int) -> dict[str, Tensor]:
        """One trial's weights and buffers as those of a plain network, copied."""
        return self._stack.weights_of(self._places.start + position)

    def weights(self) -> dict[str, Tensor]:
        """Weights and buffers as those of a stacked network of the arm's trials alone; copies."""
        count = len(self._stack.trials)
        return {n: by_trial(t, count)[self._places].flatten(0, 1).clone() for n, t in self._stack.weights().items()}

    def state(self) -> dict[str, Tensor]:
        """As ``TrialStack.state`` of the arm's trials alone; copies."""
        tensors = {f"model.{name}": tensor for name, tensor in self.weights().items()}
        tensors |= self._stack.stepper.state_of(self._places)
        return tensors | {f"monitors.{n}": t for n, t in self._stack.monitors.state_of(self._places).items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``, which may be that of a stack of the arm's alone."""
        count = len(self._stack.trials)
        for name, whole in self._stack.weights().items():
            own = by_trial(whole.detach(), count)[self._places]
            own.copy_(tensors[f"model.{name}"].view_as(own))
        self._stack.stepper.load_state_of(self._places, tensors)
        self._stack.monitors.load_state_of(self._places, beginning_with("monitors.", tensors), count)
