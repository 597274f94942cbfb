"""Widths as others count them, which may be fractions, as whole numbers k of a unit."""

import math
from collections.abc import Collection
from fractions import Fraction

from dd_core.errors import UserError
from dd_core.study.widths import LARGEST_K

# A width of 0.333333 is a third.
_TOLERANCE = Fraction(1, 10**5)


def width_unit(widths: Collection[float], known: float | None, asked: Fraction | None, study: str) -> float:
    """The width that k = 1 stands for.

    Args:
        widths: all that are imported.
        known: as the study file says, None if it is new.
        asked: as the user says.
        study: its name.

    Raises:
        UserError: the widths are no multiples of the unit, or too many of it.
    """
    exact = [Fraction(repr(width)) for width in widths]
    finest = Fraction(1, math.lcm(*(width.denominator for width in exact)))
    unit = asked or (finest if known is None else Fraction(known).limit_denominator(10**6))
    if known is not None and abs(unit - Fraction(known)) > _TOLERANCE * unit:
        raise UserError(f"study {study} counts widths in units of {known:g}; choose another study name, or that unit")
    for width in exact:
        k = width / unit
        if round(k) < 1 or abs(k - round(k)) > _TOLERANCE * k:
            raise UserError(
                f"the width {float(width):g} is no multiple of {unit}, in which study {study} counts widths; import "
                "all widths in one command into a study of another name, or say --width-unit, such as 1/16"
            )
        if round(k) > LARGEST_K:
            raise UserError(
                f"the width {float(width):g} is {round(k)} times {unit}, and k ends at {LARGEST_K}; say a coarser "
                "--width-unit, such as 1/16"
            )
    return float(unit)


def number_of(width: float, unit: float) -> int:
    """The k of a width."""
    return round(width / unit)
