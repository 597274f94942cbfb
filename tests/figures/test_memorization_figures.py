"""The figures of incremental training and memorisation: what they say of made-up tables whose answers are known."""

import contextlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import memorization_rows as made
import numpy as np
import pytest
import scipy.stats
import vl_convert
from specifications import assert_legible, rows, subtitle, title

from dd_core.analysis import incremental_report, memorization_report
from dd_core.analysis.intervals import over_trials
from dd_core.analysis.memorization.ranks import as_numbers
from dd_core.analysis.memorization.sentences import boundary_sentence, detection_words, forecasts, words_of
from dd_core.analysis.plasticity import task_ends
from dd_core.data.datasets import load
from dd_core.errors import DataMissingError
from dd_core.figures import FIGURES
from dd_core.figures.charts import score_ranks
from dd_core.figures.charts.memorized_images import _IMAGE as IMAGE
from dd_core.figures.charts.memorized_images import most
from dd_core.figures.drawing.pixels import data_uri
from dd_core.figures.panels.image_means import read_means
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.warehouse import connect

BY_NAME = {figure.name: figure for figure in FIGURES}
INCREMENTAL, MEMORIZATION = made.incremental_study(), made.memorization_study()
DRAWN: dict[tuple[str, str, Path], dict[str, Any]] = {}
OF_GROUP = {
    "incremental": [figure.name for figure in FIGURES if figure.group == "incremental"],
    "memorization": [figure.name for figure in FIGURES if figure.group == "memorization"],
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("memorization"))
    made.write_incremental(store, INCREMENTAL)
    made.write_memorization(store, MEMORIZATION)
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


