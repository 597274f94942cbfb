"""Which estimators run is the user's choice, in study file or run config; the Hessian in the weights beside them."""

import contextlib
import json
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest
from support import TINY, Lab, Result, stamps

from dd_core.store.store import sha256_of
from dd_core.tables.files import read_parquet
from dd_core.tables.warehouse import connect

from .conftest import CURVATURE, TRAIN, materializations, narrowed

STUDY = (
    TINY
    + """\
hessian: {num_images: 60, num_eigenvalues: 2, lanczos_steps: 8, lanczos_tolerance: 0.1, density_probes: 1,
  density_steps: 6, hutchinson_probes: 2, hutch_plus_plus_products: 6}
"""
)
LAST = "plain.k002|0024"
HESSIAN = ("asset", "materialize", "--select", "tiny/hessian", "--partition", LAST)
SPECTRA = ("asset", "materialize", "--select", "hessian_spectra,hessian_by_width")
DIFFERENCES = {"estimators": ["exact", "finite_difference"], "steps": [0.5], "epochs": [24]}


@dataclass
class Choices:
    """What each command printed, and what the disk and Dagster held."""

    lab: Lab
    results: dict[str, Result]
    exact_only: dict[str, list[Any]]
    with_differences: dict[str, list[Any]]
    hessian_files: dict[str, dict[str, tuple[int, int]]]
    events: dict[str, list[dg.AssetMaterialization]]


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Choices:
    lab = Lab(tmp_path_factory.mktemp("choices") / "lab", STUDY)
    path = lab.store.result_path("per_image_curvature", "tiny", lab.study.checkpoint(LAST))
    done: dict[str, Result] = {}
    hessian_files = {}
    done["train"] = lab.forked_dagster(*TRAIN)
    done["exact"] = lab.forked_dagster(*CURVATURE)
    exact_only = read_parquet(path).to_pydict()
    done["differences"] = lab.forked_dagster(*CURVATURE, *narrowed(**DIFFERENCES))
    with_differences = read_parquet(path).to_pydict()
    done["default_again"] = lab.forked_dagster(*CURVATURE)
    done["hessian"] = lab.forked_dagster(*HESSIAN)
    hessian_files["one"] = stamps(lab.root, "*/hessian_spectra/**/0024.*")
    done["spectra"] = lab.forked_dagster(*SPECTRA)
    hessian_files["all"] = stamps(lab.root, "tables/hessian_spectra/study=tiny/**/*.parquet")
    done["spectra_again"] = lab.forked_dagster(*SPECTRA)
    hessian_files["again"] = stamps(lab.root, "tables/hessian_spectra/study=tiny/**/*.parquet")
    keys = ("curvature", "tiny/per_image_curvature", "tiny/hessian", "hessian_spectra")
    with lab.instance() as instance:
        events = {key: materializations(instance, key)[0] for key in keys}
    return Choices(lab, done, exact_only, with_differences, hessian_files, events)


def test_every_command_succeeds_without_a_warning(choices: Choices) -> None:
    for name, result in choices.results.items():
        assert result.code == 0, f"{name}: {result.output}"
        assert "WARNING" not in result.output, f"{name}: {result.output}"


def test_run_config_adds_an_estimators_columns_and_keeps_the_others(choices: Choices) -> None:
    before, after = choices.exact_only, choices.with_differences
    new = ["fd_norm_h0p5", "fd_norm_h0p5_standard_error", "fd_directional_h0p5", "fd_directional_h0p5_standard_error"]
    assert sorted(set(after) - set(before)) == sorted(new)
    assert {name: after[name] for name in before} == before
    assert all(value > 0 for value in after["fd_norm_h0p5"])


def test_only_what_the_config_names_is_computed_and_no_default_run_undoes_it(choices: Choices) -> None:
    computed = [event.metadata["computed_now"].value for event in choices.events["curvature"]]
    assert computed == [8, 2, 0]
    path = choices.lab.store.result_path("per_image_curvature", "tiny", choices.lab.study.checkpoint(LAST))
    assert read_parquet(path).to_pydict() == choices.with_differences


