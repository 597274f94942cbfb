"""Monitors: what is measured during training beside batches and evaluations. See ``base`` first."""

from typing import Any

from dd_core.errors import UserError
from dd_core.study.former_names import metric_now
from dd_core.study.monitors import CustomMonitor, MonitorEntry
from dd_core.study.own_code import load_own_code
from dd_core.training.monitors.base import Measurement, Moment, Monitor, Watched
from dd_core.training.monitors.timetable import Timetable

__all__ = ["Measurement", "Moment", "Monitor", "Timetable", "Watched", "make_monitors"]

_OWN = {
    "validation": "dd_core.training.monitors.validation:Validation",
    "norms": "dd_core.training.monitors.norms:Norms",
    "hessian": "dd_core.training.monitors.hessian:Hessian",
    "noise": "dd_core.training.monitors.noise:Noise",
    "plasticity": "dd_core.training.monitors.plasticity:Plasticity",
}


def make_monitors(stack: Watched) -> Timetable:
    """The monitors that the stack's study asks for.

    Raises:
        UserError: a monitor of the user's own cannot be imported or made, or measures what another measures.
    """
    active = stack.study.monitors.active(stack.num_validation > 0)
    entries = {}
    measured_by: dict[str, str] = {}
    for name, settings in active.items():
        monitor = _make(name, settings, stack)
        for metric in monitor.metrics:
            column = metric_now(metric).name
            if measured_by.setdefault(column, name) != name:
                raise UserError(f"monitors.{name}: {metric} is measured by monitors.{measured_by[column]}; rename one")
        entries[name] = (settings.every, monitor)
    return Timetable(entries, stack.calendar)


def monitor_class(name: str, settings: MonitorEntry) -> type[Monitor]:
    """The class behind an entry of a study's monitors.

    Raises:
        UserError: there is no such class, or it is no Monitor.
    """
    target = settings.use if isinstance(settings, CustomMonitor) else _OWN[name]
    found = load_own_code(target, f"monitors.{name}")
    if not (isinstance(found, type) and issubclass(found, Monitor)):
        raise UserError(f"monitors.{name}: {target} is not a subclass of dd_core.training.monitors.Monitor")
    return found


def _make(name: str, settings: MonitorEntry, stack: Watched) -> Monitor:
    options: dict[str, Any] = (
        settings.options if isinstance(settings, CustomMonitor) else settings.model_dump(exclude={"every"})
    )
    try:
        return monitor_class(name, settings)(stack, **options)
    except TypeError as error:
        raise UserError(f"monitors.{name}: cannot be made with these options ({error})") from error
