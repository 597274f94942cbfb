"""The figures of the Hessian in the weights: their numbers are those of the files, estimates say that they are."""

import csv
import io
import json

import numpy as np
import pytest

from dd_core.errors import DataMissingError
from dd_core.figures import FIGURES
from dd_core.figures.charts import hessian_spectrum
from dd_core.figures.drawing import landmarks
from dd_core.tables.files import read_parquet

BY_NAME = {figure.name: figure for figure in FIGURES}
EPOCHS = (0, 1, 2, 4)
LARGEST, TRACE = "largest eigenvalue", "trace"


def draw(name, study, store, open_views):
    chart = BY_NAME[name].draw(study, store, open_views())
    assert chart is not None
    return chart.to_dict()


def rows(specification, key: str) -> list[dict]:
    return [row for part in specification["datasets"].values() if isinstance(part, list) for row in part if key in row]


def spectrum_of(store, study, k: int, trial: int, epoch: int = 4) -> dict:
    """A row of the files."""
    path = store.table_folder("hessian_spectra", study.name, f"plain.k{k:03d}") / f"{epoch:04d}.parquet"
    return next(row for row in read_parquet(path).to_pylist() if row["trial"] == trial)


def subtitle(specification) -> str:
    return " ".join(specification["title"]["subtitle"])


@pytest.fixture
def written(study, write_evals, write_hessian):
    write_evals(study)
    write_hessian(study)
    return study


def test_trials_and_means_by_width_are_those_of_the_files(written, store, open_views):
    drawn = rows(draw("hessian_by_width", written, store, open_views), "quantity")
    for k in (1, 2, 4, 8):
        spectra = [spectrum_of(store, written, k, trial) for trial in range(2)]
        for quantity, column in ((LARGEST, "largest_eigenvalue"), (TRACE, "trace")):
            own = [row for row in drawn if row["k"] == k and row["quantity"] == quantity]
            trials = {row["trial"]: row["value"] for row in own if "trial" in row}
            assert trials == pytest.approx({t: s[column] for t, s in enumerate(spectra)}, rel=1e-5)
            means = [row["value"] for row in own if "trial" not in row]
            assert means == pytest.approx([np.mean([s[column] for s in spectra])], rel=1e-5)


def test_gradient_overlap_is_in_percent(written, store, open_views):
    drawn = rows(draw("hessian_by_width", written, store, open_views), "share")
    assert sorted({round(row["share"], 3) for row in drawn}) == [20, 25, 30]  # trials 0 and 1, and their mean


def test_title_names_the_peak(written, store, open_views):
    title = " ".join(draw("hessian_by_width", written, store, open_views)["title"]["text"])
    fold = (
        spectrum_of(store, written, 4, 0)["largest_eigenvalue"]
        / spectrum_of(store, written, 8, 0)["largest_eigenvalue"]
    )
    assert title == (
        "The largest eigenvalue of the Hessian in the weights peaks at k = 4, as test error does, and falls "
        f"{fold:.2g}-fold to k = 8"
    )


@pytest.mark.parametrize(
    ("without", "column", "name"),
    [
        (("trace",), "trace_hutch_plus_plus", "Hutch++"),
        (("trace", "trace_hutch_plus_plus"), "trace_hutchinson", "Hutchinson"),
    ],
)
@pytest.mark.parametrize("figure", ["hessian_by_width", "hessian_over_training"])
def test_an_estimate_stands_in_for_the_exact_trace_with_its_error(
    figure, without, column, name, study, store, write_evals, write_hessian, open_views
):
    write_evals(study)
    write_hessian(study, without=without)
    specification = draw(figure, study, store, open_views)
    assert f"Trace: {name}; bar: one standard error" in subtitle(specification)
    shown = [row for row in rows(specification, "quantity") if row["quantity"] == TRACE and "trial" in row]
    spectrum = spectrum_of(store, study, 8, 1)
    row = next(row for row in shown if (row["k"], row["trial"], row["epoch"]) == (8, 1, EPOCHS[-1]))
    assert row["value"] == pytest.approx(spectrum[column], rel=1e-5)
    assert row["high"] - row["value"] == pytest.approx(spectrum[f"{column}_standard_error"], rel=1e-4)
    assert row["value"] - row["low"] == pytest.approx(spectrum[f"{column}_standard_error"], rel=1e-4)


def test_only_estimates_have_bars(study, store, write_evals, write_hessian, open_views):
    write_evals(study)
    for without, has_bars in (((), False), (("trace",), True)):
        write_hessian(study, without=without)
        specification = draw("hessian_by_width", study, store, open_views)
        assert ('"field": "low"' in json.dumps(specification["vconcat"][1])) == has_bars
        assert ("standard error" in subtitle(specification)) == has_bars


def test_over_training_shows_three_widths_at_every_epoch(written, store, open_views):
    drawn = rows(draw("hessian_over_training", written, store, open_views), "quantity")
    trials = {(r["k"], r["epoch"], r["trial"], r["quantity"]): r["value"] for r in drawn if "trial" in r}
    expected = {
        (k, epoch, trial, quantity): spectrum_of(store, written, k, trial, epoch)[column]
        for k in (1, 4, 8)
        for epoch in EPOCHS
        for trial in range(2)
        for quantity, column in ((LARGEST, "largest_eigenvalue"), (TRACE, "trace"))
    }
    assert trials == pytest.approx(expected, rel=1e-5)


