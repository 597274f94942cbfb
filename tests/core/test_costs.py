"""The view ``costs``, and the queries of docs/queries.md over it, against sums done by hand."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dd_core.store.store import Store
from dd_core.study.study import Arm
from dd_core.tables.attempts import attempt_path
from dd_core.tables.files import TABLES, to_arrow, write_result
from dd_core.tables.warehouse import connect

PAGE = (Path(__file__).parents[2] / "docs" / "queries.md").read_text(encoding="utf-8")
QUERIES = [query for query in re.findall(r"```sql\n(.*?)```", PAGE, flags=re.DOTALL) if "FROM costs" in query]
HOUR = 3600.0
Rows = list[dict[str, Any]]


@pytest.fixture
def ask(make_study: Any, store: Store) -> Callable[..., list[Rows]]:
    """What the two queries say after attempts as given: trials, epochs, hours, ends."""

    def rows(of_variants: dict[str, list[dict[str, Any]]], price: float | None, gpu_share: float) -> list[Rows]:
        study = make_study().model_copy(update={"name": "nsm_published"})
        for variant, attempts in of_variants.items():
            arm = Arm(variant, 64)
            for number, attempt in enumerate(attempts, start=1):
                hours = attempt["hours"]
                seconds = None if hours is None else hours * HOUR
                predicted = attempt.get("predicted")
                known = {
                    **{"variant": variant, "k": arm.k, "recipe": "r", "attempt": number, "gpu_share": gpu_share},
                    "arms_together": attempt.get("together"),
                    **{"trial": attempt.get("trials", [0, 1]), "status": attempt["status"], "seconds": seconds},
                    **{"first_epoch": attempt["first"], "last_epoch": attempt["last"]},
                    **{"end_epoch": attempt.get("end"), "price_per_gpu_hour": price},
                    "predicted_seconds": None if predicted is None else predicted * HOUR,
                    "cost": None if price is None or seconds is None else seconds / 3600 * gpu_share * price,
                }
                columns = {column.name: known.get(column.name) for column in TABLES["runs"].file_columns}
                table = to_arrow("runs", columns, len(known["trial"]))
                write_result(store, attempt_path(store, study, arm, number, "end"), table)
        with contextlib.closing(connect(store)) as connection:
            answers = [connection.sql(query) for query in QUERIES]
            return [[dict(zip(a.columns, row, strict=True)) for row in a.fetchall()] for a in answers]

    return rows


# Planning is evicted after an hour and 30 of its 100 epochs; causal stops early, one trial after the other; the trials
# of kg train apart, and one of them stops early.
PLANNING = [
    {"status": "interrupted", "first": 0, "last": 0, "hours": 1.0, "predicted": 4.0},
    {"status": "finished", "first": 30, "last": 100, "hours": 3.5, "predicted": 2.8},
]
CAUSAL = [
    {
        **{"status": ["stopped early", "stopped early"], "end": [20, 40]},
        **{"first": 0, "last": 100, "hours": 2.0, "predicted": 5.0},
    }
]
KG = [
    {"trials": [0], "status": "finished", "first": 0, "last": 100, "hours": 5.0, "predicted": 4.0},
    {"trials": [1], "status": "stopped early", "end": 25, "first": 0, "last": 100, "hours": 1.25, "predicted": 4.0},
]


def test_each_variant_has_its_forecast_its_bill_and_what_early_stopping_saved(ask: Any) -> None:
    paid, saved = ask({"planning": PLANNING, "causal": CAUSAL, "kg": KG}, price=1.1, gpu_share=0.5)
    assert [row["variant"] for row in paid] == ["causal", "kg", "planning", "total"]
    hours = {"causal": (5.0, 2.0, 1), "kg": (8.0, 6.25, 2), "planning": (4.0, 4.5, 2), "total": (17.0, 12.75, 5)}
    for row in paid:
        predicted, took, attempts = hours[row["variant"]]
        assert (row["forecast_hours"], row["hours"], row["attempts"]) == (predicted, took, attempts)
        assert row["forecast"] == pytest.approx(predicted * 0.55, abs=0.005)
        assert row["paid"] == pytest.approx(took * 0.55, abs=0.005)
    # Causal: 60 epochs of both trials at 2 h / 40; kg: 75 epochs of one trial at 1.25 h / 25.
    known = {"causal": (120, 3.0), "kg": (75, 3.75), "planning": (0, 0.0), "total": (195, 6.75)}
    for row in saved:
        epochs, not_spent = known[row["variant"]]
        assert (row["epochs_not_trained"], row["hours_saved"]) == (epochs, not_spent)
        assert row["saved"] == pytest.approx(not_spent * 0.55, abs=0.005)


def test_without_a_price_there_is_no_money_and_without_a_forecast_no_forecast(ask: Any) -> None:
    blind = [{**attempt, "predicted": None} for attempt in KG]
    paid, saved = ask({"kg": blind}, price=None, gpu_share=1.0)
    assert [(row["forecast"], row["paid"], row["forecast_hours"], row["hours"]) for row in paid] == [
        (None, None, None, 6.25)
    ] * 2
    assert [(row["saved"], row["hours_saved"]) for row in saved] == [(None, 3.75)] * 2


def test_a_study_without_early_stopping_saves_nothing_and_a_cpu_costs_nothing(ask: Any) -> None:
    diverged = [{"status": "diverged", "end": 1, "first": 0, "last": 100, "hours": 0.5, "predicted": 4.0}]
    paid, saved = ask({"planning": PLANNING, "worse": diverged}, price=1.1, gpu_share=0.0)
    assert [(row["epochs_not_trained"], row["hours_saved"], row["saved"]) for row in saved] == [(0, 0, 0)] * 3
    assert [(row["forecast"], row["paid"]) for row in paid] == [(0, 0)] * 3


def test_an_arm_asked_to_train_on_after_it_stopped_is_counted_once(ask: Any) -> None:
    """The second attempt trains nothing: it finds the trials ended."""
    first = {**CAUSAL[0], "last": 50}
    second = {**CAUSAL[0], "first": 50, "last": 100, "hours": 0.1, "predicted": 1.0}
    (paid, _), (saved, _) = ask({"causal": [first, second]}, price=1.0, gpu_share=1.0)
    assert (paid["forecast_hours"], paid["hours"]) == (6.0, 2.1)
    assert (saved["epochs_not_trained"], saved["hours_saved"]) == (120, round(60 * 2.1 / 40, 2))


def test_arms_that_share_a_network_save_nothing_and_an_attempt_without_an_end_is_counted(
    ask: Any, store: Store
) -> None:
    """The network trains until its last arm ends, and nobody knows what a worker that died without a word has cost."""
    dead = {"status": "running", "first": 0, "last": 0, "hours": None, "predicted": 5.0}
    (paid, _), (saved, _) = ask({"causal": [dead, {**CAUSAL[0], "together": 3}]}, price=1.0, gpu_share=1.0)
    assert (saved["epochs_not_trained"], saved["hours_saved"]) == (0, 0)
    assert (paid["attempts"], paid["hours"], paid["forecast_hours"]) == (2, 2.0, 5.0)
    with contextlib.closing(connect(store)) as connection:
        assert connection.sql("SELECT num_attempts, num_untimed_attempts FROM costs").fetchall() == [(2, 1)]
