"""The figures and sentences of graph studies: what they say of made-up tables whose answers are known."""

import contextlib
import html
import json
import re
from pathlib import Path
from typing import Any

import graph_rows as made
import pytest
import vl_convert
from specifications import assert_legible, rows, subtitle, title
from statsmodels.stats.proportion import proportion_confint

from dd_core.analysis import graph_report
from dd_core.analysis.intervals import over_trials
from dd_core.errors import DataMissingError
from dd_core.figures import FIGURES
from dd_core.figures.drawing import style
from dd_core.figures.drawing.render import render
from dd_core.figures.panels import graphs
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.warehouse import connect

BY_NAME = {figure.name: figure for figure in FIGURES}
PUBLISHED, GROUNDED = made.graph_study(), made.graph_study("grounded", name="grounded")
WIDTHS = made.width_study()
DRAWN: dict[tuple[str, str, Path], dict[str, Any]] = {}
# Those of all studies of graphs, and by study the one that it has alone.
OF_ALL = ("graph_curves", "graph_collapse", "accuracy_against_ceiling", "cycle_loss")
ALONE = {"graphs": "nsm_claims_page", "graph_widths": "graph_widths"}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("graphs"))
    for study in (PUBLISHED, GROUNDED, WIDTHS):
        made.write_graphs(store, study)
    return store


def draw(name: str, study: Study, store: Store) -> dict[str, Any] | None:
    with contextlib.closing(connect(store, {*BY_NAME[name].tables, "runs"})) as connection:
        chart = BY_NAME[name].draw(study, store, connection)
    return None if chart is None else chart.to_dict()


def drawn(name: str, study: Study, store: Store) -> dict[str, Any]:
    """The same, once only of what nobody changes."""
    key = (name, study.name, store.root)
    if key not in DRAWN:
        specification = draw(name, study, store)
        assert specification is not None
        DRAWN[key] = specification
    return DRAWN[key]


@pytest.mark.parametrize("study", [PUBLISHED, WIDTHS], ids=lambda study: study.name)
def test_each_compiles_and_says_on_what(study: Study, filled: Store) -> None:
    for name in (*(OF_ALL if study is PUBLISHED else ()), ALONE[study.name]):
        specification = drawn(name, study, filled)
        text = vl_convert.vegalite_to_svg(json.dumps(specification, allow_nan=False))
        assert "NaN" not in text and "undefined" not in text
        assert_legible(specification, text)
        said = title(specification) + subtitle(specification)
        assert "1,600 training graphs" in said and "image" not in said and "nan" not in said.split()


def test_claims_are_of_published_labels_and_widths_of_three_or_more(filled: Store) -> None:
    assert {*OF_ALL, *ALONE.values()} == {figure.name for figure in FIGURES if figure.group == "nsm"}
    assert draw("nsm_claims_page", GROUNDED, filled) is None
    assert draw("graph_widths", GROUNDED, filled) is None
    assert draw("graph_widths", made.width_study(widths=(2, 4)), filled) is None


def test_results_of_another_recipe_are_not_drawn(store: Store) -> None:
    made.write_graphs(store, PUBLISHED, recipe_of=made.graph_study(seed=1))
    for name in (*OF_ALL, "nsm_claims_page"):
        assert draw(name, PUBLISHED, store) is None
    assert graph_report.findings(store, PUBLISHED) == []


