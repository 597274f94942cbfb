"""The figures of the ledger and of the monitors: their numbers are those of the files, and say what they leave out."""

import csv
import datetime
import io
import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st
from specifications import assert_legible

from dd_core.figures import FIGURES
from dd_core.figures.drawing import log_axis
from dd_core.figures.panels import spending
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.files import TABLES, read_parquet, to_arrow, write_parquet

BY_NAME = {figure.name: figure for figure in FIGURES}
NOON = datetime.datetime(2031, 5, 4, 12, tzinfo=datetime.UTC)

# By k: attempts as (status of each trial, seconds, predicted seconds); None: nobody knows, or it still runs.
ATTEMPTS: dict[int, list[tuple[tuple[str, str], float | None, float | None]]] = {
    1: [(("finished", "finished"), 3600.0, 3000.0)],
    2: [(("interrupted", "interrupted"), 1800.0, 7200.0), (("finished", "stopped early"), 5400.0, 6000.0)],
    4: [(("failed", "failed"), 900.0, None), (("finished", "diverged"), 7200.0, 7200.0)],
    8: [(("interrupted", "interrupted"), None, 9000.0), (("running", "running"), None, 9000.0)],
}


@pytest.fixture
def write_runs(store: Store) -> Callable[..., None]:
    """Write the ledger of every arm; ``gpu_share`` 0 is a CPU."""

    def write(study: Study, recipe_of: Study | None = None, gpu_share: float = 0.5, price: float | None = None) -> None:
        for key, arm in study.arms.items():
            start = NOON + datetime.timedelta(minutes=arm.k)
            for number, (statuses, seconds, predicted) in enumerate(ATTEMPTS[arm.k], start=1):
                gpu_seconds = None if seconds is None else gpu_share * seconds
                ended = None if seconds is None else start + datetime.timedelta(seconds=seconds)
                known: dict[str, Any] = {
                    "variant": arm.variant, "k": arm.k, "trial": np.arange(study.trials), "attempt": number,
                    "recipe": (recipe_of or study).recipe_hash(arm), "status": list(statuses),
                    "seconds": seconds, "gpu_seconds": gpu_seconds, "predicted_seconds": predicted,
                    "started_at": start, "ended_at": ended,
                    "cost": None if price is None or gpu_seconds is None else gpu_seconds / 3600 * price,
                }  # fmt: skip
                start = ended or start
                columns = {c.name: known.get(c.name) for c in TABLES["runs"].file_columns}
                path = store.table_folder("runs", study.name, key) / f"attempt-{number:04d}.end.parquet"
                write_parquet(path, to_arrow("runs", columns, study.trials))

    return write


# By metric after how many steps it is measured; studies here have 5 steps in an epoch and 4 epochs.
MEASURED = {
    "gradient_norm": 1,
    "weight_norm": 1,
    "largest_eigenvalue": 5,
    "largest_eigenvalue_residual": 5,
    "hessian_trace": 5,
    "validation_error": 5,
}
ERRORS = {"hessian_trace": 0.25}


def made_up_value(metric: str, k: int, trial: int, step: int) -> float:
    """Positive; the largest eigenvalue rises to a peak at step 2 k and falls."""
    level = list(MEASURED).index(metric) + 1 if metric in MEASURED else 1
    shape = 1 + min(step, 4 * k - step) / 40 if metric == "largest_eigenvalue" else 1 + step / 10
    return level * shape * (1 + trial / 10) if metric != "validation_error" else shape / 4


