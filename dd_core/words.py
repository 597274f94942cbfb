"""Small parts of the sentences that people read: counts, durations, and what a misspelt name was meant to be."""

import difflib
from collections.abc import Iterable

_MOST_NAMES = 20


def counted(number: int, thing: str, things: str | None = None) -> str:
    """``1 run``, ``2 runs``, ``1,296 runs``; ``things`` is the plural where it is not the word with an s."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"


def duration(seconds: float) -> str:
    """For people: ``92 s``, ``14 min``, ``5.2 h``; never less than nothing."""
    if seconds < 119.5:  # from here on it would be rounded to 120
        return f"{max(round(seconds), 0)} s"
    return f"{seconds / 60:.0f} min" if seconds < 60 * 119.5 else f"{seconds / 3600:.1f} h"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one was probably meant to be."""
    of_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), of_lower, 1)
    return of_lower[near[0]] if near else None


def meant(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that names what is known: ``; did you mean 'tiny'?``, or nothing."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""


def advice(name: str, known: Iterable[str], there_are: str = "there are") -> str:
    """The end of a sentence about an unknown name: ``did you mean 'tiny'?``, or else what there is."""
    known = list(known)
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near else f"{there_are} {listed(known)}"


def listed(names: Iterable[object]) -> str:
    """What there is, or ``none``; of very many the first."""
    known = [str(name) for name in names]
    shown = known if len(known) <= _MOST_NAMES else [*known[:_MOST_NAMES], f"and {len(known) - _MOST_NAMES} others"]
    return ", ".join(shown) or "none"
