"""What processes tell each other about tasks: one type per event, parsed once where JSON enters, written once.

Events are news and may be lost; only the ends (``End``) are kept on the data root, as outcomes. The two sides of a
pipe, a log or a file may be of different versions: keys and events that a reader does not know are left out.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, get_origin


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something about a task.

    Attributes:
        task: its name; empty while only the task itself speaks.
        number: of the task in its job; None where the writer does not know the job.
    """

    name: ClassVar[str]
    task: str = ""
    number: int | None = None

    def of(self, task: str, number: int | None = None) -> Self:
        """The same about the task of that name and number."""
        return replace(self, task=task, number=number)

    def as_line(self) -> str:
        """One line of JSON."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return json.dumps({"event": self.name, **values})

    def __str__(self) -> str:
        """For people."""
        about = getattr(self, "text", "") or getattr(self, "error", "")
        return f"{self.task}: {self.name}{f': {about}' if about else ''}"


Report = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A worker has begun with it."""

    name: ClassVar[str] = "started"


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """A training is behind that epoch.

    Attributes:
        epoch: that it has completed.
        train_loss, train_error, test_error: of the last evaluation, mean of the trials that still train, in nats and
            fractions; None where there was none.
    """

    name: ClassVar[str] = "progress"
    epoch: int
    train_loss: float | None = None
    train_error: float | None = None
    test_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointWritten(Event):
    """The checkpoint of that epoch is there, with its manifest."""

    name: ClassVar[str] = "checkpoint"
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A sentence that people should read."""

    name: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True, kw_only=True)
class Measured(Event):
    """The resource probe has measured an arm, and this is what it found."""

    name: ClassVar[str] = "measured"
    text: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """A task is done.

    Attributes:
        seconds: that it took.
        rows, machine, recommended: of a resource probe the rows of its table, what it measured, and how many workers
            are best for each arm, by study and arm.
    """

    name: ClassVar[str] = "finished"
    seconds: float
    rows: int | None = None
    machine: str | None = None
    recommended: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """A task has ended undone.

    Attributes:
        error: why, a sentence.
        is_user_error: whether circumstances or the user are the reason, rather than a defect of the program.
        traceback: of a defect.
    """

    name: ClassVar[str] = "failed"
    error: str
    is_user_error: bool = False
    traceback: str | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared(Event):
    """A worker that is measured holds its arm ready, a step of which takes so long."""

    name: ClassVar[str] = "prepared"
    seconds_per_step: float


@dataclass(frozen=True, kw_only=True)
class Timed(Event):
    """A worker that is measured has trained some steps.

    Attributes:
        seconds: that they took.
        samples: images in them, of all trials.
        num_steps: of all stacks.
        utilisation: share of the GPU, or number of cores; None where nobody knows.
        peak_memory_bytes: of the process, or of its part of the GPU.
        torch_version: that trained.
    """

    name: ClassVar[str] = "timed"
    seconds: float
    samples: int
    num_steps: int
    utilisation: float | None = None
    peak_memory_bytes: int
    torch_version: str


@dataclass(frozen=True, kw_only=True)
class OutOfMemory(Event):
    """A worker that is measured has not enough memory for its arm."""

    name: ClassVar[str] = "out of memory"


End = Finished | Failed
_TYPES: Mapping[str, type[Event]] = {
    kind.name: kind
    for kind in (
        Started, Progress, CheckpointWritten, Note, Measured, Finished, Failed, Prepared, Timed, OutOfMemory
    )
}  # fmt: skip


def parse(text: str | bytes) -> Event | None:
    """The event of a line; None where the line is another's, cut off by a kill, or an event that is not known here."""
    try:
        return event_from(json.loads(text))
    except (ValueError, RecursionError):
        return None


def event_from(content: object) -> Event | None:
    """As ``parse``, of JSON that has been read already."""
    if not isinstance(content, dict) or (kind := _TYPES.get(str(content.get("event")))) is None:
        return None
    known = {f.name: content[f.name] for f in fields(kind) if content.get(f.name) is not None}
    if not all(_is_of_type(known[f.name], f.type) for f in fields(kind) if f.name in known):
        return None
    try:
        return kind(**known)
    except TypeError:  # something is missing
        return None


def _is_of_type(value: object, annotation: Any) -> bool:
    """Whether a value of JSON is what a field holds; whole numbers are numbers, too."""
    kinds = getattr(annotation, "__args__", (annotation,)) if get_origin(annotation) is not dict else (dict,)
    plain = tuple(get_origin(kind) or kind for kind in kinds)
    return isinstance(value, (*plain, int) if float in plain else plain)
