"""The tables of the loss curves' analysis: every run has a row, made of its own metrics, and only when they changed."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from dd_core.analysis.loss_slope_report import WidthBreak, break_sentence, breaks_by_width, findings, rows_of
from dd_core.results import loss_slopes
from dd_core.results.loss_slopes import rebuild
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.tables.damage import sentences
from dd_core.tables.warehouse import connect

from .exchanged import batch, evaluation, monitor, snapshot, write_rows

MakeStudy = Callable[..., Study]
BOTH = ("loss_slopes", "loss_slope_fits")


def rows(store: Store, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(connect(store)) as connection:
        return connection.sql(sql).fetchall()


def outcomes(store: Store) -> dict[tuple[str, int], tuple[str, str]]:
    found = rows(store, "SELECT arm, trial, status, outcome FROM loss_slopes")
    return {(arm, trial): (status, outcome) for arm, trial, status, outcome in found}


@pytest.fixture
def long_study(make_study: MakeStudy) -> Study:
    """Forty epochs of four steps; nothing of it is trained here."""
    return make_study(epochs=40, checkpoints=(0, 40))


def power_law(slope: float, noise: float = 0.03, num: int = 160, scale: float = 2.0) -> list[float]:
    random = np.random.default_rng(0)
    step = np.arange(1, num + 1)
    return (scale * step**slope * np.exp(noise * random.normal(size=num))).tolist()


def write_losses(store: Store, study: Study, arm: Arm, losses: dict[int, list[float]], **more: Any) -> None:
    """Losses by trial, a step each."""
    content = [
        {**batch(trial, step, value), "train_loss": value}
        for trial, values in losses.items()
        for step, value in enumerate(values, start=1)
    ]
    write_rows(store, study, arm, "training_batches", content, part="0040")


# What is in the rows


def test_every_trained_run_has_a_row_made_from_its_own_metrics(trained: Store, tiny_study: Study) -> None:
    done = rebuild(trained, tiny_study)
    assert (done.rows, done.failed, done.left_out) == (4, {}, [])
    assert outcomes(trained) == {
        (arm, trial): ("finished", "fitted") for arm in ("plain.k001", "plain.k002") for trial in (0, 1)
    }
    found = rows(
        trained,
        "SELECT num_steps, best_validation_loss, last_validation_loss, last_epoch FROM loss_slopes ORDER BY arm, trial",
    )
    expected = """
        SELECT any_value(steps), min(test_loss), arg_max(test_loss, epoch), max(epoch) FROM training_evals
        JOIN (SELECT arm, trial, count(*) AS steps FROM training_batches GROUP BY ALL) USING (arm, trial)
        GROUP BY arm, trial ORDER BY arm, trial"""
    assert found == rows(trained, expected)
    described = (
        "SELECT DISTINCT family, architecture, norm, optimizer, learning_rate, batch_size, label_noise, "
        "steps_per_epoch, validation_is_test FROM loss_slopes"
    )
    assert rows(trained, described) == [("plain", "preact_resnet10", "batch", "adam", 0.002, 32, 0.2, 4.0, True)]
    assert {model for (model,) in rows(trained, "SELECT DISTINCT model FROM loss_slope_fits")} >= {
        "power",
        "exponential",
    }


def test_slope_validation_and_curvature_are_those_of_the_run(store: Store, long_study: Study) -> None:
    arm = long_study.arms["plain.k001"]
    write_losses(store, long_study, arm, {0: power_law(-0.5, 1e-4), 1: power_law(-0.25, 1e-4)})
    readings = [monitor(0, 4 * epoch, "validation_loss", 1 / epoch) for epoch in range(1, 41)]
    readings += [monitor(0, 4 * epoch, "largest_eigenvalue", 10.0 * min(epoch, 8)) for epoch in range(1, 41)]
    write_rows(store, long_study, arm, "training_monitors", readings, part="0040")
    evaluations = [evaluation(1, epoch, 3 + abs(epoch - 10)) for epoch in (5, 10, 40)]
    write_rows(store, long_study, arm, "training_evals", evaluations, part="0040")
    assert rebuild(store, long_study).failed == {}
    first, second = rows(
        store,
        "SELECT alpha_full, best_validation_loss, best_validation_epoch, validation_is_test, "
        "largest_eigenvalue_early, r_squared FROM loss_slopes "
        "ORDER BY trial",
    )
    assert first == (pytest.approx(-0.5, rel=1e-3), 1 / 40, 40, False, 80.0, pytest.approx(1, rel=1e-4))
    assert second == (pytest.approx(-0.25, rel=1e-3), 1.0, 10, True, None, pytest.approx(1, rel=1e-4))


def test_a_run_has_a_row_however_it_ended_as_soon_as_it_began(store: Store, long_study: Study) -> None:
    arm = long_study.arms["plain.k002"]
    write_losses(store, long_study, arm, {0: power_law(-0.5)[:120], 1: [2.3, 9.0, 900.0]})
    attempts = [(0, 1, "interrupted"), (1, 1, "running"), (0, 2, "stopped early"), (1, 2, "diverged"), (2, 1, "failed")]
    began = [{"trial": trial, "attempt": attempt, "status": status} for trial, attempt, status in attempts]
    write_rows(store, long_study, arm, "runs", began, part="attempt-0002.end")
    late = [{"trial": 0, "attempt": 2, "status": "running"}]  # the start of an attempt says less than its end
    write_rows(store, long_study, arm, "runs", late, part="attempt-0002.start")
    assert rebuild(store, long_study).rows == 3
    assert outcomes(store) == {
        ("plain.k002", 0): ("stopped early", "fitted"),
        ("plain.k002", 1): ("diverged", "diverged"),
        ("plain.k002", 2): ("failed", "no losses"),
    }


BAD = {
    "too few points": power_law(-0.5)[:9],
    "not finite": [math.inf, math.inf, math.inf] * 20 + [1.0] * 40,
    "constant loss": [1.5] * 100,
    "diverged": [2.0, 1.9, math.inf],
    "not positive": [0.0] * 100,
    "no losses": [],
}


def test_bad_losses_have_a_named_outcome_and_a_sentence(store: Store, make_study: MakeStudy) -> None:
    study = make_study(epochs=40, checkpoints=(0, 40), trials=12)
    arm = study.arms["plain.k001"]
    write_losses(store, study, arm, dict(enumerate(BAD.values())))
    more = {
        6: power_law(-0.5)[:4] * 4,  # one epoch, told again and again
        7: [-value for value in power_law(-0.5)],  # negative
        8: [*power_law(-0.5)[:80], 0.0, *power_law(-0.5)[80:]],  # one of exactly 0
        9: power_law(-0.5)[:40],  # the early window is partly beyond its end
    }
    content = [
        {**batch(trial, 1 + place % (4 if trial == 6 else 1000), value), "train_loss": value}
        for trial, values in more.items()
        for place, value in enumerate(values)
    ]
    write_rows(store, study, arm, "training_batches", content, part="0041")
    # Backwards, and every step with two losses.
    strange = [
        {**batch(10, step, value), "train_loss": value} for step, value in [*enumerate(power_law(-0.5), 1)][::-1]
    ]
    strange += [{**batch(11, 1 + i // 2, v), "train_loss": v * (1 + i % 2)} for i, v in enumerate(power_law(-0.5))]
    write_rows(store, study, arm, "training_batches", strange, part="0042")
    write_rows(store, study, arm, "runs", [{"trial": t, "attempt": 1, "status": "finished"} for t in range(12)])

    done = rebuild(store, study)
    assert done.failed == {}
    found = {trial: outcome for (_, trial), (_, outcome) in outcomes(store).items()}
    assert {trial: found[trial] for trial in range(6)} == dict(enumerate(BAD))
    assert found[6] in ("too few points", "steps not ascending")
    assert found[7] == "not positive"
    assert {trial: found[trial] for trial in (8, 9, 10)} == dict.fromkeys((8, 9, 10), "fitted")
    assert found[11] == "steps not ascending"
    table = rows(store, "SELECT trial, reason, alpha_full IS NULL, num_left_out FROM loss_slopes ORDER BY trial")
    for trial, reason, has_no_slope, _ in table:
        assert has_no_slope == (found[trial] != "fitted")
        if found[trial] != "fitted" or trial == 8:
            assert reason.endswith("."), (trial, reason)
    assert table[8][3] == 1
    assert "NaN" not in str(table)


# When it is made


def test_only_what_has_changed_is_analysed_again(trained: Store, tiny_study: Study, make_study: MakeStudy) -> None:
    assert rebuild(trained, tiny_study).computed == ["plain.k001", "plain.k002"]
    folders = [trained.table_folder(table) for table in BOTH]
    before = snapshot(*folders)
    again = rebuild(trained, tiny_study)
    assert (again.computed, again.rows) == ([], 4)
    assert snapshot(*folders) == before

    more = [monitor(0, 16, "largest_eigenvalue", 2.0)]
    write_rows(trained, tiny_study, Arm("plain", 2), "training_monitors", more, part="0005")
    assert rebuild(trained, tiny_study).computed == ["plain.k002"]
    other = make_study(loss_slopes={"num_points": 50})
    assert rebuild(trained, other).computed == ["plain.k001", "plain.k002"]
    next(trained.table_folder("loss_slope_fits").glob("*/arm=plain.k001/*.parquet")).write_bytes(b"PAR1")
    assert rebuild(trained, other).computed == ["plain.k001"]
    assert sentences(trained, [other], BOTH) == []


def test_arms_of_another_recipe_are_left_out_and_their_rows_removed(
    trained: Store, tiny_study: Study, make_study: MakeStudy
) -> None:
    rebuild(trained, tiny_study)
    changed = make_study(variant={"batch_size": 50})
    done = rebuild(trained, changed)
    assert done.rows == 0
    assert done.left_out == [
        "tiny: what there is of plain.k001, plain.k002 is of another recipe than the study file's; train it again"
    ]
    assert rows(trained, "FROM loss_slopes") == rows(trained, "FROM loss_slope_fits") == []
    assert sentences(trained, [changed], BOTH) == []


def test_damaged_and_lost_files_are_left_out_and_the_row_says_so(trained: Store, tiny_study: Study) -> None:
    rebuild(trained, tiny_study)
    batches = trained.table_folder("training_batches", "tiny", "plain.k001")
    (batches / "0004.parquet").write_bytes(b"PAR1 and nothing more PAR1")
    (trained.table_folder("training_evals", "tiny", "plain.k001") / "0002.parquet").unlink()
    assert rebuild(trained, tiny_study).computed == ["plain.k001"]
    found = rows(trained, "SELECT num_steps, reason FROM loss_slopes WHERE k = 1")
    assert [steps for steps, _ in found] == [8, 8]
    assert all("Damaged or lost metric files of the arm are left out: 2." in reason for _, reason in found)
    assert len(rows(trained, "FROM loss_slopes")) == 4


def test_an_arm_that_cannot_be_analysed_costs_no_other_its_rows(
    trained: Store, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(run: Any, settings: Any) -> Any:
        raise ZeroDivisionError("a defect")

    rebuild(trained, tiny_study)
    write_rows(trained, tiny_study, Arm("plain", 2), "training_monitors", [monitor(0, 16, "x", 2.0)], part="0005")
    monkeypatch.setattr(loss_slopes, "analyse_run", break_down)
    done = rebuild(trained, tiny_study)
    assert list(done.failed) == ["plain.k002"]
    assert "ZeroDivisionError: a defect" in done.failed["plain.k002"]
    assert {arm for arm, _ in outcomes(trained)} == {"plain.k001"}  # what was there of the other is out of date


@pytest.mark.slow
def test_processes_write_what_one_process_writes(
    trained: Store, tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild(trained, tiny_study)
    alone = {path: content for path, (_, _, content) in snapshot(*map(trained.table_folder, BOTH)).items()}
    for path in alone:
        Path(path).unlink()
    monkeypatch.setattr(loss_slopes, "_MANY_RUNS", 1)
    assert rebuild(trained, tiny_study, num_processes=2).computed == ["plain.k001", "plain.k002"]
    assert {path: content for path, (_, _, content) in snapshot(*map(trained.table_folder, BOTH)).items()} == alone


# What is said of it


@pytest.fixture
def broken(store: Store, make_study: MakeStudy) -> Iterator[tuple[Store, Study, duckdb.DuckDBPyConnection]]:
    """Two widths: one power law at k = 1, and at k = 2 another from epoch 25 on, seven times as steep."""
    study = make_study(epochs=100, checkpoints=(0, 100))
    bent = [min(v, v * (step / 100) ** -1.2) for step, v in enumerate(power_law(-0.2, num=400), start=1)]
    write_losses(store, study, study.arms["plain.k001"], dict.fromkeys((0, 1), power_law(-0.2, num=400)))
    write_losses(store, study, study.arms["plain.k002"], dict.fromkeys((0, 1), bent))
    rebuild(store, study)
    with contextlib.closing(connect(store)) as connection:
        yield store, study, connection


def test_the_width_from_which_on_the_power_law_breaks_is_found(
    broken: tuple[Store, Study, duckdb.DuckDBPyConnection],
) -> None:
    store, study, connection = broken
    straight, bent = breaks_by_width(rows_of(study, connection))["plain"]
    assert straight == WidthBreak(1, 2, 0)
    assert (bent.k, bent.num_runs, bent.num_broken, bent.is_broken) == (2, 2, 2, True)
    assert bent.epoch == pytest.approx(25, rel=0.1)
    assert (bent.before, bent.after) == (pytest.approx(-0.2, abs=0.02), pytest.approx(-1.4, abs=0.06))
    h1, h2, breaks = findings(store, study)
    assert h1.startswith("H1: 4 of 4 runs") or h1.startswith("H1: 2 of 4 runs")
    assert h2.startswith("H2: ")
    law = "plain: the power law of epochs 5 to 15"
    assert breaks.startswith(
        f"{law} lasts to the end in 2 of 2 runs at k = 1; it steepens in 2 of 2 runs at k = 2, at epoch 2"
    )


def test_break_sentences() -> None:
    low, middle, high = (
        WidthBreak(1, 2, 0),
        WidthBreak(4, 2, 2, 33.0, -0.3, -1.5),
        WidthBreak(8, 2, 2, 31.0, -0.4, -4.5),
    )
    some, flat = WidthBreak(2, 4, 1, 20.0, -0.3, -0.5), WidthBreak(1, 1, 1, 40.0, -0.3, -0.1)
    law, slopes = "net: the power law of epochs 5 to 15", "where its slope goes from -0.30 to -1.50 at k = 4"
    expected = {
        (low,): f"{law} lasts to the end in 2 of 2 runs at k = 1.",
        (
            flat,
            high,
        ): f"{law} flattens in 1 of 1 runs at k = 1, at epoch 40, where its slope goes from -0.30 to -0.10 at "
        "k = 1; it steepens in 2 of 2 runs at k = 8, at epoch 31, where its slope goes from -0.40 to -4.50 at k = 8.",
        (some,): f"{law} lasts to the end in 3 of 4 runs at k = 2.",
        (
            low,
            middle,
        ): f"{law} lasts to the end in 2 of 2 runs at k = 1; it steepens in 2 of 2 runs at k = 4, "
        f"at epoch 33, {slopes}.",
        (
            middle,
            high,
        ): f"{law} steepens in 4 of 4 runs from k = 4 on, at epoch 31 to 33, {slopes} and "
        "from -0.40 to -4.50 at k = 8.",
        (
            low,
            middle,
            high,
        ): f"{law} lasts to the end in 2 of 2 runs at k = 1; it steepens in 4 of 4 runs from k = 4 on, at epoch 31 to "
        f"33, {slopes} and from -0.40 to -4.50 at k = 8.",
    }
    assert {widths: break_sentence("net", list(widths), (5.0, 15.0)) for widths in expected} == expected


def test_a_study_without_losses_of_batches_has_no_rows_and_that_is_said_once(
    store: Store, make_study: MakeStudy
) -> None:
    study = make_study(imported=True)
    for arm in study.arms.values():
        write_rows(store, study, arm, "training_evals", [evaluation(0, epoch, 1.0) for epoch in (1, 2)])
    done = rebuild(store, study)
    sentence = "tiny: no arm has losses of batches, only of epochs, to which no curve is fitted"
    assert (done.rows, done.left_out) == (0, [sentence])


def test_steps_of_imported_runs_may_count_from_0_and_be_thinned(store: Store, make_study: MakeStudy) -> None:
    study = make_study(imported=True, trials=2, data={"dataset": "others"})
    losses = power_law(-0.4, 1e-3, num=400)
    content = [
        {**batch(trial, step, value, epoch=1 + step // 50), "train_loss": value}
        for trial, every in ((0, 1), (1, 10))
        for step, value in list(enumerate(losses))[::every]  # the loss before the first step has number 0
    ]
    write_rows(store, study, study.arms["plain.k001"], "training_batches", content)
    write_rows(store, study, study.arms["plain.k002"], "training_batches", [row for row in content if row["trial"]])
    rebuild(store, study)
    found = rows(store, "SELECT status, steps_per_epoch, num_steps, alpha_full FROM loss_slopes ORDER BY arm, trial")
    assert [row[:3] for row in found] == [("imported", 50, 400), ("imported", 50, 40), ("imported", 50, 40)]
    assert [row[3] for row in found] == pytest.approx([-0.4] * 3, rel=0.01)


def test_of_validation_losses_of_a_step_the_last_counts(store: Store, long_study: Study) -> None:
    arm = long_study.arms["plain.k001"]
    write_losses(store, long_study, arm, {0: power_law(-0.5)})
    readings = [(80, 2.0), (160, 9.0), (160, 3.0), (80, 1.5)]  # of two attempts
    own = [monitor(0, step, "validation_loss", value) for step, value in readings]
    write_rows(store, long_study, arm, "training_monitors", own)
    rebuild(store, long_study)
    assert rows(store, "SELECT best_validation_loss, best_validation_epoch, last_validation_loss FROM loss_slopes") == [
        (1.5, 20.0, 3.0)
    ]


def test_arms_with_evaluations_alone_have_rows_beside_arms_with_losses(store: Store, make_study: MakeStudy) -> None:
    study = make_study(imported=True)
    write_losses(store, study, study.arms["plain.k001"], {0: power_law(-0.5)})
    for key in study.arms:
        write_rows(store, study, study.arms[key], "training_evals", [evaluation(1, epoch, 1.0) for epoch in (1, 2)])
    done = rebuild(store, study)
    assert (done.rows, done.left_out, done.failed) == (3, [], {})
    found = {run: outcome for run, (_, outcome) in outcomes(store).items()}
    assert found == {("plain.k001", 0): "fitted", ("plain.k001", 1): "no losses", ("plain.k002", 1): "no losses"}


def test_nothing_is_said_of_nothing(store: Store, tiny_study: Study) -> None:
    assert rebuild(store, tiny_study).rows == 0
    assert findings(store, tiny_study) == []
