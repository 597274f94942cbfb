"""Where every file of the data root lies, and the only code that writes there.

Every file is written under a temporary name, flushed to disk, then renamed; a manifest (provenance, SHA-256, row
counts) comes last. A file without its manifest does not exist for this platform. Knows nothing of torch or parquet.

Layout below the root::

    checkpoints/<study>/<arm>/<epoch>.safetensors + <epoch>.json      weights of all trials, and their manifest
    checkpoints/<study>/<arm>/best/trial-000.epoch-0013.safetensors   the best of each trial, + .json
    checkpoints/<study>/<arm>/resume.safetensors                      where training goes on after an interruption
    tables/<table>/study=<study>/arm=<arm>/<part>.parquet             (+ <part>.json for curvature and Hessians)
    shards/per_image_curvature/<study>/<arm>/<epoch>.rows-*.parquet   until all of a checkpoint's are there
    figures/<figure>/<study>.{html,svg,json}
    exports/<study>/<arm>/trial-000/metrics.{csv,jsonl}               for other systems, + <arm>/export.json
    exports/<study>/<variant>/metrics_k<k>.jsonl
    staging/...                                                       exports and imports while they are written
    retired/<study>/<arm>/<recipe>/...                                results of an earlier recipe, out of every table
    warehouse.duckdb                                                  views over the tables
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dd_core.errors import StaleError, StoreError
from dd_core.studies import Checkpoint


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=100_000)
def _sha256_unless_changed(path: Path, size: int, modified_ns: int) -> str:
    """SHA-256 of a file, computed once per process for as long as the file's size and time stay the same."""
    return sha256_of(path)


