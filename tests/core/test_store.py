"""Files: atomic writes, manifests that notice every harm, and results of old recipes moved out of the way."""

import hashlib
import json
import math
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pytest
import torch

from dd_core.errors import StaleError, StoreError
from dd_core.store.checkpoints import save_tensors
from dd_core.store.manifests import Identity, Manifest
from dd_core.store.retirement import restore, retire
from dd_core.store.store import LockedError, Store, sha256_of, write_atomically, write_json, write_text
from dd_core.study.study import Study
from dd_core.tables.files import write_parquet
from dd_core.tables.images import write_images
from dd_core.tables.warehouse import refresh


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_writer_that_raises_leaves_the_old_content_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "result"
    write_text(path, "old")

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["result"]


def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "result"
    write_text(path, "old")
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        seen.append(path.read_text())
        assert temporary.parent.parent == tmp_path  # rename is atomic on one file system alone
        assert temporary.parent.name.startswith(".")

    write_atomically(path, write)
    assert (seen, path.read_text()) == (["old"], "new")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
@pytest.mark.parametrize("kind", ["text", "json", "parquet", "safetensors", "warehouse"])
def test_written_files_may_be_used_by_whom_the_umask_allows(
    kind: str, umask: int, mode: int, store: Store, tiny_study: Study
) -> None:
    """Also where a writer makes a file of its own for its owner's eyes alone, as safetensors does."""
    path = store.root / "result"
    write = {
        "text": lambda: write_text(path, "text"),
        "json": lambda: write_json(path, {}),
        "parquet": lambda: write_parquet(path, pa.table({"a": [1]})),
        "safetensors": lambda: save_tensors(path, {"a": torch.ones(1)}, {}),
        "warehouse": lambda: (write_images(store, tiny_study), refresh(store), store.warehouse_path.rename(path)),
    }[kind]
    before = os.umask(umask)
    try:
        write()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_a_writer_may_replace_the_temporary_file(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.unlink()
        temporary.write_text("another inode")

    write_atomically(tmp_path / "result", write)
    assert (tmp_path / "result").read_text() == "another inode"


def test_temporaries_of_killed_writers_are_removed_and_nothing_else(store: Store) -> None:
    """Folders, with what safetensors and DuckDB had put into them; what earlier versions left were files."""
    folder = store.arm_folder("tiny", "plain.k001")
    left = [".0002.json.abc.tmp/content", ".0002.json.abc.tmp/.tmpXy12Za", ".0004.json.abc.tmp/content"]
    left += [".0002.safetensors.abc.tmp", ".0002.parquet.abc.tmp.wal", ".tmpAb12Cd"]
    kept = ["0002.safetensors", ".hidden", "a.tmp"]
    for name in (*left, *kept):
        write_text(folder / name, "")
    store.clean_temporaries(folder, "0002.")
    assert names(folder) == sorted([*kept, ".0004.json.abc.tmp", ".tmpAb12Cd"])
    store.clean_temporaries(folder)
    assert names(folder) == sorted(kept)
    store.clean_temporaries(folder / "absent")


def test_what_a_writer_without_a_lock_left_long_ago_is_removed_by_the_next(tmp_path: Path) -> None:
    for name, age in (("old", 4000), ("new", 0)):
        write_text(tmp_path / f".result.{name}.tmp" / "content", "half")
        os.utime(tmp_path / f".result.{name}.tmp", (time.time() - age,) * 2)
    write_text(tmp_path / "result", "whole")
    assert names(tmp_path) == [".result.new.tmp", "result"]


def _check_again_and_again(root: Path, go: Any, failed: Any) -> None:
    """A pod like all others: their hosts and process ids have equal names."""
    socket.gethostname, os.getpid = lambda: "pod", lambda: 7
    go.wait()
    for _ in range(200):
        try:
            Store(root).check_writable()
        except BaseException as error:
            failed.put(repr(error))


def test_pods_that_are_alike_check_one_volume_at_the_same_time(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    go, failed = context.Barrier(3), context.SimpleQueue()
    pods = [context.Process(target=_check_again_and_again, args=(store.root, go, failed)) for _ in range(3)]
    for pod in pods:
        pod.start()
    for pod in pods:
        pod.join()
    assert failed.empty(), failed.get()
    assert names(store.root) == []


def test_a_sound_file_passes_its_manifest(store: Store) -> None:
    data, manifest = store.root / "a" / "data", store.root / "a" / "data.json"
    write_text(data, "abc")
    assert sha256_of(data) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    store.write_manifest(manifest, {"kind": "test"}, {"data": data})
    content = store.read_manifest(manifest)
    assert content is not None
    assert content.content == {"kind": "test"}
    assert store.verify(content.files["data"]) == data


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.write_text("ab"), "2 bytes where its manifest says 3"),
        (lambda path: path.write_text("abd"), "SHA-256 differs"),
        (lambda path: path.unlink(), "not on disk"),
    ],
    ids=["truncated", "altered", "deleted"],
)
def test_a_harmed_file_does_not_pass_its_manifest(harm: object, reason: str, store: Store) -> None:
    data, manifest = store.root / "data", store.root / "data.json"
    write_text(data, "abc")
    store.write_manifest(manifest, {}, {"data": data})
    harm(data)  # type: ignore[operator]
    content = store.read_manifest(manifest)
    assert content is not None
    with pytest.raises(StaleError, match=reason) as caught:
        store.verify(content.files["data"])
    assert str(data) in str(caught.value)


