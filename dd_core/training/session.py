"""All trials of one arm at some epoch: an epoch on, an evaluation, a checkpoint, a resume point and the way back."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from dd_core.errors import StaleError
from dd_core.machine.arithmetic import kind_of_device, usable
from dd_core.machine.memory import name_of
from dd_core.store.best_checkpoints import prune_best, save_best
from dd_core.store.checkpoints import make_way, save_checkpoint, save_weights
from dd_core.store.manifests import Ending
from dd_core.store.resume_points import resume_metadata
from dd_core.store.store import Store
from dd_core.study.calendar import Calendar
from dd_core.study.former_names import as_now
from dd_core.study.recipe import Precision
from dd_core.study.stacks import stacking, stacking_unsaid
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.training import resume_point
from dd_core.training.recorder import EVAL_METRICS, Recorder
from dd_core.training.shared_stack import ArmInStack
from dd_core.training.trial_progress import TrialProgress
from dd_core.training.trial_stack import BatchMetrics, Evaluation, TrialStack, beginning_with

_PROGRESS = TypeAdapter(list[TrialProgress])


@dataclass
class Session:
    """All trials of an arm on one device, at some epoch.

    Attributes:
        micro_batch: images at a time; None: the whole batch.
        share: what it has of a network that it shares with other arms; None: it trains apart from them.
        progress: of every trial.
    """

    study: Study
    arm: Arm
    store: Store
    device: torch.device
    dtype: torch.dtype = torch.float32
    micro_batch: int | None = None
    epoch: int = 0
    share: ArmInStack | None = None
    stacks: Sequence[TrialStack | ArmInStack] = field(init=False)
    recorder: Recorder = field(init=False)
    progress: list[TrialProgress] = field(init=False)
    _begun: dict[str, str] = field(default_factory=dict)
    _to_join: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Build every stack in its initial state, but for a shared one, which there is."""
        self.variant = self.study.variants[self.arm.variant]
        self.micro_batch = min(self.micro_batch or self.variant.batch_size, self.variant.batch_size)
        self.stacks = (
            [self.share]
            if self.share
            else [
                TrialStack(self.study, self.arm, trials, self.device, self.dtype, self.micro_batch)
                for trials in self._groups()
            ]
        )
        self.recorder = Recorder(self.study, self.arm, [data for stack in self.stacks for data in stack.data])
        self.progress = [TrialProgress() for _ in range(self.study.trials)]
        self._results: list[Evaluation] = []  # of the last evaluation, by stack
        self._compute_in(usable(self.variant.precision, self.device))

    def _compute_in(self, precision: Precision) -> None:
        for stack in self.stacks:
            stack.compute_in(precision)

    @property
    def precision(self) -> Precision:
        """In which it trains: that of the recipe, unless float32 is faster here."""
        return self.stacks[0].precision

    def _groups(self) -> list[list[int]]:
        """The trials of each network, by number: as where the arm was begun, on whatever device that was."""
        begun = resume_metadata(self.store, self.study, self.arm)
        numbers = iter(self.study.trial_numbers)
        if "stacks" in begun:
            return [list(itertools.islice(numbers, size)) for size in json.loads(begun["stacks"])]
        if begun:
            return stacking_unsaid(self.study, self.arm)
        return stacking(self.study, self.arm, on_gpu=self.device.type == "cuda")

    @property
    def calendar(self) -> Calendar:
        """Which steps belong to which epoch."""
        return self.stacks[0].calendar

    @property
    def step(self) -> int:
        """Optimiser steps behind a trial that still trains."""
        return self.calendar.steps_after(self.epoch)

    def train_epoch(self) -> list[int]:
        """Train one epoch and record every batch; returns the trials that ended in it."""
        first_step = self.step + 1
        if self.calendar.ends_task(self.epoch):
            self._begin_task()
        self.epoch += 1
        if not any(trial.is_training for trial in self.progress):
            return []
        metrics = [self._train_stack(stack) for stack in self.stacks]
        self.recorder.add_batches(self.epoch, first_step, metrics)
        losses = np.concatenate([m.loss for m in metrics], axis=1)
        diverged = []
        for trial, progress in enumerate(self.progress):
            if not progress.is_training:
                self.recorder.forget(trial, 0)
            elif not np.isfinite(losses[:, trial]).all():
                index = int(np.argmin(np.isfinite(losses[:, trial])))
                self._diverge(trial, first_step + index, f"its batch loss became {losses[index, trial]}")
                self.recorder.forget(trial, first_step + index)
                diverged.append(trial)
        return diverged

    def _begin_task(self) -> None:
        for progress in self.progress:
            progress.begin_task(self.variant.schedule.restarts)
        for stack in self.stacks:
            self._set_multiple(stack)

    def _set_multiple(self, stack: TrialStack | ArmInStack) -> None:
        """The multiple of the learning rate; a plateau is each trial's own, and no network is shared then."""
        if self.variant.schedule.name == "plateau":
            stack.multiple = self.progress[stack.trials[0] - self.study.first_trial].multiple

    def _train_stack(self, stack: TrialStack | ArmInStack) -> BatchMetrics:
        ended = self.ended(stack)
        if len(ended) < len(stack.trials):
            return stack.train_epoch(self.epoch, ended)
        steps = stack.calendar.steps_of(self.epoch)
        nothing = np.full((steps, len(ended)), np.nan)
        return BatchMetrics(nothing, nothing, nothing, np.full(steps, np.nan), {})

    def ended(self, stack: TrialStack | ArmInStack) -> list[int]:
        """Positions in a stack of the trials that have ended."""
        first = stack.trials[0] - self.study.first_trial
        return [i for i in range(len(stack.trials)) if not self.progress[first + i].is_training]

    def _diverge(self, trial: int, step: int, what: str) -> None:
        epoch = self.calendar.epoch_of(step)
        reason = f"{what} at step {step}"
        self.progress[trial].ending = Ending(status="diverged", epoch=epoch, step=step, reason=reason)
        stack, position = self._place_of(trial)
        stack.diverge(position)

    def _place_of(self, trial: int) -> tuple[TrialStack | ArmInStack, int]:
        """The stack of a trial, and its position there; here trials are counted from the first of the study."""
        number = self.study.first_trial + trial
        stack = next(stack for stack in self.stacks if number in stack.trials)
        return stack, stack.trials.index(number)

    def evaluate(self) -> tuple[dict[str, float], list[int]]:
        """Evaluate and record; keep the best, stop early and lower rates, as the study says.

        Returns:
            Each metric's mean over the trials that have not diverged (NaN without any), and the trials that ended.
        """
        training = [trial.is_training for trial in self.progress]
        steps = [trial.ending.step if trial.ending else self.step for trial in self.progress]
        self._results = [self._evaluation(number, stack) for number, stack in enumerate(self.stacks)]
        results = self._results
        rows = self.recorder.add_evaluation(self.epoch, steps, results, self.study.keeps_images(self.epoch))
        for trial, progress in enumerate(self.progress):
            metrics = dict(zip(EVAL_METRICS, rows[trial].tolist(), strict=True))
            if progress.is_training and not math.isfinite(metrics["train_loss"]):
                self._diverge(trial, self.step + 1, f"its training loss became {metrics['train_loss']}")
            if progress.has_diverged:
                self.recorder.forget_evaluation(trial)
                rows[trial] = np.nan
                continue
            self._note(trial, metrics)
        ended = [trial for trial, was in enumerate(training) if was and not self.progress[trial].is_training]
        columns = as_now({name: rows[:, i] for i, name in enumerate(EVAL_METRICS)})
        return {name: _mean(values) for name, values in columns.items()}, ended

    def _evaluation(self, number: int, stack: TrialStack | ArmInStack) -> Evaluation:
        """That of now, or of a stack whose trials have all ended the one before: its weights stay as they are."""
        if self._results and self.study.data.classes is None and len(self.ended(stack)) == len(stack.trials):
            before = self._results[number]
            if before.values or not (self.study.image_values and self.study.keeps_images(self.epoch)):
                return before
        return stack.evaluate(self.epoch)

    def _note(self, trial: int, metrics: dict[str, float]) -> None:
        progress = self.progress[trial]
        kept = list(progress.kept)
        progress.note_evaluation(self.epoch, metrics, self.study.keep_best)
        stack, position = self._place_of(trial)
        if progress.kept != kept:
            weights = stack.weights_of(position)
            save_best(self.store, self.study, self.arm, trial, self.epoch, metrics["loss_val_nats"], weights)
        # Checkpoint epochs may change without changing the recipe: evaluations due to them alone decide nothing.
        if self.epoch and self.epoch % self.study.evaluation.every == 0:
            if progress.is_training and isinstance(stack, TrialStack):
                stack.interventions.note_evaluation(position, metrics["acc_val"])
            progress.decide(self.epoch, self.step, metrics, self.variant)
            self._set_multiple(stack)

    def save_checkpoint(self, headline: dict[str, float]) -> None:
        """Write the metrics since the last checkpoint, the weights, and their manifest."""
        checkpoint = Checkpoint(self.arm, self.epoch)
        if not make_way(self.store, self.study, checkpoint):
            self.recorder.load_state({})
            return
        tables = self.recorder.flush(self.store, checkpoint)
        states = [(len(stack.trials), stack.weights()) for stack in self.stacks]
        weights = {"weights": save_weights(self.store, self.study, checkpoint, states)}
        ended = {trial: p.ending for trial, p in enumerate(self.progress) if p.ending is not None}
        save_checkpoint(self.store, self.study, checkpoint, weights, tables, headline, name_of(self.device), ended)

    def save_resume_point(self) -> None:
        """Write everything needed to go on from here as if nothing had happened."""
        tensors = {f"recorder.{name}": tensor for name, tensor in self.recorder.state().items()}
        for index, stack in enumerate(self.stacks):
            tensors |= {f"stack{index}.{name}": tensor for name, tensor in stack.state().items()}
        content = {
            "epoch": str(self.epoch),
            "progress": _PROGRESS.dump_json(self.progress).decode(),
            "micro_batch": str(self.micro_batch),
            "threads": str(torch.get_num_threads()),
            "arithmetic_of": kind_of_device(self.device),
            "stacks": json.dumps([len(stack.trials) for stack in self.stacks]),
            **self._conditions,
        }
        resume_point.keep(self.store, self.study, self.arm, tensors, content)
        prune_best(self.store, self.study, self.arm, [[epoch for _, epoch in p.kept] for p in self.progress])

    def resume(self) -> str | None:
        """Go to the resume point if it is usable and all checkpoints before it are sound.

        Sums depend on the number of threads they are divided among: it is set to what it was. What is to go into a
        shared network waits for ``join``.

        Returns:
            Why training starts from the beginning although there is a resume point; None otherwise.
        """
        try:
            found = resume_point.usable(self.store, self.study, self.arm)
        except StaleError as error:
            return str(error)
        if found is None:
            return None
        tensors, metadata = found
        self._begun = metadata
        self._go_on_in_precision(metadata)
        self.epoch = int(metadata["epoch"])
        self.progress = _PROGRESS.validate_json(metadata["progress"])
        self.micro_batch = min(self.micro_batch or self.variant.batch_size, int(metadata["micro_batch"]))
        torch.set_num_threads(int(metadata["threads"]))
        self._load(tensors)
        return None

    def _go_on_in_precision(self, metadata: dict[str, str]) -> None:
        """On the same kind of machine in that in which it began: measured again, another might seem to be faster."""
        if metadata.get("arithmetic_of") == kind_of_device(self.device):
            self._compute_in(cast(Precision, metadata["precision"]))

    @property
    def differs(self) -> str:
        """What bits depend on and is not as it was where the resume point was written, for people."""
        if not self._begun:
            return ""
        # Earlier versions wrote no precision; they used that of the recipe, but tf32 on a CPU, which is float32.
        recipe = self.variant.precision
        before = self.precision if recipe == "tf32" else recipe
        return resume_point.differences({"precision": before, **self._begun}, self._conditions)

    @property
    def _conditions(self) -> dict[str, str]:
        return resume_point.conditions(
            self.device, self.precision, None if self.share is None else self.share.shared.places
        )

    def join(self) -> None:
        """Put what the resume point says into a shared network, which stands at the session's epoch now.

        Of an arm whose trials have all ended only the weights: nothing else of it matters any more, and what it
        remembers for the optimiser is perhaps from earlier than that of the others.
        """
        if self.share is not None and self._to_join:
            is_training = any(trial.is_training for trial in self.progress)
            names = [name for name in self._to_join if is_training or name.startswith("model.")]
            self.share.load_state({name: self._to_join[name] for name in names})
            self._to_join = {}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._results = []
        self.recorder.load_state(beginning_with("recorder.", tensors))
        for index, stack in enumerate(self.stacks):
            state = beginning_with(f"stack{index}.", tensors)
            if self.share is not None:
                self._to_join = state
                return
            stack.load_state(state)
            assert self.micro_batch is not None
            stack.set_micro_batch(self.micro_batch)
            self._set_multiple(stack)


def _mean(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else math.nan
