"""The trials that share one stacked network: an epoch of training, an evaluation, their state as tensors."""

import contextlib
import functools
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dd_core.data.randomness import torch_seed
from dd_core.errors import UserError
from dd_core.machine.memory import in_blocks
from dd_core.models.build import build_trials
from dd_core.models.stacking import by_trial, load_state
from dd_core.study.architectures import architecture_called
from dd_core.study.calendar import Calendar
from dd_core.study.recipe import Optimizer, Precision
from dd_core.study.stacks import stacking
from dd_core.study.study import Arm, Study
from dd_core.tasks.base import Examples, Inputs, Splits, Targets, Task
from dd_core.tasks.making import make_examples, make_task
from dd_core.training.interventions import make_interventions
from dd_core.training.monitors import Moment, make_monitors
from dd_core.training.monitors.timetable import Readings
from dd_core.training.optimization import learning_rate
from dd_core.training.precision import tensor_cores
from dd_core.training.step import Stepper

__all__ = ["BatchMetrics", "Evaluation", "TrialStack", "stacking"]


@dataclass(frozen=True)
class BatchMetrics:
    """What every step of an epoch showed, step by step and trial by trial.

    Attributes:
        loss, accuracy: float64 (steps, trials), before the step.
        lr: float64 (steps, trials).
        time: float64 (steps,).
        readings: what monitors measured, see ``dd_core.training.monitors.timetable``.
    """

    loss: np.ndarray
    accuracy: np.ndarray
    lr: np.ndarray
    time: np.ndarray
    readings: Readings


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation by example, in the order of ``TrialData.image_ids``.

    Attributes:
        loss: float32 (trials, examples), the task's score; NaN of examples of classes that are still to come.
        correct: bool (trials, examples).
        values: float32 (trials, examples) by name, what ``evaluation.image_values`` asks for.
    """

    loss: np.ndarray
    correct: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)


class TrialStack:
    """Model, optimiser, examples, task and monitors of some trials on one device: of one arm, or of several arms.

    Attributes:
        trials: their numbers, arm by arm.
        examples, task: what is learned, see ``dd_core.tasks.base``.
        data: split and given labels of each trial.
        num_train, num_validation: examples of each trial.
        calendar: which steps belong to which epoch.
        task_number: the task, from 1, that network and loss are in; always 1 where all classes are there.
        multiple: of the learning rate, where the schedule is a plateau.
        interventions: what is done to weights beside the optimiser's steps.
    """

    def __init__(
        self,
        study: Study,
        arm: Arm,
        trials: list[int],
        device: torch.device,
        dtype: torch.dtype,
        micro_batch: int | None = None,
        of_arms: Sequence[Optimizer] = (),
    ):
        """Load the data and initialise the networks.

        Args:
            study: what to train.
            arm: which arm of it.
            trials: numbers of the trials, of each arm.
            device: where to.
            dtype: of the weights.
            micro_batch: examples at a time, default the batch.
            of_arms: of every arm that shares the network the settings of its optimiser, in which alone they differ, and
                there in learning rate, weight decay and momentum; none: it is that of the arm alone.
        """
        self.study, self.arm, self.device = study, arm, device
        self.trials = trials * max(1, len(of_arms))
        self.variant = study.variants[arm.variant]
        self.examples: Examples = make_examples(study, arm.variant, trials, device, dtype, len(of_arms))
        self.data = self.examples.data
        self.task: Task = make_task(study, arm.variant, self.data, device)
        self.num_train, self.num_validation = self.examples.num_train, self.examples.num_validation
        self.calendar: Calendar = study.calendar(arm.variant)
        self.task_number = 0
        self.model = build_trials(study, arm, self.trials).to(device, dtype)
        micro_batch = micro_batch or self.variant.batch_size
        of_trials = [settings for settings in of_arms for _ in trials]
        self._rates = [settings.learning_rate for settings in of_trials or [self.variant.optimizer]]
        self.stepper = Stepper(self.model, self.task, self.variant, len(self.trials), device, micro_batch, of_trials)
        self.interventions = make_interventions(self)
        if self.interventions.change_gradients:
            self.stepper.before_update = self.interventions.before_update
        # What a network draws for itself, as dropout does, is a function of the step, so that resuming is exact.
        self._draws = architecture_called(self.variant.architecture).draws_random_numbers
        self.multiple = 1.0
        self.monitors = make_monitors(self)
        self._enter(0)
        # Large enough to drown the calls, small enough for memory at any width.
        self._eval_size = 600 if device.type == "cpu" else 2000

    def set_micro_batch(self, size: int) -> None:
        """Examples at a time from now on."""
        self.stepper.micro_batch = size

    @property
    def precision(self) -> Precision:
        """In which it trains."""
        return self.stepper.arithmetic.precision

    def compute_in(self, precision: Precision) -> None:
        """Train in another precision than the variant's from now on (``dd_core.machine.arithmetic``)."""
        self.stepper.compute_in(precision)

    def train_epoch(self, epoch: int, ended: Collection[int] = ()) -> BatchMetrics:
        """One pass over the training examples; ``epoch`` is 1 for the first. Waits for the device once, at the end.

        Args:
            epoch: the order and the augmentation are functions of it.
            ended: positions in the stack of trials that have ended: they are carried along, and their weights put
                back at the end.
        """
        kept = [(t, self.weights_of(t)) for t in ended]
        self._begin(epoch)
        metrics = self._run(epoch, self.calendar.steps_of(epoch))
        for trial, tensors in kept:
            self._put_back(trial, tensors)
        return metrics

    def run_steps(self, num_steps: int) -> None:
        """Train for some steps of the first epochs, to see how long they take."""
        for epoch in range(1, self.calendar.epoch_of(num_steps) + 1):
            self._begin(epoch)
            self._run(epoch, min(num_steps - self.calendar.steps_before(epoch), self.calendar.steps_of(epoch)))

    def _begin(self, epoch: int) -> None:
        """Get ready for an epoch; before the first of a further task, end the task before and begin that one.

        A checkpoint of the last epoch of a task holds what was trained. So both are done now, by whoever goes on.
        """
        if self.calendar.ends_task(epoch - 1):
            self.interventions.end_task(self.calendar.task_of(epoch - 1))
            self._enter(epoch)
            self.interventions.begin_task(self.calendar.task_of(epoch))
        self._enter(epoch)

    def _enter(self, epoch: int) -> None:
        """Look at the classes of an epoch's task alone: what is trained, evaluated and measured of them."""
        number = self.calendar.task_of(max(epoch, 1))
        if number != self.task_number:
            self.task_number = number
            self.task.restrict(self.study.num_classes_at(epoch))
            self.stepper.forget_graph()

    def _run(self, epoch: int, num_steps: int) -> BatchMetrics:
        self.model.train()
        batch = functools.partial(self.examples.batch, self.examples.plan(epoch))
        bases = [rate * self.multiple for rate in self._rates]
        before = self.calendar.steps_before(epoch)
        losses, accuracies, rates, times = [], [], [], []
        with tensor_cores(self.precision):
            for step in range(before + 1, before + num_steps + 1):
                now = [
                    learning_rate(self.variant.schedule, base, step - 1, self.calendar, self.study.epochs)
                    for base in bases
                ]
                if self._draws:
                    self._seed(step)
                loss, accuracy = self.stepper(batch, *self.calendar.batch_of(step), now)
                self.interventions.after_step(step)
                self._observe(step, epoch, loss)
                losses.append(loss)
                accuracies.append(accuracy)
                rates.append(now)
                times.append(time.time())
            return BatchMetrics(
                torch.stack(losses).double().cpu().numpy(),
                torch.stack(accuracies).double().cpu().numpy(),
                np.repeat(np.array(rates), len(self.trials) // len(bases), axis=1),
                np.array(times),
                self.monitors.collect(),
            )

    def _seed(self, step: int) -> None:
        seed = torch_seed(self.study.seed, self.trials[0], "network", step - 1)
        if self.device.type == "cpu":  # what other devices would draw takes longer to set than a batch to cut out
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _observe(self, step: int, epoch: int, loss: Tensor) -> None:
        self.monitors.after_step(step, lambda: Moment(step, epoch, loss, self.stepper.gradient_norms))

    def diverge(self, position: int) -> None:
        """Leave a trial without weights: what is left of them after its loss was not finite means nothing."""
        for tensor in self._tensors_of(position).values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, BatchNorm uses its running statistics and leaves them alone, and products are not rounded."""
        was_training = self.model.training
        self.model.eval()
        try:
            with tensor_cores("float32"):
                yield
        finally:
            self.model.train(was_training)

    @torch.inference_mode()
    def evaluate(self, epoch: int) -> Evaluation:
        """Score and correctness of every example, BatchNorm in eval mode, no augmentation, float32 in any precision."""
        self._enter(epoch)
        splits = self.examples.splits(epoch)
        further = self.study.image_values if self.study.keeps_images(epoch) else ()
        with self.evaluating():
            evaluate = functools.partial(self._evaluate_block, splits, further)
            parts = list(in_blocks(evaluate, splits.num_examples, self._eval_size))
        losses, hits, *values = (self._among_all(splits, torch.cat(columns)) for columns in zip(*parts, strict=True))
        found: dict[str, np.ndarray] = {
            name: array.astype(np.float32) for name, array in zip(further, values, strict=True)
        }
        return Evaluation(losses.astype(np.float32), hits, found)

    def _among_all(self, splits: Splits, values: Tensor) -> np.ndarray:
        """What is evaluated of some examples, (n, T), as (T, examples); of all others there is NaN, or false."""
        if splits != self.examples.whole:
            places = torch.from_numpy(self.examples.places(splits)).to(values.device)
            nothing = torch.nan if values.is_floating_point() else False
            whole = values.new_full((self.examples.whole.num_examples, values.shape[1]), nothing)
            values = whole.index_copy_(0, places, values)
        return values.T.contiguous().cpu().numpy()

    def _evaluate_block(self, splits: Splits, further: Sequence[str], start: int, stop: int, size: int) -> list[Tensor]:
        """Scores, hits and further values of a block, (B, T) each."""
        inputs, targets = self.examples.evaluated(splits, start, stop)
        outputs = self.model(inputs)
        found = [self.task.scores(outputs, targets), self.task.hits(outputs, targets)]
        for name in further:
            is_gradient = name == "gradient_norm"
            found.append(
                self.gradient_norms(inputs, targets) if is_gradient else self.task.value(name, outputs, targets)
            )
        return found

    def gradient_norms(self, inputs: Inputs, targets: Targets) -> Tensor:
        """Norms of the gradient of each example's score in its own inputs, (B, T), by one backward pass.

        Passes forward once more: whether derivatives are asked for may decide how a network computes, and scores must
        not depend on what is recorded beside them.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = inputs.clone().requires_grad_()
            scores = self.task.scores(self.model(leaf), targets.clone())
            # An example's score depends on its own inputs alone, since BatchNorm is in eval mode.
            (gradient,) = torch.autograd.grad(scores.sum(), leaf)
            by_example = gradient.unflatten(1, (len(self.trials), -1))
            return torch.linalg.vector_norm(by_example, dim=tuple(range(2, by_example.ndim)))

    def losses(self, inputs: Inputs, targets: Targets, dtype: torch.dtype | None = None) -> Tensor:
        """What training minimises, of every example and trial, (B, T); outputs are converted to ``dtype`` before."""
        return self.task.losses(self.model(inputs), targets, dtype)

    def training_examples(self, positions: Tensor) -> tuple[Inputs, Targets]:
        """Training examples, not augmented, with their given targets.

        ``positions``: int64 (B, T) on the device, of each trial's examples among its training examples, in the order of
        ``TrialData.train_ids``.

        Raises:
            UserError: on a CPU, a position is one of a class that is still to come; a GPU is not waited for.
        """
        number = self.calendar.examples_of_tasks[self.task_number - 1]
        # NumPy looks at the memory: what waits for a device is found by the operations of torch.
        if positions.device.type == "cpu" and (largest := int(positions.numpy().max(initial=0))) >= number:
            raise UserError(
                f"training example {largest} is asked for, but task {self.task_number} has {number}; a "
                "monitor of your own takes the first calendar.examples_of(epoch)"
            )
        return self.examples.at(positions)

    def validation_batches(self, epoch: int) -> Iterator[tuple[Inputs, Targets]]:
        """All validation examples of an epoch, batch by batch, with true targets."""
        splits = self.examples.splits(epoch)
        for start in splits.validation[:: self._eval_size]:
            yield self.examples.evaluated(splits, start, min(start + self._eval_size, splits.validation.stop))

    def _tensors_of(self, position: int) -> dict[str, Tensor]:
        """Views of one trial's weights and buffers, by name."""
        count = len(self.trials)
        return {name: by_trial(t.detach(), count)[position] for name, t in self.model.state_dict().items()}

    @property
    def num_parameters(self) -> int:
        """Number of parameters of one trial's network."""
        return sum(parameter.numel() for parameter in self.model.parameters()) // len(self.trials)

    def weights(self) -> dict[str, Tensor]:
        """Weights and buffers of all trials, as those of the stacked network."""
        return dict(self.model.state_dict())

    def weights_of(self, position: int) -> dict[str, Tensor]:
        """One trial's weights and buffers as those of a plain network, copied."""
        return {name: tensor.clone() for name, tensor in self._tensors_of(position).items()}

    def _put_back(self, position: int, tensors: dict[str, Tensor]) -> None:
        for name, view in self._tensors_of(position).items():
            view.copy_(tensors[name])

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers, optimiser, interventions and monitors, as tensors."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= self.stepper.state()
        tensors |= {f"interventions.{name}": tensor for name, tensor in self.interventions.state().items()}
        return tensors | {f"monitors.{name}": tensor for name, tensor in self.monitors.state().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        load_state(self.model, beginning_with("model.", tensors))
        self.stepper.load_state(tensors)
        self.interventions.load_state(beginning_with("interventions.", tensors))
        self.monitors.load_state(beginning_with("monitors.", tensors))


def beginning_with(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin so, without the beginning."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
