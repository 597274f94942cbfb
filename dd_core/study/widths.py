"""The widths that a study, or one variant of it, names."""

from collections import Counter
from typing import Annotated

from pydantic import AfterValidator, Field

LARGEST_K = 65_536  # of imported studies


def unique(values: tuple[int, ...]) -> tuple[int, ...]:
    """The values in ascending order.

    Raises:
        ValueError: one is there twice.
    """
    repeated = sorted(value for value, times in Counter(values).items() if times > 1)
    if repeated:
        raise ValueError(f"listed twice: {', '.join(map(str, repeated))}")
    return tuple(sorted(values))


Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=LARGEST_K)], ...], Field(min_length=1), AfterValidator(unique)]
