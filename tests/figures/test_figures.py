"""What the figures promise: present recipes only, an honest threshold, the published curve, files that work offline."""

import json
import re
import struct
import subprocess
import sys
import zlib
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pytest
import vl_convert
from specifications import assert_legible

from dd_core.figures import FIGURES
from dd_core.figures.charts import double_descent_curve, epoch_by_width, most_curved_images, training_curves
from dd_core.figures.drawing import landmarks, pixels, style
from dd_core.figures.drawing.preview import PREVIEW_BYTES, preview_markdown
from dd_core.figures.drawing.render import render
from dd_core.figures.drawing.selection import fetch, name_arms, select, shown_variants
from dd_core.tables.files import TABLES, read_parquet, to_arrow, write_parquet

BY_NAME = {figure.name: figure for figure in FIGURES}
# Those of the ledger, of monitors, of loss curves, of tasks and of memorisation, drawn from tables of their own:
# test_training_figures.py, test_loss_slope_figures.py, test_memorization_figures.py.
OF_OTHER_TABLES = {"gpu_hours", "training_dynamics"} | {f.name for f in FIGURES if f.group != "figures"}


def subtitle(chart: alt.TopLevelMixin) -> str:
    return " ".join(chart.to_dict()["title"]["subtitle"])


def values(chart: alt.TopLevelMixin, key: str) -> list:
    """All values of a key in the data of a chart."""
    specification = chart.to_dict()
    return [row[key] for rows in specification["datasets"].values() for row in rows if key in row]


# The registry


def test_the_command_line_does_not_wait_for_drawing_libraries():
    slow = ("altair", "pandas", "duckdb", "pyarrow", "numpy", "torch")
    code = f"import sys, dd_core.figures; print([name for name in {slow} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_figures_name_existing_tables():
    assert all(table in TABLES for figure in FIGURES for table in figure.tables)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_study_without_tables_has_no_figure(name, study, store, open_views):
    assert BY_NAME[name].draw(study, store, open_views()) is None


@pytest.mark.parametrize("name", BY_NAME)
def test_a_study_trained_with_another_recipe_has_no_figure(
    name, study, store, new_study, write_evals, write_curvature, write_hessian, open_views
):
    before = new_study(seed=1)
    write_evals(study, recipe_of=before)
    write_curvature(study, recipe_of=before, steps=(1.0,))
    write_hessian(study, recipe_of=before)
    assert BY_NAME[name].draw(study, store, open_views()) is None


@pytest.mark.parametrize(("label_noise", "num_variants"), [(0.0, 1), (0.2, 2)])
@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in OF_OTHER_TABLES])
def test_every_figure_compiles(
    name, label_noise, num_variants, study, store, new_study, write_evals, write_curvature, write_hessian, open_views
):
    variant = study.variants["plain"].model_copy(update={"label_noise": label_noise})
    study = new_study(variants={f"v{i}": variant.model_dump() for i in range(num_variants)})
    write_evals(study)
    write_curvature(study)
    write_hessian(study)
    chart = BY_NAME[name].draw(study, store, open_views())
    assert chart is not None
    assert "digits" in subtitle(chart)
    text = vl_convert.vegalite_to_svg(json.dumps(chart.to_dict(), allow_nan=False))
    assert "NaN" not in text and "undefined" not in text
    assert_legible(chart.to_dict(), text)


# Which rows are shown


def test_recipes_are_not_mixed_and_the_subtitle_says_so(study, store, new_study, write_evals, open_views):
    write_evals(study, arms=["plain.k001", "plain.k004"])
    write_evals(study, arms=["plain.k002"], recipe_of=new_study(seed=1))
    chart = BY_NAME["double_descent_curve"].draw(study, store, open_views())
    assert set(values(chart, "k")) == {1, 4}
    assert "Left out: k = 2 (results of an earlier recipe), k = 8 (no results yet)" in subtitle(chart)


