"""Every kind of harm to results on disk is found, and sound results raise no alarm."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dd_core.checks.integrity import curvature_gaps, damaged_checkpoints, metric_gaps
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import read_parquet, write_parquet
from dd_core.tables.warehouse import connect

ARM = Arm("plain", 1)
Change = Callable[[pa.Table], pa.Table]


def problems(look: Any, store: Store, study: Study) -> list[str]:
    with contextlib.closing(connect(store)) as connection:
        found, _ = look(store, study, connection)
    return list(found)


def part(store: Store, table: str, epoch: int = 2) -> Path:
    return store.table_folder(table, "tiny", ARM.key) / f"{epoch:04d}.parquet"


def changed(column: str, value: float) -> Change:
    """Another value in the first row."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_numpy().copy()
        values[0] = value
        return table.set_column(table.column_names.index(column), table.schema.field(column), pa.array(values))

    return change


def rewrite(store: Store, path: Path, table: pa.Table) -> None:
    """As a wrong worker would: with a manifest that vouches for the file."""
    manifest = store.read_manifest(store.manifest_path(path))
    assert manifest is not None
    write_parquet(path, table)
    store.write_manifest(store.manifest_path(path), manifest.content, {"table": path})


def shortened(table: pa.Table) -> pa.Table:
    """As if a shard were missing."""
    return table.slice(0, 160)


@pytest.fixture
def curved(trained: Store, tiny_study: Study) -> Store:
    """Both arms trained, curvature of one arm at epochs 2 and 4."""
    for epoch in (2, 4):
        compute_curvature(tiny_study, Checkpoint(ARM, epoch), trained)
    return trained


def test_sound_results_raise_no_alarm(curved: Store, tiny_study: Study) -> None:
    assert damaged_checkpoints(curved, tiny_study) == ([], 6)
    with contextlib.closing(connect(curved)) as connection:
        assert metric_gaps(curved, tiny_study, connection) == ([], 4)
        assert curvature_gaps(curved, tiny_study, connection) == ([], 2)


def test_nothing_trained_is_no_problem(store: Store, tiny_study: Study) -> None:
    assert damaged_checkpoints(store, tiny_study) == ([], 0)
    assert problems(metric_gaps, store, tiny_study) == []
    assert problems(curvature_gaps, store, tiny_study) == []


@pytest.mark.parametrize("harm", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("what", ["weights", "training_batches", "training_evals", "image_progress"])
def test_a_harmed_file_of_a_checkpoint_is_found_and_named(
    what: str, harm: str, trained: Store, tiny_study: Study
) -> None:
    path = trained.checkpoint_path("tiny", Checkpoint(ARM, 2)) if what == "weights" else part(trained, what)
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-5] if harm == "truncated" else content[:-5] + b"\xff" + content[-4:])
    (problem,), checked = damaged_checkpoints(trained, tiny_study)
    assert checked == 6
    assert problem.startswith("plain.k001|0002: ")
    assert str(path) in problem


@pytest.mark.parametrize(
    "harm",
    [
        lambda table: table.slice(1),
        lambda table: pa.concat_tables([table, table.slice(0, 1)]),
        lambda table: pa.concat_tables([table.slice(1), table.slice(1, 1)]),
        changed("trace", np.nan),
        changed("trace", -1.0),
        changed("frobenius_norm", np.inf),
        changed("largest_eigenvalue", np.nan),
        changed("largest_eigenvalue", 1e9),
        shortened,
    ],
    ids=[
        *(
            "missing row",
            "doubled row",
            "image for another",
            "nan",
            "negative",
            "infinite",
            "eigenvalue nan",
            "> trace",
        ),
        "last rows lost",
    ],
)
def test_a_curvature_file_that_cannot_be_is_found(harm: Change, curved: Store, tiny_study: Study) -> None:
    path = part(curved, "per_image_curvature")
    rewrite(curved, path, harm(read_parquet(path)))
    (problem,) = problems(curvature_gaps, curved, tiny_study)
    assert problem.startswith("plain.k001|0002: ")


def test_negative_traces_are_possible_where_the_network_is_not_piecewise_linear(
    curved: Store, tiny_study: Study
) -> None:
    path = part(curved, "per_image_curvature")
    table = changed("trace", -1.0)(read_parquet(path))
    column = table.schema.field("method")
    methods = pa.array(["double_backward"] * len(table)).dictionary_encode()
    rewrite(curved, path, table.set_column(table.column_names.index("method"), column, methods))
    assert problems(curvature_gaps, curved, tiny_study) == []


def test_curvature_that_the_settings_no_longer_ask_for_is_no_problem(
    curved: Store, tiny_study: Study, make_study: Any
) -> None:
    more = make_study(curvature={"estimators": ("exact", "finite_difference"), "finite_difference": {"num_probes": 2}})
    assert problems(curvature_gaps, curved, more) == []
    compute_curvature(more, Checkpoint(ARM, 4), curved)
    assert problems(curvature_gaps, curved, tiny_study) == []


def test_missing_curvature_files_are_found_even_if_none_is_left(curved: Store, tiny_study: Study) -> None:
    for left, epoch in ((1, 2), (0, 4)):
        part(curved, "per_image_curvature", epoch).unlink()
        found = problems(curvature_gaps, curved, tiny_study)
        assert len(found) == 2 - left
        assert "0 rows" in found[0]
