"""SQL over the tables: the promised columns, any root, any working directory, readers and writers side by side."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from dd_core.errors import StoreError
from dd_core.results.curvature_summary import rebuild
from dd_core.results.hessian import hessian_of_checkpoint
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.retirement import retire
from dd_core.store.store import Store
from dd_core.study.curvature_names import columns_of_step
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables import findings as findings_module
from dd_core.tables.damage import damaged_files
from dd_core.tables.files import TABLES, read_parquet, to_arrow, write_result
from dd_core.tables.findings import findings
from dd_core.tables.graphs import GRAPH_TABLES
from dd_core.tables.images import write_images
from dd_core.tables.memorization import MEMORIZATION_TABLES
from dd_core.tables.warehouse import connect, refresh
from dd_core.training.train import train_arm

DUCKDB = {
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "timestamp": "TIMESTAMP WITH TIME ZONE",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "list<float64>": "DOUBLE[]",
    "list<string>": "VARCHAR[]",
}
FIRST = Checkpoint(Arm("plain", 1), 2)
DIFFERENCE = {"estimators": ("exact", "finite_difference"), "finite_difference": {"steps": (0.5,), "num_probes": 2}}


@contextlib.contextmanager
def opened(store: Store) -> Iterator[duckdb.DuckDBPyConnection]:
    """The warehouse file, read-only as people open it."""
    with contextlib.closing(duckdb.connect(str(store.warehouse_path), read_only=True)) as connection:
        yield connection


def count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
def full(trained: Store, tiny_study: Study, make_study: Any) -> Store:
    """A store with at least one file of every table."""
    write_images(trained, tiny_study)
    hessian = {"num_images": 20, "quantities": ("exact_trace",), "epochs": (2,)}
    hessian_of_checkpoint(make_study(hessian=hessian), FIRST, trained)
    compute_curvature(tiny_study, FIRST, trained)
    rebuild(trained, tiny_study)
    made_later = (table.name for table in (*MEMORIZATION_TABLES, *GRAPH_TABLES))
    classes = ("class_progress", "class_schedule")
    for name in ("resource_probe", "loss_slopes", "loss_slope_fits", *classes, *made_later):
        nothing = {column.name: None for column in TABLES[name].file_columns}
        folders = {"study": tiny_study.name, "arm": FIRST.arm.key}
        folder = trained.table_folder(name, *(folders[column] for column in TABLES[name].folder_columns))
        path = folder / "some.parquet"
        write_result(trained, path, to_arrow(name, nothing, 1))
    return trained


def test_every_table_is_a_view_with_the_columns_types_and_comments_of_its_schema(full: Store) -> None:
    assert refresh(full) == list(TABLES)
    with opened(full) as connection:
        for table in TABLES.values():
            columns = connection.execute(
                "SELECT column_name, data_type, comment FROM duckdb_columns() WHERE table_name = ? "
                "ORDER BY column_index",
                [table.name],
            ).fetchall()
            assert columns == [(c.name, DUCKDB[c.type], c.description) for c in table.columns]
            comment = connection.execute("SELECT comment FROM duckdb_views() WHERE view_name = ?", [table.name])
            assert comment.fetchall() == [(table.description,)]


def test_views_show_every_row_of_every_file_with_study_and_arm_from_its_folder(full: Store) -> None:
    with contextlib.closing(connect(full)) as connection:
        for table in TABLES:
            files = list(full.table_folder(table).rglob("*.parquet"))
            if table == "runs":  # told when they start and when they end, shown once
                files = [file for file in files if file.name.endswith(".end.parquet")]
            assert count(connection, table) == sum(read_parquet(file).num_rows for file in files)
            assert connection.execute(f"SELECT DISTINCT study FROM {table}").fetchall() == [("tiny",)]
        arms = connection.execute("SELECT DISTINCT arm, variant, k FROM training_evals ORDER BY arm").fetchall()
        assert arms == [("plain.k001", "plain", 1), ("plain.k002", "plain", 2)]
        # Times are shown in UTC wherever the machine is.
        assert connection.execute("SELECT current_setting('TimeZone')").fetchall() == [("UTC",)]


def test_of_files_named_after_checkpoints_those_asked_for_are_opened_alone(full: Store) -> None:
    with contextlib.closing(connect(full, within=("tiny",), epochs={2})) as connection:
        for table in TABLES:
            files = list(full.table_folder(table).rglob("*.parquet"))
            rows = sum(read_parquet(file).num_rows for file in files if file.stem in ("0002", "summary"))
            if rows:
                assert 0 < count(connection, table) == rows, table
        assert connection.execute("SELECT DISTINCT epoch FROM training_evals ORDER BY 1").fetchall() == [(1,), (2,)]
        assert count(connection, "runs") == 4


def test_the_file_holds_views_alone(full: Store) -> None:
    refresh(full)
    with opened(full) as connection:
        assert connection.execute("SELECT count(*) FROM duckdb_tables()").fetchall() == [(0,)]
    assert full.warehouse_path.stat().st_size < 2 << 20


def test_a_table_without_files_has_a_view_without_rows(store: Store, tiny_study: Study) -> None:
    assert refresh(store) == []
    write_images(store, tiny_study)
    store.table_folder("runs", "tiny", "plain.k001").mkdir(parents=True)
    assert refresh(store) == ["images"]
    with opened(store) as connection, contextlib.closing(connect(store)) as own:
        for name, table in TABLES.items():
            for relation in (connection.table(name), own.table(name)):
                assert relation.count("*").fetchone() == ((2 * 1797,) if name == "images" else (0,))
                assert list(zip(relation.columns, map(str, relation.types), strict=True)) == [
                    (column.name, DUCKDB[column.type]) for column in table.columns
                ]


def test_a_view_whose_last_file_is_retired_has_no_rows(full: Store, tiny_study: Study) -> None:
    refresh(full)
    with opened(full) as connection:
        assert count(connection, "training_evals") and count(connection, "per_image_curvature")
        for arm in tiny_study.arms:
            retire(full, "tiny", arm, "old")
        assert count(connection, "training_evals") == count(connection, "per_image_curvature") == 0
        assert count(connection, "images") == 2 * 1797


COUNTS = "SELECT (SELECT count(*) FROM training_evals), (SELECT count(*) FROM runs), (SELECT count(*) FROM images)"


def shell(root: Path, sql: str, *, file: str = "warehouse.duckdb", folder: Path | None = None) -> str:
    """What DuckDB's own shell prints."""
    program = Path(sys.executable).with_name("duckdb")
    command = [str(program), "-csv", "-noheader", "-readonly", str(root / file) if file else ":memory:", sql]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder or root.parent, check=False)
    return (done.stdout + done.stderr).strip()


