"""A Python process that is told what to do line by line, and answers in lines of JSON."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import TypeAlias

from dd_core.events import Event, parse

# The number of a process and what it says; None: it has ended.
News: TypeAlias = "queue.Queue[tuple[int, Event | None]]"

_CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP, signal.SIGSYS)


class Process:
    """``python -m ...`` with its stdin in our hands; a thread passes on what it prints.

    Attributes:
        number: under which its answers come.
    """

    def __init__(self, number: int, arguments: list[str], news: News, **variables: str):
        """Start it, with these environment variables beside our own."""
        self.number = number
        # The process sets its own threads; libraries that look here must not start more.
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), **variables}
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the orchestrator, which then stops its workers
        )
        self._reader = threading.Thread(target=self._read, args=(news,), daemon=True)
        self._reader.start()

    def _read(self, news: News) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if (event := parse(line)) is not None:  # else a line cut off by a kill
                    news.put((self.number, event))
        self._process.wait()
        news.put((self.number, None))

    def tell(self, line: str) -> None:
        """Write a line; if it has just died, that is noticed by its reader."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """Close its stdin: it leaves when idle."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def kill(self) -> None:
        """End it now, and wait until it has."""
        self._process.kill()
        self.dismiss()
        self._reader.join()

    def end(self, patience: float) -> None:
        """Ask it to end, and kill it if it has not after so many seconds."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self.kill()

    @property
    def was_killed(self) -> bool:
        """Whether it has ended by SIGKILL, as the kernel does where memory runs out."""
        return self._process.returncode == -signal.SIGKILL

    @property
    def has_crashed(self) -> bool:
        """Whether it has ended by a signal that a process gets for what it does itself: memory or code is broken."""
        return -self._process.returncode in _CRASHES

    @property
    def has_succeeded(self) -> bool:
        """Whether it has ended with exit code 0."""
        return self._process.returncode == 0

    def describe_end(self) -> str:
        """How a process that has ended did so: ``was killed by SIGKILL``, ``ended with exit code 1``."""
        code = self._process.returncode
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
