"""Where every file of the data root lies, a folder or an address on an object store, and what is vouched for.

Every file becomes visible when it is whole (``dd_core.store.files``); a manifest (provenance, SHA-256, row counts)
comes last. A file without its manifest does not exist for this platform. Knows nothing of torch or parquet.

Layout below the root::

    checkpoints/<study>/<arm>/<epoch>.safetensors + <epoch>.json      weights of all trials, and their manifest
    checkpoints/<study>/<arm>/best/trial-000.epoch-0013.safetensors   the best of each trial, + .json
    checkpoints/<study>/<arm>/resume.safetensors                      where training goes on after an interruption
    tables/<table>/study=<study>/arm=<arm>/<part>.parquet             nothing else, as others read whole folders
    manifests/<table>/study=<study>/arm=<arm>/<part>.json             of the files that no checkpoint vouches for
    live/study=<study>/arm=<arm>/<part>.jsonl                         what trains just now, no results (tables.live)
    shards/per_image_curvature/<study>/<arm>/<epoch>.rows-*.parquet   until all of a checkpoint's are there
    shards/per_image_curvature/<study>/<arm>/<epoch>.ranking-000.safetensors   what they share, of each trial
    figures/<figure>/<study>.{html,svg,json}
    reports/<study>.html                                              a page with all of it
    imported/memorization_truth/<study>/<source>.parquet              published estimates, for all recipes
    exports/<study>/<arm>/trial-000/metrics.{csv,jsonl}               for other systems, + <arm>/export.json
    exports/<study>/<variant>/metrics_k<k>.jsonl
    parts/<study>/<arm>/trials-003/...                                the same of trials that train apart (store.parts)
    jobs/<name>/<digest>/...                                          what a job on a cluster keeps while it runs
    staging/...                                                       exports and imports while they are written
    retired/<study>/<arm>/<recipe>/...                                results of an earlier recipe, out of every table;
                                                                      <recipe>.2 and so on where there are some already
    locks/<name>.lock                                                 who writes what
    warehouse.duckdb                                                  views over the tables
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dd_core.errors import StaleError, StoreError
from dd_core.store.files import (
    check_writable,
    is_object,
    read_all,
    readable_errors,
    remove_leftovers,
    sha256_of,
    size_and_sha256,
    write_atomically,
    write_json,
    write_text,
)
from dd_core.store.leases import Lease, LockedError
from dd_core.store.manifests import FileEntry, Manifest, opened, sealed
from dd_core.study.study import Checkpoint

__all__ = ["LockedError", "Store", "sha256_of", "store_at", "write_atomically", "write_json", "write_text"]


@dataclass(frozen=True, init=False)
class Store:
    """The data root. Cheap to make; opens nothing until asked.

    Attributes:
        root: a ``Path``, or for an address a ``UPath``, which does what a ``Path`` does.
    """

    root: Path

    def __init__(self, root: str | Path):
        """``root``: a folder, or an address like ``s3://bucket/prefix``.

        Raises:
            StoreError: an address of a scheme that is not supported, or a root that would silently be taken for
                something else.
        """
        if isinstance(root, str) and "://" in root:
            from dd_core.store.objects import root_at

            root = root_at(root)
        elif not is_object(root := Path(root) if isinstance(root, str) else root) and ":/" in str(root):
            raise StoreError(f"the data root must be a folder or an address like s3://bucket/prefix, not {root}")
        if any(part.startswith(("study=", "arm=")) for part in root.absolute().parts):
            raise StoreError(f"the data root {root} has a folder called study=... or arm=..., as tables use them")
        object.__setattr__(self, "root", root)

    @property
    def address(self) -> str:
        """What another process makes the same store from."""
        return str(self.root)

    # Where things lie

    def checkpoint_path(self, study: str, checkpoint: Checkpoint) -> Path:
        """The weights, safetensors."""
        return self.arm_folder(study, checkpoint.arm.key) / f"{checkpoint.epoch:04d}.safetensors"

    def may_have(self, study: str) -> bool:
        """Whether a checkpoint of a study may be here: most studies have none, and very many that might be."""
        try:
            return self.arm_folder(study, "any").parent.is_dir()
        except OSError:
            return True  # who reads what is there will say what is wrong

    def best_folder(self, study: str, arm: str) -> Path:
        """Checkpoints kept because they were among a trial's best, safetensors and their manifests."""
        return self.arm_folder(study, arm) / "best"

    def checkpoint_manifest_path(self, study: str, checkpoint: Checkpoint) -> Path:
        """The manifest that makes the weights (and the metrics up to them) exist."""
        return self.checkpoint_path(study, checkpoint).with_suffix(".json")

    def arm_folder(self, study: str, arm: str) -> Path:
        """The folder of an arm's checkpoints."""
        return self.root / "checkpoints" / study / arm

    def parts_folder(self, study: str, arm: str) -> Path:
        """The folder of all parts of an arm, see ``dd_core.store.parts``."""
        return self.root / "parts" / study / arm

    def resume_path(self, study: str, arm: str) -> Path:
        """Where training goes on after an interruption."""
        return self.arm_folder(study, arm) / "resume.safetensors"

    def table_folder(self, table: str, study: str | None = None, arm: str | None = None) -> Path:
        """The folder of a table, of one study's part of it, or of one arm's part."""
        folder = self.root / "tables" / table
        if study is not None:
            folder /= f"study={study}"
        if arm is not None:
            folder /= f"arm={arm}"
        return folder

    def live_folder(self, study: str | None = None, arm: str | None = None) -> Path:
        """The folder of what trains just now, or of one arm's part of it."""
        folder = self.root / "live"
        return folder if study is None else folder / f"study={study}" / f"arm={arm}"

    def result_path(self, table: str, study: str, checkpoint: Checkpoint) -> Path:
        """What was computed from one checkpoint (``dd_core.tables.kinds``), parquet."""
        return self.table_folder(table, study, checkpoint.arm.key) / f"{checkpoint.epoch:04d}.parquet"

    def shard_path(self, table: str, study: str, checkpoint: Checkpoint, rows: tuple[int, int]) -> Path:
        """Some rows of that until all are there, parquet."""
        folder = self.root / "shards" / table / study / checkpoint.arm.key
        return folder / f"{checkpoint.epoch:04d}.rows-{rows[0]}-{rows[1]}.parquet"

    def manifest_path(self, file: Path) -> Path:
        """The manifest of one file: beside it, but for tables, whose folders hold nothing but parquet."""
        tables = self.root / "tables"
        if file.is_relative_to(tables):
            file = self.root / "manifests" / str(file.relative_to(tables))
        return file.with_suffix(".json")

    def figure_folder(self, figure: str) -> Path:
        """One file per study and format."""
        return self.root / "figures" / figure

    def figure_manifest_path(self, figure: str, study: str) -> Path:
        """The manifest of a study's figure in all its formats."""
        return self.root / "manifests" / "figures" / figure / f"{study}.json"

    def report_path(self, study: str) -> Path:
        """The page about a study."""
        return self.root / "reports" / f"{study}.html"

    def exports_folder(self, study: str) -> Path:
        """Metrics as files for other systems, by arm and trial."""
        return self.root / "exports" / study

    @property
    def warehouse_path(self) -> Path:
        """The DuckDB file of views."""
        return self.root / "warehouse.duckdb"

    @property
    def jobs_folder(self) -> Path:
        """Job files handed to workers."""
        return self.root / "jobs"

    @contextlib.contextmanager
    def lock(self, *parts: str, timeout: float | None = None) -> Iterator[None]:
        """Hold the lock that serialises writers of one thing (an arm, the warehouse).

        In a folder the operating system frees it when the process dies, however it dies (flock, on NFS as well). On an
        object store it is a lease: it is free a minute after the process has died.

        Args:
            parts: what is locked.
            timeout: seconds to wait for it; None: for as long as it takes.

        Raises:
            LockedError: another process had it all that time.
            StoreError: the root cannot be written.
        """
        path = self.root / "locks" / f"{'.'.join(parts)}.lock"
        if is_object(path):
            with Lease(path).held(timeout):
                yield
            return
        with readable_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(timeout=-1 if timeout is None else timeout)
            except Timeout as error:
                raise LockedError(f"{path} is held by another process") from error
        try:
            yield
        finally:
            lock.release()

    # Manifests

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            StoreError: the root cannot be made or written.
        """
        if not is_object(self.root) and self.root.exists() and not self.root.is_dir():
            raise StoreError(f"the data root {self.root} is a file, not a folder; set DD_ROOT to a folder")
        check_writable(self.root)

    def write_manifest(self, path: Path, content: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Write a manifest last, with the SHA-256 and size of each file it vouches for, by role."""
        entries = {
            role: FileEntry(str(file.relative_to(self.root)), sha256_of(file), file.stat().st_size)
            for role, file in files.items()
        }
        self.seal(path, Manifest(content, entries))

    def seal(self, path: Path, manifest: Manifest) -> None:
        """Write a manifest that says which files it vouches for, so that a change of its own text is noticed too."""
        write_json(path, sealed(manifest, self._place(path)))

    def _place(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def read_manifest(self, path: Path) -> Manifest | None:
        """The manifest, or None where there is none or it is damaged (then the result does not exist).

        Raises:
            StoreError: it is there, but the operating system does not let us read it.
        """
        return self.read_manifests([path])[0]

    def read_manifests(self, paths: Sequence[Path]) -> list[Manifest | None]:
        """Several of them, which on an object store takes little longer than one; as ``read_manifest``."""
        try:
            contents = read_all(paths)
        except OSError as error:
            raise StoreError(
                f"cannot read {error.filename}: {error.strerror}; check the data root (DD_ROOT)"
            ) from error
        return [
            None if content is None else opened(content, self._place(path))
            for path, content in zip(paths, contents, strict=True)
        ]

    def verify(self, entry: FileEntry) -> Path:
        """The file, after its size and SHA-256 have been compared with what its manifest says.

        Of an object the SHA-256 that was noted when it was put is compared, if it was; otherwise it is downloaded.

        Raises:
            StaleError: it is missing, truncated or altered.
        """
        path = self.root / entry.path
        found = size_and_sha256(path)
        if found is None:
            raise StaleError(f"{path} is in its manifest but not {'in the store' if is_object(path) else 'on disk'}")
        size, sha256 = found
        if size != entry.bytes:
            raise StaleError(f"{path} is damaged: {size} bytes where its manifest says {entry.bytes}")
        if sha256() != entry.sha256:
            raise StaleError(f"{path} is damaged: its SHA-256 differs from its manifest")
        return path

    def is_sound(self, manifest: Manifest) -> bool:
        """Whether every file that a manifest vouches for is there and unharmed."""
        try:
            for entry in manifest.files.values():
                self.verify(entry)
        except StaleError:
            return False
        return True

    # Old recipes

    def folders_of_arm(self, study: str, arm: str) -> list[Path]:
        """Every folder with results of an arm, that of its checkpoints last."""
        tables = [self.table_folder(name, study, arm) for name in _folders(self.root / "tables")]
        manifests = self.root / "manifests"
        others = [manifests / name / f"study={study}" / f"arm={arm}" for name in _folders(manifests)]
        return [*tables, *others, self.parts_folder(study, arm), self.arm_folder(study, arm)]

    def retired_folder(self, study: str, arm: str) -> Path:
        """Below it lie results of earlier recipes, each in a folder that is like a data root of its own."""
        return self.root / "retired" / study / arm

    def clean_temporaries(self, folder: Path, name: str = "") -> None:
        """Remove what killed writers left of any file, or of one; call it while holding the lock of what lies there."""
        if not is_object(folder):  # it would have left it on another machine
            for place in {folder, self.manifest_path(folder / "any").parent}:
                remove_leftovers(place, name)


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def store_at(root: str | Path | None = None) -> Store:
    """The data root at a folder, or an address of an object store; default ``DD_ROOT``, else ``data``.

    Raises:
        StoreError: as ``Store`` does.
    """
    root = root or os.environ.get("DD_ROOT", "data")
    is_folder = isinstance(root, Path) or (isinstance(root, str) and "://" not in root)
    return Store(Path(root).expanduser().absolute() if is_folder else root)
