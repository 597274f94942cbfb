"""What a typed ``dagster asset materialize`` shows of its run: short lines, and on a terminal bars below them.

Runs that the UI or a daemon starts print as Dagster does, and the event log keeps everything as ever.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import dagster._loggers
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.execution import compute_logs
from tqdm import tqdm

from dd_assets.running.command import materialize_options
from dd_core.words import counted, duration

# A file for all lines. On a terminal there are then only the bars, warnings and errors: what run_study does.
LOG_FILE = "DD_LOG_FILE"
# Marks a record that says in words what a bar shows.
OF_BAR = {"is_of_bar": True}
# Marks one that a person wants to see at once, on a terminal too.
FOR_ALL = {"is_for_all": True}
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m"}
_WIDTH = 20  # of names before bars
_SECONDS = 0.1  # between two drawings
_ROWS, _COLUMNS = 24, 80  # of a terminal that does not know


class Console(logging.Handler):
    """Prints the records of a run where a person reads them."""

    def __init__(self, stream: TextIO, log_file: Path | None = None):
        """Nothing is printed yet.

        Args:
            stream: the user's stderr; while a step runs, Dagster has the process's own in its hands.
            log_file: to which all lines are added, too.
        """
        super().__init__()
        self.terminal = stream if stream.isatty() else None
        self._stream, self._log_file = stream, log_file
        self._has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record of Dagster's."""
        try:
            text = self._text(record)
            if text:
                self._print(record, text)
        except Exception:  # as each handler of logging does: a message must not end what it is about
            self.handleError(record)

    def _text(self, record: logging.LogRecord) -> str:
        """Who says what, without the ids of runs; empty if it has been said before, or a bar says it."""
        if self.terminal and getattr(record, "is_of_bar", False):
            return ""
        facts: dict[str, Any] = getattr(record, "dagster_meta", {})
        text, event, step = facts.get("orig_message", record.getMessage()), facts.get("dagster_event"), ""
        if facts.get("step_key"):
            step = facts["step_key"].partition(".")[0].replace("__", "/", 1)
        if event is not None and (error := _error_of(event)):
            if event.event_type is DagsterEventType.RUN_FAILURE and self._has_failed:
                return ""
            self._has_failed |= event.is_step_failure
            text = error if event.is_failure else f"{text}\n\n{error}"
        return text if not step or step in text else f"{step}: {text}"

    def _print(self, record: logging.LogRecord, text: str) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        moment = logging.Formatter(datefmt="%Y-%m-%d %H:%M:%S").formatTime(record, "%Y-%m-%d %H:%M:%S")
        if self._log_file:
            add_line(self._log_file, f"{moment} {level}{text}")
            if self.terminal and not level and not getattr(record, "is_for_all", False):
                return
        line = f"{moment.partition(' ')[2]} {level}{text}"
        colour = _COLOURS.get(record.levelno, "") if self.terminal and "NO_COLOR" not in os.environ else ""
        with tqdm.external_write_mode(file=self._stream):
            self._stream.write(f"{colour}{line}\x1b[0m\n" if colour else f"{line}\n")
            self._stream.flush()


def add_line(path: Path, text: str) -> None:
    """Add a line to a file of messages; one that cannot be written is no reason to end a run."""
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


class Bar:
    """How far something is, with a few words behind it; nothing is seen of it where there is no terminal."""

    def __init__(self, name: str, stream: TextIO | None):
        """Not drawn before it is moved."""
        self._name, self._stream = name, stream
        self._bar: tqdm[Any] | None = None
        self._drawn = 0.0

    def move(self, fraction: float, words: str, at_once: bool = False) -> None:
        """Draw it anew, unless it was drawn a moment ago."""
        if self._stream is None or (time.monotonic() - self._drawn < _SECONDS and not at_once):
            return
        escaped = words.replace("{", "{{").replace("}", "}}")
        form = f"{self._name:<{_WIDTH}}{{percentage:3.0f}} % |{{bar:12}}| {escaped}"
        columns = (os.get_terminal_size(self._stream.fileno()).columns or _COLUMNS) - 1
        if self._bar is None:  # its own look at a terminal that does not know its size would make it draw nothing
            self._bar = tqdm(total=1.0, file=self._stream, nrows=_ROWS, ncols=columns, bar_format=form)
        self._bar.ncols, self._bar.bar_format = columns, form
        self._bar.n = fraction
        self._bar.refresh()
        self._drawn = time.monotonic()

    def close(self) -> None:
        """Leave it as it is, with the next line below."""
        if self._bar is not None:
            self._bar.close()


class StepsBar:
    """How many of a run's steps are done, where there are several."""

    def __init__(self, bar: Bar, num_steps: int):
        """No step is done."""
        self._bar, self._num_steps = bar, num_steps
        self._ended = 0
        self._first: tuple[float, int] | None = None

    def update(self, event: DagsterEvent) -> None:
        """Take an event of the run into account."""
        if self._num_steps < 2 or not (event.is_step_success or event.is_step_failure or event.is_step_skipped):
            return
        self._ended += 1
        now = time.monotonic()
        began, before = self._first = self._first or (now, self._ended)  # the first may be hours of work of its own
        words = f"{self._ended} of {counted(self._num_steps, 'step')} done"
        if self._ended == self._num_steps:
            words += f", {duration(now - began)}"
        elif before < self._ended:
            left = (now - began) / (self._ended - before) * (self._num_steps - self._ended)
            words = f"about {duration(left)} left, {words}"
        self._bar.move(self._ended / self._num_steps, words, at_once=self._ended == self._num_steps)


_consoles: list[Console] = []  # of this process: one or none


def install_console() -> None:
    """Let a typed command print through it.

    Dagster has no setting for this: dagster.yaml can only add handlers to its own, and loggers of the definitions are
    used only where run config names them.
    """
    if materialize_options(sys.argv) is None or _consoles:
        return
    stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    console = Console(stream, Path(path) if (path := os.environ.get(LOG_FILE)) else None)
    _consoles.append(console)

    def logger(name: str, level: int) -> logging.Logger:
        made = logging.Logger(name, level)
        made.addHandler(console)
        return made

    vars(dagster._loggers)["create_console_logger"] = logger
    vars(compute_logs)["execute_posix_tail"] = _without_ctrl_c(compute_logs.execute_posix_tail)


def _without_ctrl_c(tail: Callable[..., Any]) -> Callable[..., Any]:
    """Let the processes that print a step's output not hear Ctrl-C, at which each shows a stack trace of its own."""

    @contextlib.contextmanager
    def of(*arguments: Any) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # they inherit it
            try:
                begun = stack.enter_context(tail(*arguments))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield begun

    return of


@contextlib.contextmanager
def bar(name: str) -> Iterator[Bar]:
    """A bar below the lines of a typed command."""
    drawn = Bar(name, _consoles[0].terminal if _consoles else None)
    try:
        yield drawn
    finally:
        drawn.close()


def _error_of(event: DagsterEvent) -> str:
    data = event.event_specific_data
    error = getattr(data, "error", None)
    return str(getattr(data, "error_display_string", None) or error.to_string()).strip() if error else ""