def test_one_epoch_is_no_training(study, store, write_evals, write_hessian, open_views):
    write_evals(study)
    write_hessian(study, epochs=(4,))
    with pytest.raises(DataMissingError, match=r"at epoch 4 alone.* name several epochs under hessian:"):
        BY_NAME["hessian_over_training"].draw(study, store, open_views())
    asking = study.model_copy(update={"hessian": study.hessian.model_copy(update={"epochs": (2, 4)})})
    with pytest.raises(DataMissingError, match="no arm has two yet"):
        BY_NAME["hessian_over_training"].draw(asking, store, open_views())
    assert BY_NAME["hessian_by_width"].draw(study, store, open_views()) is not None


def test_over_training_shows_arms_with_several_epochs(study, store, write_evals, write_hessian, open_views):
    write_evals(study)
    write_hessian(study, epochs=(4,))
    write_hessian(study, widths=(1, 2, 8))
    specification = draw("hessian_over_training", study, store, open_views)
    assert {row["k"] for row in rows(specification, "quantity")} == {1, 2, 8}
    assert "k = 2, near the threshold" in json.dumps(specification)


def test_spectrum_shows_trial_0_of_three_widths(written, store, open_views):
    specification = draw("hessian_spectrum", written, store, open_views)
    drawn = []
    for panel, k in zip(specification["vconcat"], (1, 4, 8), strict=True):
        spectrum = spectrum_of(store, written, k, 0)
        text = json.dumps(panel)
        assert f"k = {k}, " in text and f"{100 * k:,} weights" in text
        content = specification["datasets"][panel["layer"][0]["data"]["name"]]
        points = np.array([[float(v) for v in row.values()] for row in csv.DictReader(io.StringIO(content))])
        x, y, floor = points.T
        assert x == pytest.approx(spectrum["density_eigenvalues"], rel=1e-4)
        assert y == pytest.approx(np.maximum(spectrum["density"], floor), rel=1e-4)
        ticks = next(layer for layer in panel["layer"] if layer["mark"].get("strokeWidth") == 1.8)
        marks = specification["datasets"][ticks["data"]["name"]]
        assert [m["eigenvalue"] for m in marks] == pytest.approx([*spectrum["eigenvalues"], -0.5], rel=1e-5)
        drawn.append(spectrum["largest_eigenvalue"])
    assert " ".join(specification["title"]["text"]).endswith(
        f"is {drawn[0]:.3g} at k = 1, {drawn[1]:.3g} at k = 4 and {drawn[2]:.3g} at k = 8"
    )


def test_a_single_eigenvalue_stands_above_the_floor_of_the_density():
    """At most smoothed to a hundredth of the range, as by default, it keeps a decade above the axis's beginning."""
    grid = np.linspace(-1.0, 99.0, 512)
    sigma, num_parameters = 0.01 * 90, 11_000_000
    single = np.exp(-(((grid - 80) / sigma) ** 2) / 2) / (num_parameters * sigma * np.sqrt(2 * np.pi))
    row = {"density_eigenvalues": grid.tolist(), "density": single.tolist(), "num_parameters": num_parameters}
    points, floor = hessian_spectrum.density_above_floor(row)
    assert max(point["density"] for point in points) > 10 * floor
    assert min(point["density"] for point in points) == floor


@pytest.mark.parametrize(
    ("without", "missing"),
    [
        (("density", "density_eigenvalues"), {"hessian_spectrum"}),
        (("largest_eigenvalue", "smallest_eigenvalue", "eigenvalues", "gradient_overlap"), set()),
        (
            ("largest_eigenvalue", "trace", "trace_hutchinson", "trace_hutch_plus_plus"),
            {"hessian_by_width", "hessian_over_training"},
        ),
    ],
)
def test_quantities_that_were_not_asked_for_are_left_out(
    without, missing, study, store, write_evals, write_hessian, open_views
):
    write_evals(study)
    write_hessian(study, without=without)
    figures = [figure for figure in FIGURES if figure.name.startswith("hessian")]
    assert {figure.name for figure in figures if figure.draw(study, store, open_views()) is None} == missing


def test_the_subtitle_says_of_which_images_and_what_is_left_out(study, store, write_evals, write_hessian, open_views):
    write_evals(study)
    write_hessian(study, widths=(1, 4))
    text = subtitle(draw("hessian_by_width", study, store, open_views))
    assert "Hessian of the mean cross-entropy of 50 training images in all weights" in text
    assert "Left out: k = 2, 8 (no results yet)" in text


def test_the_threshold_is_that_of_all_widths(study, store, write_evals, write_hessian, open_views):
    """Also where the Hessian was analysed at a few only, of which it may be none."""
    write_evals(study)
    write_hessian(study, widths=(1, 2, 8))
    assert "interpolation threshold: k = 4" in json.dumps(draw("hessian_by_width", study, store, open_views))


def test_shown_widths():
    assert landmarks.shown_widths([1, 2, 4, 8], 4) == {1: "narrowest", 4: "threshold", 8: "widest"}
    assert landmarks.shown_widths([1, 2, 4, 8], 1) == {1: "threshold", 8: "widest"}
    assert landmarks.shown_widths([1, 2, 4, 8], 3) == {1: "narrowest", 4: "near the threshold", 8: "widest"}
    assert landmarks.shown_widths([1, 64], 10) == {1: "narrowest", 64: "widest"}
    assert landmarks.shown_widths([1, 2, 4], None) == {1: "narrowest", 4: "widest"}
    assert landmarks.shown_widths([5], 5) == {5: "threshold"}
    assert landmarks.shown_widths([5], None) == {5: "the only width"}
