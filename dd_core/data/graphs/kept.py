"""Problems that were made before, in the user's cache folder: arrays without pickle, with a fingerprint of all of them.

The name of a file covers what the problems follow from, the generators' code among it, so that nobody has to think of
it. A file that is damaged is as good as none.
"""

import dataclasses
import hashlib
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dd_core.cache import cache_folder, keep
from dd_core.data import randomness
from dd_core.data.graphs.problems import Problems
from dd_core.study import graphs as study_graphs

_FACTS = ("domain", "labels_kind")
_ARRAYS = tuple(field.name for field in dataclasses.fields(Problems) if field.name not in _FACTS)


def kept_problems(settings: dict[str, Any]) -> Problems | None:
    """The problems that follow from some settings, if they are there and whole."""
    path = _path(settings)
    if path is None:
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
            problems = Problems(**json.loads(str(file["facts"])), **arrays)
            return problems if fingerprint_of(problems) == str(file["fingerprint"]) else None
    except Exception:  # whatever damage makes of an archive
        return None


def keep_problems(settings: dict[str, Any], problems: Problems) -> None:
    """Keep problems for the next process, where the cache folder can be written."""
    if path := _path(settings):
        content = io.BytesIO()
        facts = json.dumps(_facts(problems))
        arrays = {name: getattr(problems, name) for name in _ARRAYS}
        np.savez(content, allow_pickle=False, facts=facts, fingerprint=fingerprint_of(problems), **arrays)
        keep(path, content.getvalue())


def fingerprint_of(problems: Problems) -> str:
    """SHA-256 of all that problems are."""
    result = hashlib.sha256(json.dumps(_facts(problems)).encode())
    for name in _ARRAYS:
        array = np.ascontiguousarray(getattr(problems, name))
        result.update(f"{name} {array.dtype.str} {array.shape}".encode())
        result.update(array.tobytes())
    return result.hexdigest()


def _facts(problems: Problems) -> dict[str, Any]:
    return {name: getattr(problems, name) for name in _FACTS}


def _path(settings: dict[str, Any]) -> Path | None:
    folder = cache_folder("graphs")
    key = hashlib.sha256(f"{json.dumps(settings, sort_keys=True)} {_code()}".encode()).hexdigest()
    return folder / f"{key[:32]}.npz" if folder else None


@cache
def _code() -> str:
    """Fingerprint of the code that makes problems."""
    files = (*sorted(Path(__file__).parent.glob("*.py")), Path(randomness.__file__), Path(study_graphs.__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
