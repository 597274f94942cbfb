"""Files that are first written aside, then put into place if they differ from what is there.

Aside is a folder below the data root, from which a file is renamed; or where the root is on an object store, a folder
of this machine, from which it is put.
"""

import contextlib
import filecmp
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dd_core.store.files import is_object, make_folder, put_in_place, sha256_of, size_and_sha256
from dd_core.store.objects import put
from dd_core.store.store import Store


@contextlib.contextmanager
def staging_folder(store: Store, name: str) -> Iterator[Path]:
    """An empty folder, gone afterwards. Hold a lock on what the name stands for."""
    if is_object(store.root):
        with tempfile.TemporaryDirectory(prefix="dd-staging-") as temporary:
            yield Path(temporary)
        return
    folder = store.root / "staging" / name
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def differs(staged: Path, final: Path) -> bool:
    """Whether ``final`` is not there or has other bytes."""
    if is_object(final):
        found = size_and_sha256(final)
        return found is None or found[0] != staged.stat().st_size or found[1]() != sha256_of(staged)
    return not final.exists() or not filecmp.cmp(staged, final, shallow=False)


def replace_if_changed(staged: Path, final: Path) -> bool:
    """Rename a flushed file to its final name, on the same file system; an equal file there stays untouched.

    Returns:
        Whether it was put there.
    """
    if not differs(staged, final):
        return False
    if is_object(final):
        put(staged, final)
        return True
    make_folder(final.parent)
    put_in_place(staged, final)
    return True
