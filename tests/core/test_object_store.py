"""The data root on an object store: a real S3 server on loopback, with what a folder gives, and what goes wrong."""

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair
import duckdb
import numpy as np
import pytest
from support import Lab, results, wait_until, work

from dd_assets.pages.landing import Landing
from dd_assets.pages.live import LiveCurves
from dd_core.checks.integrity import curvature_gaps, damaged_checkpoints
from dd_core.errors import StaleError, StoreError
from dd_core.exchange import importer
from dd_core.exchange.exporter import export_arm
from dd_core.figures.drawing.preview import preview_markdown
from dd_core.figures.drawing.render import render
from dd_core.jobs.job import result_job, training_job
from dd_core.results.curvature_summary import rebuild
from dd_core.results.hessian import hessian_of_checkpoint
from dd_core.results.loss_slopes import rebuild as rebuild_loss_slopes
from dd_core.results.per_image_curvature import compute_curvature, compute_shard
from dd_core.store import leases, objects, s3
from dd_core.store.checkpoints import load_checkpoint, read_tensors
from dd_core.store.files import tensors_metadata
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.retirement import retire
from dd_core.store.store import LockedError, Store, sha256_of, write_text
from dd_core.study import study as studies
from dd_core.study.curvature import shards
from dd_core.study.files import Catalogue
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.access import give_access, httpfs, quoted
from dd_core.tables.files import TABLES, read_parquet
from dd_core.tables.graphs import GRAPH_TABLES
from dd_core.tables.images import write_images
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.tables.live import line, live_path
from dd_core.tables.memorization import MEMORIZATION_TABLES
from dd_core.tables.warehouse import connect, refresh
from dd_core.training.train import ArmBusyError, train_arm
from dd_core.training.train_part import train_part

from .comparison import ARM, assert_same_results
from .object_store import BUCKET, Request, S3Server, count_up, hold, quick_leases, start, train

pytestmark = pytest.mark.slow

CHECKPOINT = Checkpoint(ARM, 4)
HESSIAN = {"num_images": 20, "quantities": ("exact_trace",), "epochs": (2, 4)}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, text in server.environment.items():
            patch.setenv(name, text)
        patch.delenv("AWS_PROFILE", raising=False)
        quick_leases(patch)
        patch.setattr(s3.S3, "retries", 2)
        yield server
    server.stop()


@pytest.fixture
def address(server: S3Server) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/data"


@pytest.fixture
def remote(address: str) -> Store:
    return Store(address)


@pytest.fixture(scope="module")
def study(make_study: Any) -> Study:
    return make_study(hessian=HESSIAN)


def compute_everything(store: Store, study: Study) -> None:
    """Something in every table."""
    train_arm(study, ARM, store, 4)
    write_images(store, study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "shards", lambda *arguments: shards(*arguments, target=60))
        for rows in reversed(study.curvature_ranges(CHECKPOINT.epoch)):
            compute_shard(study, CHECKPOINT, store, rows)
    compute_curvature(study, Checkpoint(ARM, 2), store)
    hessian_of_checkpoint(study, CHECKPOINT, store)
    rebuild(store, study)
    rebuild_loss_slopes(store, study)
    assert rebuild_loss_slopes(store, study).computed == []


