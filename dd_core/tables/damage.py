"""Which files of the tables are damaged or lost, told in one sentence each that says what to run.

A file is compared with the manifest that vouches for it, that of a checkpoint or one of its own, by size and SHA-256. A
file that none vouches for (earlier versions wrote some) must be readable. In an object store nothing is compared here:
what it returns it has compared itself.
"""

import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from dd_core.store.files import below, is_object
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.files import TABLES
from dd_core.tables.findings import findings
from dd_core.tables.kinds import KINDS
from dd_core.tables.training import METRIC_TABLES

# The assets of the tables of results of checkpoints.
_ASSETS = {kind.table.name: kind.name for kind in KINDS.values()}


@dataclass(frozen=True, order=True)
class Harm:
    """A file of a table that does not count.

    Attributes:
        path: of the file.
        reason: what is wrong with it, a sentence with the path.
    """

    path: Path
    reason: str

    @property
    def table(self) -> str:
        """Name of the table."""
        parts = self.path.parts
        return parts[next(i for i, part in enumerate(parts) if part.startswith("study=")) - 1]

    def __str__(self) -> str:
        """The sentence, with what to run."""
        return f"{self.reason}; {self._cure()}"

    def _cure(self) -> str:
        values = dict(part.split("=", 1) for part in self.path.parts if part.startswith(("study=", "arm=")))
        command, epoch = "dagster asset materialize --select", self.path.stem
        if self.table == "runs":
            manifest = str(self.path.with_suffix(".json")).replace("/tables/runs/", "/manifests/runs/")
            forget = shlex.join(["rm", "-f", str(self.path), manifest])
            return f"what it told cannot be computed again, and the table does without it; to forget it: {forget}"
        if values["study"] == "none":  # an empty file, see dd_core.tables.warehouse
            return f"the next command that ends well writes it anew, for example: {command} images"
        if not epoch.isdigit():
            if epoch.startswith("import-"):
                return "import it again: python -m dd_assets.import_memorization"
            if epoch.startswith("trial-"):
                return "import it again: python -m dd_assets.import_metrics --replace"
            return f"run: {command} {self.table}"
        asset = f"{values['study']}/{_ASSETS.get(self.table, 'checkpoints')}"
        return f"run: {command} '{asset}' --partition '{values['arm']}|{epoch}'"


def damaged_files(
    store: Store,
    tables: Collection[str] = tuple(TABLES),
    study: str | None = None,
    arm: str | None = None,
    *,
    anew: bool = True,
) -> list[Harm]:
    """The files of some tables, of any study and arm or of one, that are there and damaged.

    Each is read, or where not ``anew`` each of which nothing is known yet (``dd_core.tables.findings``).
    """
    if is_object(store.root):
        return []
    folders = [store.table_folder(table, study, arm) for table in tables]
    found = findings(store, folders, anew=anew)
    return sorted(
        Harm(folder / name, finding.harm)
        for folder, files in found.items()
        for name, finding in files.items()
        if finding.harm
    )


def lost_files(store: Store, study: Study, tables: Collection[str] = tuple(TABLES)) -> list[Harm]:
    """The files of some tables that manifests of a study's present recipe name and that are not there."""
    trained = trained_checkpoints(store, study)
    entries = [
        (checkpoint, "trained", manifest.files[table])
        for checkpoint, manifest in trained.items()
        for table in METRIC_TABLES
        if table in tables and table in manifest.files
    ]
    for kind in KINDS.values():
        if kind.table.name in tables:
            entries += [
                (checkpoint, "analysed", manifest.files["table"])
                for checkpoint, manifest in kind.manifests(store, study, trained).items()
                if manifest is not None and manifest.checkpoint_sha256 == trained[checkpoint].weights_sha256
            ]
    found = _lost_alone(store, study, tables)
    for checkpoint, done, entry in entries:
        path = store.root / entry.path
        if not path.exists():
            what = f"{checkpoint.key} of {study.name} is {done} but has no rows: {path} is gone"
            found.append(Harm(path, what))
    return found


def _lost_alone(store: Store, study: Study, tables: Collection[str]) -> list[Harm]:
    """The files with a manifest of their own that are gone, but those of results of checkpoints."""
    own = [table for table in tables if table not in _ASSETS]
    folders = [store.root / "manifests" / table / f"study={study.name}" for table in own]
    found = store.read_manifests([path for folder in folders for path in sorted(below(folder, "*.json"))])
    files = [store.root / manifest.files["table"].path for manifest in found if manifest is not None]
    return [Harm(path, f"{path} is gone") for path in files if not path.exists()]


def sentences(
    store: Store, studies: Iterable[Study], tables: Collection[str] = tuple(TABLES), *, anew: bool = True
) -> list[str]:
    """What is wrong with the files of some tables: the damaged ones of any study, and the lost ones of these."""
    lost = [harm for study in studies for harm in lost_files(store, study, tables)]
    return [str(harm) for harm in [*damaged_files(store, tables, anew=anew), *lost]]