def test_the_title_says_how_far_each_domain_is_above_the_baseline_and_this_is_drawn(filled: Store) -> None:
    said = title(drawn("accuracy_against_ceiling", GROUNDED, filled))
    assert said.startswith(
        "Test accuracy at the best epoch is above the majority baseline: planning (+28.0 points, 95 %"
    )
    assert said == title(drawn("graph_curves", GROUNDED, filled))
    # Trials at 79, 80 and 81 %: Student's interval is narrower than Wilson's over the graphs of all three, of which two
    # trials share 400 x 400 / 2,200 problems.
    num_graphs = 1200**2 / (1200 + 3 * 2 * made.NUM_TEST**2 / 2200)
    low, high = proportion_confint(0.8 * num_graphs, num_graphs, method="wilson")
    student = over_trials([0.79, 0.8, 0.81])
    assert low < student.low and student.high < high
    assert f"interval {100 * (low - 0.52):.1f} to {100 * (high - 0.52):.1f})" in said
    marks = rows(drawn("accuracy_against_ceiling", GROUNDED, filled), "is_mean", "low")
    mean = next(row for row in marks if row["is_mean"] and (row["name"], row["series"]) == ("planning", "best epoch"))
    assert (mean["value"], mean["low"], mean["high"]) == pytest.approx((0.8, low, high), abs=1e-5)
    assert len(marks) == 3 * 2 * (3 + 1)
    spans = rows(drawn("accuracy_against_ceiling", PUBLISHED, filled), "name", "low", "high")
    assert {"name": "causal inference", "low": 0.57, "high": 0.7} in spans


def test_domains_that_are_not_learned_are_not_said_to_be(filled: Store) -> None:
    said = title(drawn("graph_curves", PUBLISHED, filled))
    assert "is not surely above or below the majority baseline: planning (\u22123.0 points" in said
    specification = drawn("graph_curves", PUBLISHED, filled)
    assert {row["name"] for row in rows(specification, "place", "name")} == {
        *("both 51.0 %", "majority 57.0 %", "ceiling 70.0 %", "both 50.0 %")
    }
    best = [row for row in rows(specification, "trial", "series", "value") if row["series"] == "test"]
    assert {row["epoch"] for row in best} == {made.BEST} and len(best) == 2 * 3 * 3  # accuracy and loss


def test_collapse_is_told_and_its_strips_run_from_an_evaluation_to_the_next(filled: Store) -> None:
    specification = drawn("graph_collapse", PUBLISHED, filled)
    assert title(specification) == (
        "Collapsed to one label: at the best epoch planning (3 of 3 trials, fully); at the last epoch planning (3 of 3 "
        "trials, fully), causal inference (3 of 3 trials, fully)"
    )
    strips = rows(specification, "until", "collapse", "trial")
    causal = [row for row in strips if row["trial"] == "0" and row["collapse"] != "none" and float(row["epoch"]) > 0]
    # Shares of 0.6 + epoch / 40: above 0.9 from epoch 14 on, 1 from 16 on.
    assert [(row["collapse"], float(row["epoch"]), float(row["until"])) for row in causal] == [
        ("partial", 14, 16), ("full", 16, 20.5)
    ]  # fmt: skip


def test_cycle_loss_has_its_floor_and_that_of_its_first_level(filled: Store) -> None:
    specification = drawn("cycle_loss", GROUNDED, filled)
    assert "planning 0.417 (trials 0.417 to 0.417, floor 0.35)" in title(specification)
    floors = {row["name"]: row["y"] for row in rows(specification, "place", "name")}
    assert floors == {"floor 0.35": 0.35, "of level 1, 0.5": pytest.approx(0.5)}


def test_widths_have_best_and_last_epochs_apart(filled: Store) -> None:
    specification = drawn("graph_widths", WIDTHS, filled)
    assert title(specification) == (
        "At the last epoch test error falls to 22.0 % at k = 4, peaks at 34.0 % at k = 8 and falls again to 18.0 % at "
        "k = 32; at the best epoch it has no peak"
    )
    means = [row for row in rows(specification, "split", "at", "k", "error") if "trial" not in row]
    last = {row["k"]: row["error"] for row in means if (row["split"], row["at"]) == ("test", "last epoch")}
    assert last == pytest.approx({2: 0.30, 4: 0.22, 8: 0.34, 16: 0.24, 32: 0.18})
    assert {row["error"] for row in means if (row["split"], row["at"]) == ("test", "best epoch")} == {0.2}
    levels = {row["name"]: row["y"] for row in rows(specification, "place", "name")}
    assert levels == pytest.approx({"majority 48.0 %": 0.48, "lowest 0.0 %": 0.0, "wrong labels 20 %": 0.2})