def test_a_copied_and_a_moved_root_show_their_own_rows(full: Store, tmp_path: Path) -> None:
    refresh(full)
    assert shell(full.root, COUNTS) == "20,4,3594"
    copy = Store(tmp_path / "it's a [copy]*")
    shutil.copytree(full.root, copy.root)
    shutil.rmtree(copy.table_folder("training_evals", "tiny", "plain.k002"))
    for root, evals in ((full.root, 20), (copy.root, 10)):
        for path, folder in (
            (root, root),
            (Path(root.name), root.parent),
            (Path(), root),
            (Path("..") / root.name, root),
        ):
            assert shell(path, COUNTS, folder=folder) == f"{evals},4,3594"
    moved = Store(copy.root.rename(tmp_path / "moved"))
    shutil.rmtree(full.root)
    assert shell(moved.root, COUNTS) == "10,4,3594"
    with opened(moved) as connection:
        assert connection.execute(COUNTS).fetchall() == [(10, 4, 3594)]


def test_views_that_cannot_know_where_they_lie_show_the_rows_of_their_own_root_or_say_so(
    full: Store, tmp_path: Path
) -> None:
    refresh(full)
    copy, own = tmp_path / "copy", full.warehouse_path
    shutil.copytree(full.root, copy)
    attached, elsewhere = "ATTACH '{}' AS lab (READ_ONLY); SELECT count(*) FROM lab.images", f"is not {own}, where"
    with contextlib.closing(duckdb.connect()) as connection:
        connection.execute(f"ATTACH '{own}' AS lab (READ_ONLY)")
        assert count(connection, "lab.images") == 3594
    for file, sql in (
        ("", attached.format(copy / "warehouse.duckdb")),
        ("warehouse.duckdb", attached.format(own)),
        ("warehouse.duckdb", f"SET temp_directory = '{tmp_path}'; SELECT count(*) FROM images"),
    ):
        with (
            contextlib.closing(duckdb.connect(str(copy / file) if file else ":memory:", read_only=bool(file))) as other,
            pytest.raises(duckdb.Error, match=re.escape(elsewhere)),
        ):
            other.execute(sql).fetchall()
    shutil.copy(own, copy / "renamed.duckdb")
    assert elsewhere in shell(copy, "SELECT count(*) FROM images", file="renamed.duckdb")


