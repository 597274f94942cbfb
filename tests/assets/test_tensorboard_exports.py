"""The asset ``tensorboard_exports``: what TensorBoard itself reads of its files is what the tables say."""

import sys
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dd_assets.assets.tensorboard_exports import tensorboard_exports_asset
from dd_assets.laboratory import Laboratory
from dd_core.errors import UserError
from dd_core.exchange import tensorboard
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.tables.warehouse import connect

ARM = Arm("plain", 1)


def materialized(store: Store, study: Study) -> dict[str, Any]:
    result = dg.materialize(
        [tensorboard_exports_asset({study.name: study})],
        resources={"laboratory": Laboratory(root=str(store.root))},
        run_config={"ops": {"tensorboard_exports": {"config": {"arms": [ARM.key]}}}},
    )
    (event,) = result.asset_materializations_for_node("tensorboard_exports")
    return {name: value.value for name, value in event.metadata.items()}


def read(folder: Path) -> dict[str, tuple[list[int], list[float], list[float]]]:
    """Steps, values and times by tag."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    series = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    return {tag: tuple(map(list, zip(*((s.step, s.value, s.wall_time) for s in found), strict=True)))
            for tag, found in series.items()}  # fmt: skip


def test_tensorboard_reads_what_the_tables_say(trained: Store, tiny_study: Study) -> None:
    first = materialized(trained, tiny_study)
    assert first["files"] == first["files_written"] == 2 and first["dagster/uri"].endswith("exports/tensorboard")
    folder = trained.root / "exports" / "tensorboard" / "tiny" / ARM.key
    with connect(trained) as connection:
        for trial in (0, 1):
            of: dict[str, Any] = {}
            found = read(folder / f"trial-{trial:03d}")
            for prefix, table in (("batches", "training_batches"), ("evaluations", "training_evals")):
                rows = connection.execute(
                    f"FROM {table} WHERE arm = $arm AND trial = $trial ORDER BY step", {"arm": ARM.key, "trial": trial}
                ).df()
                floats = rows.select_dtypes("float64").dropna(axis=1).drop(columns="time", errors="ignore")
                of |= {f"{prefix}/{name}": (rows.step, floats[name]) for name in floats}
                if prefix == "batches":
                    assert found[f"{prefix}/{floats.columns[0]}"][2] == pytest.approx(list(rows.time))
            monitors = "FROM training_monitors WHERE arm = $arm AND trial = $trial ORDER BY step"
            rows = connection.execute(monitors, {"arm": ARM.key, "trial": trial}).df()
            of |= {f"monitors/{name}": (own.step, own.value) for name, own in rows.groupby("metric", observed=True)}
            assert set(of) == set(found) and len({tag.split("/")[0] for tag in of}) == 3
            for tag, (steps, values) in of.items():
                assert found[tag][0] == list(steps)
                np.testing.assert_array_equal(np.float32(found[tag][1]), np.float32(values))
    assert materialized(trained, tiny_study)["files_written"] == 0


def test_long_trainings_are_thinned(trained: Store, tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen steps, of which at most five shall be told; evaluations stay."""
    monkeypatch.setattr(tensorboard, "MOST_BATCHES", 5)
    assert tensorboard.export_events(trained, tiny_study, ARM) is not None
    found = read(trained.root / "exports" / "tensorboard" / "tiny" / ARM.key / "trial-001")
    by_kind = {tag.split("/")[0]: steps for tag, (steps, _, _) in found.items() if "monitors" not in tag}
    assert by_kind == {"batches": [4, 8, 12, 16], "evaluations": [0, 4, 8, 12, 16]}


def test_without_the_package_a_sentence_says_what_to_install(
    trained: Store, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(UserError, match=r"pip install 'double-descent-lab\[tensorboard\]'"):
        tensorboard.export_events(trained, tiny_study, ARM)