def test_a_manifest_still_fits_after_the_root_has_moved(store: Store, tmp_path: Path) -> None:
    write_text(store.root / "data", "abc")
    store.write_manifest(store.root / "data.json", {}, {"data": store.root / "data"})
    moved = Store(store.root.rename(tmp_path / "elsewhere"))
    manifest = moved.read_manifest(moved.root / "data.json")
    assert manifest is not None
    assert moved.verify(manifest.files["data"]) == moved.root / "data"


@pytest.mark.parametrize("place", ["other.json", "folder/m.json"])
def test_a_manifest_in_the_place_of_another_is_none(place: str, store: Store) -> None:
    write_text(store.root / "data", "abc")
    store.write_manifest(store.root / "m.json", {"epoch": 2}, {"data": store.root / "data"})
    write_text(store.root / place, (store.root / "m.json").read_text())
    assert store.read_manifest(store.root / place) is None


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(at=hypothesis.strategies.integers(0, 10**6), change=hypothesis.strategies.integers(1, 255))
def test_a_manifest_of_which_a_byte_differs_is_none_or_says_the_same(at: int, change: int, store: Store) -> None:
    path = store.root / "m.json"
    write_text(store.root / "data", "abc")
    store.write_manifest(path, {"recipe": "0a1b", "loss": 0.1, "none": None}, {"data": store.root / "data"})
    right = store.read_manifest(path)
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= change
    path.write_bytes(content)
    found = store.read_manifest(path)
    assert found is None or (right is not None and found.files == right.files)
    assert found is None or (right is not None and found.content.items() >= right.content.items())


@pytest.mark.parametrize("text", ["", '{"files": {"a', "[]", "{}", '{"files": []}', "\x00"])
def test_half_a_manifest_is_none(text: str, store: Store) -> None:
    write_text(store.root / "m.json", text)
    assert store.read_manifest(store.root / "m.json") is None


def test_an_absent_manifest_is_none_but_an_unreadable_one_is_told(store: Store) -> None:
    assert store.read_manifest(store.root / "absent.json") is None
    (store.root / "folder.json").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"cannot read .*folder\.json"):
        store.read_manifest(store.root / "folder.json")