def test_claims_are_counted_drawn_by_what_they_are_about_and_the_page_has_them_as_a_table(
    filled: Store, tmp_path: Path
) -> None:
    with contextlib.closing(connect(filled)) as connection:
        chart = BY_NAME["nsm_claims_page"].draw(PUBLISHED, filled, connection)
    assert chart is not None
    specification = chart.to_dict()
    assert (
        title(specification) == "Of 6 claims about the published networks 1 holds, 3 do not hold and 2 cannot be told"
    )
    assert "Holds: causal inference (accuracy 10 epochs)" in subtitle(specification)
    assert "since nothing measures them: dollars 100 epochs" in subtitle(specification)
    assert "Unlike the published: fixed features (fresh), loops of a relation of their own" in subtitle(specification)
    spans = [row for row in rows(specification, "name", "series", "low", "high") if "claimed" in row["series"]]
    assert [(row["name"], row["low"], row["high"]) for row in spans] == [("planning: accuracy 10 epochs", 0.45, 0.68)]
    verdicts = {row["name"]: row["verdict"] for row in rows(specification, "verdict", "why")}
    assert verdicts["causal inference: accuracy 10 epochs"] == "\u2713 holds"
    assert verdicts["planning: cycle loss"] == "\u2717 does not hold" and len(verdicts) == 5
    points = rows(specification, "series", "value", "source")
    assert {row["value"] for row in points if row["name"] == "planning: cycle loss"} == {0.2, 0.794, 0.41}
    files = render(chart, tmp_path, "graphs")
    table = files["html"].read_text(encoding="utf-8").rpartition("<table>")[2]
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", table)]
    assert len(re.findall("<tr>", table)) == 1 + 6 and len(cells) == 6 * len(re.findall("<th>", table))
    assert {"It cannot go below 0.35 <so & so>", "\u2264 0.2", "48.0 % (45.0 % to 51.0 %)", "1.43 $"} <= set(cells)
    assert "<so" not in table


def test_the_report_says_in_sentences_what_the_figures_say(filled: Store) -> None:
    told = graph_report.findings(filled, PUBLISHED)
    assert told[0].startswith(
        "planning: test accuracy at the best epoch is 48.0 % (95 % interval 44.7 to 51.3, 3 trials)"
    )
    assert "not surely above or below the majority baseline of 51.0 %" in told[0]
    assert "at best 51.0 % can be expected; at the last epoch it is 45.0 %; collapsed: 3 of 3 trials, fully" in told[0]
    assert told[3:] == [
        "Of 6 claims about the published networks 1 holds, 3 do not hold and 2 cannot be told.",
        "Claims that hold: causal inference (accuracy 10 epochs).",
    ]
    told = graph_report.findings(filled, WIDTHS)
    assert len(told) == 3 and all(sentence.endswith(".") for sentence in told)
    assert told[1].startswith(
        "noisy over widths, at the last epoch: test error (mean of 3 trials) falls to 22.0 % at k = 4"
    )
    assert "rises to 34.0 % at k = 8" in told[1] and told[2].startswith(
        "noisy over widths, at the best epoch: test error has no peak of one point or more"
    )


def test_one_trial_has_the_interval_of_its_graphs_and_without_validation_the_last_epoch_counts(store: Store) -> None:
    study = made.graph_study("grounded", trials=1)
    made.write_graphs(store, study, results=("last",))
    low, high = proportion_confint(round(0.76 * made.NUM_TEST), made.NUM_TEST, method="wilson")
    (told, *_) = graph_report.findings(store, study)
    interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f}, 1 trial"
    assert told.startswith(f"planning: test accuracy at the last epoch is 76.0 % ({interval})")
    for name in ("graph_curves", "accuracy_against_ceiling", "graph_collapse"):
        assert "at the last epoch" in title(drawn(name, study, store)) and "nan" not in str(drawn(name, study, store))


