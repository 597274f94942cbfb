"""Files of every kind, damaged at random: what is read is right, or a sentence says which file and what to run.

Then the same commands as ever make everything right again, but for what only was measured once (attempts, the probe),
which is left out and named. 50 damages in every test run; as many as ``DD_DAMAGES`` says in a longer one (500).

Not damaged here: figures and ``locks/``, which nothing reads.
"""

import contextlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from dd_core.checks.integrity import damaged_checkpoints
from dd_core.errors import UserError
from dd_core.exchange.exporter import export_arm
from dd_core.results.curvature_summary import rebuild
from dd_core.results.hessian import hessian_of_checkpoint
from dd_core.results.loss_slopes import rebuild as rebuild_loss_slopes
from dd_core.results.memorization import rebuild as rebuild_memorization
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.best_checkpoints import load_best
from dd_core.store.checkpoints import digest, load_checkpoint
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.attempts import arm_is_complete
from dd_core.tables.damage import sentences
from dd_core.tables.files import TABLES, to_arrow, write_result
from dd_core.tables.graphs import GRAPH_TABLES
from dd_core.tables.images import write_images
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.tables.warehouse import connect, refresh
from dd_core.training.train import train_arm

NUM_DAMAGES = int(os.environ.get("DD_DAMAGES", "50"))
ARM = Arm("plain", 1)
# Of their rows nothing can be computed again.
MEASURED_ONCE = ("runs", "resource_probe")
# Of studies whose classes come one group after the other, and of studies of graphs.
WITHOUT_ROWS = {"class_progress", "class_schedule", "boundary_forgetting"} | {table.name for table in GRAPH_TABLES}
# When and how fast, which another training tells otherwise, and a digest of files that tell it.
CLOCKS = ("time", "seconds")
OF_CLOCKS = ("loss_slopes", "source_sha256")


@pytest.fixture(scope="module")
def study(make_study: Callable[..., Study]) -> Study:
    return make_study(
        {"batch_size": 8, "architecture": "preact_resnet10"},
        data={"dataset": "digits", "num_train": 80, "num_validation": 20, "subset": 0.5},
        memorization={"num_bootstraps": 100, "influences": 1},
        widths=(1,),
        epochs=2,
        checkpoints=(0, 1, 2),
        hessian={"num_images": 10, "quantities": ("exact_trace",)},
    )


def work(store: Store, study: Study) -> None:
    """What the commands of the platform do, one after the other; each does nothing where all is right."""
    if not arm_is_complete(store, study, ARM, 2):
        train_arm(study, ARM, store, 2)
    for checkpoint in PER_IMAGE_CURVATURE.missing(store, study):
        compute_curvature(study, checkpoint, store)
    hessian_of_checkpoint(study, Checkpoint(ARM, 2), store)
    write_images(store, study)
    rebuild(store, study)
    rebuild_loss_slopes(store, study)
    rebuild_memorization(store, study)
    refresh(store)
    export_arm(store, study, ARM)


@pytest.fixture(scope="module")
def sound(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("sound") / "root")
    probed = {column.name: None for column in TABLES["resource_probe"].file_columns}
    path = store.table_folder("resource_probe", study.name, ARM.key) / "cpu.parquet"
    write_result(store, path, to_arrow("resource_probe", probed, 1))
    work(store, study)
    return store


def rows_of(connection: duckdb.DuckDBPyConnection) -> dict[str, list[Any]]:
    """All rows of every table, without clocks, in one order."""
    names = {table: connection.table(table).columns for table in TABLES}
    shown = {
        table: ", ".join(f'"{c}"' for c in columns if c not in CLOCKS and (table, c) != OF_CLOCKS)
        for table, columns in names.items()
    }
    return {
        table: sorted(map(repr, connection.execute(f"SELECT {columns} FROM {table}").fetchall()))
        for table, columns in shown.items()
    }


def own_rows(store: Store) -> dict[str, list[Any]]:
    with contextlib.closing(connect(store)) as connection:
        return rows_of(connection)