def test_the_summary_has_the_auroc_of_each_step_where_it_was_computed(choices: Choices) -> None:
    with contextlib.closing(connect(choices.lab.store)) as connection:
        rows = connection.sql(
            "SELECT epoch, count(auroc_fd_norm_h0p5), count(auroc_trace) FROM curvature GROUP BY epoch ORDER BY epoch"
        ).fetchall()
    assert rows == [(0, 0, 12), (8, 0, 12), (16, 0, 12), (24, 12, 12)]  # arms, trials, subsets


def test_partitions_carry_speed_median_auroc_device_and_settings(choices: Choices) -> None:
    last = [event for event in choices.events["tiny/per_image_curvature"] if event.partition == LAST][-1]
    numbers = {
        name: float(str(last.metadata[name].value)) for name in ("images_per_second", "median_trace", "gpu_seconds")
    }
    assert numbers["images_per_second"] > 0
    assert numbers["median_trace"] > 0
    assert numbers["gpu_seconds"] == 0
    assert 0 <= float(str(last.metadata["auroc_trace"].value)) <= 1
    assert last.metadata["device"].value == "cpu"
    assert last.metadata["settings"].value.keys() == {"hessian", "finite_difference"}


def test_the_hessian_of_one_partition_is_one_file_with_its_manifest(choices: Choices) -> None:
    assert len(choices.hessian_files["one"]) == 2
    (event,) = [event for event in choices.events["tiny/hessian"] if event.partition == LAST]
    path = choices.lab.store.result_path("hessian_spectra", "tiny", choices.lab.study.checkpoint(LAST))
    assert event.metadata["dagster/uri"].value == str(path)
    assert event.tags is not None
    assert event.tags["dagster/data_version"] == sha256_of(path)
    assert float(str(event.metadata["largest_eigenvalue"].value)) > 0


def test_the_spectra_driver_takes_the_last_checkpoint_of_each_arm_once(choices: Choices) -> None:
    assert {event.partition for event in choices.events["tiny/hessian"]} == {"plain.k001|0024", LAST}
    assert len(choices.hessian_files["all"]) == 2
    assert choices.hessian_files["again"] == choices.hessian_files["all"]
    assert [event.metadata["computed_now"].value for event in choices.events["hessian_spectra"]] == [1, 0]


def test_a_row_of_spectra_is_consistent(choices: Choices) -> None:
    with contextlib.closing(connect(choices.lab.store)) as connection:
        rows = connection.sql(
            "SELECT k, trial, largest_eigenvalue, eigenvalues, trace, list_sum(layer_traces) AS layers, num_images, "
            "gradient_overlap FROM hessian_spectra ORDER BY k, trial"
        ).fetchall()
    assert [(k, trial) for k, trial, *_ in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for _, _, largest, eigenvalues, trace, layers, num_images, overlap in rows:
        assert largest == eigenvalues[0] == max(eigenvalues)
        assert trace == pytest.approx(layers)
        assert num_images == 60
        assert 0 <= overlap <= 1


REFUSED = {
    "unknown_estimator": ({"estimators": ["magic"]}, "run config: estimators.0: Input should be 'exact'"),
    "two_hessians": ({"estimators": ["exact", "double_backward"]}, "name exactly one of exact, top_directions and"),
    "no_hessian": ({"estimators": ["finite_difference"]}, "name exactly one of exact, top_directions and"),
    "unknown_precision": ({"precision": "int8"}, "run config: precision: Input should be 'float32'"),
    "negative_step": ({"steps": [-1.0]}, "run config: finite_difference.steps.0: Input should be greater than 0"),
    "error_of_one": ({"relative_error": 1.0}, "run config: relative_error: Input should be less than 1"),
    "mean_without_its_size": ({"normalisation": "mean"}, "normalisation mean needs mean_batch_size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_estimators_are_refused_in_a_sentence(name: str, choices: Choices) -> None:
    config, sentence = REFUSED[name]
    before = stamps(choices.lab.root, "tables/**/*.parquet")
    choices.lab.forked_dagster(*CURVATURE, *narrowed(**config)).refused(sentence)
    assert stamps(choices.lab.root, "tables/**/*.parquet") == before


def test_spectra_of_an_epoch_that_does_not_exist_are_refused(choices: Choices) -> None:
    config = json.dumps({"ops": {"hessian_spectra": {"config": {"epochs": [7]}}}})
    result = choices.lab.forked_dagster("asset", "materialize", "--select", "hessian_spectra", "--config-json", config)
    result.refused("no study asked for has a checkpoint at epoch 7")