def test_a_leak_is_said_where_chance_does_not_explain_it(store: Store) -> None:
    study = made.graph_study()
    made.write_graphs(store, study, p_above_ceiling=1e-6)
    assert "3 of 3 trials above what chance explains: something leaks" in graph_report.findings(store, study)[0]
    assert "something leaks: planning, causal" in subtitle(drawn("accuracy_against_ceiling", study, store))


def test_labels_of_lines_that_are_close_are_moved_apart() -> None:
    import altair as alt

    y = alt.Y("value:Q", scale=alt.Scale(domain=[0, 1]), title="", axis=alt.Axis())
    (_, texts) = graphs.rules({"a": 0.5, "b": 0.52, "c": 0.9}, y, (0.0, 1.0), 200)
    places = [row["place"] for row in texts.to_dict()["datasets"].popitem()[1]]
    assert places == pytest.approx([0.5, 0.59, 0.9])


def test_what_is_said_of_data_names_graphs_or_images(new_study: Any) -> None:
    assert style.describe(GROUNDED, ["planning"])[0] == (
        "NSM problems (labels grounded), 1,600 training graphs, 0 % of them mislabelled"
    )
    assert "50 training images" in style.describe(new_study(), ["plain"])[0]


def test_pictures_of_images_are_not_asked_of_graphs_and_curvature_is_that_of_their_features(
    store: Store, write_evals: Any, write_curvature: Any
) -> None:
    study = made.graph_study("grounded", trials=2, epochs=4, checkpoints=(0, 1, 2, 4))
    write_evals(study)
    write_curvature(study)
    with pytest.raises(DataMissingError, match="there are no images to show, since the study has graphs"):
        draw("most_curved_images", study, store)
    for name in ("curvature_by_width", "curvature_over_training"):
        text = json.dumps(drawn(name, study, store))
        assert "training graphs" in text and "training images" not in text and "pixel" not in text
    assert "nats per squared node feature" in json.dumps(drawn("curvature_by_width", study, store))


def test_claims_about_no_domain_count_once_and_those_shown_are_of_the_published_width(store: Store) -> None:
    rows = [{"claim": "tf32_speedup", "arm": arm, "verdict": "cannot be told"} for arm in PUBLISHED.arms]
    rows += [{"claim": "learns", "arm": arm, "verdict": "holds"} for arm in PUBLISHED.arms]
    assert graph_report.claims_sentence(rows).startswith("Of 4 claims about the published networks 3 hold,")
    study = made.graph_study(widths=(16, 64, 128))
    for key, arm in study.arms.items():
        about = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm)}
        about |= {"domain": "planning", "labels": "as_published"}
        made.write_rows(store, study, "nsm_claims", [about | row for row in made.made_up_claims("planning")], key)
    with contextlib.closing(connect(store, ("nsm_claims",))) as connection:
        assert {row["k"] for row in graph_report.claims_of(study, connection)} == {64}


@pytest.mark.parametrize(("ceiling", "baseline"), [(1.0, 0.55), (0.5, 0.5), (None, 0.55)])
def test_always_saying_the_other_label_is_no_learning(ceiling: float | None, baseline: float) -> None:
    row = {"accuracy": 0.56, "majority_baseline": 0.45, "num_graphs": 200, "split": "test", "bayes_ceiling": ceiling}
    own = graph_report.outcomes(PUBLISHED, {"planning.k064": [{**row, "result": "last"}]}, "last")["planning.k064"]
    assert own.above_baseline.mean == pytest.approx(0.56 - baseline) and own.above_baseline.sign == 0
    assert own.baseline == pytest.approx(baseline)
