"""``curvature_definitions``: its numbers are those of the files, by scikit-learn and SciPy; nothing else is drawn."""

import csv
import io
import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from dd_core.figures.charts import curvature_definitions
from dd_core.figures.panels import definition_scatter
from dd_core.figures.panels.image_scores import LOCAL, published
from dd_core.study.curvature_names import columns_of_step
from dd_core.study.study import Arm
from dd_core.tables.files import TABLES, read_parquet, to_arrow, write_parquet

STEPS = (0.001, 3.0, 1.0)


def draw(study, store, open_views):
    chart = curvature_definitions.chart(study, store, open_views())
    assert chart is not None
    return chart.to_dict()


def texts(specification) -> list[str]:
    """Everything written above the panels."""
    found: list[str] = []

    def visit(part):
        if isinstance(part, dict):
            if isinstance(part.get("text"), dict) and "value" in part["text"]:
                found.append(part["text"]["value"])
            for value in part.values():
                visit(value)
        if isinstance(part, list):
            for value in part:
                visit(value)

    visit(specification)
    return found


def points(specification) -> list[dict[str, str]]:
    """The rows of the scatter plots."""
    (content,) = (part for part in specification["datasets"].values() if isinstance(part, str))
    return list(csv.DictReader(io.StringIO(content)))


def aurocs(specification) -> list[dict]:
    return [row for part in specification["datasets"].values() for row in part if "family" in row]


def subtitle(specification) -> str:
    return " ".join(specification["title"]["subtitle"])


def file_of(store, study, arm):
    return read_parquet(store.table_folder("per_image_curvature", study.name, arm) / "0004.parquet").to_pandas()


def test_aurocs_are_those_of_the_files(study, store, write_evals, write_curvature, open_views):
    write_evals(study)
    write_curvature(study, steps=STEPS)
    drawn = aurocs(draw(study, store, open_views))
    columns = [d.column for d in LOCAL] + [
        c for s in STEPS for c in columns_of_step(s) if not c.endswith("_standard_error")
    ]
    names = {
        d.name: d.column
        for d in (*LOCAL, *published(columns, study, "norm"), *published(columns, study, "directional"))
    }
    assert len(drawn) == 12 * 3  # definitions, widths: narrowest, threshold, widest
    assert {row["k"] for row in drawn} == {1, 4, 8}
    for row in drawn:
        images = file_of(store, study, f"plain.k{row['k']:03d}")
        by_trial = [roc_auc_score(own["is_noisy"], own[names[row["name"]]]) for _, own in images.groupby("trial")]
        assert row["auroc"] == pytest.approx(np.mean(by_trial), abs=1e-5)
        assert (row["low"], row["high"]) == pytest.approx((min(by_trial), max(by_trial)), abs=1e-5)


def test_the_best_definition_is_named_and_stands_first(study, store, write_evals, write_curvature, open_views):
    write_evals(study)
    write_curvature(study, steps=STEPS)
    specification = draw(study, store, open_views)
    at_threshold = sorted((row for row in aurocs(specification) if row["k"] == 4), key=lambda row: -row["auroc"])
    best = at_threshold[0]
    title = " ".join(specification["title"]["text"])
    assert title.startswith(
        f"At k = 4 the {best['name']} finds the mislabelled images best (AUROC {best['auroc']:.2f}; "
    )
    orders = [text for text in json.dumps(specification).split('"domain": ') if text.startswith('["')]
    wanted = json.dumps([row["name"] for row in at_threshold])
    assert any(order.startswith(wanted) for order in orders)


def test_rank_correlations_are_spearmans_with_ties(study, store, write_evals, write_curvature, open_views):
    write_evals(study)
    write_curvature(study, steps=STEPS)
    specification = draw(study, store, open_views)
    images = file_of(store, study, "plain.k004").query("trial == 0")
    for step, name in ((0.001, "h = 0.001"), (1.0, "h = 1"), (3.0, "h = 3")):
        column = columns_of_step(step)[0]
        assert images[column].duplicated().any()
        with_trace, with_gradient = (
            f"{spearmanr(images[other], images[column]).statistic:.2f}".replace("-", "\u2212")
            for other in ("trace", "gradient_norm")
        )
        written = texts(specification)
        assert f"rank correlation: {with_trace} (gradient norm: {with_gradient})" == written[written.index(name) + 1]


def test_points_are_the_images_of_trial_0(study, store, write_evals, write_curvature, open_views):
    write_evals(study)
    write_curvature(study, steps=STEPS)
    drawn = points(draw(study, store, open_views))
    images = file_of(store, study, "plain.k004").query("trial == 0 and trace > 0")
    norm = columns_of_step(3.0)[0]
    expected = zip(images["trace"], images[norm], images["is_noisy"], strict=True)
    found = [(float(row["trace"]), float(row[norm]), row["images"] == "wrong label") for row in drawn]
    # The image whose trace is 0 is lifted to the smallest of the others, which is 1.
    lifted = file_of(store, study, "plain.k004").query("trial == 0 and trace == 0").iloc[0]
    expected = [*expected, (1.0, lifted[norm], lifted["is_noisy"])]
    assert np.allclose(np.array(sorted(found)), np.array(sorted(expected), dtype=float), rtol=1e-5)


