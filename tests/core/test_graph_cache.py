"""Problems kept between processes, whatever happens to the file; and problems that nothing may train on."""

import dataclasses
import functools
import multiprocessing
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dd_core.data.graphs import kept, load
from dd_core.data.graphs.check import check_problems
from dd_core.data.graphs.kept import fingerprint_of, keep_problems, kept_problems
from dd_core.data.graphs.load import load_problems, make_problems
from dd_core.data.graphs.problems import Problems
from dd_core.errors import UserError
from dd_core.study.graphs import Graphs

GROUNDED = Graphs(labels="grounded", num_test=0, num_features=4)
SETTINGS: dict[str, Any] = {
    **{"labels": "grounded", "features": "fixed", "num_features": 4},
    **{"domain": "causal", "seed": 1, "num_problems": 600},
}


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and nothing in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load._load.cache_clear()
    return tmp_path / "double-descent-lab" / "graphs"


def made() -> Problems:
    """A small set of problems."""
    return make_problems(**SETTINGS)


def test_problems_are_made_once(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_problems(GROUNDED, "causal", 1, 600)
    assert load_problems(GROUNDED, "causal", 1, 600) is first
    (file,) = cache_folder.iterdir()
    load._load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(load, "make_problems", None)
        again = load_problems(GROUNDED, "causal", 1, 600)
        assert again is not first and fingerprint_of(again) == fingerprint_of(first) == fingerprint_of(made())
    with zipfile.ZipFile(file) as archive:
        assert all(b"\x80\x04" not in archive.read(name)[:128] for name in archive.namelist())
    # Other settings, other code: other files.
    load_problems(GROUNDED, "causal", 2, 600)
    assert len(list(cache_folder.iterdir())) == 2
    monkeypatch.setattr(kept, "_code", lambda: "changed")
    assert kept_problems(SETTINGS) is None
    # What is made as fast as it is read is not kept.
    load_problems(GROUNDED, "causal", 1, 100)
    assert len(list(cache_folder.iterdir())) == 2


@settings(max_examples=25)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_file_is_as_good_as_none(
    place: float, flip: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        problems = make_problems("grounded", "fixed", 4, "causal", 1, 20)
        keep_problems({"some": 1}, problems)
        path = kept._path({"some": 1})
        assert path is not None
        content = bytearray(path.read_bytes())
        position = int(place * len(content))
        if cut:
            content = content[:position]
        else:
            content[position] ^= flip
        path.write_bytes(content)
        # A byte that nobody reads, such as a time in the archive, changes nothing.
        found = kept_problems({"some": 1})
        assert found is None or fingerprint_of(found) == fingerprint_of(problems)
        keep_problems({"some": 1}, problems)
        whole = kept_problems({"some": 1})
        assert whole is not None and fingerprint_of(whole) == fingerprint_of(problems)


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, ("pickle_was_run",))


def test_pickles_are_never_run(cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache_folder.mkdir(parents=True)
    path = kept._path(SETTINGS)
    assert path is not None
    for content in (pickle.dumps(_Bomb()), b"", b"PK"):
        path.write_bytes(content)
        load._load.cache_clear()
        assert fingerprint_of(load_problems(GROUNDED, "causal", 1, 600)) == fingerprint_of(made())
    np.savez(path, **{name: np.array([_Bomb()], object) for name in ("labels", "facts")})  # type: ignore[arg-type]
    assert kept_problems(SETTINGS) is None
    arrays = {name: np.zeros(1) for name in kept._ARRAYS}
    for facts in ("{}", "[]", '{"domain": 1, "shape": 2}'):  # JSON, but of something else
        np.savez(path, **arrays, facts=facts, fingerprint="0")  # type: ignore[arg-type]
        assert kept_problems(SETTINGS) is None
    assert not (tmp_path / "pickle_was_run").exists()


def test_a_place_that_cannot_be_written_is_no_mistake(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # not writable, also for root
    assert fingerprint_of(load_problems(GROUNDED, "causal", 1, 600)) == fingerprint_of(made())
    monkeypatch.setattr(kept, "cache_folder", lambda _: None)
    load._load.cache_clear()
    assert fingerprint_of(load_problems(GROUNDED, "causal", 1, 600)) == fingerprint_of(made())
    assert not cache_folder.exists()


def test_a_full_disk_is_not_made_fuller(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", functools.partialmethod(_fail))
    keep_problems({"some": 1}, made())
    assert cache_folder.is_dir() and not list(cache_folder.iterdir())


def _fail(*_: object) -> None:
    raise OSError("no space left on device")


def _write_often() -> None:
    problems = make_problems("grounded", "fixed", 4, "causal", 1, 50)
    for _ in range(40):
        keep_problems({"some": 1}, problems)


def test_who_writes_at_the_same_time_does_no_harm(cache_folder: Path) -> None:
    expected = fingerprint_of(make_problems("grounded", "fixed", 4, "causal", 1, 50))
    keep_problems({"some": 1}, make_problems("grounded", "fixed", 4, "causal", 1, 50))
    writers = [multiprocessing.get_context("fork").Process(target=_write_often) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = kept_problems({"some": 1})
        assert found is not None and fingerprint_of(found) == expected
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(list(cache_folder.iterdir())) == 1


# Problems that nothing may train on.


def changed(**arrays: Any) -> Problems:
    """Three graphs of two nodes and an edge, with something else."""
    usual = Problems(
        domain="causal",
        labels_kind="grounded",
        labels=np.array([0, 1, 1]),
        group=np.arange(3),
        first_node=np.array([0, 2, 4, 6]),
        first_edge=np.array([0, 1, 2, 3]),
        nodes=np.zeros(6, np.int64),
        edges=np.array([[0, 0, 0], [1, 1, 1]]),
        relations=np.array([0, 1, 2]),
        confidences=np.ones(3, np.float32),
        features=np.ones((1, 4), np.float32),
        best_probability=np.array([0.0, 1.0, 1.0]),
    )
    return dataclasses.replace(usual, **arrays)


def test_usual_problems_may_be_trained_on() -> None:
    check_problems(changed(), 3)
    check_problems(made(), 20)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"labels": np.array([1, 1, 1])}, "causal: all 3 graphs have the label 1"),
        ({"labels": np.array([0, 1, 2])}, "causal: labels must be 0 or 1"),
        (
            {"first_edge": np.array([0, 1, 1, 2]), "edges": np.array([[0, 0], [1, 1]]), "relations": np.array([0, 1])},
            "causal: graph 1 has no edges",
        ),
        ({"first_node": np.array([0, 2, 4, 5]), "nodes": np.zeros(5, np.int64)}, "causal: graph 2 has fewer than two"),
        ({"edges": np.array([[0, 0, 0], [1, 2, 1]])}, "causal: graph 1 has an edge to a node that it has not"),
        ({"relations": np.array([0, 5, 2])}, "causal: graph 1 has an edge of relation 5, but the network knows"),
        ({"relations": np.array([0, 1, -1])}, "causal: graph 2 has an edge of relation -1"),
        ({"confidences": np.array([1, np.nan, 1], np.float32)}, "causal: graph 1 has an edge whose confidence"),
        ({"confidences": np.array([0, 1, 1], np.float32)}, "causal: graph 0 has an edge whose confidence"),
        ({"features": np.array([[1, np.nan]], np.float32)}, "causal: features of the kind of node 0 are not finite"),
        ({"nodes": np.array([0, 0, 0, 7, 0, 0])}, "causal: graph 1 has a node of kind 7"),
    ],
)
def test_problems_that_nothing_may_train_on_are_refused(arrays: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        check_problems(changed(**arrays), 3)
    assert str(refused.value).count(". ") == 0


def test_too_few_published_plans_have_one_label() -> None:
    with pytest.raises(UserError, match="planning: all 50 graphs have the label 1"):
        load_problems(Graphs(labels="as_published", num_test=0), "planning", 0, 50)


def test_one_relation_too_few_is_told_with_what_to_do() -> None:
    """The network's number, which a study may set below what the domain has."""
    problems = made()
    check_problems(problems, int(problems.relations.max()) + 1)
    with pytest.raises(UserError, match=r"raise nsm\.num_relations"):
        check_problems(problems, int(problems.relations.max()))
