"""The user's cache folder: what can be made again, kept for the next process."""

import contextlib
import os
import tempfile
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """Where something is kept that can be made again; None: the user has no such place."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # there is no home
        return None
    return base / "double-descent-lab" / name


def keep(path: Path, content: bytes) -> None:
    """Put something into the cache, where that can be written; whole or not at all, whoever else writes the same."""
    # What is half written goes: a full disk is not made fuller.
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            stack.callback(Path(file.name).unlink, missing_ok=True)
            file.write(content)
        Path(file.name).replace(path)
