"""Code of the user's own that a study file names as ``module:attribute``: where it lies, its digest, and loading it.

It is looked for in the folder of study files (``DD_STUDIES``) and wherever else Python looks, there first. What an
orchestrator asks (is there such a module, is it still the same) runs nothing of it. Needs nothing but Python.
"""

import contextlib
import hashlib
import importlib
import os
import re
import sys
import traceback
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from dd_core.errors import UserError

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
# Of modules that were loaded by digest, that of the source this process runs.
_LOADED: dict[str, str] = {}


def is_own_code(name: str) -> bool:
    """Whether a name has the form ``package.module:attribute``."""
    return _NAME.fullmatch(name) is not None


def studies_folder() -> Path | None:
    """The user's folder of study files, ``DD_STUDIES``; None where it is not set."""
    folder = os.environ.get("DD_STUDIES")
    return Path(folder).expanduser().absolute() if folder else None


def source_digest(target: str) -> str:
    """Hexadecimal SHA-256 of the file of a module; of what that module imports it knows nothing.

    Args:
        target: ``module:attribute``.

    Raises:
        UserError: there is no such module, or its source cannot be read.
    """
    module = target.partition(":")[0]
    spec = _spec_of(module)
    if spec is None:
        raise UserError(f"there is no module {module} {_places()}")
    if not spec.has_location or spec.origin is None:
        raise UserError(f"the module {module} has no source file of its own; name one that has")
    try:
        return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"the source of the module {module}, {spec.origin}, cannot be read ({error.strerror})"
        ) from error


def load_own_code(target: str, where: str, digest: str | None = None) -> Any:
    """Import a module and take the attribute that is named.

    Args:
        target: ``module:attribute``.
        where: path of the key in the study file, for the error: ``variants.plain.architecture``.
        digest: what ``source_digest`` gave when the study was read; None: whatever the module is now.

    Raises:
        UserError: it cannot be imported, has no such attribute, or its source has changed meanwhile.
    """
    module, _, attribute = target.partition(":")
    _add_studies_folder()
    if digest is not None and digest != source_digest(target):
        raise UserError(f"{where}: the source of {module} has changed since the study was read; run the command again")
    try:
        importlib.invalidate_caches()  # it may have been written since Python last looked into its folder
        loaded = importlib.import_module(module)
        if digest is not None and _LOADED.setdefault(module, digest) != digest:
            loaded = importlib.reload(loaded)
            _LOADED[module] = digest
    except Exception as error:  # whatever the user's code raises
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        is_absent = f"{module}.".startswith(f"{missing}.")
        reason = f"there is no module {missing} {_places()}" if is_absent else describe(error)
        raise UserError(f"{where}: {target} cannot be imported ({reason})") from error
    if not hasattr(loaded, attribute):
        raise UserError(f"{where}: there is no {attribute} in {module} ({loaded.__file__})")
    return getattr(loaded, attribute)


def describe(error: BaseException) -> str:
    """An error of the user's code in a few words: type, first line of what it says, and where it was raised."""
    said = (str(error).strip() or "no message").splitlines()[0]
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg}, {error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f", {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {said}{place}"


def _spec_of(module: str) -> ModuleSpec | None:
    """As ``importlib.util.find_spec``, which would run the packages that a module lies in."""
    _add_studies_folder()
    PathFinder.invalidate_caches()
    path = None
    spec = None
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        with contextlib.suppress(ImportError):
            spec = PathFinder.find_spec(".".join(parts[:number]), path)
        if spec is None or (number < len(parts) and spec.submodule_search_locations is None):
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


def _add_studies_folder() -> None:
    """Let Python look into the folder of studies, last, so that no file there can stand for a library."""
    folder = studies_folder()
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))


def _places() -> str:
    folder = studies_folder()
    named = f"in {folder} (DD_STUDIES)" if folder else "(DD_STUDIES is not set)"
    return f"{named} or on the PYTHONPATH; where jobs run on other machines, it must be there too"