@pytest.fixture
def write_monitors(store: Store) -> Callable[..., None]:
    """Write what monitors measured; ``extra``: values of further metrics, every 5 steps."""

    def write(
        study: Study,
        recipe_of: Study | None = None,
        measured: dict[str, int] = MEASURED,
        value: Callable[[str, int, int, int], float] = made_up_value,
        widths: tuple[int, ...] | None = None,
        num_steps: int = 20,
    ) -> None:
        for key, arm in study.arms.items():
            if widths is not None and arm.k not in widths:
                continue
            rows = [
                (trial, step, metric, value(metric, arm.k, trial, step), ERRORS.get(metric, np.nan))
                for metric, every in measured.items()
                for trial in range(study.trials)
                for step in range(every, num_steps + 1, every)
            ]
            trials, steps, metrics, values, errors = (np.array(column) for column in zip(*rows, strict=True))
            columns = {
                "variant": arm.variant, "k": arm.k, "trial": trials, "recipe": (recipe_of or study).recipe_hash(arm),
                "epoch": (steps - 1) // 5 + 1, "step": steps, "metric": metrics, "value": values,
                "standard_error": errors,
            }  # fmt: skip
            path = store.table_folder("training_monitors", study.name, key) / "0004.parquet"
            write_parquet(path, to_arrow("training_monitors", columns, len(rows)))

    return write


@pytest.fixture
def write_errors(store: Store) -> Callable[..., None]:
    """Write evaluations in which k = 4 fits its labels from epoch 2 on, k = 8 from epoch 1 on, narrower ones never."""

    def write(study: Study) -> None:
        for key, arm in study.arms.items():
            pairs = [(trial, epoch) for trial in range(study.trials) for epoch in (0, 1, 2, 4)]
            trials, epochs = (np.array(values) for values in zip(*pairs, strict=True))
            train = np.where((arm.k >= 4) & (epochs * arm.k >= 8), 0.05, 0.5)
            known = {
                "variant": arm.variant, "k": arm.k, "trial": trials, "epoch": epochs, "step": 5 * epochs,
                "recipe": study.recipe_hash(arm), "train_error": train, "test_error": 0.3,
            }  # fmt: skip
            columns = {c.name: known.get(c.name, np.nan) for c in TABLES["training_evals"].file_columns}
            path = store.table_folder("training_evals", study.name, key) / "0004.parquet"
            write_parquet(path, to_arrow("training_evals", columns, len(pairs)))

    return write


def draw(name: str, study: Study, store: Store, open_views: Callable[[], Any]) -> dict[str, Any]:
    chart = BY_NAME[name].draw(study, store, open_views())
    assert chart is not None
    return chart.to_dict()


