"""Which monitor is due after which step; collects on the device what they measure until the epoch ends."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dd_core.errors import UserError
from dd_core.machine.memory import is_out_of_memory
from dd_core.study.calendar import Calendar
from dd_core.study.monitors import next_due
from dd_core.training.monitors.base import Measurement, Moment, Monitor

# Per metric an array (measurements, 2 + 2 T): epoch, step, values by trial, standard errors by trial (NaN if none).
Readings = dict[str, np.ndarray]


class Timetable:
    """The monitors of one stack, and the readings of the present epoch."""

    def __init__(self, entries: dict[str, tuple[str, Monitor]], calendar: Calendar):
        """``entries``: by name the interval, as in the study file, and the monitor."""
        self._entries, self._calendar = entries, calendar
        self._due: dict[str, tuple[int, int]] = {}  # a step, and the first after it that is due
        self._watchers = [monitor for _, monitor in entries.values() if monitor.watches_every_step]
        self._readings: dict[str, list[tuple[int, int, Tensor, Tensor | None]]] = {}

    def after_step(self, step: int, moment: Callable[[], Moment]) -> None:
        """Let every monitor look that is due; ``moment`` is called only if one is."""
        due = {name: monitor for name, (_, monitor) in self._entries.items() if self._is_due(name, step)}
        if not due and not self._watchers:
            return
        now = moment()
        for watcher in self._watchers:
            watcher.observe(now)
        for name, monitor in due.items():
            for metric, result in _measured(name, monitor, now).items():
                value, error = result if isinstance(result, tuple) else (result, None)
                _check(monitor, metric, value, now)
                self._readings.setdefault(metric, []).append((now.epoch, step, value.detach(), error))

    def _is_due(self, name: str, step: int) -> bool:
        """Worked out once for all steps up to the next that is due: this is asked after every step."""
        since, due = self._due.get(name, (0, 0))
        if not since < step <= due:
            due = next_due(self._entries[name][0], self._calendar, step - 1)
            self._due[name] = step - 1, due
        return step == due

    def collect(self) -> Readings:
        """What was measured since the last call, fetched from the device."""
        collected: Readings = {}
        for metric, rows in self._readings.items():
            values = torch.stack([value.double() for _, _, value, _ in rows]).cpu().numpy()
            none = torch.full_like(rows[0][2], torch.nan).double()
            errors = torch.stack([none if e is None else e.detach().double() for *_, e in rows]).cpu().numpy()
            where = np.array([[epoch, step] for epoch, step, _, _ in rows], dtype=np.float64)
            collected[metric] = np.concatenate([where, values, errors], axis=1)
        self._readings = {}
        return collected

    def state(self) -> dict[str, Tensor]:
        """Every monitor's state, as tensors on the device."""
        return {
            f"{name}.{key}": tensor
            for name, (_, monitor) in self._entries.items()
            for key, tensor in monitor.state().items()
        }

    def state_of(self, trials: slice) -> dict[str, Tensor]:
        """What ``state`` would be of some of the trials alone; copies."""
        return {
            name: tensor.narrow(self._trials_in(name), trials.start, trials.stop - trials.start).clone()
            for name, tensor in self.state().items()
        }

    def load_state_of(self, trials: slice, tensors: dict[str, Tensor], num_trials: int) -> None:
        """The reverse of ``state_of``; the other trials' is left alone.

        Where these have seen another number of steps than the others, as with a monitor that was asked for later, the
        others' values are undefined from then on.
        """
        whole = self.state()
        for name, tensor in tensors.items():
            dimension = self._trials_in(name)
            shape = list(tensor.shape)
            shape[dimension] = num_trials
            if name not in whole or list(whole[name].shape) != shape:
                undefined = torch.nan if tensor.is_floating_point() else True
                whole[name] = tensor.new_full(shape, undefined)
            whole[name].narrow(dimension, trials.start, trials.stop - trials.start).copy_(tensor)
        self.load_state(whole)

    def _trials_in(self, name: str) -> int:
        monitor, _, tensor = name.partition(".")
        return self._entries[monitor][1].trials_in.get(tensor, 0)

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        for name, (_, monitor) in self._entries.items():
            own = {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}
            monitor.load_state(own)


def _measured(name: str, monitor: Monitor, now: Moment) -> Measurement:
    """What the monitor says.

    Raises:
        UserError: memory runs out. Training with fewer images at a time, as after any other shortage, would not help.
    """
    try:
        return monitor.measure(now)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        shortage = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"out of memory in the monitor {name} at step {now.step} ({shortage}); let it look at fewer examples or "
            f"take fewer iterations or probes, or leave it out with monitors: {{{name}: null}}"
        ) from None


def _check(monitor: Monitor, metric: str, value: Tensor, now: Moment) -> None:
    """Refuse what a monitor of the user's own must not measure, where it can still be told which monitor it was."""
    if metric not in monitor.metrics:
        raise UserError(f"{type(monitor).__name__} measured {metric!r}, which is not among its metrics; name it there")
    if value.shape != now.loss.shape:
        raise UserError(
            f"{type(monitor).__name__} measured {metric} of shape {tuple(value.shape)}; one value for each of the "
            f"{len(now.loss)} trials is needed"
        )