def test_other_studies_are_not_shown(study, store, new_study, write_evals, open_views):
    write_evals(study)
    write_evals(new_study(name="other", widths=(3, 5)))
    rows = fetch(open_views(), study, "training_evals", "SELECT DISTINCT k FROM rows ORDER BY k")
    assert [row["k"] for row in rows] == [1, 2, 4, 8]


def test_the_epoch_is_the_last_checkpoint_all_arms_have(study, write_evals, open_views):
    write_evals(study)
    write_evals(study, arms=["plain.k002"], last=2)
    assert select(open_views(), study, "training_evals").epoch == 2


def test_an_arm_that_diverged_does_not_hold_the_others_back(study, store, write_evals, open_views):
    write_evals(study)
    write_evals(study, arms=["plain.k002"], last=0)
    assert select(open_views(), study, "training_evals").epoch == 0
    recipe = study.recipe_hash(study.arms["plain.k002"])
    known = {"variant": "plain", "k": 2, "recipe": recipe, "attempt": 1}
    for attempt, statuses in ((1, ["interrupted"] * 2), (2, ["diverged"] * 2)):
        columns = {column.name: None for column in TABLES["runs"].file_columns}
        columns |= {**known, "trial": np.arange(2), "attempt": attempt, "status": statuses}
        path = store.table_folder("runs", study.name, "plain.k002") / f"attempt-{attempt:04d}.end.parquet"
        write_parquet(path, to_arrow("runs", columns, 2))
    selection = select(open_views(), study, "training_evals")
    assert (selection.epoch, selection.diverged) == (4, ("plain.k002",))
    chart = BY_NAME["double_descent_curve"].draw(study, store, open_views())
    assert set(values(chart, "k")) == {1, 4, 8}
    assert "Left out: k = 2 (diverged)" in subtitle(chart)


def test_trials_that_ended_before_the_others_of_their_arm_are_counted(study, store, write_evals, open_views):
    write_evals(study)
    chart = BY_NAME["double_descent_curve"].draw(study, store, open_views())
    assert "trials, which" not in subtitle(chart)
    path = store.table_folder("training_evals", study.name, "plain.k002") / "0004.parquet"
    table = read_parquet(path).to_pylist()
    kept = [row for row in table if (row["trial"], row["epoch"]) != (1, 4)]
    columns = {name: [row[name] for row in kept] for name in kept[0]}
    write_parquet(path, to_arrow("training_evals", columns, len(kept)))
    chart = BY_NAME["double_descent_curve"].draw(study, store, open_views())
    assert "Without 1 of 8 trials, which diverged, stopped early or are not that far" in subtitle(chart)


def test_what_is_left_out_of_a_grid_is_counted(new_study, study):
    names = [f"v{i}" for i in range(9)]
    study = new_study(variants={name: study.variants["plain"].model_dump() for name in names}, widths=(1, 2))
    assert name_arms(study, tuple(study.arms)) == (
        "v0 k = 1, 2; v1 k = 1, 2; v2 k = 1, 2; v3 k = 1, 2; 5 variants more"
    )
    assert name_arms(study, ("v0.k001", "v8.k002")) == "v0 k = 1; v8 k = 2"


def test_of_a_grid_the_first_of_each_family_has_a_panel_and_the_others_are_counted(study, new_study):
    plain = study.variants["plain"]
    grid = {f"{family}-{i}": plain.model_copy(update={"family": family}) for family in ("a", "b") for i in range(4)}
    study = new_study(variants={name: variant.model_dump() for name, variant in grid.items()}, widths=(1,))
    assert shown_variants(study, list(grid)) == (["a-0", "b-0"], "Variants: the first of each family, 2 of 8")
    assert shown_variants(study, ["b-3", "a-2", "a-1"]) == (["a-1", "a-2", "b-3"], None)
    assert shown_variants(study, [f"a-{i}" for i in range(4)], 3) == (
        ["a-0", "a-1", "a-2"],
        "Variants: the first 3 of 4",
    )
    assert shown_variants(study, list(grid), 1) == (["a-0"], "Variants: the first of 1 of 2 families, 1 of 8")