@pytest.fixture(scope="module")
def folder(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All in a folder, and untouched."""
    store = Store(tmp_path_factory.mktemp("folder") / "root")
    compute_everything(store, study)
    return store


@pytest.fixture(scope="module")
def bucket(server: S3Server, study: Study) -> Store:
    """All in the bucket, and untouched."""
    store = Store(f"s3://{BUCKET}/everything/data")
    compute_everything(store, study)
    return store


# The same as in a folder


def test_every_result_has_the_bits_it_has_in_a_folder(bucket: Store, folder: Store, study: Study) -> None:
    """Weights, metrics, images, curvature merged from shards, Hessian, summary."""
    ours = results(bucket.root)
    assert {path for path, digest in results(folder.root).items() if ours.get(path) != digest} == set()
    assert len(ours) > 15
    files = [
        {str(path.relative_to(store.root)) for path in store.root.glob("**/*") if path.is_file()}
        for store in (bucket, folder)
    ]
    assert {f for f in files[0] if not f.startswith("locks/")} == {f for f in files[1] if not f.startswith("locks/")}


def test_what_is_there_is_recognised_and_sound(bucket: Store, study: Study, server: S3Server) -> None:
    store = Store(bucket.address)
    assert [c.epoch for c in trained_checkpoints(store, study)] == [0, 2, 4]
    assert PER_IMAGE_CURVATURE.missing(store, study) == [Checkpoint(ARM, 0)]
    assert damaged_checkpoints(store, study) == ([], 3)
    with contextlib.closing(connect(store)) as connection:
        assert curvature_gaps(store, study, connection) == ([], 2)
    written: list[str] = []
    with server.failing(lambda request: written.append(request.key) if request.method == "PUT" else None):
        train_arm(study, ARM, store, 4, report=lambda news: pytest.fail(f"trained again: {news}"))
        assert not compute_curvature(study, CHECKPOINT, store)
        assert not hessian_of_checkpoint(study, CHECKPOINT, store)
    # A lock is held, renewed and freed; and it is asked whether we may write.
    assert [key for key in written if "/locks/" not in key and "/.writable-" not in key] == []
    assert written


SQL = [
    "SELECT study, arm, count(*), sum(train_loss) FROM training_batches GROUP BY ALL",
    "SELECT * EXCLUDE (seconds) FROM hessian_spectra ORDER BY ALL",
    "SELECT * FROM curvature ORDER BY ALL",
    "SELECT trial, image_id, trace, is_noisy FROM per_image_curvature WHERE epoch = 4 ORDER BY trial, image_id",
    "SELECT e.epoch, avg(c.mean_trace), avg(e.test_error) FROM curvature c JOIN training_evals e "
    "USING (study, arm, trial, epoch) WHERE subset = 'all' GROUP BY e.epoch ORDER BY e.epoch",
    "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY view_name",
]


def test_sql_gives_the_rows_it_gives_of_a_folder(bucket: Store, folder: Store) -> None:
    with contextlib.closing(connect(bucket)) as remote, contextlib.closing(connect(folder)) as local:
        for sql in SQL:
            answers = [repr(connection.execute(sql).fetchall()) for connection in (remote, local)]
            assert answers[0] == answers[1] and len(answers[0]) > 20, sql


def test_the_warehouse_is_an_object_with_views_and_no_secret_that_any_duckdb_attaches(
    bucket: Store, server: S3Server, tmp_path: Path
) -> None:
    views = refresh(bucket)
    # Nothing was probed or scored, there are no graphs, and all classes are there from the beginning.
    others = {table.name for table in (*MEMORIZATION_TABLES, *GRAPH_TABLES)} | {
        "resource_probe",
        "class_progress",
        "class_schedule",
    }
    assert set(views) == set(TABLES) - others
    content = bucket.warehouse_path.read_bytes()
    for secret in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert server.environment[secret].encode() not in content
    with contextlib.closing(duckdb.connect()) as connection:
        give_access(connection, bucket.root)
        connection.execute(f"ATTACH {quoted(str(bucket.warehouse_path))} AS lab (READ_ONLY)")
        assert connection.execute("SELECT count(*) FROM lab.per_image_curvature").fetchall() == [(400,)]
    (tmp_path / "copy.duckdb").write_bytes(content)
    with contextlib.closing(duckdb.connect(str(tmp_path / "copy.duckdb"), read_only=True)) as connection:
        connection.execute(f"LOAD {quoted(str(httpfs()))}")
        connection.execute(
            "CREATE SECRET (TYPE s3, KEY_ID 'a', SECRET 'b', URL_STYLE 'path', USE_SSL false, ENDPOINT "
            f"{quoted(server.environment['AWS_ENDPOINT_URL'].removeprefix('http://'))})"
        )
        assert connection.execute("SELECT count(*) FROM curvature").fetchone() == (6 * 2,)


def test_files_of_others_are_seen_at_once(remote: Store, study: Study, server: S3Server) -> None:
    """No listing is remembered."""
    with contextlib.closing(connect(remote)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    assert list(remote.root.glob("**/*.parquet")) == []
    key = f"{remote.root.path.removeprefix(BUCKET + '/')}/tables/runs/x.parquet"  # type: ignore[attr-defined]
    server.client.put_object(Bucket=BUCKET, Key=key, Body=b"")
    assert [path.name for path in remote.root.glob("**/*.parquet")] == ["x.parquet"]
    server.client.delete_object(Bucket=BUCKET, Key=key)
    assert list(remote.root.glob("**/*.parquet")) == []


def test_exports_and_imports_have_the_bytes_they_have_in_a_folder(
    bucket: Store, folder: Store, study: Study, tmp_path: Path, server: S3Server
) -> None:
    exported, told = [], {"architecture", "batch_size", "optimizer", "label_noise"}
    for number, store in enumerate((bucket, folder)):
        export = export_arm(store, study, ARM)
        assert export is not None and export.written == len(export.files) == 5
        again = export_arm(store, study, ARM)
        assert again is not None and again.written == 0
        exported.append({path.name + path.parent.name: path.read_text().splitlines() for path in export.files})
        study_files = tmp_path / str(number)
        study_files.mkdir()
        data = {"dataset": "cifar10"}
        settings = study.variants["plain"].model_dump(mode="json", include=told)
        wanted = importer.Request("other", (tmp_path / "files",), "plain", data=data, settings=settings)
        if not number:
            for path in export.files:
                copy = tmp_path / "files" / "plain.k002" / path.parent.name / path.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        assert importer.import_metrics(store, [study_files], wanted).written
        assert importer.import_metrics(store, [study_files], wanted).written == []
    assert {name: len(lines) for name, lines in exported[0].items()} == {n: len(e) for n, e in exported[1].items()}
    assert exported[0]["metrics_k2.jsonlplain"] == exported[1]["metrics_k2.jsonlplain"]  # others tell times of day
    tables = [
        {p: d for p, d in results(store.root).items() if "study=other" in p and "evals" in p}
        for store in (bucket, folder)
    ]
    assert tables[0] == tables[1] and tables[0]
    assert not server.keys("everything/data/staging")


def test_a_training_killed_while_it_puts_a_checkpoint_goes_on_with_the_same_bits(
    server: S3Server, remote: Store, study: Study, folder: Store
) -> None:
    """By SIGKILL, half of the weights being on their way."""
    process = start(server, train, remote.address, study, ARM)

    def kill(request: Request) -> str | None:
        if not request.puts("0004.safetensors"):
            return None
        os.kill(process.pid, signal.SIGKILL)
        return "drop"

    with server.failing(kill):
        process.join(60)
    assert process.exitcode == -signal.SIGKILL
    prefix = remote.root.path.removeprefix(f"{BUCKET}/")  # type: ignore[attr-defined]
    names = {key.rpartition("/")[2] for key in server.keys(prefix) if "checkpoints/" in key}
    assert names == {f"{epoch}.{kind}" for epoch in ("0000", "0002") for kind in ("json", "safetensors")} | {
        "resume.safetensors"
    }
    epochs: list[int] = []
    train_arm(study, ARM, remote, 4, report=lambda news: epochs.append(getattr(news, "epoch", 0)))
    assert set(epochs) == {4}, "only what had not been kept is trained again"
    assert_same_results(remote, folder, study)
    runs = remote.table_folder("runs", study.name, ARM.key).glob("*.end.parquet")
    assert [read_parquet(path)["status"][0].as_py() for path in sorted(runs)] == ["interrupted", "finished"]


# Damage


def test_damage_is_noticed(remote: Store, study: Study, server: S3Server) -> None:
    train_arm(study, ARM, remote, 2)
    path = remote.checkpoint_path(study.name, Checkpoint(ARM, 2))
    key, content = path.path.removeprefix(f"{BUCKET}/"), path.read_bytes()  # type: ignore[attr-defined]
    for harmed, sentence in [(content[:-1], r"is damaged: \d+ bytes where"), (content[:-1] + b"?", "SHA-256 differs")]:
        server.client.put_object(Bucket=BUCKET, Key=key, Body=harmed)
        with pytest.raises(StaleError, match=sentence):
            load_checkpoint(remote, study, Checkpoint(ARM, 2))
        assert [sentence in problem for problem in damaged_checkpoints(remote, study)[0]] in ([True], [False])
    # With the note that it is what we put: to look at it is not enough, to read it is.
    noted = {"sha256": sha256_of_bytes(content)}
    server.client.put_object(Bucket=BUCKET, Key=key, Body=content[:-1] + b"!", Metadata=noted)
    with pytest.raises(StaleError, match="is damaged"):
        load_checkpoint(remote, study, Checkpoint(ARM, 2))
    server.client.put_object(Bucket=BUCKET, Key=key, Body=content)
    load_checkpoint(remote, study, Checkpoint(ARM, 2))
    server.client.delete_object(Bucket=BUCKET, Key=key)
    with pytest.raises(StaleError, match="in its manifest but not in the store"):
        load_checkpoint(remote, study, Checkpoint(ARM, 2))


def sha256_of_bytes(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def test_a_checkpoint_is_downloaded_once_and_others_only_asked_for(
    bucket: Store, study: Study, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_downloads", objects._Downloads())
    seen: list[str] = []
    with server.failing(lambda request: seen.append(f"{request.method} {request.key}")):  # type: ignore[func-returns-value]
        for _ in range(2):
            load_checkpoint(bucket, study, CHECKPOINT)
    assert [request for request in seen if request.startswith("GET") and not request.endswith(".json")] == [
        "GET everything/data/checkpoints/tiny/plain.k002/0004.safetensors"
    ]


def test_what_a_file_of_tensors_says_of_itself_is_read_without_its_tensors(
    bucket: Store, folder: Store, study: Study, server: S3Server
) -> None:
    before = server.requests["GET"]
    ours, theirs = (tensors_metadata(store.resume_path(study.name, ARM.key)) for store in (bucket, folder))
    assert server.requests["GET"] - before == 1
    assert theirs == read_tensors(folder.resume_path(study.name, ARM.key))[1]
    assert ours == theirs and ours["epoch"] == "4"
    with pytest.raises(FileNotFoundError):
        tensors_metadata(bucket.resume_path(study.name, "plain.k001"))
    with pytest.raises(ValueError):
        tensors_metadata(next(folder.root.glob("tables/**/*.parquet")))


def test_old_downloads_give_way(remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = objects._Downloads()
    monkeypatch.setattr(objects, "_downloads", downloads)
    monkeypatch.setattr(objects, "_KEPT_BYTES", 250)
    files = []
    for number in range(4):
        write_text(remote.root / str(number), 100 * str(number))
        files.append(objects.download(remote.root / str(number)))
    assert [file.exists() for file in files] == [False, False, True, True]
    assert objects.download(remote.root / "0").read_text() == 100 * "0"


def test_retiring_an_arm_moves_all_of_it_even_if_it_is_interrupted(
    remote: Store, study: Study, make_study: Any, server: S3Server
) -> None:
    train_arm(study, ARM, remote, 2)
    before = results(remote.root)
    recipe = study.recipe_hash(ARM)
    for pattern in ("retired/.*evals", "retired/.*checkpoints"):
        copying = server.failing(lambda request, pattern=pattern: 500 if request.puts(pattern) else None)
        with copying, pytest.raises(StoreError, match="copy"):
            retire(remote, study.name, ARM.key, recipe)
        checkpoints = {path: digest for path, digest in before.items() if path.startswith("checkpoints")}
        assert results(remote.root).items() >= checkpoints.items()
    notes: list[str] = []
    changed = make_study({"label_noise": 0.1})
    train_arm(changed, ARM, remote, 2, report=lambda news: notes.append(getattr(news, "text", "")))
    retired = remote.root / "retired" / study.name / ARM.key / recipe
    assert str(retired) in notes[0]
    assert results(retired) == before
    assert set(results(remote.root)) == set(before)
    assert not results(remote.root).items() & {p: d for p, d in before.items() if p.startswith("tables")}.items()


def test_parts_that_train_apart_and_change_their_recipe_leave_what_they_leave_in_a_folder(
    remote: Store, make_study: Any, tmp_path: Path
) -> None:
    apart = {"precision": "float16", "architecture": "cnn5", "batch_size": 30}
    data = {"dataset": "digits", "num_train": 60, "num_validation": 30}
    studies = [make_study({**apart, "label_noise": noise}, data=data) for noise in (0.0, 0.1, 0.0)]
    roots = Store(tmp_path / "parts"), Store(tmp_path / "whole")
    for study in studies:
        for trial in (1, 0):
            for store in (remote, roots[0]):
                train_part(study, ARM, store, 4, range(trial, trial + 1))
        train_arm(study, ARM, roots[1], 4)
        assert results(remote.root) == results(roots[0].root) == results(roots[1].root)
        names = [{str(p.relative_to(s.root)) for p in s.root.glob("*/**/*") if p.is_file()} for s in (remote, roots[0])]
        ours, theirs = ({name for name in found if not name.startswith("locks/")} for found in names)
        assert ours == theirs


# Locks


def test_two_processes_never_hold_a_lock_at_once(server: S3Server, remote: Store) -> None:
    processes = [start(server, count_up, remote.address, 4) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (remote.root / "counter.json").read_text() == "8"


def test_a_live_lock_is_not_broken_and_a_dead_ones_is(server: S3Server, remote: Store, study: Study) -> None:
    holder = start(server, hold, remote.address, f"{study.name}.{ARM.key}")
    wait_until((remote.root / "held").exists, "the holder")
    with pytest.raises(ArmBusyError):
        train_arm(study, ARM, remote, 0, wait=False)
    with pytest.raises(LockedError), remote.lock(study.name, ARM.key, timeout=1.3 * leases.LEASE_SECONDS):
        pass
    holder.kill()
    holder.join()
    started = time.monotonic()
    train_arm(study, ARM, remote, 0)
    assert time.monotonic() - started < 20
    with remote.lock(study.name, ARM.key, timeout=0):  # free at once after a usual end
        pass


def test_who_was_taken_for_dead_writes_nothing_more(server: S3Server, remote: Store) -> None:
    holder = start(server, hold, remote.address, "thing")
    wait_until((remote.root / "held").exists, "the holder")
    os.kill(holder.pid, signal.SIGSTOP)
    with remote.lock("thing"):
        write_text(remote.root / "go-on", "")
        os.kill(holder.pid, signal.SIGCONT)
        holder.join(60)
        assert holder.exitcode == 3
    assert not (remote.root / "after").exists()


def test_who_takes_a_lock_too_slowly_does_not_get_a_number_that_was_used_and_removed(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = remote.root / "locks" / "thing.lock"
    slow, held = leases.Lease(folder), contextlib.ExitStack()

    def meanwhile(_: int) -> bool:
        with remote.lock("thing", timeout=0):
            pass
        held.enter_context(remote.lock("thing", timeout=0))
        return False

    with remote.lock("thing"):
        pass
    monkeypatch.setattr(slow, "_is_taken", meanwhile)
    with held, pytest.raises(LockedError), slow.held(timeout=0):
        pass


def test_a_lost_answer_to_taking_a_lock_is_no_deadlock(server: S3Server, remote: Store) -> None:
    lost = iter(["lost"])
    with (
        server.failing(lambda request: next(lost, None) if request.puts(r"locks/") else None),
        remote.lock("thing", timeout=0),
    ):
        write_text(remote.root / "there", "")


# What goes wrong


@pytest.mark.parametrize("fault", [500, "drop", "lost"])
def test_a_store_that_fails_while_something_is_written_leaves_the_old_or_nothing_and_says_so(
    fault: int | str, server: S3Server, remote: Store
) -> None:
    old, new = remote.root / "old", remote.root / "new"
    write_text(old, "first")
    with server.failing(lambda request: fault if request.method == "PUT" else None):
        for path in (old, new):
            with pytest.raises(StoreError, match="object store") as caught:
                write_text(path, "second")
            assert "\n" not in str(caught.value) and "run the same command again" in str(caught.value)
    # What was done without an answer is whole; nothing else is there.
    assert old.read_text() == ("second" if fault == "lost" else "first")
    assert new.exists() == (fault == "lost")
    write_text(new, "third")
    assert new.read_text() == "third"


@pytest.mark.parametrize("fault", [500, "drop", "lost"])
def test_a_failure_that_passes_is_not_noticed(fault: int | str, server: S3Server, remote: Store) -> None:
    faults = iter([fault])
    with server.failing(lambda request: next(faults, None)):
        write_text(remote.root / "file", "written")
    faults = iter([fault])
    with server.failing(lambda request: next(faults, None)):
        assert (remote.root / "file").read_text() == "written"


@pytest.mark.parametrize("fault", [500, "drop"])
def test_of_an_upload_in_parts_that_breaks_off_nothing_is_left(
    fault: int | str, server: S3Server, remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_PART_BYTES", 5 << 20)
    file = tmp_path / "large"
    file.write_bytes(np.random.default_rng(0).bytes(12 << 20))
    second_part = server.failing(lambda request: fault if "partNumber=2" in request.query else None)
    with second_part, pytest.raises(StoreError, match="object store"):
        objects.put(file, remote.root / "large")
    assert not (remote.root / "large").exists()
    assert "Uploads" not in server.client.list_multipart_uploads(Bucket=BUCKET)
    objects.put(file, remote.root / "large")
    assert sha256_of(remote.root / "large") == sha256_of(file)
    assert sha256_of(objects.download(remote.root / "large")) == sha256_of(file)


def test_a_training_whose_store_fails_ends_in_a_sentence_and_goes_on_later(
    server: S3Server, remote: Store, study: Study, folder: Store
) -> None:
    manifest = server.failing(lambda request: 500 if request.puts(r"checkpoints/.*0002\.json") else None)
    with manifest, pytest.raises(StoreError, match=r"failed at put of .*0002\.json \(InternalError We fail\)"):
        train_arm(study, ARM, remote, 4)
    with pytest.raises(StaleError):
        load_checkpoint(remote, study, Checkpoint(ARM, 2))
    train_arm(study, ARM, remote, 4)
    assert_same_results(remote, folder, study)


def one_sentence(address: str) -> str:
    with pytest.raises(StoreError) as caught:
        Store(address).check_writable()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_bucket_is_one_sentence(server: S3Server) -> None:
    assert one_sentence("s3://nowhere/data") == "there is no bucket nowhere; create it, or correct DD_ROOT"


def test_wrong_credentials_are_one_sentence(server: S3Server, address: str) -> None:
    with server.credentials_matter():
        assert "refuses put of" in one_sentence(address)
        assert "AWS_SECRET_ACCESS_KEY" in one_sentence(address)
        with pytest.raises(StoreError, match="refuses"):
            Store(address).read_manifest(Store(address).root / "manifest.json")


def test_no_credentials_are_one_sentence(server: S3Server, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_REGION", "us-west-1")  # so that it is another file system than that of other tests
    assert "there are no credentials for s3://" in one_sentence(address)


def test_an_endpoint_that_does_not_answer_is_one_sentence(
    server: S3Server, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert "the object store at http://127.0.0.1:9 does not answer" in one_sentence(address)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ftp://host/data", "must be a folder or an address like s3://bucket/prefix"),
        ("s3://", "names no bucket"),
        ("s3://lab/what*", r"may not have a \*"),
        ("s3://lab/study=other", r"study=\.\.\. or arm="),
        ("gs://lab/data", "pip install gcsfs"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_sentence(address: str, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence):
        Store(address)


def test_other_stores_that_fsspec_knows_work_alike(study: Study, folder: Store) -> None:
    """Its own in memory: without the note of a SHA-256, and with DuckDB reading through fsspec."""
    store = Store(f"memory://{uuid.uuid4().hex}/data")
    compute_everything(store, study)
    assert_same_results(store, folder, study)
    assert damaged_checkpoints(store, study) == ([], 3)
    with contextlib.closing(connect(store)) as ours, contextlib.closing(connect(folder)) as theirs:
        assert repr(ours.execute(SQL[2]).fetchall()) == repr(theirs.execute(SQL[2]).fetchall())


def test_a_folder_needs_nothing_of_all_this() -> None:
    code = (
        "import sys; from dd_core.store.store import Store; import dd_core.store.provenance, dd_core.tables.files; "
        "Store('data'); "
        "print([m for m in ('fsspec', 'upath', 's3fs', 'botocore', 'aiohttp', 'torch', 'duckdb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_address_makes_the_same_store_again(address: str) -> None:
    assert Store(Store(address).address) == Store(address) and Store(address).address == address
    assert Store(f"{address}/").address == address
    assert Store("data").address == "data" and Store(Path("data")).root == Path("data")


# As typed


def test_commands_work_as_typed_with_an_address_as_data_root(server: S3Server, address: str, tmp_path: Path) -> None:
    """Training, and curvature of all that is trained, with the bits of a folder."""
    lab = Lab(tmp_path)
    places = {**server.environment, "DD_ROOT": address, "DD_WORKERS": 1}
    trained = ("--select", "tiny/checkpoints", "--partition", "plain.k001|0008")
    lab.forked_dagster("asset", "materialize", *trained, **places).succeeded()
    lab.forked_dagster("asset", "materialize", "--select", "curvature", **places).succeeded()
    assert not lab.root.exists()
    bits = results(Store(address).root)
    wanted = [c for c in lab.study.iter_checkpoints() if c.arm.key == "plain.k001" and c.epoch <= 8]
    training = training_job(lab.root, lab.study, wanted, 1, 1)
    curvature = result_job("per_image_curvature", lab.root, {"tiny": lab.study}, [("tiny", c) for c in wanted], 1, 1)
    work(lab, training.model_copy(update={"tasks": training.tasks + curvature.tasks}))
    expected = results(lab.root)
    assert expected.items() <= bits.items() and len(expected) == 10
    assert bits.keys() - expected.keys() == {"tables/curvature/study=tiny/arm=plain.k001/summary.parquet"}


def test_a_figure_is_three_objects(remote: Store) -> None:
    chart = altair.Chart(altair.Data(values=[{"x": 1}])).mark_point().encode(x="x:Q")
    files = render(chart, remote.figure_folder("points"), "tiny")
    assert [path.name for path in sorted(remote.figure_folder("points").iterdir())] == sorted(
        path.name for path in files.values()
    )
    assert "image/svg+xml" in preview_markdown(files["svg"], "/lab/figures/points/tiny")
    assert Landing(remote, Catalogue({}, {})).newest("points") == "tiny", "and the pages find it"


def test_the_pages_show_what_is_in_a_bucket(remote: Store) -> None:
    landing, curves = Landing(remote, Catalogue({}, {})), LiveCurves(remote, {})
    assert landing.studies() == [] and curves.answer()["arms"] == []
    write_text(remote.figure_folder("gpu_hours") / "tiny.html", "")
    written = {"written_at": datetime.datetime.now(datetime.UTC).isoformat(), "until": 9, "status": "training"}
    row = {"study": "tiny", "arm": "a.k001", "variant": "a", "k": 1, "trial": 0, "recipe": "r", "epoch": 3, "step": 3}
    write_text(live_path(remote, "tiny", "a.k001"), line({**row, **written, "train_error": 0.5}) + "\n")
    (study,) = landing.studies()
    assert (study.name, study.figures, study.has_curves) == ("tiny", ["gpu_hours"], True)
    (arm,) = curves.answer()["arms"]
    assert (arm["epochs"], arm["train_error"], arm["state"]) == ([3], [0.5], "training")
