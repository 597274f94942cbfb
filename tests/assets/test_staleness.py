"""What is stale, by asset and partition, as the UI learns it from the webserver, after everything that changes it."""

import json
from collections.abc import Iterator

import dagster as dg
import pytest
from support import Lab, stamps

from .served import Server, served

STUDY = """\
description: two variants, of which one changes
data: {dataset: digits, num_train: 100}
variants:
  plain: &plain
    architecture: preact_resnet10
    batch_size: 50
    optimizer: {name: adam, learning_rate: 2.0e-3}
  other:
    <<: *plain
    optimizer: {name: adam, learning_rate: RATE}
widths: [1]
trials: 1
epochs: 2
checkpoints: [0, 2]
curvature: CURVATURE
loss_slopes: {num_points: POINTS}
hessian: {quantities: [gradient], num_images: 50}
"""
PLAIN, OTHER = ("plain.k001|0000", "plain.k001|0002"), ("other.k001|0000", "other.k001|0002")
ALL = (*PLAIN, *OTHER)
LOSS_SLOPES = ("loss_slopes", "loss_slope_fits")
TABLES = ("images", "runs", "training_batches", "training_evals", "image_progress", *LOSS_SLOPES)
FIGURES = ("training_curves", "most_curved_images", "gpu_hours")
PARTITIONED = ("tiny/checkpoints", "tiny/per_image_curvature")
STOCKS = ("trained_checkpoints", "computed_curvature", "computed_hessians")
UNPARTITIONED = ("curvature", "hessian_spectra", "metric_exports", *TABLES, *FIGURES)


def write(lab: Lab, rate: str = "1.0e-3", curvature: str = "{estimators: [exact]}", points: int = 200) -> None:
    text = STUDY.replace("RATE", rate).replace("CURVATURE", curvature)
    lab.write_study("tiny", text.replace("POINTS", str(points)))


def rewrite(
    lab: Lab, server: Server, rate: str = "1.0e-3", curvature: str = "{estimators: [exact]}", points: int = 200
) -> None:
    """Write the study file anew, and let the webserver read it: it need not be told of anything else."""
    write(lab, rate, curvature, points)
    server.reload()


def materialize(lab: Lab, select: str, *arguments: str) -> None:
    lab.forked_dagster("asset", "materialize", "--select", select, *arguments).succeeded()


def train(lab: Lab, first: str = ALL[0], last: str = ALL[-1]) -> None:
    materialize(lab, "tiny/checkpoints", "--partition-range", f"{first}...{last}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Everything of a small study is computed, as the quickstart does it, and the Hessians too."""
    lab = Lab(tmp_path_factory.mktemp("staleness") / "lab")
    write(lab)
    train(lab)
    materialize(lab, ",".join(("curvature", "hessian_spectra", "metric_exports", *TABLES, *FIGURES)))
    return lab


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Server]:
    with served(lab) as server:
        yield server


def check(server: Server, stale: dict[str, tuple[str, ...]], missing: dict[str, tuple[str, ...]] | None = None) -> None:
    """Exactly these partitions are stale or missing; what is left is fresh, and what never ran is missing."""
    found = server.statuses()
    missing = {"tiny/hessian": (PLAIN[0], OTHER[0]), **(missing or {})}
    for key, partitions in found.items():
        ran = key in (*PARTITIONED, *STOCKS, *UNPARTITIONED, "tiny/hessian")
        for partition, (status, reasons) in partitions.items():
            expected = "FRESH" if ran else "MISSING"
            expected = "STALE" if partition in stale.get(key, ()) else expected
            expected = "MISSING" if partition in missing.get(key, ()) else expected
            assert status == expected, (key, partition, status, reasons)


