"""How long training will take: fits against lines, sources in their order, tables as training left them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dd_core.forecast.probe_table import Probed
from dd_core.forecast.speed import Known, Run, read_runs, scaled, speed_key
from dd_core.forecast.work import OVERHEAD_FLOPS, equivalent_images, training_flops
from dd_core.machine.devices import Machine
from dd_core.store.resume_points import trained_epoch
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.tables.files import read_parquet
from dd_core.tables.warehouse import connect
from dd_core.training.train import train_arm

CPU = Machine("cpu", num_gpus=0, num_cores=2)


@given(
    overhead=st.floats(0, 1e-3),
    per_flop=st.floats(1e-12, 1e-9),
    sizes=st.lists(st.integers(10**4, 10**9), min_size=2, max_size=5, unique=True),
    flops=st.integers(10**4, 10**9),
)
def test_overhead_and_rate_are_found_from_two_sizes(
    overhead: float, per_flop: float, sizes: list[int], flops: int
) -> None:
    known = [(size, overhead + per_flop * size) for size in sizes]
    # Two sizes that hardly differ tell little about a third.
    tolerance = 1e-6 * max(1.0, flops / max(sizes)) * max(sizes) / (max(sizes) - min(sizes))
    assert scaled(known, flops) == pytest.approx(overhead + per_flop * flops, rel=tolerance)


@given(
    known=st.lists(st.tuples(st.integers(10**4, 10**9), st.floats(1e-7, 1e-2)), min_size=1, max_size=5),
    flops=st.integers(10**4, 10**9),
)
def test_a_prediction_is_never_negative_and_grows_with_size(known: list[tuple[int, float]], flops: int) -> None:
    assert 0 <= scaled(known, flops) <= scaled(known, 2 * flops)


def test_from_one_size_times_scale_as_the_order_of_tasks_does(make_study) -> None:  # type: ignore[no-untyped-def]
    study = make_study(widths=(1, 16))
    narrow, *_, wide = study.arms.values()
    ratio = (OVERHEAD_FLOPS + training_flops(study, wide)) / (OVERHEAD_FLOPS + training_flops(study, narrow))
    assert scaled([(training_flops(study, narrow), 1.0)], training_flops(study, wide)) == pytest.approx(ratio)


def run_of(study: Study, k: int, seconds_per_image: float) -> Run:
    """Of one thread of a CPU."""
    return Run(study.name, speed_key(study.recipe(Arm("plain", k))), 1, 0.0, seconds_per_image)


def test_the_probe_goes_before_runs_and_runs_before_other_arms(tiny_study: Study) -> None:
    arm, other = tiny_study.arms.values()
    images = 2 * 100 * 4
    with_evaluations = equivalent_images(tiny_study, arm, 0, 4)
    probed = {arm: Probed(recommended=2, speeds={1: 100.0, 2: 160.0})}
    runs = [run_of(tiny_study, arm.k, 0.5)]

    def predict(known: Known, of: Arm, workers: int = 2) -> tuple[float, str]:
        prediction = known.predict(of, (0, 4), workers)
        assert prediction is not None
        return prediction.seconds, prediction.source

    both = Known(tiny_study, CPU, probed, runs)
    assert predict(both, arm) == (pytest.approx(with_evaluations * 2 / 160), "the resource probe")
    assert predict(both, arm, workers=1) == (pytest.approx(with_evaluations / 100), "the resource probe")
    assert predict(both, arm, workers=4)[0] == predict(both, arm)[0], "four were not probed"
    assert predict(Known(tiny_study, CPU, {}, runs), arm) == (pytest.approx(images * 0.5), "earlier runs")
    seconds, source = predict(Known(tiny_study, CPU, {}, runs), other)
    assert source == "earlier runs of other arms, by FLOPs"
    ratio = (OVERHEAD_FLOPS + training_flops(tiny_study, other)) / (OVERHEAD_FLOPS + training_flops(tiny_study, arm))
    assert seconds == pytest.approx(images * 0.5 * ratio)
    assert predict(both, other)[1] == "the resource probe of other arms, by FLOPs"
    assert Known(tiny_study, CPU).predict(arm, (0, 4), 2) is None


def test_runs_of_the_same_study_go_before_those_of_others(tiny_study: Study) -> None:
    arm = next(iter(tiny_study.arms.values()))
    runs = [replace(run_of(tiny_study, arm.k, 9.0), study="another"), run_of(tiny_study, arm.k, 0.5)]
    prediction = Known(tiny_study, CPU, {}, runs).predict(arm, (2, 4), 2)
    assert prediction is not None
    assert prediction.seconds == pytest.approx(0.5 * 2 * 100 * 2)


def test_runs_under_other_conditions_say_nothing(tiny_study: Study) -> None:
    arm = next(iter(tiny_study.arms.values()))
    gpus = Machine("NVIDIA H200", num_gpus=1, num_cores=16)
    run = run_of(tiny_study, arm.k, 0.5)
    shared, alone = replace(run, gpu_share=1 / 3), replace(run, gpu_share=1.0)
    assert Known(tiny_study, gpus, {}, [shared]).predict(arm, (0, 4), 3) is not None
    assert Known(tiny_study, gpus, {}, [alone]).predict(arm, (0, 4), 3) is None
    two_threads = replace(run, threads=2)
    assert Known(tiny_study, CPU, {}, [two_threads]).predict(arm, (0, 4), 1) is not None
    assert Known(tiny_study, CPU, {}, [two_threads]).predict(arm, (0, 4), 2) is None


def test_speed_depends_on_what_it_should(make_study) -> None:  # type: ignore[no-untyped-def]
    arm = Arm("plain", 1)
    own = speed_key(make_study().recipe(arm))
    assert speed_key(make_study({"label_noise": 0.1}, seed=7, epochs=9).recipe(arm)) == own
    others = [
        make_study({"batch_size": 50}),
        make_study({"architecture": "cnn5"}),
        make_study({"precision": "bfloat16"}),
        make_study(trials=3),
    ]
    assert all(speed_key(study.recipe(arm)) != own for study in others)
    assert speed_key(make_study().recipe(Arm("plain", 2))) != own


def test_the_speed_of_runs_is_that_of_the_ledger(tiny_study: Study, trained: Store) -> None:
    with connect(trained) as connection:
        runs = read_runs(connection, tiny_study, "cpu")
        assert read_runs(connection, tiny_study, "NVIDIA H200") == []
    in_order = sorted(runs, key=lambda run: run.flops)
    for run, arm in zip(in_order, tiny_study.arms.values(), strict=True):
        (path,) = trained.table_folder("runs", "tiny", arm.key).glob("*.end.parquet")
        row = read_parquet(path).to_pylist()[0]
        assert run.seconds_per_image == pytest.approx(row["seconds"] / (2 * 100 * 4))
        assert run.threads == row["threads"]
        assert run.flops == training_flops(tiny_study, arm)


def test_training_goes_on_from_the_epoch_of_the_resume_point(tiny_study: Study, store: Store, make_study) -> None:  # type: ignore[no-untyped-def]
    arm = next(iter(tiny_study.arms.values()))
    assert trained_epoch(store, tiny_study, arm) == 0
    train_arm(tiny_study, arm, store, until=2)
    assert trained_epoch(store, tiny_study, arm) == 2
    assert trained_epoch(store, make_study(seed=1), arm) == 0, "of another recipe"
    store.resume_path("tiny", arm.key).write_bytes(b"damaged")
    assert trained_epoch(store, tiny_study, arm) == 0
