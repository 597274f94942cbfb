"""What of the curvature settings decides results, and the ranges that a checkpoint is divided into."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dd_core.study.curvature import CurvatureSettings, covers, shards


def families(epoch: int = 0, **settings: Any) -> dict[str, dict[str, Any]]:
    return CurvatureSettings.model_validate(settings).families(epoch)


BOTH = ("exact", "finite_difference")


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({}, {"estimators": ("exact",), "precision": "float32"}),
        ({}, {"relative_error": 0.5, "num_probes": 7}),  # of other estimators
        ({}, {"finite_difference": {"steps": (9.0,)}}),  # not asked for
        ({"estimators": BOTH}, {"estimators": ("finite_difference", "exact")}),
        ({"estimators": ("top_directions",)}, {"estimators": ("top_directions",), "num_probes": 1}),
        ({"estimators": ("double_backward",)}, {"estimators": ("double_backward",), "num_probes": 10}),
        ({"estimators": BOTH}, {"estimators": BOTH, "finite_difference": {"epochs": (0, 4)}}),
    ],
    ids=str,
)
def test_what_changes_no_value_changes_no_family(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert families(**one) == families(**two)
    assert covers(families(**one), families(**two))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({}, {"precision": "bfloat16"}),
        ({}, {"estimators": ("top_directions",)}),
        ({"estimators": ("top_directions",)}, {"estimators": ("top_directions",), "relative_error": 0.02}),
        ({"estimators": ("top_directions",)}, {"estimators": ("top_directions",), "num_probes": 2}),
        ({"estimators": ("double_backward",)}, {"estimators": ("double_backward",), "num_probes": 3}),
        *(
            ({"estimators": BOTH}, {"estimators": BOTH, "finite_difference": change})
            for change in (
                {"steps": (1.0,)},
                {"num_probes": 2},
                {"normalisation": "sum"},
                {"normalisation": "mean", "mean_batch_size": 8},
            )
        ),
    ],
    ids=str,
)
def test_what_changes_values_changes_the_family(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert families(**one) != families(**two)
    assert not covers(families(**one), families(**two))


def test_a_file_covers_what_it_has_and_no_more() -> None:
    plain, both = families(), families(estimators=BOTH)
    assert covers(both, plain)
    assert not covers(plain, both)
    assert covers(plain, {})
    assert families(2, estimators=BOTH, finite_difference={"epochs": (4,)}) == plain
    assert families(4, estimators=BOTH, finite_difference={"epochs": (4,)}) == both


def test_earlier_top_directions_are_stale_and_all_other_results_stay_current() -> None:
    top = {"estimator": "top_directions", "precision": "float32", "relative_error": 0.01, "num_probes": 1}
    difference = {"steps": [1.0], "num_probes": 10, "normalisation": "per_step", "mean_batch_size": None}
    both = ("top_directions", "finite_difference")
    wanted = families(estimators=both, finite_difference={"steps": (1.0,)})
    assert not covers({"hessian": top}, wanted)
    assert wanted["finite_difference"] == difference
    assert families() == {"hessian": {"estimator": "exact", "precision": "float32"}}
    double = {"estimator": "double_backward", "precision": "float32", "num_probes": 10}
    assert families(estimators=("double_backward",)) == {"hessian": double}


@given(
    trials=st.integers(1, 5),
    images=st.integers(2, 300),
    multiple=st.integers(1, 70),
    target=st.integers(1, 400),
)
def test_ranges_cover_every_row_once_and_cut_no_trial_or_batch(
    trials: int, images: int, multiple: int, target: int
) -> None:
    ranges = shards(trials, images, multiple, target)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(trials * images))
    assert all(start < stop for start, stop in ranges)
    if trials * images <= target:
        assert len(ranges) == 1
        return
    for start, stop in ranges:
        assert start // images == (stop - 1) // images
        assert (start % images) % multiple == 0
        assert stop - start <= max(target, multiple)


def test_cifar_is_divided_and_digits_are_not() -> None:
    assert shards(5, 1000) == [(0, 5000)]
    ranges = shards(1, 50_000)
    assert len(ranges) == 64
    assert {stop - start for start, stop in ranges} == {781, 782}
    assert all(start % 128 == 0 for start, _ in shards(1, 50_000, 128))


def test_8_to_64_gpus_have_equally_much_to_do_within_a_twentieth() -> None:
    for num_images in (45_000, 50_000):
        sizes = [stop - start for start, stop in shards(1, num_images)]
        for num_gpus in (8, 16, 32, 64):
            loads = [sum(sizes[gpu::num_gpus]) for gpu in range(num_gpus)]
            assert max(loads) <= num_images / num_gpus / 0.95
