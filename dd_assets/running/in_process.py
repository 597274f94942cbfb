"""Dagster's command line in this process: commands that follow each other need not load everything anew."""

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator

from dd_assets.running.ending import INTERRUPTED


def run_dagster(arguments: list[str]) -> int:
    """Do what ``dagster ARGUMENTS`` does, which takes three seconds of a core to start; returns its exit code.

    Ctrl-C ends it in its own time, when its records say that it has ended.
    """
    from dagster._cli import cli

    warnings.filterwarnings("ignore", "Function `asset_materialize_command`")  # it recommends `dg` at every call
    own, sys.argv = sys.argv, ["dagster", *arguments]  # which those look at who check and show a typed command
    try:
        with _listening_for_ctrl_c() as heard:
            cli.main(arguments, prog_name="dagster")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = own
    return INTERRUPTED if heard else code


@contextlib.contextmanager
def _listening_for_ctrl_c() -> Iterator[list[int]]:
    """Yields a list that is no longer empty at the end if Ctrl-C came, whoever has handled it."""
    heard: list[int] = []
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield heard
    finally:
        signal.set_wakeup_fd(before)
        with contextlib.suppress(BlockingIOError):
            heard += [number for number in os.read(reading, 4096) if number == signal.SIGINT]
        os.close(reading)
        os.close(writing)
