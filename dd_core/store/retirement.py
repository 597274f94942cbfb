"""Results of an earlier recipe: moved out of every table, kept for ever, and put back when the recipe is back.

What is retired lies in ``retired/<study>/<arm>/<recipe>``, where there already is some of the same recipe in
``<recipe>.2`` and so on, with the paths it had below the data root. Nothing here deletes a result.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

from dd_core.machine.disk import flush
from dd_core.store.files import is_object, readable_errors, remove, sha256_of
from dd_core.store.manifests import Manifest
from dd_core.store.store import Store


def retire(store: Store, study: str, arm: str, recipe: str) -> Path | None:
    """Move all results of an arm out of every table, as those of a recipe. Hold the arm's lock.

    Returns:
        Where they went, or None if there were none.
    """
    # The checkpoints' manifests, by which a changed recipe is noticed, go last: a process killed here is taken up
    # again. Then once more what somebody has written meanwhile who still believed in them.
    sources = [path for path in store.folders_of_arm(study, arm) if _exists(path)]
    remove(*store.live_folder(study, arm).glob("*.jsonl"))  # news of a training that nobody goes on with
    if not sources:
        return None
    target = _free(store, study, arm, recipe, sources)
    for source in sources:
        move(source, target / _below(store, source))
    if late := [path for path in store.folders_of_arm(study, arm) if _exists(path)]:
        another = _free(store, study, arm, recipe, late)
        for source in late:
            move(source, another / _below(store, source))
    return target


def restorable(store: Store, study: str, arm: str, is_own: Callable[[Manifest], bool]) -> Path | None:
    """Where what was retired of a recipe lies, if there is any and nothing stands in its place.

    Args:
        store: the data root.
        study: name.
        arm: key.
        is_own: whether the manifest of a checkpoint is of that recipe.
    """
    # Those of parts may have been put back before a kill, and those of the arm, which come last, not yet.
    if manifests_of_arm(store, study, arm, of_parts=False):
        return None
    found = [
        (len(manifests), _number(folder), folder)
        for folder in retired(store, study, arm)
        if (manifests := manifests_of_arm(Store(folder), study, arm)) and all(map(is_own, manifests))
    ]
    return max(found)[2] if found else None


def restore(store: Store, study: str, arm: str, is_own: Callable[[Manifest], bool]) -> Path | None:
    """Put back what is ``restorable``; returns where it was, or None. Hold the arm's lock."""
    folder = restorable(store, study, arm, is_own)
    if folder is None:
        return None
    inside = Store(folder)
    for source in inside.folders_of_arm(study, arm):
        target = store.root / _below(inside, source)
        if _exists(source):
            if _exists(target):  # of a training that got no further than its first files
                other = _free(store, study, arm, "unfinished", [target])
                move(target, other / _below(store, target))
            move(source, target)
    _remove_empty_folders(folder)
    return folder


def retired(store: Store, study: str, arm: str) -> list[Path]:
    """The folders of what was retired of an arm."""
    folder = store.retired_folder(study, arm)
    return sorted(folder.iterdir()) if folder.is_dir() else []


def manifests_of_arm(store: Store, study: str, arm: str, *, of_parts: bool = True) -> list[Manifest]:
    """The readable manifests of an arm's checkpoints, and of those of its parts."""
    paths = sorted(store.arm_folder(study, arm).glob("[0-9]*.json"))
    paths += sorted(store.parts_folder(study, arm).glob("*/[0-9]*.json")) if of_parts else []
    return [manifest for manifest in store.read_manifests(paths) if manifest is not None]


def _free(store: Store, study: str, arm: str, recipe: str, sources: Iterable[Path]) -> Path:
    """The first folder of a recipe that has none of these; a retirement that was killed goes on in its own."""
    for number in itertools.count(1):
        target = store.retired_folder(study, arm) / (recipe if number == 1 else f"{recipe}.{number}")
        if not any(_is_in_the_way(target / _below(store, source), source) for source in sources):
            break
    return target


def _is_in_the_way(destination: Path, source: Path) -> bool:
    """Whether there is something else; objects are moved one by one, so a part of the same may be there already."""
    if not _exists(destination):
        return False
    if not is_object(source):
        return True
    files = [path for path in source.glob("**/*") if path.is_file()]
    there = [(path, destination / str(path.relative_to(source))) for path in files]
    return any(copy.is_file() and sha256_of(copy) != sha256_of(path) for path, copy in there)


def _remove_empty_folders(folder: Path) -> None:
    if not is_object(folder):
        for path in sorted((path for path in [folder, *folder.rglob("*")] if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):  # there is something in it
                path.rmdir()


def _number(folder: Path) -> int:
    _, _, number = folder.name.partition(".")
    return int(number) if number.isdigit() else 1


def _below(store: Store, path: Path) -> str:
    return str(path.relative_to(store.root))


def _exists(folder: Path) -> bool:
    return folder.is_dir() and next(iter(folder.iterdir()), None) is not None


def move(source: Path, destination: Path) -> None:
    """Move a folder to where there is none, or only an empty one."""
    if is_object(source):
        from dd_core.store import objects

        objects.move(source, destination)
        return
    with readable_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        source.rename(destination)  # over an empty folder, which POSIX allows
        for folder in (destination.parent, source.parent):
            flush(folder)