def test_many_images_are_thinned_but_ranked_all(monkeypatch, study, store, write_evals, write_curvature, open_views):
    monkeypatch.setattr(definition_scatter, "MAX_IMAGES", 20)
    write_evals(study)
    write_curvature(study, steps=(1.0,))
    specification = draw(study, store, open_views)
    assert len(points(specification)) == 20
    assert points(specification) == points(draw(study, store, open_views))
    assert "20 of the 50 training images" in subtitle(specification) and "over all 50" in subtitle(specification)
    images = file_of(store, study, "plain.k004").query("trial == 0")
    correlation = spearmanr(images["trace"], images[columns_of_step(1.0)[0]]).statistic
    assert any(text.startswith(f"rank correlation: {correlation:.2f}") for text in texts(specification))


def test_steps_are_drawn_up_to_a_number_and_this_is_said(study, store, write_evals, write_curvature, open_views):
    write_evals(study)
    write_curvature(study, steps=tuple(0.25 * i for i in range(1, 9)))
    specification = draw(study, store, open_views)
    assert [t for t in texts(specification) if t.startswith("h = ")] == [
        "h = 0.25", "h = 0.5", "h = 1", "h = 1.25", "h = 1.75", "h = 2"
    ]  # fmt: skip
    assert "6 of 8 steps are drawn" in subtitle(specification)
    assert len({row["name"] for row in aurocs(specification)}) == 6 + 2 * 8


def test_directional_differences_are_drawn_where_they_say_something(
    study, store, write_evals, write_curvature, open_views
):
    write_evals(study)
    write_curvature(study, steps=(1.0,))
    specification = draw(study, store, open_views)
    assert not any(text.startswith("directional") for text in texts(specification))
    images = file_of(store, study, "plain.k004")
    column = columns_of_step(1.0)[2]
    share = (images.query("trial == 0")[column] < 0).mean()
    assert f"negative at {100 * share:.2g} % of these images" in subtitle(specification)
    # An estimate of the trace, as it is for smooth networks.
    images[column] = 1.1 * images["trace"] + 0.01
    names = [c.name for c in TABLES["per_image_curvature"].file_columns] + list(columns_of_step(1.0))
    path = store.table_folder("per_image_curvature", study.name, "plain.k004") / "0004.parquet"
    known = {name: None if images[name].isna().all() else images[name].to_numpy() for name in names}
    table = to_arrow("per_image_curvature", known, len(images))
    write_parquet(path, table)
    assert "directional, h = 1" in texts(draw(study, store, open_views))


def test_without_differences_the_subtitle_says_how_to_get_them(study, store, write_evals, write_curvature, open_views):
    write_evals(study)
    write_curvature(study)
    specification = draw(study, store, open_views)
    assert "curvature: {estimators: [exact, finite_difference]}" in subtitle(specification)
    assert {row["name"] for row in aurocs(specification)} == {definition.name for definition in LOCAL}
    assert {"loss", "gradient norm", "Hessian: along the gradient"} <= set(texts(specification))


def test_without_wrong_labels_there_is_nothing_to_find(
    study, store, new_study, write_evals, write_curvature, open_views
):
    plain = study.variants["plain"].model_copy(update={"label_noise": 0.0})
    study = new_study(variants={"plain": plain.model_dump()})
    write_evals(study)
    write_curvature(study, steps=STEPS)
    specification = draw(study, store, open_views)
    assert aurocs(specification) == [] and "AUROC" not in subtitle(specification)
    assert {row["images"] for row in points(specification)} == {"all labels"}
    assert specification["title"]["text"][0].startswith("Rank correlation of the published finite difference")


def test_differences_of_an_earlier_recipe_or_another_study_are_not_drawn(
    study, store, new_study, write_evals, write_curvature, open_views
):
    write_evals(study)
    write_curvature(new_study(name="other"), steps=STEPS)
    write_curvature(study)
    assert "have not been computed" in subtitle(draw(study, store, open_views))
    write_curvature(study, recipe_of=new_study(seed=1), steps=STEPS)
    assert curvature_definitions.chart(study, store, open_views()) is None


def test_an_arm_with_differences_is_preferred(study, store, new_study, write_evals, write_curvature, open_views):
    write_evals(study)
    write_curvature(study)
    few = new_study(widths=(2,))
    assert few.recipe_hash(few.arms["plain.k002"]) == study.recipe_hash(study.arms["plain.k002"])
    write_curvature(few, steps=STEPS)
    assert "training images of plain.k002" in subtitle(draw(study, store, open_views))


def test_of_the_arms_with_differences_the_nearest_of_the_same_variant_is_drawn(new_study):
    norm = published(columns_of_step(1.0), new_study(), "norm")[0]

    def computed(*arms):
        return [{"variant": variant, "k": k, "definition": norm} for variant, k in arms]

    asked = Arm("b", 4)
    assert curvature_definitions.with_differences(asked, []) == asked
    assert curvature_definitions.with_differences(asked, computed(("a", 4), ("b", 4))) == asked
    assert curvature_definitions.with_differences(asked, computed(("a", 4), ("b", 1), ("b", 16))) == Arm("b", 1)
    assert curvature_definitions.with_differences(asked, computed(("a", 1), ("c", 4))) == Arm("a", 1)


def test_units_follow_the_normalisation(new_study):
    columns = columns_of_step(0.5)
    derivative = [published(columns, new_study(), kind)[0] for kind in ("norm", "directional")]
    assert {definition.unit for definition in derivative} == {"nats per squared standardised pixel"}
    settings = {"estimators": ("exact", "finite_difference"), "finite_difference": {"normalisation": "sum"}}
    summed = [published(columns, new_study(curvature=settings), kind)[0] for kind in ("norm", "directional")]
    assert [definition.unit for definition in summed] == ["nats per standardised pixel", "nats"]
    assert not any("/" in definition.axis for definition in summed)