def test_many_variants_at_one_width_are_rows_of_one_panel(study, store, new_study, write_evals, open_views):
    names = [f"v{i:02d}" for i in range(8)]
    study = new_study(variants={name: study.variants["plain"].model_dump() for name in names}, widths=(4,))
    write_evals(study)
    chart = BY_NAME["double_descent_curve"].draw(study, store, open_views())
    assert set(values(chart, "variant")) == set(names)
    assert " ".join(chart.to_dict()["title"]["text"]).startswith("Of 8 variants v0")
    chart = BY_NAME["epoch_by_width"].draw(study, store, open_views())
    assert "Variants: the first 6 of 8" in subtitle(chart)


# Threshold, peak and what titles say


def test_threshold_is_the_smallest_width_with_at_most_ten_percent_training_error():
    assert landmarks.threshold({8: 0.0, 1: 0.4, 4: 0.1, 2: 0.1001}) == 4
    assert landmarks.threshold({1: 0.4, 2: 0.2}) is None


def test_threshold_averages_over_trials_at_the_drawn_epoch(study, write_evals, open_views):
    write_evals(study)
    connection = open_views()
    widths = landmarks.errors_by_width(connection, study, select(connection, study, "training_evals"))["plain"]
    assert widths.threshold == 4
    assert widths.train_error == pytest.approx({1: 0.4, 2: 0.2, 4: 0.1, 8: 0.0})
    assert widths.test_error[4] == pytest.approx(0.255)  # mean of .25 and .26


def test_peak_needs_a_rise_and_a_fall():
    assert landmarks.peak({1: 0.3, 2: 0.15, 4: 0.25, 8: 0.12}) == landmarks.Peak(4, 0.25, 2, 0.15, 8, 0.12)
    assert landmarks.peak({1: 0.3, 2: 0.2, 4: 0.1}) is None
    assert landmarks.peak({1: 0.1, 2: 0.105, 4: 0.1}) is None  # less than one point


def test_published_threshold_and_peak_coincide_in_our_definition():
    """The definition is the paper's: on its own numbers it gives the width at which its test error peaks."""
    rows = double_descent_curve.read_published()
    assert landmarks.threshold({int(row["k"]): float(row["train_error_noisy"]) for row in rows}) == 10
    assert landmarks.peak({int(row["k"]): float(row["test_error_clean"]) for row in rows}).k == 10


def test_title_states_the_double_descent(study, store, write_evals, open_views):
    write_evals(study)
    title = " ".join(BY_NAME["double_descent_curve"].draw(study, store, open_views()).to_dict()["title"]["text"])
    assert title == "Test error falls to 15.5 % at k = 2, peaks at 25.5 % at k = 4 and falls again to 12.5 % at k = 8"


# The published curve


def test_published_values():
    rows = {int(row["k"]): row for row in double_descent_curve.read_published()}
    assert sorted(rows) == list(range(1, 65))
    for k, clean in ((1, 0.444), (4, 0.2189), (10, 0.303), (64, 0.1628)):
        assert float(rows[k]["test_error_clean"]) == pytest.approx(clean, abs=5e-4)
    for row in rows.values():
        remapped = (float(row["test_error_noisy_remapped"]) - 0.15) / 0.86667
        assert float(row["test_error_clean"]) == pytest.approx(remapped, abs=1e-5)


def test_published_curve_is_drawn_over_its_own_setting_only(study, store, new_study, write_evals, open_views):
    same = study.variants["plain"].model_copy(update={"architecture": "preact_resnet18", "label_noise": 0.15})
    other = same.model_copy(update={"label_noise": 0.1})
    variants = {"same": same.model_dump(), "other": other.model_dump()}
    cifar = new_study(data={"dataset": "cifar10"}, variants=variants, widths=(2, 10, 40))
    write_evals(cifar)
    chart = BY_NAME["double_descent_curve"].draw(cifar, store, open_views())
    curves = [
        rows for rows in chart.to_dict()["datasets"].values() if any("Nakkiran" in row.get("split", "") for row in rows)
    ]
    assert [[row["k"] for row in rows] for rows in curves] == [list(range(2, 41))]  # the study's range of widths
    assert curves[0][8]["error"] == pytest.approx(30.3, abs=0.05)