@pytest.mark.parametrize(
    ("name", "study"),
    [(name, study) for study in (INCREMENTAL, MEMORIZATION) for name in OF_GROUP[study.name]],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_compiles_and_says_on_what_and_a_study_of_the_other_kind_has_none(
    name: str, study: Study, filled: Store
) -> None:
    specification = drawn(name, study, filled)
    text = vl_convert.vegalite_to_svg(json.dumps(specification, allow_nan=False))
    assert "NaN" not in text and "undefined" not in text
    assert_legible(specification, text)
    if name in ("detection_by_score", "scores_against_truth"):
        width = re.search(r'<svg[^>]* width="([0-9.]+)"', text)
        assert width and float(width[1]) <= 800, "legible where figures are drawn 800 pixels wide"
    assert "digits" in subtitle(specification) and "nan" not in title(specification) + subtitle(specification)
    assert draw(name, MEMORIZATION if study is INCREMENTAL else INCREMENTAL, filled) is None


def test_one_trial_has_no_interval_and_says_so(store: Store) -> None:
    study = made.incremental_study(trials=1)
    made.write_incremental(store, study)
    for name in OF_GROUP["incremental"]:
        specification = drawn(name, study, store)
        assert "one trial, no interval" in title(specification)
        # Of one trial nobody can say that its change is none: there is no interval that holds 0.
        assert ("surely" in title(specification)) == (name != "plasticity")
        json.dumps(specification, allow_nan=False)


def test_the_reports_say_in_sentences_what_the_figures_say(filled: Store) -> None:
    told = incremental_report.findings(filled, INCREMENTAL)
    assert told[0].startswith(
        "plain: accuracy on the newest classes falls with every task by 4.0 points (95 % interval"
    )
    assert told[1].startswith("cbp is better in later tasks by 12.0 points")
    # A point for each epoch after the task's own.
    assert told[2].startswith("plain.k004: accuracy on the first task's classes goes down by 16.0 points")
    assert "from epoch 4 to 20, to 79.0 %" in told[2]
    assert told[4].startswith("plain.k004: what images showed before tells what is forgotten at a boundary; cumulative")
    assert len(told) == 6 and all(sentence.endswith(".") for sentence in told)
    told = memorization_report.findings(filled, MEMORIZATION)
    assert told[0].startswith("some.k004: wrong labels are memorised more than right ones: on average ")
    assert told[3].startswith("some.k004: Cumulative sample loss orders 100 images most as memorisation itself does: ")
    assert told[6].startswith(
        "some.k004, what finds wrong labels (symmetric, 10 %): cumulative sample loss, AUROC 0.95"
    )
    assert len(told) == 3 + 3 + 6
    assert incremental_report.findings(filled, MEMORIZATION) == memorization_report.findings(filled, INCREMENTAL) == []


def test_the_queries_of_tasks_and_memorisation_in_the_documentation_run_and_find_rows(filled: Store) -> None:
    docs = Path(__file__).parents[2] / "docs"
    text = "".join((docs / name).read_text(encoding="utf-8") for name in ("queries.md", "memorization.md"))
    others = ("'quickstart'", "'nsm_published'")
    found = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    blocks = [block for block in found if not any(study in block for study in others)]
    queries = [query for block in blocks for query in block.split(";\n") if query.strip()]
    assert len(queries) == 4 + 3
    renamed = {"incremental_digits": "incremental", "mislabelled_digits": "memorization", "symmetric-10": "some"}
    renamed["memorization_digits"] = "memorization"
    with contextlib.closing(connect(filled)) as connection:
        for query in queries:
            for theirs, ours in renamed.items():
                query = query.replace(f"'{theirs}'", f"'{ours}'")
            rows = connection.sql(query.replace("20 * task", f"{made.EVERY} * task")).fetchall()
            assert rows and all(value is not None for value in rows[0])


# Tasks


def test_the_interval_over_trials_is_students() -> None:
    values = np.random.default_rng(0).normal(size=7)
    own = over_trials([*values, None, math.nan])
    low, high = scipy.stats.t.interval(0.95, 6, values.mean(), scipy.stats.sem(values))
    assert (own.mean, own.low, own.high, own.num_trials) == pytest.approx((values.mean(), low, high, 7))
    assert over_trials([2.0, 2.0]).sign == 1 and over_trials([-2.0]).sign == 0 and math.isnan(over_trials([]).mean)


def noisy_accuracy(variant: str, trial: int, task: int, epoch: int) -> float:
    """Falls by 3, 4 and 5 points a task in trials 0, 1 and 2 of plain."""
    return 0.95 - {"plain": 0.03 + 0.01 * trial, "cbp": 0.001}.get(variant, 0.0) * (task - 1)


def test_plasticity_says_how_accuracy_on_newest_classes_moves_and_what_mends_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "made_up_accuracy", noisy_accuracy)
    made.write_incremental(store, INCREMENTAL)
    specification = drawn("plasticity", INCREMENTAL, store)
    low, high = scipy.stats.t.interval(0.95, 2, 4, scipy.stats.sem([3, 4, 5]))
    assert title(specification).startswith(
        "plain: accuracy on the newest classes falls with every task by 4.0 points (95 % interval "
        f"{low:.1f} to {high:.1f}, 3 trials); "
    )
    # Tasks 3 to 5 are the later half; cbp has lost 0.1 points a task there.
    gaps = [np.mean([(3 + t - 0.1) * (task - 1) for task in (3, 4, 5)]) for t in range(3)]
    assert f"cbp is better in later tasks by {np.mean(gaps):.1f} points" in title(specification)
    points = {(row["series"], row["task"]): row for row in rows(specification, "series", "task")}
    assert points["plain", 5]["value"] == pytest.approx(0.95 - 4 * 0.04)
    assert {series for series, _ in points} == {"plain", "cbp"}
    assert "a fall alone is no loss of plasticity" in subtitle(specification)


