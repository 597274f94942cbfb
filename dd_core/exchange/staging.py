"""Files that are first written aside, then put into place if they differ from what is there."""

import contextlib
import filecmp
import shutil
from collections.abc import Iterator
from pathlib import Path

from dd_core.store import Store


@contextlib.contextmanager
def staging_folder(store: Store, name: str) -> Iterator[Path]:
    """A folder below the data root, empty and gone afterwards. Hold a lock on what the name stands for."""
    folder = store.root / "staging" / name
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def differs(staged: Path, final: Path) -> bool:
    """Whether ``final`` is not there or has other bytes."""
    return not final.exists() or not filecmp.cmp(staged, final, shallow=False)


def replace_if_changed(staged: Path, final: Path) -> bool:
    """Rename a flushed file to its final name, on the same file system; an equal file there stays untouched.

    Returns:
        Whether it was put there.
    """
    if not differs(staged, final):
        return False
    final.parent.mkdir(parents=True, exist_ok=True)
    staged.replace(final)
    return True
