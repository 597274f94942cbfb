"""Metric files of other systems, or exported ones, into the tables of an imported study.

Everything is read and checked before anything is written; then all is written aside, and put into place by renaming. A
process killed between two of these renames leaves whole files only, and the same command completes them. Importing the
same files again changes nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dd_core.errors import UserError
from dd_core.exchange.columns import BATCH_COLUMNS, METRIC_KEYS, STEP_FILE_KEYS
from dd_core.exchange.gathering import Found, Request, Runs, gather
from dd_core.exchange.interpretation import Told
from dd_core.exchange.rows import rows_of
from dd_core.exchange.runs import Run
from dd_core.exchange.settings import agreed_data, agreed_variant, with_said
from dd_core.exchange.staging import differs, replace_if_changed, staging_folder
from dd_core.exchange.study_file import StudyFile, extended
from dd_core.store.files import remove
from dd_core.store.store import Store, sha256_of
from dd_core.study.files import Catalogue, read_studies
from dd_core.study.study import Arm, Study
from dd_core.tables.files import write_parquet

_LONGEST_NAME = 100


@dataclass(frozen=True)
class Imported:
    """What came of it.

    Attributes:
        rows: rows by table of every arm and trial.
        metrics: keys that are no column of a table and no metric of ours, which became metrics of training_monitors.
        left_out: files not read, and keys and rows not taken, and why.
        told: what was made of each key, in the order of the files.
        written: files that are new or have changed, or would be.
    """

    rows: dict[tuple[Arm, int], dict[str, int]]
    metrics: list[str]
    left_out: list[str]
    told: list[Told]
    written: list[Path]


def import_metrics(store: Store, folders: list[Path], request: Request, *, dry_run: bool = False) -> Imported:
    """Import metric files.

    Args:
        store: where the tables lie.
        folders: of study files; into the last, the user's, the file of the imported study is written.
        request: what to import.
        dry_run: check everything and say what would be written, but write nothing.

    Raises:
        UserError: a file or the request is wrong; nothing has been written.
        StoreError: something cannot be written.
    """
    for name in (request.study, request.variant or ""):
        if len(name) > _LONGEST_NAME:
            raise UserError(f"{name[:40]}… is too long for a name; at most {_LONGEST_NAME} characters")
    with store.lock("import"):
        catalogue = read_studies(folders)
        former = _existing(store, catalogue, request.study)
        others = [name for name, study in catalogue.studies.items() if study.imported]
        found = gather(former, request)
        runs = found.runs
        study_file = _study_file(store, folders[-1], former, found, request, others)
        study = study_file.study
        with staging_folder(store, f"import.{study.name}") as staging:
            parts = [part for key, run in runs.items() for part in _stage(store, study, *key, run, staging)]
            changed = [part for part in parts if differs(part.staged, part.final)]
            if not request.replace:
                for part in changed:
                    part.refuse_if_from_other_files(store)
            if not dry_run:
                study_file.write()
                remove(
                    *(store.manifest_path(part.final) for part in changed)
                )  # they must not vouch for what comes in their place
                for part in parts:
                    is_new = replace_if_changed(part.staged, part.final)
                    if is_new or store.read_manifest(store.manifest_path(part.final)) is None:
                        store.write_manifest(store.manifest_path(part.final), part.manifest, {"table": part.final})
    rows: dict[tuple[Arm, int], dict[str, int]] = {}
    for part in parts:
        rows.setdefault((part.arm, part.manifest["trial"]), {})[part.table] = part.manifest["rows"]["table"]
    written = [part.final for part in changed] + [study_file.path] * study_file.differs
    return Imported(rows, _unknown_metrics(runs), found.left_out, found.told, written)


def _existing(store: Store, catalogue: Catalogue, name: str) -> Study | None:
    """The imported study of that name, or None if the name is free."""
    is_known = name in catalogue.studies or any(path.stem == name for path in catalogue.errors)
    study = catalogue.get(name) if is_known else None
    if study is not None and not study.imported:
        raise UserError(f"{name} is a study that is trained here; choose another name for what you import")
    if store.arm_folder(name, "").exists():
        raise UserError(f"a study called {name} has been trained under {store.root}; choose another name")
    return study


def _study_file(
    store: Store, folder: Path, former: Study | None, found: Found, request: Request, others: list[str]
) -> StudyFile:
    """The study file that covers these runs too; ``others`` are the studies imported before."""
    runs = found.runs
    data = agreed_data(former.data if former else None, runs.values(), request.data, request.study, others)
    variants = {
        name: agreed_variant(
            former.variants.get(name) if former else None,
            [run for (arm, _), run in runs.items() if arm.variant == name],
            with_said(request.settings, found.settings.get(name, {}), name),
            name,
        )
        for name in dict.fromkeys(arm.variant for arm, _ in runs)
    }
    epochs: dict[Arm, list[int]] = {}
    for (arm, _), run in runs.items():
        epochs.setdefault(arm, []).extend(run.evaluated_epochs)
    names = {f"trial-{trial:03d}" for _, trial in runs}
    stored = (
        path
        for table in ("training_batches", "training_evals", "training_monitors")
        for path in store.table_folder(table, request.study).glob("*/trial-*.parquet")
    )
    num_trials = len(names | {path.stem for path in stored})
    return extended(folder, request.study, former, request.description, data, variants, epochs, num_trials, found.unit)


@dataclass(frozen=True)
class _Part:
    """One file of a table: the rows of a trial of an arm.

    Attributes:
        arm, table: which.
        staged, final: where it is, and where it shall lie.
        manifest: says what it was made from.
    """

    arm: Arm
    table: str
    staged: Path
    final: Path
    manifest: dict[str, Any]

    def refuse_if_from_other_files(self, store: Store) -> None:
        """What an earlier import made from the same files may change: the study file describes them anew."""
        if not self.final.exists():
            return
        former = store.read_manifest(store.manifest_path(self.final))
        if former is None or former.sources != self.manifest["sources"]:
            run = f"{self.manifest['study']}/{self.manifest['arm']}, trial {self.manifest['trial']}"
            raise UserError(
                f"{run} has rows of other files already ({self.final}); import as another --trial, --variant or --k, "
                "or pass --replace"
            )


def _stage(store: Store, study: Study, arm: Arm, trial: int, run: Run, staging: Path) -> list[_Part]:
    """Write the tables of a run aside."""
    recipe = study.recipe_hash(arm)
    tables = rows_of(run, {"variant": arm.variant, "k": arm.k, "trial": trial, "recipe": recipe})
    manifest = {
        "kind": "import",
        "study": study.name,
        "arm": arm.key,
        "trial": trial,
        "recipe": recipe,
        "sources": sorted({sha256_of(source.path) for source in run.sources}),
        "source_paths": sorted({str(source.path) for source in run.sources}),
    }
    parts = []
    for name, table in tables.items():
        final = store.table_folder(name, study.name, arm.key) / f"trial-{trial:03d}.parquet"
        staged = staging / str(final.relative_to(store.root))
        write_parquet(staged, table)
        parts.append(_Part(arm, name, staged, final, {**manifest, "rows": {"table": table.num_rows}}))
    return parts


def _unknown_metrics(runs: Runs) -> list[str]:
    """Names of metrics that no monitor of ours has."""
    names = {name for run in runs.values() for name in run.content.get("training_monitors", {})}
    return sorted(names - set(STEP_FILE_KEYS) - set(METRIC_KEYS) - set(BATCH_COLUMNS))
