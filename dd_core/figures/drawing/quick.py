"""Charts built without Altair's many copies and checks of their parts."""

import contextlib
import threading
from collections.abc import Iterator

import altair as alt
from altair.utils.schemapi import debug_mode

# Nothing changes these once they are in a chart: altered charts get others in their place.
_SHARED = (alt.FacetedEncoding, alt.Encoding, alt.MarkDef, alt.TitleParams)
# The kinds are those of the whole process, in which another thread may be drawing.
_LOCK = threading.RLock()


def _itself(part: object, memo: object) -> object:
    return part


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Build charts, and make specifications of them, in half the time; they are the same.

    Altair copies each part of a chart several times in every layer, row and column that holds it: meanwhile parts are
    shared. It also checks each part when it is made: the specification of the whole is checked in any case.
    """
    with _LOCK, _shared():
        yield


@contextlib.contextmanager
def _shared() -> Iterator[None]:
    own = [kind for kind in _SHARED if "__deepcopy__" not in vars(kind)]  # none within itself
    for kind in own:
        setattr(kind, "__deepcopy__", _itself)  # noqa: B010  (not a method that Altair declares)
    try:
        with debug_mode(False):
            yield
    finally:
        for kind in own:
            delattr(kind, "__deepcopy__")