# Details


def test_epochs_are_thinned_towards_the_end_and_keep_both_ends():
    kept = training_curves.thin(list(range(4001)), 60)
    assert kept[:4] == [0, 1, 2, 3] and kept[-1] == 4000 and len(kept) <= 61


def test_heat_map_columns_meet_and_cover_every_evaluation():
    columns = epoch_by_width.column_edges(list(range(0, 501, 10)))
    assert columns["low"][1:] == columns["high"][:-1]
    assert columns["low"][0] < 0 and columns["high"][-1] > 500


def test_zeros_are_lifted_onto_a_logarithmic_axis_and_this_is_said():
    rows = [{"x": 0.0}, {"x": 2.0}, {"x": None}, {"x": 1e-30}]
    assert style.for_log_axis(rows, ["x"], decades=3) == "Values below 0.002, zero included, are drawn at 0.002"
    assert [row["x"] for row in rows] == [0.002, 2.0, None, 0.002]


def test_labels_of_an_axis_are_all_plain_or_all_powers():
    """As Vega writes them: nothing below a thousandth or from a hundred thousand on is written out."""
    for low, high, is_plain in ((0.001, 1e4, True), (1e-5, 10.0, False), (1.0, 1e12, False)):
        chart = alt.Chart(alt.InlineData(values=[{"x": low}, {"x": high}])).mark_point()
        scale, axis = style.log_scale([{"x": low}, {"x": high}], ["x"])
        svg = vl_convert.vegalite_to_svg(chart.encode(x=alt.X("x:Q", scale=scale, axis=alt.Axis(**axis))).to_json())
        labels = re.findall(r">([^<]+)</text>", svg.partition("role-axis-label")[2].partition("role-axis-title")[0])
        assert labels[0] == ("0.001" if is_plain else {1e-5: "10⁻⁵", 1.0: "10⁰"}[low])
        assert labels[-1] == {1e4: "10,000", 10.0: "10¹", 1e12: "10¹²"}[high]


@pytest.mark.parametrize(("count", "columns"), [(4, 2), (5, 3), (7, 4), (8, 3), (9, 3), (10, 4)])
def test_no_panel_is_alone_in_the_last_row(count, columns):
    assert style.columns_for(count, 3) == columns and count % columns != 1


def test_png_decodes_to_the_same_pixels():
    image = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    content = pixels.png(image)
    width, height = struct.unpack(">II", content[16:24])
    start = content.index(b"IDAT") + 4
    size = struct.unpack(">I", content[start - 8 : start - 4])[0]
    lines = np.frombuffer(zlib.decompress(content[start : start + size]), np.uint8).reshape(height, 1 + 3 * width)
    assert (lines[:, 0] == 0).all()
    assert (lines[:, 1:].reshape(height, width, 3) == image).all()


def test_gallery_shows_the_largest_traces_and_marks_wrong_labels(
    study, store, write_evals, write_curvature, open_views
):
    write_evals(study)
    write_curvature(study)
    chart = BY_NAME["most_curved_images"].draw(study, store, open_views())
    most, least = sorted(chart.to_dict()["datasets"].values(), key=len, reverse=True)
    assert {row["trial"] for row in most} == {row["trial"] for row in least} == {0, 1}
    first = [row for row in most if row["trial"] == 0]
    assert [row["image_id"] for row in first] == list(range(49, 17, -1))
    assert {row["image_id"]: row["rank"] for row in least if row["trial"] == 0} == {i: i for i in range(8)}
    assert first[0]["label"] == "given 0 · true 9" and first[0]["is_noisy"]
    assert "Predictions are not shown: checkpoint plain.k004|0004 of made_up has not been trained" in subtitle(chart)
    [choice] = [param for param in chart.to_dict()["params"] if param["name"] == "trial"]
    assert (choice["value"], choice["bind"]["options"]) == (0, [0, 1])
    wrong = [sum(row["is_noisy"] for row in most if row["trial"] == trial) for trial in (0, 1)]
    assert chart.to_dict()["title"]["text"][0].startswith(f"{min(wrong)} to {max(wrong)} of the 32 most curved")


