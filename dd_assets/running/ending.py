"""How commands end: a user's mistake is a sentence; Ctrl-C and a reader that has gone away end them without a trace."""

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

from dd_core.errors import UserError

INTERRUPTED = 130  # what shells say of a command that Ctrl-C has ended
_NOBODY_READS = 141

_Others = ParamSpec("_Others")
_Main = Callable[_Others, int]


def ends_well(mistake: int = 1) -> Callable[[_Main[_Others]], _Main[_Others]]:
    """Let a ``main`` return an exit code also where it raises; ``mistake`` is that of a user's mistake."""

    def of(main: _Main[_Others]) -> _Main[_Others]:
        @functools.wraps(main)
        def ending(*arguments: _Others.args, **named: _Others.kwargs) -> int:
            try:
                code = main(*arguments, **named)
                sys.stdout.flush()  # here, not when Python ends
                return code
            except UserError as error:
                print(f"Error: {error}", file=sys.stderr)
                return mistake
            except KeyboardInterrupt:
                return INTERRUPTED
            except BrokenPipeError:  # as after ``| head``
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
                return _NOBODY_READS

        return ending

    return of
