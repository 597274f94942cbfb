"""One laboratory in which everything has been materialised, once and again, by the commands a user types."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from support import Lab, Result, stamps

ALL = ("--partition-range", "plain.k001|0000...plain.k002|0024")
TRAIN = ("asset", "materialize", "--select", "tiny/checkpoints", *ALL)
CURVATURE = ("asset", "materialize", "--select", "curvature")
TABLES = ("asset", "materialize", "--select", "images,runs,training_batches,training_evals,image_progress")
RESULTS = "[ct]*/**/*.[sp]a[fr][eq]*"  # weights and tables


def narrowed(**config: Any) -> tuple[str, str]:
    """Run config of the asset ``curvature``."""
    return ("--config-json", json.dumps({"ops": {"curvature": {"config": config}}}))


@dataclass
class Story:
    """What the commands printed, and what Dagster and the disk held after them."""

    lab: Lab
    first: dict[str, Result]
    again: dict[str, Result]
    narrow_partitions: set[str]
    events: dict[str, list[dg.AssetMaterialization]]
    runs: dict[str, set[str]]
    checks: dict[str, list[dg.AssetCheckEvaluation]]
    before_again: dict[str, tuple[int, int]]
    after_again: dict[str, tuple[int, int]]


def materializations(instance: dg.DagsterInstance, key: str) -> tuple[list[dg.AssetMaterialization], set[str]]:
    """All of an asset, oldest first, and the runs they came from."""
    records = instance.fetch_materializations(dg.AssetKey(key.split("/")), limit=1000, ascending=True).records
    events = [record.asset_materialization for record in records]
    return [event for event in events if event is not None], {record.run_id for record in records}


def check_results(instance: dg.DagsterInstance) -> dict[str, list[dg.AssetCheckEvaluation]]:
    """Evaluations of every asset check, by name."""
    wanted = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    found: dict[str, list[dg.AssetCheckEvaluation]] = {}
    for run in instance.get_runs():
        for log in instance.all_logs(run.run_id, of_type=wanted):
            evaluation = log.get_dagster_event().event_specific_data
            found.setdefault(evaluation.check_name, []).append(evaluation)
    return found


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Nothing is there but a study file."""
    return Lab(tmp_path / "lab")


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    lab = Lab(tmp_path_factory.mktemp("story") / "lab")
    first = {"train": lab.dagster(*TRAIN)}
    first["narrow"] = lab.forked_dagster(*CURVATURE, *narrowed(arms=["plain.k001"], epochs=[0, 24]))
    narrow_partitions = lab.recorded("per_image_curvature")
    first["curvature"] = lab.forked_dagster(*CURVATURE)
    first["tables"] = lab.forked_dagster(*TABLES)
    first["figure"] = lab.forked_dagster("asset", "materialize", "--select", "training_curves")
    keys = ("tiny/checkpoints", "tiny/per_image_curvature", "curvature", "training_evals", "training_curves")
    with lab.instance() as instance:
        found = {key: materializations(instance, key) for key in keys}
    before = stamps(lab.root, RESULTS)
    again = {"train": lab.forked_dagster(*TRAIN), "curvature": lab.forked_dagster(*CURVATURE)}
    with lab.instance() as instance:
        checks = check_results(instance)
    return Story(
        lab=lab,
        first=first,
        again=again,
        narrow_partitions=narrow_partitions,
        events={key: events for key, (events, _) in found.items()},
        runs={key: runs for key, (_, runs) in found.items()},
        checks=checks,
        before_again=before,
        after_again=stamps(lab.root, RESULTS),
    )