@pytest.mark.parametrize("table", ["per_image_curvature", "curvature", "training_evals", "hessian_spectra", "images"])
def test_other_readers_find_one_schema_in_the_folder_of_a_table(table: str, full: Store, make_study: Any) -> None:
    study = make_study(name="second", checkpoints=(2, 4), widths=(1,), curvature=DIFFERENCE)
    train_arm(study, FIRST.arm, full, 4)
    compute_curvature(study, FIRST, full)
    rebuild(full, study)
    refresh(full)
    folder = full.table_folder(table)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".parquet"}
    schemas = {pq.read_schema(path).remove_metadata() for path in folder.rglob("*.parquet")}
    assert len(schemas) == 1
    with opened(full) as connection:
        expected = count(connection, table)
    frame = pd.read_parquet(folder)
    assert len(frame) == expected == pyarrow.dataset.dataset(folder, partitioning="hive").count_rows()
    assert set(frame["study"]) >= {"tiny"}
    if table == "per_image_curvature":
        own = frame[frame["study"] == "second"]
        with opened(full) as connection:
            rows = connection.execute(
                "SELECT fd_norm_h0p5 FROM per_image_curvature WHERE study = 'second' ORDER BY trial, image_id"
            ).fetchall()
        packed = own.sort_values(["trial", "image_id"])
        unpacked = [
            dict(zip(*pair, strict=True))["fd_norm_h0p5"] for pair in packed[["further_names", "further_values"]].values
        ]
        assert unpacked == [value for (value,) in rows]


def test_study_and_arm_are_text_even_where_they_look_like_something_else(store: Store, make_study: Any) -> None:
    for name in ("e1", "infinity", "true"):
        study = make_study(name=name)
        write_images(store, study)
    with contextlib.closing(connect(store)) as connection:
        found = connection.execute("SELECT DISTINCT study FROM images ORDER BY study").fetchall()
    assert found == [("e1",), ("infinity",), ("true",)]


@pytest.mark.parametrize("name", ["it's a root", 'with "quotes"; DROP', "100 %", "wild [1]* {a,b}", "a=b", "ünï"])
def test_any_name_of_the_root_works(name: str, tmp_path: Path, tiny_study: Study) -> None:
    store = Store(tmp_path / name)
    write_images(store, tiny_study)
    assert refresh(store) == ["images"]
    with opened(store) as connection:
        assert count(connection, "images") == 2 * 1797


@pytest.mark.parametrize("name", ["study=other", "arm=a/below"])
def test_a_root_that_would_be_taken_for_a_column_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"study=\.\.\. or arm="):
        Store(tmp_path / name)


def test_views_work_from_every_working_directory_even_for_a_relative_root(
    tmp_path: Path, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = Store(Path("data"))
    write_images(store, tiny_study)
    refresh(store)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with opened(Store(tmp_path / "data")) as connection:
        assert count(connection, "images") == 2 * 1797


READER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1], read_only=True)
def views():
    print([row[0] for row in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()])
    print(connection.execute("SELECT count(*) FROM images").fetchall(), flush=True)
