"""One file of each of some tables for every arm, made again only when what it was made from has changed.

What a file was made from is in its manifest, as one digest, with what its makers want to know of it later.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dd_core.store.files import remove, size_and_sha256
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.tables.files import write_result

if TYPE_CHECKING:
    import pyarrow as pa

_FILE = "analysis.parquet"


@dataclass(frozen=True)
class ArmFiles:
    """The files of an arm, one of each of some tables, that are made together."""

    store: Store
    study: Study
    arm: Arm
    tables: tuple[str, ...]

    def path(self, table: str) -> Path:
        """Where that of a table lies."""
        return self.store.table_folder(table, self.study.name, self.arm.key) / _FILE

    def known(self, digest: str) -> str | None:
        """What was said about the files when they were written; None unless all are unharmed and of these sources."""
        about = None
        for table in self.tables:
            manifest = self.store.read_manifest(self.store.manifest_path(self.path(table)))
            if manifest is None or manifest.content.get("source_sha256") != digest or not self.store.is_sound(manifest):
                return None
            about = str(manifest.content.get("about", ""))
        return about

    def write(self, tables: Mapping[str, "pa.Table"], digest: str, about: str | None = None) -> None:
        """Write all of them."""
        facts = {} if about is None else {"about": about}
        for name in self.tables:
            write_result(self.store, self.path(name), tables[name], source_sha256=digest, **facts)


def digest_of_sources(store: Store, asked: str, paths: Iterable[Path]) -> str:
    """One digest of what is asked for, and of the files that it is made from; those that are not there count for none.

    ``asked``: settings and versions, as text.
    """
    digest = hashlib.sha256(asked.encode())
    for path in paths:
        found = size_and_sha256(path)
        if found is not None:
            digest.update(f"\n{path.relative_to(store.root)} {found[1]()}".encode())
    return digest.hexdigest()


def remove_others(store: Store, study: Study, tables: Iterable[str], kept: Collection[str]) -> None:
    """Remove the files of arms whose keys are not among ``kept``, the manifests first."""
    for table in tables:
        for path in store.table_folder(table, study.name).glob(f"arm=*/{_FILE}"):
            if path.parent.name.removeprefix("arm=") not in kept:
                remove(store.manifest_path(path))
                remove(path)
