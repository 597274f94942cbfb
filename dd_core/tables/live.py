"""Rows of arms that train just now, before a checkpoint vouches for them: news that may be lost and are never needed.

While an arm trains, or a part of its trials apart from the others, one small file says what it has done since the last
checkpoint, a line of JSON for each trial and epoch, with the columns of ``LIVE``::

    live/study=<study>/arm=<arm>/whole.jsonl          of an arm whose trials train together
    live/study=<study>/arm=<arm>/trials-003.jsonl     of those of its trials that train apart

It is written anew every two seconds or so (``dd_core.training.live_rows``) and emptied when the training is done. What
a killed process leaves stays until the arm goes on, and then the same rows come again. No result depends on these
files: figures, checks and exports do not see them, nobody's SHA-256 is compared, and a damaged line counts for nothing.

People read them in SQL, in ``warehouse.duckdb`` and by ``connect(store, live=True)``: the view ``training_evals`` has
their evaluations too, and the view ``live_epochs`` all their rows.

They are lines, not parquet, and emptied rather than removed, because SQL reads them while they are replaced: DuckDB
opens a file of parquet twice for one query, and one that is another by then is an error.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dd_core.store.files import is_object, read_all, remove, write_text
from dd_core.store.parts import PartStore
from dd_core.store.store import Store
from dd_core.tables.columns import ARM, EPOCH, STEP, Column, Table
from dd_core.tables.files import TABLES

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
# What tells an evaluation from another; without it a line is none.
KEY = ("study", "arm", "trial", "recipe", "epoch")
_INFINITIES = (math.inf, -math.inf)
# No query takes so long between finding a file and opening it.
_LONGEST_QUERY_SECONDS = 600.0


def live_path(store: Store, study: str, arm: str) -> Path:
    """The file of an arm, or of that part of it whose store this is."""
    name = store.name if isinstance(store, PartStore) else "whole"
    return store.live_folder(study, arm) / f"{name}.jsonl"


def line(values: Mapping[str, Any]) -> str:
    """Values of a row; null and NaN are left out, and infinity, which JSON has no number for, is a text."""
    known = {name: value for name, value in values.items() if value is not None and value == value}
    return json.dumps({name: str(value) if value in _INFINITIES else value for name, value in known.items()})


def begin_anew(store: Store, study: str, arm: str) -> None:
    """Before an arm or a part of it trains: forget what an earlier training has left. Hold its lock.

    The rows of a part stay until it has written them again: perhaps there is nothing left for it to do, while the
    tables of the arm have to wait for the other parts.
    """
    own = live_path(store, study, arm)
    if isinstance(store, PartStore):
        store.whole.clean_temporaries(own.parent, own.name)
    else:
        forget(store, study, arm)
        store.clean_temporaries(own.parent)


def forget(store: Store, study: str, arm: str, until: int | None = None) -> None:
    """Empty the files of an arm and its parts; with ``until`` only those that tell of no later epoch."""
    paths = sorted(store.live_folder(study, arm).glob("*.jsonl"))
    for path, content in zip(paths, read_all(paths), strict=True):
        last = max(_epochs(content or b""), default=-1)
        if content and (until is None or last <= until):
            write_text(path, "")


def tidy(store: Store) -> None:
    """Remove files that have been empty for long, and have one, so that views can be made over all there will be."""
    files = [] if is_object(store.root) else [*store.live_folder().glob("*/*/*.jsonl")]
    remove(*(path for path in files if _is_old_and_empty(path)))
    write_text(store.live_folder("none", "none") / "empty.jsonl", "")


def _is_old_and_empty(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        return not status.st_size and time.time() - status.st_mtime > _LONGEST_QUERY_SECONDS
    return False


def is_in_views(store: Store) -> bool:
    """Whether the warehouse file there is shows what trains just now."""
    return store.warehouse_path.exists() and (store.live_folder("none", "none") / "empty.jsonl").exists()


def _epochs(content: bytes) -> Iterator[int]:
    """The epochs of a file's lines, without those that are damaged."""
    for text in content.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            yield int(json.loads(text)["epoch"])


def with_live(committed: str, columns: Sequence[str], live: str) -> str:
    """SQL of evaluations that checkpoints vouch for, and of those that none vouches for yet.

    Args:
        committed: query of the former.
        columns: its columns.
        live: rows of ``LIVE`` as a relation.
    """
    names = ", ".join(f'"{name}"' for name in columns)
    return (
        f"{committed} UNION ALL SELECT {names} FROM (SELECT * FROM {live} WHERE train_loss IS NOT NULL) "
        f"ANTI JOIN (SELECT * FROM ({committed})) USING ({', '.join(KEY)})"
    )