@contextlib.contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a path into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"the disk is full: {path} was not written, and nothing half-written was left; free some space and "
                "run the same command again"
            ) from error
        raise StoreError(f"cannot write {path}: {error.strerror}; check the data root (DD_ROOT)") from error


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it, and rename it to ``path``.

    Readers see the old file or the new one, never a part; a process killed in between leaves only a hidden temporary.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    with _readable_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            os.fchmod(handle, 0o644)
            write(temporary)
            # Some writers replace the file instead of filling the open one: flush what is there under the name now.
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            os.close(handle)
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file atomically and flush its folder, so that the renames before it are on disk as well."""
    text = json.dumps(content, indent=1, sort_keys=True)
    write_atomically(path, lambda temporary: _write_text(temporary, text))
    with _readable_errors(path):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Store:
    """The data root on a local or shared file system. Cheap to make; opens nothing until asked."""

    root: Path

    def __post_init__(self) -> None:
        """Refuse roots this class would silently treat as odd local folders."""
        if "://" in str(self.root) or ":/" in str(self.root):
            raise StoreError(f"the data root must be a folder on a file system, not {self.root}")
        if any(part.startswith(("study=", "arm=")) for part in self.root.absolute().parts):
            raise StoreError(f"the data root {self.root} has a folder called study=... or arm=..., as tables use them")

    # Where things lie

    def checkpoint_path(self, study: str, checkpoint: Checkpoint) -> Path:
        """The weights, safetensors."""
        return self.arm_folder(study, checkpoint.arm.key) / f"{checkpoint.epoch:04d}.safetensors"

    def best_folder(self, study: str, arm: str) -> Path:
        """Checkpoints kept because they were among a trial's best, safetensors and their manifests."""
        return self.arm_folder(study, arm) / "best"

    def checkpoint_manifest_path(self, study: str, checkpoint: Checkpoint) -> Path:
        """The manifest that makes the weights (and the metrics up to them) exist."""
        return self.checkpoint_path(study, checkpoint).with_suffix(".json")

    def arm_folder(self, study: str, arm: str) -> Path:
        """The folder of an arm's checkpoints."""
        return self.root / "checkpoints" / study / arm

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

    def curvature_path(self, study: str, checkpoint: Checkpoint) -> Path:
        """Per-image curvature of one checkpoint, parquet."""
        return self.table_folder("per_image_curvature", study, checkpoint.arm.key) / f"{checkpoint.epoch:04d}.parquet"

    def shard_path(self, study: str, checkpoint: Checkpoint, rows: tuple[int, int]) -> Path:
        """Per-image curvature of some rows of a checkpoint until all are there, parquet."""
        folder = self.root / "shards" / "per_image_curvature" / study / checkpoint.arm.key
        return folder / f"{checkpoint.epoch:04d}.rows-{rows[0]}-{rows[1]}.parquet"

    def hessian_path(self, study: str, checkpoint: Checkpoint) -> Path:
        """The Hessian in the weights at one checkpoint, parquet."""
        return self.table_folder("hessian_spectra", study, checkpoint.arm.key) / f"{checkpoint.epoch:04d}.parquet"

    def figure_folder(self, figure: str) -> Path:
        """One file per study and format."""
        return self.root / "figures" / figure

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

    def lock_path(self, *parts: str) -> Path:
        """The lock file that serialises writers of one thing (an arm, the warehouse)."""
        return self.root / "locks" / f"{'.'.join(parts)}.lock"

    # Manifests

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            StoreError: the root cannot be made or written.
        """
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"the data root {self.root} is a file, not a folder; set DD_ROOT to a folder")
        probe = self.root / f".writable-{os.getpid()}"
        write_text(probe, "")
        probe.unlink()

    def write_manifest(self, path: Path, content: dict[str, Any], files: dict[str, Path]) -> None:
        """Write a manifest last, with the SHA-256 and size of each file it vouches for, by role."""
        entries = {
            role: {
                "path": str(file.relative_to(self.root)),
                "sha256": sha256_of(file),
                "bytes": file.stat().st_size,
            }
            for role, file in files.items()
        }
        write_json(path, {**content, "files": entries})

    def read_manifest(self, path: Path) -> dict[str, Any] | None:
        """The manifest, or None where there is none or it is not readable JSON (then the result does not exist).

        Raises:
            StoreError: it is there, but the operating system does not let us read it.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}; check the data root (DD_ROOT)") from error
        return content if isinstance(content, dict) and isinstance(content.get("files"), dict) else None

    def verify(self, manifest: dict[str, Any], role: str) -> Path:
        """The file of that role, after its size and SHA-256 have been compared with the manifest.

        Raises:
            StaleError: it is missing, truncated or altered.
        """
        entry = manifest["files"][role]
        path = self.root / entry["path"]
        if not path.is_file():
            raise StaleError(f"{path} is in its manifest but not on disk")
        status = path.stat()
        if status.st_size != entry["bytes"]:
            raise StaleError(f"{path} is damaged: {status.st_size} bytes where its manifest says {entry['bytes']}")
        if _sha256_unless_changed(path, status.st_size, status.st_mtime_ns) != entry["sha256"]:
            raise StaleError(f"{path} is damaged: its SHA-256 differs from its manifest")
        return path

    # Old recipes

    def retire_arm(self, study: str, arm: str, recipe: str) -> Path | None:
        """Move all results of an arm's earlier recipe out of every table; they are kept, but nothing reads them.

        Returns:
            Where they went, or None if there were none.
        """
        target = self.root / "retired" / study / arm / recipe
        moved = False
        tables = self.root / "tables"
        sources = [self.table_folder(t.name, study, arm) for t in sorted(tables.iterdir())] if tables.is_dir() else []
        # The manifests, by which a changed recipe is noticed, go last: a process killed here is taken up again.
        sources.append(self.arm_folder(study, arm))
        for source in sources:
            if not source.is_dir():
                continue
            destination = target / source.relative_to(self.root)
            with _readable_errors(destination):
                if destination.exists():
                    shutil.rmtree(destination)
                destination.parent.mkdir(parents=True, exist_ok=True)
                source.rename(destination)
            moved = True
        return target if moved else None

    def clean_temporaries(self, folder: Path) -> None:
        """Remove what a killed writer left; call only while holding the lock of what lies there."""
        for temporary in folder.glob(".*.tmp"):
            temporary.unlink(missing_ok=True)
