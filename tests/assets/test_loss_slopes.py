"""The assets of the loss curves' analysis, from trained and imported runs to tables, checks, findings and a verdict."""

import contextlib
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from support import Lab

from dd_assets import check_campaign, import_metrics
from dd_assets.assets.loss_slopes import LOSS_SLOPE_TABLES, loss_slope_assets
from dd_assets.laboratory import Laboratory
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.tables.warehouse import connect

MakeStudy = Callable[..., Study]


def analyse(
    store: Store, known: dict[str, Study], /, only: tuple[str, ...] = LOSS_SLOPE_TABLES, **config: Any
) -> dg.ExecuteInProcessResult:
    """Materialise the assets."""
    return dg.materialize(
        loss_slope_assets(known),
        selection=list(only),
        resources={"laboratory": Laboratory(root=str(store.root))},
        run_config={"ops": {"loss_slopes": {"config": config}}},
        raise_on_error=False,
    )


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What a user is shown."""
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return str(event.step_failure_data.error)


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """By asset."""
    assert result.success
    events = result.asset_materializations_for_node("loss_slopes")
    return {e.asset_key.to_user_string(): {name: value.value for name, value in e.metadata.items()} for e in events}


def test_both_tables_are_made_in_one_step_with_their_views_and_checks(trained: Store, tiny_study: Study) -> None:
    result = analyse(trained, {"tiny": tiny_study})
    told = metadata(result)
    shared = {"studies": "tiny", "runs": 4, "runs_by_outcome": "4 fitted", "arms_computed_now": 2}
    assert told["loss_slopes"] == {
        "dagster/row_count": 4,
        "dagster/uri": str(trained.root / "tables" / "loss_slopes"),
        **shared,
    }
    assert shared.items() <= told["loss_slope_fits"].items()
    checks = {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}
    assert {name: checks[name].passed for name in ("runs_complete", "values_possible", "runs_sound")} == {
        "runs_complete": True,
        "values_possible": True,
        "runs_sound": True,
    }
    assert (checks["fit_to_be_analysed"].severity, len(checks)) == (dg.AssetCheckSeverity.WARN, 4)
    with contextlib.closing(connect(trained, live=True)) as connection:
        undescribed = connection.sql(
            "SELECT column_name FROM duckdb_columns() WHERE table_name LIKE 'loss_slope%' AND comment IS NULL"
        )
        assert undescribed.fetchall() == []
        assert told["loss_slope_fits"]["dagster/row_count"] == len(connection.sql("FROM loss_slope_fits").fetchall())
    assert trained.warehouse_path.is_file()


def test_one_table_alone_can_be_asked_for_and_studies_narrowed(
    trained: Store, tiny_study: Study, make_study: MakeStudy
) -> None:
    both = {"tiny": tiny_study, "other": make_study(name="other")}
    told = metadata(analyse(trained, both, only=("loss_slopes",), studies=["tiny"]))
    assert list(told) == ["loss_slopes"]
    assert "there is no study 'none'; there are tiny, other" in failure(analyse(trained, both, studies=["none"]))


def test_with_nothing_to_analyse_one_sentence_says_so(store: Store, tiny_study: Study) -> None:
    message = failure(analyse(store, {"tiny": tiny_study}))
    assert f"no loss of a batch has been recorded under {store.root} by tiny; train a study, or import" in message


def test_damaged_metrics_are_named_and_cost_nothing_else(trained: Store, tiny_study: Study) -> None:
    path = trained.table_folder("training_batches", "tiny", "plain.k001") / "0004.parquet"
    path.write_bytes(b"PAR1 and nothing more PAR1")
    told = metadata(analyse(trained, {"tiny": tiny_study}))["loss_slopes"]
    assert told["runs"] == 4
    assert str(path) in told["left_out"]


def test_an_arm_that_cannot_be_analysed_is_named(
    trained: Store, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dd_core.results import loss_slopes

    usual = loss_slopes.curves_of

    def of_one(study: Study, arm: Arm, files: Any) -> Any:
        if arm.k == 2:
            raise ZeroDivisionError("a defect")
        return usual(study, arm, files)

    monkeypatch.setattr(loss_slopes, "curves_of", of_one)
    told = metadata(analyse(trained, {"tiny": tiny_study}))["loss_slopes"]
    assert (told["runs"], told["not_analysed"]) == (2, "tiny/plain.k002")


# A campaign of others


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    """Two variants, two learning rates, two seeds, as the loss-slope campaign logs: CSV with six decimals.

    One run diverges in its warm-up.
    """
    folder = tmp_path / "runs"
    cells = [(variant, rate, seed) for variant in ("base", "bn_off") for rate in (0.05, 0.1) for seed in (0, 1)]
    for number, (variant, rate, seed) in enumerate(cells):
        draw = random.Random(number)
        has_diverged = (variant, rate, seed) == ("bn_off", 0.1, 1)
        rows = ["step,epoch,time,lr,wd,loss_train_nats,loss_train_bits,acc_train,loss_val_nats,acc_val,variant,seed"]
        for step in range(1, 8 if has_diverged else 401):
            lr = rate * min(1, step / 40)
            nats = math.nan if has_diverged and step == 7 else 2.3 * step ** -(0.2 + rate) * draw.uniform(0.95, 1.05)
            val = f"{1.1 * nats:.6f},0.5" if step % 5 == 0 else ","
            rows.append(
                f"{step},{1 + (step - 1) // 20},{1.7e9 + step},{lr:.6f},0.000100,{nats:.6f},{nats / math.log(2):.6f},"
                f"0.5,{val},{variant},{seed}"
            )
        (folder / f"job_{number:03d}").mkdir(parents=True)
        (folder / f"job_{number:03d}" / "metrics.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_a_folder_of_others_metrics_becomes_loss_slopes_and_a_verdict_without_training(
    lab: Lab, campaign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DD_ROOT", str(lab.root))
    monkeypatch.setenv("DD_STUDIES", str(lab.studies))
    how = "--dataset cifar10 --architecture resnet18 --label-noise 0 --batch-size 128 --optimizer sgd --k 64 --by lr,wd"
    assert import_metrics.main(["campaign", str(campaign), *how.split()]) == 0
    assert "materialize --select loss_slopes,loss_slope_fits" in capsys.readouterr().out
    lab.forked_dagster("asset", "materialize", "--select", "loss_slopes,loss_slope_fits").succeeded()
    with contextlib.closing(connect(lab.store)) as connection:
        rows = connection.sql(
            "SELECT family, learning_rate, weight_decay, trial, status, outcome, alpha_early, best_validation_loss, "
            "num_steps, steps_per_epoch FROM loss_slopes ORDER BY ALL"
        ).fetchall()
    assert [row[:4] for row in rows] == [
        (family, rate, 1e-4, seed) for family in ("base", "bn-off") for rate in (0.05, 0.1) for seed in (0, 1)
    ]
    assert {row[4] for row in rows} == {"imported"}
    assert [row[5] for row in rows] == ["fitted"] * 7 + ["diverged"]
    for family, rate, _, seed, _, outcome, slope, best, num_steps, per_epoch in rows:
        assert per_epoch == 20, (family, rate, seed)
        assert num_steps == (400 if outcome == "fitted" else 7)
        if outcome == "fitted":
            assert slope == pytest.approx(-0.2 - rate, abs=0.05)
            assert best == pytest.approx(1.1 * 2.3 * 400 ** -(0.2 + rate), rel=0.1)

    # Its program measured neither norms nor curvature nor noise: as long as nobody says so, they are missing.
    assert check_campaign.main(["campaign"]) == 1
    report = capsys.readouterr().out
    assert "campaign: 8 of 8 runs\n  training: 8 imported\n  analysis: 7 fitted, 1 diverged" in report
    assert (
        "no run has gradient_norm, gradient_variance, residual_power, spectral_density_tail and weight_norm" in report
    )
    assert report.splitlines()[-1].startswith("NO-GO: not every metric is there at its frequency")
    path = lab.studies / "campaign.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "monitors: {norms: null, hessian: null, noise: null}\n")
    assert check_campaign.main(["campaign"]) == 0
    *_, title, h1, h2, verdict = capsys.readouterr().out.splitlines()
    assert (title, verdict) == ("What the curves say:", "GO")
    assert h1.startswith("  - H1: ") and h2.startswith("  - H2: ")
    assert check_campaign.main(["nobody"]) == 2
    assert "Error: there is no study 'nobody'" in capsys.readouterr().err