def test_a_difference_has_a_sign_in_points_and_one_whose_interval_holds_zero_is_not_surely_any(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accuracy(variant: str, trial: int, task: int, epoch: int) -> float:
        return 0.5 + (variant == "cbp") * (0.01 + 0.02 * (trial - 1)) + 0.01 * (trial - 0.5) * task

    monkeypatch.setattr(made, "made_up_accuracy", accuracy)
    made.write_incremental(store, INCREMENTAL)
    specification = drawn("plasticity", INCREMENTAL, store)
    change = scipy.stats.t.interval(0.95, 2, 0.5, scipy.stats.sem([-0.5, 0.5, 1.5]))
    gap = scipy.stats.t.interval(0.95, 2, 1, scipy.stats.sem([-1, 1, 3]))
    assert title(specification) == (
        f"plain: accuracy on the newest classes changes with every task by +0.5 points (95 % interval "
        f"\u2212{-change[0]:.1f} to {change[1]:.1f}, 3 trials), which is not surely a change; "
        f"cbp differs in later tasks by +1.0 points (95 % interval \u2212{-gap[0]:.1f} to {gap[1]:.1f}, "
        "3 trials), which is not surely a difference"
    )
    assert [(row["gap"], row["text"]) for row in rows(specification, "gap", "text")] == [(pytest.approx(1), "+1.0")]


def test_of_many_variants_the_first_the_one_that_begins_anew_and_the_best_have_panels(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = {"plain": 0.5, "second": 0.6, "third": 0.8, "fourth": 0.7, "anew": 0.9}
    monkeypatch.setattr(made, "made_up_accuracy", lambda variant, trial, task, epoch: level[variant])
    anew = {**made.VARIANT, "interventions": {"shrink_and_perturb": {"shrink": 0.001, "noise": 0.1, "at": "tasks"}}}
    variants = {name: anew if name == "anew" else made.VARIANT | {"batch_size": 4 + i} for i, name in enumerate(level)}
    study = made.incremental_study(variants=variants, trials=1)
    made.write_incremental(store, study)
    for name in ("curvature_by_class_age", "forgetting_at_boundaries"):
        specification = draw(name, study, store)
        assert specification is not None
        expected = "Variants: 3 of 5, the first, anew and the best of the others in later tasks"
        assert expected in subtitle(specification)
        text = json.dumps(specification)
        assert all(f'"{own}"' in text for own in ("plain", "third", "anew")) and '"fourth"' not in text


def test_a_study_that_ends_before_all_classes_came_has_the_tasks_that_it_reaches() -> None:
    assert task_ends(made.incremental_study()) == [4, 8, 12, 16, 20]
    assert task_ends(made.incremental_study(epochs=9, checkpoints=(0, 8))) == [4, 8, 9]


@pytest.mark.parametrize(
    ("fresh", "verdict"),
    [
        (0.95, "plain loses plasticity: in later tasks it is 12.0 points (95 % interval 12.0 to 12.0, 3 trials) worse"),
        (
            0.71,
            "plain gains from earlier tasks: in later tasks it is 12.0 points (95 % interval 12.0 to 12.0, 3 trials)",
        ),
        (None, "plain shows no sure loss of plasticity: in later tasks "),
    ],
)
def test_a_network_that_begins_anew_is_what_plasticity_is_measured_by(
    fresh: float | None, verdict: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accuracy(variant: str, trial: int, task: int, epoch: int) -> float:
        plain = 0.95 - 0.04 * (task - 1)
        if variant == "plain":
            return plain
        return plain + 0.1 * (trial - 1) if fresh is None else fresh

    monkeypatch.setattr(made, "made_up_accuracy", accuracy)
    anew = {"shrink_and_perturb": {"shrink": 0.001, "noise": 0.1, "at": "tasks"}}
    study = made.incremental_study(variants={"plain": made.VARIANT, "anew": {**made.VARIANT, "interventions": anew}})
    made.write_incremental(store, study)
    specification = drawn("plasticity", study, store)
    # The later tasks are 3 to 5, where plain has 0.87, 0.83 and 0.79.
    expected = verdict if fresh is None else verdict.replace("12.0", f"{100 * abs(0.83 - fresh):.1f}")
    assert title(specification).startswith(expected)
    assert "anew begins anew with every task" in subtitle(specification)


@pytest.mark.parametrize("epochs", [20, 4], ids=["later tasks", "one task"])
def test_of_a_network_that_begins_anew_alone_its_own_accuracy_is_told(epochs: int, store: Store) -> None:
    anew = {"shrink_and_perturb": {"shrink": 0.001, "noise": 0.1, "at": "tasks"}}
    variants = {"anew": {**made.VARIANT, "interventions": anew}}
    study = made.incremental_study(variants=variants, epochs=epochs, checkpoints=tuple(range(0, epochs + 1, 2)))
    made.write_incremental(store, study)
    assert title(drawn("plasticity", study, store)).startswith("anew: accuracy on the newest classes ")


def test_curvature_by_age_compares_oldest_with_newest_and_leaves_out_what_was_not_seen(filled: Store) -> None:
    specification = drawn("curvature_by_class_age", INCREMENTAL, filled)
    # Doubled with every task; the first came four tasks before the last.
    assert title(specification).startswith(
        "plain: at epoch 20 the loss is 16.00 (95 % interval 16.00 to 16.00, 3 trials)"
    )
    lines = {(row["task"], row["epoch"]): float(row["trace"]) for row in rows(specification, "task", "epoch", "trace")}
    assert lines["1", "20"] == pytest.approx(1.1 * 2**5, rel=1e-5)
    assert ("2", "4") not in lines and ("2", "6") in lines
    ages = {row["age"]: row["trace"] for row in rows(specification, "age")}
    assert sorted(ages) == [0, 1, 2, 3, 4] and ages[4] / ages[0] == pytest.approx(16, rel=1e-5)


def test_what_foretells_forgetting_surely_goes_before_what_does_more_and_no_correlation_is_beyond_one() -> None:
    found = {("loss", "max"): (0.9, -0.1, 0.5), ("trace", "mean"): (0.40, 0.41, 0.42)}
    own = [
        {"predictor": predictor, "statistic": statistic, "trial": trial, "boundary": 1, "spearman": rho}
        for (predictor, statistic), values in found.items()
        for trial, rho in enumerate(values)
    ]
    assert boundary_sentence("plain", own).startswith(
        "plain: what images showed before tells what is forgotten at a boundary; mean curvature correlates most of "
        "those that surely do, \u03c1 = 0.41 (95 % interval 0.39 to 0.43, 3 trials)"
    )
    unsure = forecasts(own)["loss", "max"]
    assert (unsure.mean, unsure.low, unsure.high) == (pytest.approx(1.3 / 3), pytest.approx(-0.817, abs=1e-3), 1.0)
    assert "nothing that images showed before surely tells" in boundary_sentence("plain", own[:3])
    assert "one trial, no interval" in boundary_sentence("plain", own[:1])


def test_of_many_variants_some_are_drawn_and_which_is_said_once(store: Store) -> None:
    study = made.incremental_study(variants={f"v{i}": made.VARIANT for i in range(9)}, trials=2, epochs=8,
                                   checkpoints=(0, 4, 8))  # fmt: skip
    made.write_incremental(store, study)
    for name in ("curvature_by_class_age", "forgetting_at_boundaries"):
        expected = "Variants: 3 of 9, the first and the best of the others in later tasks"
        assert re.findall(r"Variants: [^\n]*", subtitle(drawn(name, study, store))) == [expected]


def test_where_classes_come_in_groups_scores_are_said_not_to_be_comparable(store: Store, filled: Store) -> None:
    classes = {"first": 2, "add": 2, "every": 2}
    study = made.memorization_study(
        data={"dataset": "digits", "num_train": 100, "classes": classes},
        variants={"some": made.VARIANT},
    )
    made.write_memorization(store, study)
    for name in ("detection_by_score", "scores_against_truth", "score_ranks", "memorized_images"):
        said = subtitle(drawn(name, study, store)).replace("\n", " ")
        assert "not comparable between classes that came at different times" in said
        assert "Classes came" not in subtitle(drawn(name, MEMORIZATION, filled))


def test_forgetting_has_the_mean_over_boundaries_of_every_predictor_and_fifths(filled: Store) -> None:
    specification = drawn("forgetting_at_boundaries", INCREMENTAL, filled)
    of_trials = []
    for trial in range(3):
        of_boundaries = []
        for boundary in (4, 8, 12, 16):
            noise = np.random.default_rng([trial, boundary]).standard_normal()
            of_boundaries.append(0.5 + 0.02 * trial + 0.01 * noise)
        of_trials.append(np.mean(of_boundaries))
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(of_trials), scipy.stats.sem(of_trials))
    expected = f"\u03c1 = {np.mean(of_trials):.2f} (95 % interval {low:.2f} to {high:.2f}, 3 trials)"
    assert title(specification).endswith(f"cumulative loss correlates most with it, {expected}")
    fifths = [row for row in rows(specification, "fifth") if row["name"] == "cumulative loss"]
    assert [row["change"] for row in fifths[:5]] == pytest.approx(
        [0.1 + np.mean(of_trials) * fifth for fifth in range(5)], rel=1e-5
    )
    assert {row["name"] for row in rows(specification, "fifth")} == {"cumulative loss", "mean curvature", "mean loss"}


# Memorisation


def test_detection_has_every_score_with_its_interval_and_the_published_numbers_of_the_nearest_rate(
    filled: Store,
) -> None:
    specification = drawn("detection_by_score", MEMORIZATION, filled)
    assert title(specification).startswith(
        "What finds wrong labels (symmetric, 10 %): cumulative sample loss, AUROC 0.95 (95 % interval 0.93 to 0.97); "
        "exact duplicates (some): cumulative sample loss, AUROC 0.70"
    )
    ours = [row for row in rows(specification, "name", "series", "low") if row["series"] == "this study"]
    # Three panels of wrong labels, and duplicates of the first variant.
    assert len({(row["name"], row["value"]) for row in ours}) == 2 * len(made.SCORES)
    published = {(row["name"], row["series"], row["value"]) for row in rows(specification, "series", "rate")}
    assert ("cumulative sample loss", "published, CIFAR-10", 0.9869) in published
    assert ("cumulative sample loss", "published, CIFAR-100", 0.9886) in published
    assert ("mean confidence", "published, CIFAR-100", 0.6884) in published
    assert len(published) == 8  # two scores, two data sets, wrong labels at 10 % and duplicates
    assert "Ravikumar et al., ICML 2025" in subtitle(specification)


def test_detection_without_anything_to_find_says_so_and_of_pairs_alone_nothing_is_published(store: Store) -> None:
    pairs = made.memorization_study(variants={"pairs": MEMORIZATION.variants["pairs"].model_dump()})
    made.write_memorization(store, pairs)
    specification = drawn("detection_by_score", pairs, store)
    published = [row for row in rows(specification, "rate")]
    assert {row["rate"] for row in published} == {None}  # of duplicates alone
    clean = made.memorization_study(name="clean")
    for key, arm in clean.arms.items():
        nothing = {"variant": arm.variant, "k": 4, "recipe": clean.recipe_hash(arm), "target": "wrong label"}
        made.write_rows(store, clean, "memorization_detection", [nothing | {"score": "csl", "auroc": None}], key)
    with pytest.raises(DataMissingError, match="nothing to find"):
        draw("detection_by_score", clean, store)


def test_a_score_at_chance_finds_nothing_and_one_without_an_interval_is_not_surely_the_best() -> None:
    best = {"score": "csl", "auroc": 0.52, "auroc_low": 0.49, "auroc_high": 0.55}
    assert detection_words([best], "near duplicates") == (
        "near duplicates: no score surely; at best cumulative sample loss, AUROC 0.52 (95 % interval 0.49 to 0.55)"
    )
    sure = {"score": "el2n", "auroc": 0.51, "auroc_low": 0.505, "auroc_high": 0.52}
    assert detection_words([best, sure], "copies") == (
        "copies: EL2N, AUROC 0.51 (95 % interval 0.51 to 0.52), not surely better than cumulative sample loss"
    ), "what is sure goes before what is larger"
    contrary = {"score": "el2n", "auroc": 0.3, "auroc_low": 0.2, "auroc_high": 0.4}
    assert "no score surely, and they surely look less memorised by EL2N, AUROC 0.30" in detection_words(
        [best, contrary], "copies"
    )
    single = [best | {"auroc": value, "auroc_low": None, "auroc_high": None} for value in (0.9, 0.8)]
    assert detection_words(single, "copies") == (
        "copies: cumulative sample loss, AUROC 0.90 (no interval), not surely better than cumulative sample loss"
    )


def test_scores_against_truth_has_all_measures_and_says_what_is_no_worse_than_the_best(filled: Store) -> None:
    specification = drawn("scores_against_truth", MEMORIZATION, filled)
    scores = made.made_up_scores(MEMORIZATION, "some")
    rho = scipy.stats.spearmanr(scores["csl"], scores["memorization"]).statistic
    assert title(specification).startswith(
        f"Cumulative sample loss orders 100 images most as memorisation itself does: \u03c1 = {rho:.2f} (95 % interval "
    )
    other = scipy.stats.spearmanr(scores["loss_sensitivity"], scores["memorization"]).statistic
    assert ("not surely better than loss sensitivity" in title(specification)) == (other + 0.05 >= rho - 0.05)
    found = {(row["name"], row["series"], row["value"]) for row in rows(specification, "name", "series", "value")}
    assert ("cumulative sample loss", "published, all", 0.79) in found  # Pearson's
    assert ("cumulative sample loss", "published, top 5,000", 0.93) in found  # cosine
    assert any(name == words_of("csl") and value == pytest.approx(rho, rel=1e-5) for name, _, value in found)


def test_score_ranks_bins_every_image_once_for_every_pair(filled: Store) -> None:
    specification = drawn("score_ranks", MEMORIZATION, filled)
    scores = made.made_up_scores(MEMORIZATION, "some")
    counts: dict[str, int] = {}
    for row in rows(specification, "pair", "images"):
        counts[row["pair"]] = counts.get(row["pair"], 0) + int(row["images"])
    assert set(counts.values()) == {100} and len(counts) == 21
    rho = scipy.stats.spearmanr(-scores["confidence"], scores["memorization"]).statistic
    assert f"{rho:.2f}" in {row["rho"] for row in rows(specification, "rho", "ends")}
    assert title(specification).startswith(
        "Memorisation itself orders images most like cumulative sample loss, \u03c1 ="
    )


def test_the_interval_of_a_rank_correlation_holds_the_true_one_as_often_as_it_says() -> None:
    random, rho = np.random.default_rng(0), 0.6
    true = 6 / math.pi * math.asin(rho / 2)  # of normal variables (Kruskal 1958)
    held = 0
    for _ in range(400):
        x, y = random.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=60).T
        value, low, high = score_ranks.rank_correlation(x, y)
        assert value == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        held += low <= true <= high
    assert scipy.stats.binomtest(held, 400, 0.95).pvalue > 0.001
    assert score_ranks.rank_correlation(np.zeros(9), np.arange(9.0)) == pytest.approx((math.nan,) * 3, nan_ok=True)


def test_score_ranks_leaves_out_what_is_the_same_for_nearly_all_and_names_how_many_may_be_as_good(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual: Callable[[Study, str], dict[str, np.ndarray]] = made.made_up_scores

    def nearly(study: Study, variant: str) -> dict[str, np.ndarray]:
        truth = usual(study, variant)["memorization"]
        rare = np.where(np.arange(100) < 6, np.arange(100.0), 50.0)
        return {**usual(study, variant), "csl": truth + 0.001, "loss_sensitivity": truth, "trace_sum": rare}

    monkeypatch.setattr(made, "made_up_scores", nearly)
    made.write_memorization(store, MEMORIZATION)
    specification = drawn("score_ranks", MEMORIZATION, store)
    assert ", not surely more than like 1 more, and least like" in title(specification)
    assert not any("trace" in row["pair"] for row in rows(specification, "pair"))


def test_detection_of_one_target_has_the_width_and_three_digits_near_one(
    store: Store, monkeypatch: pytest.MonkeyPatch, filled: Store
) -> None:
    usual = made.write_rows
    alone = made.memorization_study(variants={"some": MEMORIZATION.variants["some"].model_dump()})

    def near_one(store: Store, study: Study, table: str, own: list[dict[str, Any]], key: str | None = None) -> None:
        if table == "memorization_detection":
            ends = {"auroc_low": 0.9962, "auroc_high": 0.9994}
            own = [row | {"auroc": 0.9987} | ends for row in own if row["target"] == "wrong label"]
        usual(store, study, table, own, key)

    monkeypatch.setattr(made, "write_rows", near_one)
    made.write_memorization(store, alone)
    specification = drawn("detection_by_score", alone, store)
    assert "AUROC 0.999 (95 % interval 0.996 to 0.999)" in title(specification)
    assert {row["text"] for row in rows(specification, "text")} == {"0.999"}
    widths = {panel["width"] for panel in specification["concat"]}
    several = drawn("detection_by_score", MEMORIZATION, filled)
    assert max(panel["width"] for panel in several["concat"]) < min(widths)
    assert "exact duplicates (some): " in title(several)


def test_of_images_that_share_the_highest_value_those_with_the_largest_loss_are_shown(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = made.write_rows
    loss = np.random.default_rng(0).permutation(100).astype(float)

    def tied(store: Store, study: Study, table: str, own: list[dict[str, Any]], key: str | None = None) -> None:
        if table == "memorization_truth":
            own = [row | {"memorization": float(row["image_id"] < 70)} for row in own]
        if table == "memorization":
            own = [row | {"csl": loss[row["image_id"]]} for row in own]
        usual(store, study, table, own, key)

    monkeypatch.setattr(made, "write_rows", tied)
    made.write_memorization(store, MEMORIZATION)
    specification = drawn("memorized_images", MEMORIZATION, store)
    assert "70 images share the highest value, 1, of memorisation itself" in subtitle(specification)
    cells = [row for row in rows(specification, "url") if row["score"] == "memorisation itself"]
    given = made.made_up_scores(MEMORIZATION, "some")["given_label"]
    for label in range(made.NUM_CLASSES):
        own = np.flatnonzero((given == label) & (np.arange(100) < 70))
        expected = own[np.argsort(-loss[own])][:4].tolist()
        assert [row["image_id"] for row in cells if row["given_label"] == label] == expected


def test_the_gallery_has_the_highest_of_each_label_and_marks_wrong_ones_and_draws_copies_from_their_source(
    filled: Store,
) -> None:
    specification = drawn("memorized_images", MEMORIZATION, filled)
    scores = made.made_up_scores(MEMORIZATION, "some")
    cells = [row for row in rows(specification, "url") if row["score"] == "memorisation itself"]
    for label in range(made.NUM_CLASSES):
        own = np.flatnonzero(scores["given_label"] == label)
        expected = own[np.argsort(-scores["memorization"][own], kind="stable")][:4]
        assert [row["image_id"] for row in cells if row["given_label"] == label] == expected.tolist()
    wrong = [row for row in cells if row["is_noisy"]]
    assert title(specification).startswith(f"{len(wrong)} of the {len(cells)} most memorised images")
    assert len(wrong) > 0 and all(row["label"] == f"is {row['true_label']}" for row in wrong)
    atypical = [row for row in rows(specification, "url") if row["score"] == "area under the margin"]
    assert atypical and not any(row["is_noisy"] for row in atypical)
    images = load("digits").images
    for row in rows(specification, "url"):
        source = 0 if row["image_id"] == 1 else row["image_id"]
        assert row["url"] == data_uri(images[source], MEMORIZATION.data.record, IMAGE)


def test_without_truth_the_gallery_goes_by_the_cumulative_loss(store: Store) -> None:
    made.write_memorization(store, MEMORIZATION, truth=False)
    specification = drawn("memorized_images", MEMORIZATION, store)
    assert "(by cumulative sample loss)" in title(specification)
    ranks = drawn("score_ranks", MEMORIZATION, store)
    assert title(ranks).startswith("Cumulative sample loss and ") and "order images most alike" in title(ranks)
    assert draw("scores_against_truth", MEMORIZATION, store) is None
    assert draw("memorization_histogram", MEMORIZATION, store) is None


def test_the_histogram_has_every_image_and_the_means_of_both_kinds_of_labels(filled: Store) -> None:
    specification = drawn("memorization_histogram", MEMORIZATION, filled)
    scores = made.made_up_scores(MEMORIZATION, "some")
    wrong, right = (scores["memorization"][scores["is_noisy"] == noisy] for noisy in (True, False))
    ends = scipy.stats.t.interval(0.95, len(wrong) - 1, wrong.mean(), scipy.stats.sem(wrong))
    assert title(specification).startswith(
        "some: wrong labels are memorised more than right ones: on average "
        f"{wrong.mean():.2f} (95 % interval {ends[0]:.2f} to {ends[1]:.2f}) against {right.mean():.2f}"
    )
    assert sum(row["count"] for row in rows(specification, "count")) == 3 * 100


def test_never_is_a_number_in_the_mean_over_trials(store: Store) -> None:
    variant = {"plain": MEMORIZATION.variants["some"].model_dump()}
    study = made.memorization_study(variants=variant, trials=2)
    ((key, arm),) = study.arms.items()
    same = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm), "is_noisy": False}
    same |= {"true_label": 0, "given_label": 0, "duplicate": "", "num_evaluations": 5}  # of 10
    found = {0: [1.0, 1.0], 1: [2.0, None], 2: [None, None], 3: [3.0, 0.0]}
    images = [
        same | {"trial": trial, "image_id": image, "first_learned_epoch": value, "forgetting_events": value}
        for image, values in found.items()
        for trial, value in enumerate(values)
    ]
    made.write_rows(store, study, "memorization", images, key)
    with contextlib.closing(connect(store)) as connection:
        means = read_means(connection, study, key)
    expected = np.array([
        [as_numbers(name, np.array([values[trial] for values in found.values()], float), 6.0)
         for trial in (0, 1)]
        for name in ("first_learned_epoch", "forgetting_events")
    ]).mean(1)  # fmt: skip
    assert means.oriented("first_learned_epoch").tolist() == expected[0].tolist()
    assert means.oriented("forgetting_events").tolist() == expected[1].tolist() == [1, 2, 3, 1.5]
    assert [row["never_right"] for row in means.rows] == [False, False, True, False]
    (top,) = most(means, "forgetting_events", 0)[:1]
    assert top["image_id"] == 2


def test_a_score_that_no_image_has_is_in_no_figure(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    usual: Callable[[Study, str], dict[str, np.ndarray]] = made.made_up_scores

    def without(study: Study, variant: str) -> dict[str, np.ndarray]:
        return {**usual(study, variant), "csl": np.full(100, np.nan), "trace_sum": np.full(100, 3.0)}

    monkeypatch.setattr(made, "made_up_scores", without)
    made.write_memorization(store, MEMORIZATION)
    pairs = {row["pair"] for row in rows(drawn("score_ranks", MEMORIZATION, store), "pair")}
    assert pairs and not any("cumulative" in pair or "trace" in pair for pair in pairs)