def test_errors_of_different_tasks_are_not_compared_and_rules_stand_where_tasks_end(study, write_evals, open_views):
    data = study.data.model_dump(exclude_none=True) | {"classes": {"first": 2, "add": 4, "every": 2}}
    noiseless = {name: own.model_dump() | {"label_noise": 0.0} for name, own in study.variants.items()}
    content = study.model_dump(exclude_none=True) | {"data": data, "variants": noiseless}
    tasks = type(study).model_validate(content)
    write_evals(tasks)
    chart = BY_NAME["training_curves"].draw(tasks, None, open_views()).to_dict()
    text = json.dumps(chart["title"])
    assert "the error on all classes seen is" in text and f"at epoch {tasks.epochs}" in text
    assert "lowest (" not in text and "learned" not in text
    assert [{"epoch": 2}] in chart["datasets"].values()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((1, 0.69, -0.0198), "1.00 0.69 \u22120.02"),
        (
            (1.29e-05, 0.00027, 0.0012, 0),
            "1.29\u00b710\u207b\u2075 2.70\u00b710\u207b\u2074 1.20\u00b710\u207b\u00b3 0",
        ),
        ((12345.6, 170.2), "12,346 170"),
        ((3, 2.5, 0), "3.0 2.5 0.0"),
        ((2, 4), "2 4"),
        ((0.5, 0.0012), "0.500 0.001"),
    ],
)
def test_numbers_of_a_gallery_have_one_form(values, said):
    assert " ".join(style.alike(values)) == said


def test_trials_that_can_be_chosen_are_told_so_that_it_is_true_of_page_and_picture():
    assert most_curved_images.which_trials([1], 1) == "trial 1"
    assert most_curved_images.which_trials([0, 1], 2) == "2 trials: choose one below; pictures and print show trial 0"
    assert most_curved_images.which_trials(list(range(10)), 30).startswith("the first 10 of 30 trials: choose one")


# Files


def test_files_work_offline_and_parse(study, store, tmp_path, write_evals, open_views):
    write_evals(study)
    chart = BY_NAME["training_curves"].draw(study, store, open_views())
    chart.title.text = ["</script><b>"]
    files = render(chart, tmp_path / "figures", study.name)
    assert {kind: path.name for kind, path in files.items()} == {
        kind: f"made_up.{kind}" for kind in ("html", "svg", "json")
    }
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(p.name for p in files.values())
    page = files["html"].read_text()
    assert not re.search(r"<script[^>]+src=|<link[^>]+href=|import\s*\(?[\"']https?:|@import", page)
    assert len(page) > 500_000  # Vega itself is inside
    (line,) = re.findall(r"^ *const spec = (.*);$", page, re.MULTILINE)
    assert "<" not in line and json.loads(line) == chart.to_dict()
    assert ElementTree.parse(files["svg"]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert json.loads(files["json"].read_text())["$schema"].startswith("https://vega.github.io/schema/vega-lite/")


def test_a_preview_is_the_picture_itself_while_it_is_small_and_leads_to_the_interactive_page(tmp_path):
    small = tmp_path / "small.svg"
    small.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>')
    link, picture = preview_markdown(small, "/lab/figures/points/tiny").split("\n\n")
    assert link == "[Open interactive](/lab/figures/points/tiny.html)"
    assert picture.startswith("![figure](data:image/svg+xml;base64,")
    large = tmp_path / "large.svg"
    large.write_text(f'<svg xmlns="http://www.w3.org/2000/svg">{" " * PREVIEW_BYTES}</svg>')
    _, picture = preview_markdown(large, "/lab/figures/points/tiny").split("\n\n")
    assert picture == "![figure](/lab/figures/points/tiny.svg)"
