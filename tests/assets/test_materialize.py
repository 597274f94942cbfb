"""The way of the data through the commands a user types: what is computed, recorded, checked, and not repeated."""

import contextlib
from pathlib import Path

import dagster as dg
import pytest
from support import Lab, attempts, results, stamps

from dd_core.store.store import sha256_of
from dd_core.tables.files import TABLES
from dd_core.tables.views import VIEWS
from dd_core.tables.warehouse import connect

from .conftest import Story, check_results

PARTITIONS = {f"plain.{k}|{epoch}" for k in ("k001", "k002") for epoch in ("0000", "0008", "0016", "0024")}


def test_every_command_of_the_way_succeeds(story: Story) -> None:
    for name, result in (story.first | story.again).items():
        assert result.code == 0, f"{name}: {result.output}"
        assert "WARNING" not in result.output, f"{name}: {result.output}"


@pytest.mark.parametrize("asset", ["checkpoints", "per_image_curvature"])
def test_each_partition_is_materialised_exactly_once(asset: str, story: Story) -> None:
    partitions = [event.partition for event in story.events[f"tiny/{asset}"]]
    assert sorted(filter(None, partitions)) == sorted(PARTITIONS)
    assert len(partitions) == len(PARTITIONS)
    assert story.lab.recorded(asset) == PARTITIONS


def test_checkpoints_carry_their_numbers_place_recipe_and_versions(story: Story) -> None:
    study = story.lab.study
    for event in story.events["tiny/checkpoints"]:
        assert event.partition is not None
        checkpoint = study.checkpoint(event.partition)
        weights = story.lab.store.checkpoint_path("tiny", checkpoint)
        assert event.metadata["dagster/uri"].value == str(weights)
        assert event.metadata["recipe"].value == study.recipe_hash(checkpoint.arm)
        assert 0 <= float(str(event.metadata["test_error"].value)) <= 1
        assert event.metadata["bytes"].value == weights.stat().st_size
        assert event.tags is not None
        assert event.tags["dagster/data_version"] == sha256_of(weights)
        assert event.tags["dagster/code_version"] == "1"


def test_curvature_carries_its_numbers_place_rows_and_versions(story: Story) -> None:
    for event in story.events["tiny/per_image_curvature"]:
        assert event.partition is not None
        path = story.lab.store.result_path("per_image_curvature", "tiny", story.lab.study.checkpoint(event.partition))
        assert event.metadata["dagster/uri"].value == str(path)
        assert event.metadata["dagster/row_count"].value == 200  # images x trials
        assert float(str(event.metadata["mean_trace"].value)) >= 0
        assert event.tags is not None
        assert event.tags["dagster/data_version"] == sha256_of(path)


def test_the_driver_computes_only_what_its_config_names(story: Story) -> None:
    assert story.narrow_partitions == {"plain.k001|0000", "plain.k001|0024"}


def test_the_driver_records_partitions_of_the_asset_it_drives(story: Story) -> None:
    driver = story.runs["curvature"]
    assert len(driver) == 2, "the narrowed run and the other one"
    assert story.runs["tiny/per_image_curvature"] == driver


def test_the_driver_reports_how_much_it_computed(story: Story) -> None:
    narrow, full = story.events["curvature"]
    assert [narrow.metadata[name].value for name in ("checkpoints", "computed_now")] == [2, 2]
    assert [full.metadata[name].value for name in ("checkpoints", "computed_now")] == [8, 6]
    assert full.metadata["dagster/row_count"].value == 8 * 2 * 3  # checkpoints, trials, subsets


def test_tables_report_their_rows(story: Story) -> None:
    (event,) = story.events["training_evals"]
    assert event.metadata["dagster/row_count"].value == 2 * 2 * 7  # arms, trials, evaluations


def test_a_figure_shows_itself_and_says_where_it_lies(story: Story) -> None:
    (event,) = story.events["training_curves"]
    assert str(event.metadata["tiny"].value).startswith(
        "[Open interactive](/lab/figures/training_curves/tiny.html)\n\n!["
    )
    assert Path(str(event.metadata["tiny_file"].value)).is_file()


def test_the_warehouse_has_every_table(story: Story) -> None:
    with contextlib.closing(connect(story.lab.store)) as connection:
        views = {row[0] for row in connection.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}
    assert views == {*TABLES, *(view.name for view in VIEWS)}, "with no rows where nothing was asked for"


@pytest.mark.parametrize("check", ["files_match_manifests", "metrics_complete_and_in_range"])
def test_checks_of_training_are_recorded_and_passed(check: str, story: Story) -> None:
    evaluations = story.checks[check]
    assert len(evaluations) == 2, "one for each time"
    assert_passed(evaluations)


def assert_passed(evaluations: list[dg.AssetCheckEvaluation]) -> None:
    for evaluation in evaluations:
        assert evaluation.passed, evaluation.description
        assert int(str(evaluation.metadata["checked"].value)) > 0


def test_running_everything_again_computes_nothing(story: Story) -> None:
    assert story.after_again == story.before_again
    # Weights, resume points, metrics, curvature, its summary, runs, images, and the empty file of each table.
    kinds = 8 + 2 + 2 * (3 + 4 + 4 + 3) + 8 + 2 + 4 + 1 + len(TABLES)
    assert len(story.before_again) == kinds


@pytest.fixture(scope="module")
def obstructed(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Where one arm's folder ought to be, there is a file."""
    lab = Lab(tmp_path_factory.mktemp("obstructed") / "lab")
    (lab.root / "checkpoints/tiny").mkdir(parents=True)
    (lab.root / "checkpoints/tiny/plain.k002").touch()
    return lab


def test_an_arm_that_fails_leaves_the_others_recorded_and_is_named(obstructed: Lab, story: Story) -> None:
    result = obstructed.materialize("tiny/checkpoints", "--partition-range", "plain.k001|0000...plain.k002|0024")
    result.refused("1 of 2 arms did not finish (tiny/plain.k002: cannot write")
    assert result.code == 1
    assert "4 of 8 checkpoints are there and recorded" in result.output
    assert obstructed.recorded("checkpoints") == {key for key in PARTITIONS if "k001" in key}
    assert attempts(obstructed.store, "plain.k001") == ["finished"]
    of_k001 = {p: d for p, d in results(story.lab.root).items() if "k001" in p and "curvature" not in p}
    assert {p: d for p, d in results(obstructed.root).items() if "k001" in p} == of_k001


def test_one_checkpoint_is_computed_and_checked_on_request(obstructed: Lab) -> None:
    arguments = ("asset", "materialize", "--select", "tiny/per_image_curvature", "--partition")
    refused = obstructed.forked_dagster(*arguments, "plain.k002|0024")
    refused.refused("checkpoint plain.k002|0024 of tiny has not been trained; run: dagster asset materialize")
    obstructed.forked_dagster(*arguments, "plain.k001|0024").succeeded()
    assert obstructed.recorded("per_image_curvature") == {"plain.k001|0024"}
    assert len(stamps(obstructed.root, "tables/per_image_curvature/study=tiny/**/*.parquet")) == 1
    with obstructed.instance() as instance:
        (evaluation,) = check_results(instance)["one_row_per_image"]
    assert_passed([evaluation])