views()
sys.stdin.readline()
views()
"""


def test_a_reader_in_another_process_neither_stops_a_refresh_nor_is_disturbed_by_it(
    trained: Store, tiny_study: Study, tmp_path: Path
) -> None:
    evals, aside = trained.table_folder("training_evals", "tiny"), tmp_path / "aside"
    evals.rename(aside)
    write_images(trained, tiny_study)
    assert "training_evals" not in refresh(trained)
    command = [sys.executable, "-c", READER, str(trained.warehouse_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        before = [reader.stdout.readline(), reader.stdout.readline()]
        aside.rename(evals)
        assert "training_evals" in refresh(trained)
        with opened(trained) as connection:
            assert count(connection, "training_evals") == 2 * 2 * 5
        after, _ = reader.communicate("go on\n", timeout=60)
    assert reader.returncode == 0
    assert after.splitlines() == [line.strip() for line in before]
    assert before[1] == "[(3594,)]\n"


def test_a_refresh_leaves_nothing_else_behind(full: Store) -> None:
    before = {path.name for path in full.root.iterdir()}
    refresh(full)
    refresh(full)
    assert {path.name for path in full.root.iterdir()} - before == {"warehouse.duckdb"}


def test_a_new_file_is_seen_without_a_refresh(store: Store, make_study: Any) -> None:
    write_images(store, make_study())
    refresh(store)
    write_images(store, make_study(name="second"))
    with opened(store) as connection:
        assert count(connection, "images") == 2 * 2 * 1797


def test_studies_with_and_without_finite_differences_stand_side_by_side(full: Store, make_study: Any) -> None:
    study = make_study(name="second", checkpoints=(2, 4), widths=(1,), curvature=DIFFERENCE)
    train_arm(study, FIRST.arm, full, 4)
    compute_curvature(study, FIRST, full)
    rebuild(full, study)
    refresh(full)
    with opened(full) as connection:
        found = connection.execute(
            "SELECT study, count(*), count(trace), count(fd_norm_h0p5), count(fd_directional_h0p5_standard_error), "
            "count(method) FROM per_image_curvature GROUP BY study ORDER BY study"
        ).fetchall()
        assert found == [("second", 200, 200, 200, 200, 200), ("tiny", 200, 200, 0, 0, 200)]
        summary = connection.execute(
            "SELECT study, count(auroc_trace), count(auroc_fd_norm_h0p5) FROM curvature GROUP BY study ORDER BY study"
        ).fetchall()
        assert summary == [("second", 6, 6), ("tiny", 6, 0)]
        columns = connection.execute(
            "SELECT column_name, data_type, comment FROM duckdb_columns() WHERE table_name = 'per_image_curvature' "
            "ORDER BY column_index"
        ).fetchall()
        fixed = TABLES["per_image_curvature"].columns
        assert columns[: len(fixed)] == [(c.name, DUCKDB[c.type], c.description) for c in fixed]
        assert [name for name, *_ in columns[len(fixed) :]] == list(columns_of_step(0.5))
        assert all(kind == "DOUBLE" and "finite difference" in comment for _, kind, comment in columns[len(fixed) :])


def test_columns_that_an_older_file_lacks_are_null(full: Store) -> None:
    """Whether some files lack a column or all of them do."""
    path = full.table_folder("per_image_curvature", "tiny", FIRST.arm.key) / "0002.parquet"
    table = read_parquet(path)
    lacking = table.drop_columns(["trace_standard_error", "method", "gradient_curvature"])
    write_result(full, path, lacking)
    query = "SELECT count(*), count(trace_standard_error), count(method), count(trace) FROM per_image_curvature"
    for _ in range(2):
        refresh(full)
        with opened(full) as connection:
            assert connection.execute(query).fetchall() == [(200, 0, 0, 200)]
            types = connection.execute(
                "SELECT data_type FROM duckdb_columns() "
                "WHERE table_name = 'per_image_curvature' AND column_name = 'method'"
            )
            assert types.fetchall() == [("VARCHAR",)]
    write_result(full, path.with_name("0004.parquet"), table)
    refresh(full)
    with opened(full) as connection:
        assert connection.execute(query).fetchall() == [(400, 200, 200, 400)]


def test_lists_are_lists_in_sql(full: Store) -> None:
    with contextlib.closing(connect(full)) as connection:
        rows = connection.execute(
            "SELECT trial, trace, list_sum(layer_traces), len(layer_names), eigenvalues FROM hessian_spectra "
            "ORDER BY trial"
        ).fetchall()
    assert [row[0] for row in rows] == [0, 1]
    for _, trace, total, num_layers, eigenvalues in rows:
        assert trace == pytest.approx(total)
        assert num_layers > 3
        assert eigenvalues is None


def test_a_damaged_file_is_left_out_and_named_in_one_sentence(full: Store) -> None:
    path = full.table_folder("runs", "tiny", "plain.k001") / "attempt-0001.end.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    refresh(full)
    with opened(full) as connection, contextlib.closing(connect(full)) as own:
        for each in (connection, own):
            found = each.execute("SELECT arm, status, count(*) FROM runs GROUP BY ALL ORDER BY ALL").fetchall()
            assert found == [("plain.k001", "running", 2), ("plain.k002", "finished", 2)]
            assert count(each, "training_evals") == 20
    (sentence,) = map(str, damaged_files(full))
    manifest = full.manifest_path(path)
    assert sentence.startswith(f"{path} is damaged: ") and sentence.endswith(f"to forget it: rm -f {path} {manifest}")
    assert "\n" not in sentence


def test_what_was_found_of_a_file_is_kept_until_it_or_its_manifest_changes(
    full: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(findings_module, "_YOUNG_NS", 0)
    looked: list[Path] = []
    verify = Store.verify
    monkeypatch.setattr(Store, "verify", lambda own, entry: looked.append(own.root / entry.path) or verify(own, entry))
    folder = full.table_folder("training_evals")

    def harmed() -> list[str]:
        looked.clear()
        found = findings(full, [folder])
        assert found == findings(full, [folder])
        return [name for files in found.values() for name, finding in files.items() if finding.harm]

    assert harmed() == []
    files = set(folder.rglob("*.parquet"))
    assert set(looked) == files
    assert harmed() == [] and looked == []
    path = folder / f"study=tiny/arm={FIRST.arm.key}/0002.parquet"
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content[:-8] + bytes(4) + content[-4:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # only the time of its entry tells
    assert harmed() == [path.name]
    assert set(looked) == {path}
    path.write_bytes(content)
    assert harmed() == []
    manifest = full.checkpoint_manifest_path("tiny", FIRST)
    manifest.write_text(manifest.read_text())
    assert harmed() == [] and set(looked) == {path}
    for kept in (tmp_path / "cache").rglob("*.json"):
        kept.write_bytes(b"{")
    assert harmed() == [] and set(looked) == files
    damaged_files(full, ["training_evals"])
    assert set(looked) == files  # whoever asks for damage has all of them read
