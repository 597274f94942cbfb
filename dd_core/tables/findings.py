"""What has been found of the files of the tables: whether each is sound, and which columns it has. Kept for next time.

To make a view one must know both of every file, and to know them one must read all. So what was found of sound files is
kept in the user's cache folder, for each data root. It holds for as long as size, times and number of the file stay,
and those of the manifests that may vouch for it. Whoever asks for damage itself (``dd_core.tables.damage``) may have
every file read anew.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dd_core.cache import cache_folder, keep
from dd_core.errors import StaleError
from dd_core.store.store import Store
from dd_core.tables.files import OPTIONAL_KEY, read_parquet

# Raised when what is looked at changes.
_VERSION = 1
# A file this young may change without a change of its times, which are no finer than a clock's ticks.
_YOUNG_NS = 2 * 10**9
_Status = tuple[int, ...]
_SUFFIX = ".parquet"


@dataclass(frozen=True)
class Finding:
    """What a file was found to be.

    Attributes:
        harm: what is wrong with it, a sentence; empty: it is sound.
        columns: names of those in it; ``optional``: of those that are packed into lists.
    """

    harm: str = ""
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def findings(store: Store, folders: Sequence[Path], *, anew: bool = False) -> dict[Path, dict[str, Finding]]:
    """What is found of every file below some folders, by the folder and the name of the file.

    Args:
        store: in a folder of this machine.
        folders: of tables, or of a study's or an arm's part of one.
        anew: look at every file, whatever was found of it before, and not at columns.
    """
    memory = {} if anew else _remembered(store)
    found: dict[Path, dict[str, Finding]] = {}
    unknown: dict[Path, tuple[int, bool]] = {}
    for folder, states in _states(store, folders):
        before = memory.get(str(folder), {})
        found[folder] = own = {}
        for name, (state, is_young) in states.items():
            was = before.get(name)
            if was is not None and was[0] == state:
                own[name] = was[1]
            else:
                unknown[folder / name] = state, is_young
        if len(own) < len(before):  # some have changed or gone
            memory[str(folder)] = {name: before[name] for name in own}
    tops = tuple(f"{top}{os.sep}" for top in folders)
    gone = [name for name in memory if f"{name}{os.sep}".startswith(tops) and Path(name) not in found]
    for name in gone:
        del memory[name]
    new = _looked_at(store, list(unknown), with_columns=not anew)
    for path, finding in new.items():
        found[path.parent][path.name] = finding
        state, is_young = unknown[path]
        if not finding.harm and not is_young:
            memory.setdefault(str(path.parent), {})[path.name] = state, finding
    if (new or gone) and not anew:
        _remember(store, memory)
    return found


def _states(store: Store, folders: Sequence[Path]) -> Iterator[tuple[Path, dict[str, tuple[int, bool]]]]:
    """By folder and name of a file a number that changes when it or its manifest does, and whether one just has."""
    oldest_young, weights = time.time_ns() - _YOUNG_NS, dict[Path, dict[str, _Status]]()
    for top in folders:
        for name, _, names in os.walk(top):
            if any(file.endswith(_SUFFIX) for file in names):
                folder = Path(name)
                own, trained = _statuses(store.manifest_path(folder / "any").parent, ".json"), _weights(store, folder)
                if trained not in weights:
                    weights[trained] = _statuses(trained, ".json")
                states = {}
                for stem, status in _statuses(folder, _SUFFIX).items():
                    all_of_it = (status, own.get(stem, ()), weights[trained].get(stem, ()))
                    is_young = any(times[1] > oldest_young for times in all_of_it if times)
                    # Of whole numbers alone, so it is the same in every process.
                    states[f"{stem}{_SUFFIX}"] = hash(all_of_it), is_young
                yield folder, states


def _weights(store: Store, folder: Path) -> Path:
    """Where the manifests of the checkpoints are that vouch for the files of an arm, or nothing is."""
    values = dict(part.split("=", 1) for part in folder.parts if part.startswith(("study=", "arm=")))
    return store.arm_folder(values.get("study", "none"), values.get("arm", "none"))


def _statuses(folder: Path, suffix: str) -> dict[str, _Status]:
    """Number, time of the last change of anything, of the content, and size of the files with a suffix, without it."""
    found = dict[str, _Status]()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(suffix):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    own = (status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size)
                    found[entry.name.removesuffix(suffix)] = own
    return found


def _looked_at(store: Store, paths: Sequence[Path], *, with_columns: bool) -> dict[Path, Finding]:
    """What some files are, those left out that have gone meanwhile."""
    manifests = {store.manifest_path(path) for path in paths}
    manifests |= {_weights(store, path.parent) / f"{path.stem}.json" for path in paths}
    said = [manifest for manifest in store.read_manifests(sorted(manifests)) if manifest is not None]
    vouched = {entry.path: entry for manifest in said for entry in manifest.files.values()}

    def look(path: Path) -> Finding | None:
        entry = vouched.get(str(path.relative_to(store.root)))
        try:
            if entry is None:
                read_parquet(path)
            else:
                store.verify(entry)
            return _columns(path) if with_columns else Finding()
        except FileNotFoundError:
            return None
        except StaleError as error:
            return Finding(str(error)) if path.exists() else None

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing leaves the interpreter to others
        return {path: finding for path, finding in zip(paths, pool.map(look, paths), strict=True) if finding}


def _columns(path: Path) -> Finding:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        return Finding(f"{path} is damaged ({str(error).splitlines()[0]})")
    packed = (schema.metadata or {}).get(OPTIONAL_KEY)
    return Finding("", tuple(schema.names), tuple(json.loads(packed)) if packed else ())


# What is remembered: by folder and name of a file its state, and what was found of it.
_Memory = dict[str, dict[str, tuple[int, Finding]]]


def _file(store: Store) -> Path | None:
    folder = cache_folder("tables")
    name = hashlib.sha256(str(store.root.absolute()).encode()).hexdigest()[:32]
    return folder / f"{name}.json" if folder else None


def _remembered(store: Store) -> _Memory:
    path = _file(store)
    try:
        content: Any = json.loads(path.read_bytes()) if path else {}
        if content["version"] != _VERSION:
            return {}
        kinds = [Finding("", tuple(columns), tuple(optional)) for columns, optional in content["kinds"]]
        return {
            folder: {name: (state, kinds[kind]) for name, (state, kind) in files.items()}
            for folder, files in content["folders"].items()
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError):  # there is none, or it is damaged
        return {}


def _remember(store: Store, memory: _Memory) -> None:
    kinds: dict[Finding, int] = {}
    folders = {
        folder: {name: (state, kinds.setdefault(found, len(kinds))) for name, (state, found) in files.items()}
        for folder, files in memory.items()
        if files
    }
    if path := _file(store):
        told = [(kind.columns, kind.optional) for kind in kinds]
        keep(path, json.dumps({"version": _VERSION, "kinds": told, "folders": folders}).encode())