def test_json_is_the_same_bytes_for_the_same_content(tmp_path: Path) -> None:
    write_json(tmp_path / "1", {"b": 1, "a": 2})
    write_json(tmp_path / "2", {"a": 2, "b": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def fill(store: Store, text: str) -> list[Path]:
    """A few results of one arm, and the files that are there afterwards."""
    for folder in [store.arm_folder("tiny", "plain.k001")] + [
        store.table_folder(table, "tiny", "plain.k001") for table in ("runs", "curvature")
    ]:
        write_text(folder / "0002", text)
    return sorted(path.relative_to(store.root) for path in store.root.rglob("0002"))


def test_retiring_an_arm_moves_all_of_it_and_nothing_of_others(store: Store) -> None:
    files = fill(store, "old")
    others = [
        store.arm_folder("tiny", "plain.k002") / "0002.json",
        store.table_folder("images", "tiny") / "plain.parquet",
        store.table_folder("runs", "tiny", "plain.k002") / "attempt-0001.parquet",
    ]
    for other in others:
        write_text(other, "")
    target = retire(store, "tiny", "plain.k001", "abc")
    assert target is not None
    assert sorted(path.relative_to(target) for path in target.rglob("0002")) == files
    assert all(other.exists() for other in others)
    assert not any(str(target) not in str(path) for path in store.root.rglob("0002"))


def test_retiring_the_same_recipe_again_keeps_both_results(store: Store) -> None:
    targets = []
    for text in ("first", "second", "third"):
        fill(store, text)
        targets.append(retire(store, "tiny", "plain.k001", "abc"))
    assert [target.name for target in targets if target] == ["abc", "abc.2", "abc.3"]
    contents = [{path.read_text() for path in target.rglob("0002")} for target in targets if target]
    assert contents == [{"first"}, {"second"}, {"third"}]


def of(recipe: str, data: str = "1") -> Identity:
    return Identity("tiny", "plain.k001", recipe, 2, data)


def retire_one(store: Store, identity: Identity, text: str) -> dict[str, str]:
    """Write and retire a checkpoint and a table of an arm; returns all files by path."""
    weights = store.arm_folder("tiny", "plain.k001") / "0002.safetensors"
    for path in (weights, store.table_folder("runs", "tiny", "plain.k001") / "a.parquet"):
        write_text(path, text)
    store.write_manifest(weights.with_suffix(".json"), asdict(identity), {"weights": weights})
    files = contents(store.root, "checkpoints", "tables")
    retire(store, "tiny", "plain.k001", identity.recipe)
    return files


def saying(identity: Identity) -> Callable[[Manifest], bool]:
    """Whether a manifest says that of itself."""
    return lambda manifest: not identity.differs_from(manifest)


def contents(root: Path, *folders: str) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text()
        for folder in folders
        for path in (root / folder).rglob("*")
        if path.is_file()
    }


def test_what_was_retired_is_put_back_where_its_recipe_and_data_are_right(store: Store) -> None:
    first = retire_one(store, of("abc"), "first")
    other = retire_one(store, of("abc", "2"), "other data")
    retire_one(store, of("def"), "other recipe")
    assert restore(store, "tiny", "plain.k001", saying(of("xyz"))) is None
    for identity, files in ((of("abc"), first), (of("abc", "2"), other)):
        assert restore(store, "tiny", "plain.k001", saying(identity)) is not None
        assert contents(store.root, "checkpoints", "tables") == files
        retire(store, "tiny", "plain.k001", "abc")


def test_what_was_retired_takes_the_place_of_no_checkpoint(store: Store) -> None:
    identity = of("abc")
    retire_one(store, identity, "first")
    weights = store.arm_folder("tiny", "plain.k001") / "0002.safetensors"
    write_text(weights, "second")
    store.write_manifest(weights.with_suffix(".json"), asdict(identity), {"weights": weights})
    assert restore(store, "tiny", "plain.k001", saying(identity)) is None
    weights.with_suffix(".json").unlink()
    assert restore(store, "tiny", "plain.k001", saying(identity)) is not None
    assert weights.read_text() == "first"
    assert "second" in {path.read_text() for path in store.root.glob("retired/**/*.safetensors")}, "nothing is deleted"


def test_a_restoration_that_was_interrupted_is_completed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    files = retire_one(store, of("abc"), "text")
    rename, calls = Path.rename, []

    def interrupted(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", interrupted)
        restore(store, "tiny", "plain.k001", saying(of("abc")))
    assert restore(store, "tiny", "plain.k001", saying(of("abc"))) is not None
    assert contents(store.root, "checkpoints", "tables") == files


def test_nothing_to_retire_is_said(store: Store) -> None:
    assert retire(store, "tiny", "plain.k001", "abc") is None


def test_checkpoints_are_moved_last_so_that_an_interrupted_retirement_is_noticed_and_repeated(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fill(store, "old")
    rename, calls = Path.rename, []

    def interrupted(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", interrupted)
        retire(store, "tiny", "plain.k001", "abc")
    assert (store.arm_folder("tiny", "plain.k001") / "0002").exists()
    target = retire(store, "tiny", "plain.k001", "abc")
    assert target is not None
    assert sorted(path.relative_to(target) for path in target.rglob("0002")) == files


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_as_root_or_above_it_is_one_sentence(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file.*DD_ROOT") as caught:
        Store(tmp_path / "file" / below).check_writable()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_root_without_permission_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=r"^cannot write .*Permission denied"):
        Store(tmp_path).check_writable()


@pytest.mark.parametrize("root", ["s3://bucket/data", "gs://bucket", "file:///elsewhere"])
def test_a_root_that_looks_remote_is_refused(root: str) -> None:
    with pytest.raises(StoreError, match="must be a folder"):
        Store(Path(root))


def test_a_root_given_as_text_is_the_folder_of_that_name(tmp_path: Path) -> None:
    assert Store(str(tmp_path)) == Store(tmp_path)
    assert Store(Store(tmp_path).address) == Store(tmp_path)


def test_a_lock_is_held_by_one_at_a_time_and_is_free_afterwards(store: Store) -> None:
    with store.lock("arm", "plain.k001"):
        with store.lock("arm", "plain.k002", timeout=0):
            pass
        with pytest.raises(LockedError, match="held by another process"), store.lock("arm", "plain.k001", timeout=0):
            pass
    with store.lock("arm", "plain.k001", timeout=0):
        pass


def test_a_lock_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("")
    with pytest.raises(StoreError, match=r"^cannot write .*thing\.lock"), Store(tmp_path).lock("thing"):
        pass


def test_checking_a_root_leaves_nothing_behind(store: Store) -> None:
    store.check_writable()
    assert names(store.root) == []


def test_epochs_sort_in_file_names_as_they_do_in_time(store: Store, tiny_study: Study) -> None:
    paths = [store.checkpoint_path("tiny", checkpoint) for checkpoint in tiny_study.iter_checkpoints()]
    assert [path.stem for path in paths[:3]] == ["0000", "0002", "0004"]
    assert len(set(paths)) == len(paths)


EARLIER = {
    "kind": "checkpoint", "study": "s", "arm": "a.k001", "recipe": "0a1b", "trials": 3, "data_sha256": "ff", "epoch": 4,
    "ended": {"1": {"status": "diverged", "epoch": 2, "step": 7, "reason": "loss"},
              "2": {"status": "stopped early", "epoch": 3, "step": 9, "reason": "stale"}},
    "headline": {"test_loss": math.nan, "test_error": 0.5}, "rows": {"training_evals": 4}, "device": "cpu",
    "written_at": "2026-01-01T00:00:00+00:00", "what a later version says": [1, {"x": None}],
}  # fmt: skip


def test_the_bytes_of_a_manifest_are_those_of_earlier_versions_and_it_is_understood(store: Store) -> None:
    """The form written out here by hand: keys in order, indented by one, sealed by a digest of place and content."""
    write_text(store.root / "w", "abc")
    file = {"path": "w", "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "bytes": 3}
    content = {**EARLIER, "files": {"weights": file}}
    digest = hashlib.sha256(json.dumps(["m.json", content], sort_keys=True).encode()).hexdigest()
    text = json.dumps({**content, "manifest": {"path": "m.json", "sha256": digest}}, indent=1, sort_keys=True)
    store.write_manifest(store.root / "m.json", EARLIER, {"weights": store.root / "w"})
    assert (store.root / "m.json").read_text() == text
    for written in (text, json.dumps(content)):  # the oldest have no seal
        write_text(store.root / "m.json", written)
        manifest = store.read_manifest(store.root / "m.json")
        assert manifest is not None and store.is_sound(manifest)
        assert (manifest.recipe, manifest.trials, manifest.epoch, manifest.device) == ("0a1b", 3, 4, "cpu")
        assert manifest.live_trials == [0, 2] and manifest.ended[2].step == 9
        assert (manifest.rows, manifest.headline["test_error"]) == ({"training_evals": 4}, 0.5)
        assert manifest.measured is None and manifest.settings == {} and manifest.checkpoint_sha256 == ""
        store.seal(store.root / "m.json", manifest)
        assert (store.root / "m.json").read_text() == text, "read and written again"
