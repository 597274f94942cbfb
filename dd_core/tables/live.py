"""Rows of arms that train just now, before a checkpoint vouches for them: news that may be lost and are never needed.

While an arm trains, or a part of its trials apart from the others, one small file says what it has done since the last
checkpoint, a row for each trial and epoch (``LIVE``)::

    live/study=<study>/arm=<arm>/whole.parquet          of an arm whose trials train together
    live/study=<study>/arm=<arm>/trials-003.parquet     of those of its trials that train apart

It is written anew every two seconds or so (``dd_core.training.live_rows``) and goes when the training is done. What a
killed process leaves stays until the arm goes on, and then the same rows come again. No result depends on these files:
figures, checks and exports do not see them, nobody's SHA-256 is compared, and one that is damaged counts for nothing.

People read them in SQL, in ``warehouse.duckdb`` and by ``connect(store, live=True)``: the view ``training_evals`` has
their evaluations too, and the view ``live_epochs`` all their rows. From Python without DuckDB: ``live_rows``.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dd_core.errors import StaleError
from dd_core.store.files import remove
from dd_core.store.parts import PartStore
from dd_core.store.store import Store
from dd_core.tables.columns import ARM, EPOCH, STEP, Column, Table
from dd_core.tables.files import TABLES, arrow_schema, read_parquet, write_parquet

if TYPE_CHECKING:
    import pyarrow as pa

_EVALS = TABLES["training_evals"]
_WHERE = (*ARM, EPOCH, STEP)
LIVE = Table(
    "live_epochs",
    "What arms that train just now have done since their last checkpoint: one row per trial and epoch, seconds old. "
    "Rows of a training that was killed stay here until it goes on.",
    (
        *_WHERE,
        Column("until", "int16", "epoch up to which the arm is to be trained"),
        Column("status", "string", "training, stopped early or diverged: the trial, as it stands now"),
        Column(
            "batch_loss",
            "float64",
            "mean loss of the epoch's batches, each before its step, as it is trained, nats; null: epoch 0, or not "
            "trained any more",
        ),
        Column("batch_error", "float64", "of the same batches (augmented, given labels), fraction"),
        *(
            Column(c.name, c.type, f"as in training_evals: {c.description}; null: not evaluated after this epoch")
            for c in _EVALS.file_columns
            if c not in _WHERE
        ),
        Column("written_at", "timestamp", "UTC, when the process that trains has told this"),
    ),
)
# What tells an evaluation from another.
_KEY = ("study", "arm", "trial", "recipe", "epoch")


def live_path(store: Store, study: str, arm: str) -> Path:
    """The file of an arm, or of that part of it whose store this is."""
    name = store.name if isinstance(store, PartStore) else "whole"
    return store.live_folder(study, arm) / f"{name}.parquet"


def remove_live(store: Store, study: str, arm: str, until: int | None = None) -> None:
    """Remove the files of an arm and its parts; with ``until`` only those that tell of no later epoch."""
    files = sorted(store.live_folder(study, arm).glob("*.parquet"))
    remove(*(path for path in files if until is None or _last_epoch(path) <= until))


def _last_epoch(path: Path) -> int:
    """That a file tells of; -1 if it tells of none, as it is damaged."""
    with contextlib.suppress(StaleError, FileNotFoundError):
        return max(read_parquet(path)["epoch"].to_pylist(), default=-1)
    return -1


def live_rows(store: Store) -> "pa.Table":
    """All rows, with the columns of ``LIVE``, ``study`` and ``arm`` among them; without rows where nothing trains.

    An evaluation may be among them that ``training_evals`` has already.
    """
    import pyarrow as pa

    schema = arrow_schema(LIVE)
    folders = ("study", "arm")
    plain = pa.schema([*(pa.field(name, pa.string()) for name in folders), *((f.name, _plain(f.type)) for f in schema)])
    tables = []
    for path, table in _readable(store):
        values = dict(part.split("=", 1) for part in path.parts if part.startswith(("study=", "arm=")))
        for name in folders:
            table = table.append_column(name, pa.repeat(values[name], table.num_rows))
        tables.append(table.select(plain.names).cast(plain))
    return pa.concat_tables(tables) if tables else plain.empty_table()


def _plain(type_: "pa.DataType") -> "pa.DataType":
    import pyarrow as pa

    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _readable(store: Store) -> Iterator[tuple[Path, "pa.Table"]]:
    """Every file that is there and whole, and what is in it."""
    for path in sorted(store.live_folder().glob("*/*/*.parquet")):
        with contextlib.suppress(StaleError, FileNotFoundError):
            yield path, read_parquet(path)


def _empty_file(store: Store) -> Path:
    """So that a view never is over no file, which DuckDB refuses."""
    return store.live_folder("none", "none") / "empty.parquet"


def tidy(store: Store) -> None:
    """Remove what is damaged, and let there be a file without rows, so that views can be made over all there are."""
    remove(*({*store.live_folder().glob("*/*/*.parquet")} - {path for path, _ in _readable(store)}))
    if not _empty_file(store).exists():
        write_parquet(_empty_file(store), arrow_schema(LIVE).empty_table())


def sound_files(store: Store) -> list[Path] | None:
    """The files that a view can be over; None: all that there will ever be."""
    sound = [path for path, _ in _readable(store)]
    files = [*store.live_folder().glob("*/*/*.parquet")]
    return None if _empty_file(store) in sound and set(files) <= set(sound) else sound


def is_in_views(store: Store) -> bool:
    """Whether the warehouse file there is shows what trains just now."""
    return store.warehouse_path.exists() and _empty_file(store).exists()


def with_live(committed: str, columns: Sequence[str], live: str) -> str:
    """SQL of evaluations that checkpoints vouch for, and of those that none vouches for yet.

    Args:
        committed: query of the former.
        columns: its columns.
        live: the files of ``LIVE`` as a relation.
    """
    names = ", ".join(f'"{name}"' for name in columns)
    return (
        f"{committed} UNION ALL SELECT {names} FROM (SELECT * FROM {live} WHERE train_loss IS NOT NULL) "
        f"ANTI JOIN (SELECT * FROM ({committed})) USING ({', '.join(_KEY)})"
    )