def test_nothing_is_stale_after_everything_was_computed_and_after_each_change_just_what_it_concerns(
    lab: Lab, server: Server
) -> None:
    check(server, {})

    train(lab)
    materialize(lab, "tiny/per_image_curvature", "--partition", PLAIN[0])
    materialize(lab, ",".join(TABLES))
    check(server, {})

    # The learning rate of one variant.
    rewrite(lab, server, rate="1.1e-3")
    outdated = {"tiny/checkpoints": OTHER, "tiny/per_image_curvature": OTHER, "tiny/hessian": OTHER[1:]}
    check(server, outdated)
    rewrite(lab, server)
    check(server, {})
    rewrite(lab, server, rate="1.1e-3")

    # The first checkpoint has the same weights whatever the rate; what was computed from it is moved away all the same.
    train(lab, *OTHER)
    downstream = {"tiny/per_image_curvature": OTHER, "tiny/hessian": OTHER[1:]}
    everything = dict.fromkeys((*UNPARTITIONED, *downstream), ("",)) | downstream
    # Of figures and exports Dagster compares with the tables, which are as they were when they were last looked at.
    check(server, {key: everything[key] for key in everything if key not in (*FIGURES[::2], "metric_exports")})

    materialize(lab, "tiny/per_image_curvature", "--partition", OTHER[1])
    left = {**everything, "tiny/per_image_curvature": OTHER[:1]}
    check(server, {key: left[key] for key in left if key not in (*FIGURES[::2], "metric_exports")})

    materialize(lab, "curvature")
    tables = {key: ("",) for key in (*TABLES, "hessian_spectra", FIGURES[1])}
    check(server, {**tables, "tiny/hessian": OTHER[1:]})

    materialize(lab, ",".join(("hessian_spectra", *TABLES)))
    check(server, dict.fromkeys((*FIGURES, "metric_exports"), ("",)))
    materialize(lab, ",".join(("metric_exports", *FIGURES)))
    check(server, {})


def test_settings_concern_only_the_epochs_that_they_name(lab: Lab, server: Server) -> None:
    rate = "1.1e-3"
    rewrite(lab, server, rate, "{estimators: [exact, finite_difference], finite_difference: {epochs: [2]}}")
    check(server, {"tiny/per_image_curvature": (PLAIN[1], OTHER[1])})
    materialize(lab, "curvature")
    check(server, {"most_curved_images": ("",)})
    materialize(lab, "most_curved_images")

    rewrite(lab, server, rate, "{estimators: [exact, finite_difference], finite_difference: {epochs: [2]}}", 100)
    check(server, dict.fromkeys(LOSS_SLOPES, ("",)))

    # What is there has more than is wanted now, so nothing is computed, and Dagster is told so.
    rewrite(lab, server, rate)
    check(server, {"tiny/per_image_curvature": (PLAIN[1], OTHER[1])})
    materialize(lab, "curvature")
    check(server, {})


def test_other_estimators_by_run_config_leave_a_partition_stale_until_the_studys_are_back(
    lab: Lab, server: Server
) -> None:
    other = {"ops": {"tiny__per_image_curvature": {"config": {"estimators": ["double_backward"]}}}}
    one = ("tiny/per_image_curvature", "--partition", PLAIN[0])
    materialize(lab, *one, "--config-json", json.dumps(other))
    check(server, {"tiny/per_image_curvature": PLAIN[:1], "curvature": ("",), "most_curved_images": ("",)})
    materialize(lab, *one)
    materialize(lab, "curvature,most_curved_images")
    check(server, {})


def test_drivers_say_that_a_recipe_has_changed_and_what_to_run(lab: Lab, server: Server) -> None:
    before = (lab.studies / "tiny.yaml").read_text(encoding="utf-8")
    write(lab, "1.9e-3")
    sentence = (
        "the recipe in the study file has changed since tiny/other.k001 was trained (2 checkpoints), so these are left "
        "out; train them again: dagster asset materialize --select 'tiny/checkpoints' --partition-range "
        "'other.k001|0000...other.k001|0002'"
    )
    for driver in ("curvature", "hessian_spectra"):
        command = ("asset", "materialize", "--select", driver)
        only = {"ops": {driver: {"config": {"arms": ["other.k001"]}}}}
        lab.forked_dagster(*command, "--config-json", json.dumps(only)).refused(sentence)
        assert sentence in lab.forked_dagster(*command).succeeded().output
    lab.write_study("tiny", before)
    # The summary was made without the arm that was left out.
    check(server, dict.fromkeys(("curvature", "most_curved_images"), ("",)))
    materialize(lab, "curvature,most_curved_images")
    check(server, {})


def test_lost_events_are_recorded_again(lab: Lab, server: Server) -> None:
    """Files are the truth: what Dagster has forgotten it is told again, without computing anything."""
    keys = [["tiny", "checkpoints"], ["tiny", "per_image_curvature"]]
    before = stamps(lab.root, "tables/per_image_curvature/**/*.parquet")
    with lab.instance() as instance:
        instance.wipe_assets([dg.AssetKey(key) for key in keys])
    server.reload()
    check(server, {}, missing=dict.fromkeys(PARTITIONED, ALL))
    materialize(lab, "curvature")
    check(server, {"tiny/hessian": (PLAIN[1], OTHER[1])})
    materialize(lab, "hessian_spectra")
    check(server, {})
    assert stamps(lab.root, "tables/per_image_curvature/**/*.parquet") == before