def readings(store: Store, study: Study) -> dict[str, Any]:
    """What a user reads of everything, by name: a value, or the sentence that came instead."""

    def attempt(read: Callable[[], Any]) -> Any:
        try:
            return digest(read()[0])
        except UserError as error:
            return str(error)

    weights = {c.key: attempt(lambda c=c: load_checkpoint(store, study, c)) for c in study.iter_checkpoints()}
    best = {f"best {t}": attempt(lambda t=t: load_best(store, study, ARM, t)) for t in range(study.trials)}
    return {**weights, **best, **own_rows(store)}


@pytest.fixture(scope="module")
def right(sound: Store, study: Study) -> dict[str, Any]:
    values = readings(sound, study)
    assert {name for name, value in values.items() if not value} <= WITHOUT_ROWS
    assert sentences(sound, [study]) == []
    return values


def flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def truncate(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def zero(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    length = min(chance.choice((1, 16, 512, 4096)), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def lengthen(content: bytes, chance: random.Random) -> bytes:
    return content + chance.randbytes(chance.randrange(1, 100))


CHANGES = (flip, flip, truncate, zero, lengthen)


def kind_of(path: Path) -> str:
    """Where it lies and its suffix, as files of one kind share them."""
    folder = "/".join(path.parts[:2]) if path.parts[0] in ("tables", "manifests") else path.parts[0]
    return f"{folder}{'/best' if 'best' in path.parts else ''}{path.suffix}{'/resume' if path.stem == 'resume' else ''}"


def damage(root: Path, chance: random.Random) -> tuple[list[Path], str]:
    """Damage a file, or put two in each other's place; returns which, and how."""
    files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]
    kinds: dict[str, list[Path]] = {}
    for path in files:
        if path.parts[0] != "locks":
            kinds.setdefault(kind_of(path), []).append(path)
    path = root / chance.choice(kinds[chance.choice(sorted(kinds))])
    others = [root / other for other in files if other.suffix == path.suffix and root / other != path]
    what = chance.choice(("delete", "swap", "change", "change", "change"))
    if what == "delete":
        path.unlink()
    elif what == "swap" and others:
        other = chance.choice(others)
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return [path, other], what
    elif path.stat().st_size:
        change = chance.choice(CHANGES)
        path.write_bytes(change(path.read_bytes(), chance))
        what = change.__name__
    return [path], what


@pytest.mark.parametrize("number", range(NUM_DAMAGES))
def test_any_damage_is_named_or_without_effect_and_is_repaired(
    number: int, sound: Store, study: Study, right: dict[str, Any], tmp_path: Path
) -> None:
    store = Store(tmp_path / "root")
    shutil.copytree(sound.root, store.root)
    paths, what = damage(store.root, random.Random(number))
    harmed = f"{what} {[str(path.relative_to(store.root)) for path in paths]}"

    told = [*sentences(store, [study]), *damaged_checkpoints(store, study)[0]]
    for name, value in readings(store, study).items():
        if value != right[name]:
            said = [value] if isinstance(value, str) else told
            assert any(str(path) in text for path in paths for text in said) or is_absent(paths, said), (harmed, name)

    work(store, study)
    left = sentences(store, [study])
    after = readings(store, study)
    for name, value in after.items():
        if name not in MEASURED_ONCE:
            assert value == right[name], (harmed, name)
        elif not set(value) >= set(right[name]):  # attempts to train may have been added
            assert any(str(path) in text for path in paths for text in left), (harmed, name)
    assert all(any(f"tables/{table}/" in text for table in MEASURED_ONCE) for text in left), (harmed, left)
    with contextlib.closing(duckdb.connect(str(store.warehouse_path), read_only=True)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        assert rows_of(connection) == {name: after[name] for name in TABLES}, harmed
    assert arm_is_complete(store, study, ARM, 2), harmed
    assert not PER_IMAGE_CURVATURE.missing(store, study), harmed
    work(store, study)
    assert sentences(store, [study]) == left, harmed


def is_absent(paths: list[Path], said: list[str]) -> bool:
    """Whether a manifest is gone, without which a result does not exist."""
    return any(not path.exists() for path in paths) and any("has not been trained" in text for text in said)
