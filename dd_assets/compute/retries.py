"""When work that a cluster lost is tried again, and in which words people are told; the same for every cluster.

Who starts it again is a matter of the place: the controller of a Kubernetes Job, SLURM's queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dd_core.study.resources import Resources
from dd_core.words import counted

_LONGEST_SECONDS: Final = 3600.0


@dataclass(frozen=True)
class Retries:
    """How often and when an attempt is followed by another.

    Attributes:
        most: retries; None: as many as the place thinks fit.
        first_seconds: before the first of them, twice as long before each further one, up to an hour; None: when the
            place does so.
    """

    most: int | None = None
    first_seconds: float | None = None

    @classmethod
    def of(cls, resources: Resources) -> "Retries":
        """As a study and its place ask."""
        return cls(resources.retries, resources.retry_seconds)

    def seconds(self, retry: int) -> float:
        """From the end of an attempt to the retry of that number; 0 for number 0, which is no retry."""
        first = self.first_seconds or 0.0
        # Evictions may be without number; 2 to the power of 60 is beyond every limit here, and a number still.
        return min(first * 2 ** min(retry - 1, 60), max(first, _LONGEST_SECONDS)) if retry else 0.0

    def announce(self, attempt: int, otherwise: str, is_last: bool) -> str:
        """What follows the end of the attempt of that number: ``again in 60 s (attempt 2 of 3)``.

        Args:
            attempt: counted from 1.
            otherwise: when the place would try again by itself: ``as soon as there is room``.
            is_last: none follows.
        """
        if is_last:
            return f"that was attempt {attempt}, and the last"
        when = f"in {self.seconds(attempt):g} s" if self.first_seconds else otherwise
        return f"again {when} (attempt {attempt + 1}{'' if self.most is None else f' of {self.most + 1}'})"


def named(tasks: Sequence[str], otherwise: str) -> str:
    """The tasks of one attempt for people: ``nsm/planning.k064 and 2 other tasks``."""
    if not tasks:
        return otherwise
    more = len(tasks) - 1
    return tasks[0] + (f" and {counted(more, 'other task')}" if more else "")