def rows(specification: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """All rows of a chart's data that have a column."""
    tables = [
        list(csv.DictReader(io.StringIO(part))) if isinstance(part, str) else part
        for part in specification["datasets"].values()
    ]
    return [row for table in tables for row in table if key in row]


def title(specification: dict[str, Any]) -> str:
    return " ".join(specification["title"]["text"])


def subtitle(specification: dict[str, Any]) -> str:
    return " ".join(specification["title"]["subtitle"])


# Both


@pytest.mark.parametrize("name", ["gpu_hours", "training_dynamics"])
def test_without_data_there_is_no_figure(name, study, store, new_study, write_runs, write_monitors, open_views):
    assert BY_NAME[name].draw(study, store, open_views()) is None
    before = new_study(seed=1)
    write_runs(study, recipe_of=before)
    write_monitors(study, recipe_of=before)
    assert BY_NAME[name].draw(study, store, open_views()) is None


@pytest.mark.parametrize(
    ("name", "num_variants"),
    [("gpu_hours", 1), ("gpu_hours", 2), ("gpu_hours", 7), ("training_dynamics", 1), ("training_dynamics", 2)],
)
def test_every_figure_compiles(
    name, num_variants, study, store, new_study, write_runs, write_monitors, write_errors, open_views
):
    variants = {f"v{i}": study.variants["plain"].model_dump() for i in range(num_variants)}
    study = new_study(variants=variants)
    write_runs(study, price=2.0)
    write_monitors(study)
    write_errors(study)
    specification = draw(name, study, store, open_views)
    assert "digits" in subtitle(specification)
    text = vl_convert.vegalite_to_svg(json.dumps(specification, allow_nan=False))
    assert "NaN" not in text and "undefined" not in text
    assert_legible(specification, text)


@pytest.mark.parametrize("name", ["gpu_hours", "training_dynamics"])
def test_results_of_an_earlier_recipe_are_left_out_and_that_is_said(
    name, study, store, new_study, write_runs, write_monitors, open_views
):
    write_runs(study)
    write_monitors(study)
    other = new_study(seed=1)  # of all arms but one the recipe has changed
    for key in ("plain.k001", "plain.k002", "plain.k008"):
        for table in ("runs", "training_monitors"):
            shutil.rmtree(store.table_folder(table, study.name, key))
    write_monitors(study, recipe_of=other, widths=(1,))
    specification = draw(name, study, store, open_views)
    if name == "training_dynamics":
        assert "Left out: k = 1 (results of an earlier recipe), k = 2, 8 (no results yet)" in subtitle(specification)
    else:
        assert "Left out: k = 1, 2, 8 (no results yet)" in subtitle(specification)
    assert {int(row["k"]) for row in rows(specification, "k")} <= {4}


# Hours


def amounts(specification: dict[str, Any]) -> dict[tuple[int, str], float]:
    """Of the bars, by k and status."""
    return {(row["k"], row["status"]): row["amount"] for row in rows(specification, "rank")}


def test_an_attempt_counts_once_and_is_shared_among_its_trials(study, store, write_runs, open_views):
    write_runs(study)
    assert amounts(draw("gpu_hours", study, store, open_views)) == pytest.approx(
        {
            (1, "finished"): 0.5,
            (2, "interrupted"): 0.25,
            (2, "finished"): 0.375,
            (2, "stopped early"): 0.375,
            (4, "failed"): 0.125,
            (4, "finished"): 0.5,
            (4, "diverged"): 0.5,
        },
        rel=1e-5,
    )


def test_title_states_total_losses_and_cost(study, store, write_runs, open_views):
    """Half a GPU for 18,900 s, of which 2,700 s in attempts and 3,600 s in a trial that came to nothing."""
    write_runs(study, price=4.0)
    specification = draw("gpu_hours", study, store, open_views)
    assert title(specification) == (
        "Training took 2.62 GPU hours, 14 % of them in attempts that failed or were interrupted and 19 % in trials "
        "that diverged; it cost 10.5"
    )
    assert [row["text"] for row in rows(specification, "text")] == ["0.5\ncost 2", "1\ncost 4", "1.1\ncost 4.5"]


def test_time_on_cpus_is_called_that(study, store, write_runs, open_views):
    write_runs(study, gpu_share=0.0, price=4.0)
    specification = draw("gpu_hours", study, store, open_views)
    assert title(specification).startswith("Training took 5.25 CPU worker hours, 14 % of them")
    assert "CPU worker hours: wall time of workers" in subtitle(specification)
    assert "GPU" not in json.dumps(specification) and "cost" not in title(specification)
    assert [row["text"] for row in rows(specification, "text")] == ["1", "2", "2.2"]
    assert amounts(specification)[1, "finished"] == pytest.approx(1.0)


def test_time_on_cpus_is_not_added_to_that_on_gpus(study, store, write_runs, open_views):
    write_runs(study)
    on_cpu = store.table_folder("runs", study.name, "plain.k001") / "attempt-0001.end.parquet"
    table = read_parquet(on_cpu)
    index = table.column_names.index("gpu_seconds")
    write_parquet(on_cpu, table.set_column(index, table.schema.field(index), pa.array([0.0, 0.0])))
    specification = draw("gpu_hours", study, store, open_views)
    assert {k for k, _ in amounts(specification)} == {2, 4}
    assert "Not shown: 1 hours of workers on CPUs" in subtitle(specification)


def test_what_is_not_known_is_said(study, store, write_runs, open_views):
    write_runs(study)
    text = subtitle(draw("gpu_hours", study, store, open_views))
    assert "Of interrupted attempts the time up to the last resume point is known; 1 of 2 wrote none" in text
    assert "1 attempt is running and not counted" in text


def test_spending_over_time_ends_at_the_total(study, store, write_runs, open_views):
    write_runs(study)
    sums = [row["amount"] for row in rows(draw("gpu_hours", study, store, open_views), "ended") if "amount" in row]
    assert sums == sorted(sums)
    assert len(sums) == 5 and sums[-1] == pytest.approx(2.625, rel=1e-5)


def test_predictions_are_compared_with_attempts_that_ran_to_their_end(study, store, write_runs, open_views):
    write_runs(study)
    specification = draw("gpu_hours", study, store, open_views)
    points = {(row["predicted"], row["actual"]) for row in rows(specification, "predicted") if "arm" in row}
    expected = sorted([(3000 / 3600, 1.0), (6000 / 3600, 1.5), (2.0, 2.0)])
    assert sorted(points) == [pytest.approx(pair, rel=1e-5) for pair in expected]
    assert "Actual over predicted time of attempts that ran to their end: median 1, 0.9 to 1.2" in subtitle(
        specification
    )


@pytest.mark.parametrize(
    ("seconds", "unit"), [(18_900, "hours"), (5400, "hours"), (5399, "minutes"), (90, "minutes"), (89, "seconds")]
)
def test_small_amounts_have_small_units(seconds, unit):
    assert spending.unit_for(seconds)[0] == unit


# Dynamics


def curves(specification: dict[str, Any]) -> dict[tuple[str, str], dict[float, tuple[float, float, float]]]:
    """By panel and width, at each epoch: mean, lower and upper end of the band."""
    found: dict[tuple[str, str], dict[float, tuple[float, float, float]]] = {}
    for panel in specification["concat"]:
        text = json.dumps(panel["layer"])
        metric = next(name for name in (*MEASURED, "mine") if f'"{name}"' in text)
        names = {layer["data"]["name"] for layer in panel["layer"] if "data" in layer}
        for name in names:
            content = specification["datasets"][name]
            for row in csv.DictReader(io.StringIO(content)) if isinstance(content, str) else ():
                values = tuple(float(row[column]) for column in ("value", "low", "high"))
                found.setdefault((metric, row["width"]), {})[float(row["epoch"])] = values
    return found


def test_means_and_bands_are_those_of_the_files(study, store, write_monitors, write_errors, open_views):
    """Of estimates the band reaches one standard error beyond the trials."""
    write_monitors(study)
    write_errors(study)
    drawn = curves(draw("training_dynamics", study, store, open_views))
    roles = {1: "k = 1, narrowest", 4: "k = 4, threshold", 8: "k = 8, widest"}
    assert set(drawn) == {(m, role) for m in MEASURED if m != "largest_eigenvalue_residual" for role in roles.values()}
    for (metric, width), points in drawn.items():
        k = next(k for k, role in roles.items() if role == width)
        expected = {}
        for step in range(MEASURED[metric], 21, MEASURED[metric]):
            trials = [made_up_value(metric, k, trial, step) for trial in range(2)]
            error = ERRORS.get(metric, 0.0)
            expected[step / 5] = pytest.approx((np.mean(trials), min(trials) - error, max(trials) + error), rel=1e-5)
        assert points == expected


def test_title_says_when_curvature_peaks(study, store, write_monitors, write_errors, open_views):
    write_monitors(study)
    write_errors(study)
    assert title(draw("training_dynamics", study, store, open_views)) == (
        "The largest eigenvalue of the Hessian is highest at epoch 1 (k = 1), 2 (k = 4) and 3 (k = 8); the gradient is "
        "largest at epoch 4 (k = 1), 4 (k = 4) and 4 (k = 8)"
    )


def test_the_epoch_at_which_labels_are_fitted_is_marked(study, store, write_monitors, write_errors, open_views):
    write_monitors(study)
    write_errors(study)
    specification = draw("training_dynamics", study, store, open_views)
    marked = {(row["k"], row["epoch"]) for row in rows(specification, "role") if "value" not in row}
    assert marked == {(4, 2), (8, 1)}
    assert "Dashed: first epoch with training error at most 10 %" in subtitle(specification)


def test_without_evaluations_the_ends_are_shown(study, store, write_monitors, open_views):
    write_monitors(study)
    specification = draw("training_dynamics", study, store, open_views)
    assert {width for _, width in curves(specification)} == {"k = 1, narrowest", "k = 8, widest"}
    assert "Dashed" not in subtitle(specification)


def test_some_metrics_of_the_users_own_are_drawn_and_the_others_named(study, store, write_monitors, open_views):
    write_monitors(study, measured={f"own_{number}": 5 for number in range(8)})
    specification = draw("training_dynamics", study, store, open_views)
    text = json.dumps(specification["concat"])
    assert len(specification["concat"]) == 6
    assert [f'"own_{number}"' in text for number in range(8)] == [True] * 6 + [False] * 2
    assert "Not drawn: own_6, own_7" in subtitle(specification)


def test_long_trainings_are_thinned_but_keep_both_ends(study, store, write_monitors, open_views):
    """The title is still that of all steps."""

    def value(metric: str, k: int, trial: int, step: int) -> float:
        return 2.0 if step == 4001 else 1.0

    write_monitors(study, measured={"largest_eigenvalue": 1}, value=value, num_steps=5000)
    specification = draw("training_dynamics", study, store, open_views)
    for points in curves(specification).values():
        assert 50 <= len(points) <= 100
        assert (min(points), max(points)) == (0.2, 1000.0)
    assert "highest at epoch 800 (k = 1) and 800 (k = 8)" in title(specification)


def scale_types(specification: dict[str, Any]) -> set[str | None]:
    layers = [layer for panel in specification["concat"] for layer in panel["layer"]]
    return {
        layer["encoding"]["y"]["scale"].get("type") for layer in layers if "scale" in layer["encoding"].get("y", {})
    }


@pytest.mark.parametrize(("growth", "is_log"), [(1.2, False), (2.0, True)])
def test_axes_are_logarithmic_for_positive_values_over_a_decade(
    growth, is_log, study, store, write_monitors, open_views
):
    write_monitors(
        study, measured={"largest_eigenvalue": 5}, value=lambda metric, k, trial, step: growth ** (step / 5) * (1 + k)
    )
    assert scale_types(draw("training_dynamics", study, store, open_views)) == {"log" if is_log else None}


def test_means_below_a_logarithmic_axis_are_told(study, store, write_monitors, open_views):
    def value(metric: str, k: int, trial: int, step: int) -> float:
        return -1.0 if (k, step) == (8, 100) else float(step)

    write_monitors(study, measured={"largest_eigenvalue": 5}, value=value, num_steps=100)
    specification = draw("training_dynamics", study, store, open_views)
    assert "largest_eigenvalue: 1 of 40 means are below the axis and drawn at its lower end" in subtitle(specification)
    assert scale_types(specification) == {"log"}
    assert min(value for points in curves(specification).values() for value, *_ in points.values()) == 4.0


def test_values_that_are_not_numbers_are_left_out(study, store, write_monitors, open_views):
    """As of a trial that has diverged."""

    def value(metric: str, k: int, trial: int, step: int) -> float:
        return np.inf if trial == 1 and step > 10 else 1.0 + trial

    write_monitors(study, measured={"gradient_norm": 5}, value=value)
    points = curves(draw("training_dynamics", study, store, open_views))["gradient_norm", "k = 8, widest"]
    assert points == {1: (1.5, 1, 2), 2: (1.5, 1, 2), 3: (1, 1, 1), 4: (1, 1, 1)}


def test_of_many_variants_the_first_are_drawn(study, store, new_study, write_monitors, open_views):
    plain = study.variants["plain"].model_dump()
    study = new_study(variants={f"v{i}": plain for i in range(6)})
    write_monitors(study, measured={"largest_eigenvalue": 5})
    specification = draw("training_dynamics", study, store, open_views)
    assert len(specification["vconcat"]) == 4
    assert "Variants: the first 4 of 6" in subtitle(specification)


@given(st.floats(1e-6, 1e6), st.floats(1.05, 1e9))
def test_ticks_are_few_round_and_within(low: float, ratio: float):
    ticks = log_axis.log_ticks(low, low * ratio)
    assert ticks == sorted(set(ticks)) and all(low <= tick <= low * ratio for tick in ticks)
    assert len(ticks) >= 2, "a single label is no axis"
    assert all(float(f"{tick:.{1 if ratio >= 4 else 2}e}") == tick for tick in ticks)
    if ratio >= 10:
        assert 3 <= len(ticks) <= 16
