"""Curvature files: the right rows and values, shards that make exactly the whole, resumption, and what is refused."""

import itertools
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from dd_core.analysis.auroc import auroc
from dd_core.curvature import finite_difference_curvature, per_image_curvature
from dd_core.curvature.trained import predicted_classes, standardised, trained_network
from dd_core.data.datasets import load
from dd_core.data.trials import trial_data
from dd_core.errors import StaleError, UserError
from dd_core.models.build import build
from dd_core.models.stacking import load_state
from dd_core.results import per_image_curvature as checkpoint_module
from dd_core.results import rows as rows_module
from dd_core.results.per_image_curvature import compute_curvature, compute_shard, prove_complete
from dd_core.store.checkpoints import load_checkpoint, save_tensors
from dd_core.store.provenance import checkpoint_manifest
from dd_core.store.store import Store
from dd_core.study import study as studies
from dd_core.study.curvature import shards as usual_shards
from dd_core.study.curvature_names import CURVATURE_COLUMNS
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import TABLES, read_parquet, write_parquet
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.training.train import train_arm

from .dense import QUANTITIES, dense

LAST = Checkpoint(Arm("plain", 2), 4)
DIFFERENCE = {"estimators": ("exact", "finite_difference"), "finite_difference": {"steps": (0.1, 1.0), "num_probes": 2}}
MakeStudy = Callable[..., Study]


def rows_of(store: Store, study: Study, checkpoint: Checkpoint = LAST) -> pd.DataFrame:
    return read_parquet(store.result_path("per_image_curvature", study.name, checkpoint)).to_pandas()


def shard_files(store: Store) -> list[Path]:
    return sorted(path for path in (store.root / "shards").rglob("*") if path.is_file())


def stamps(paths: list[Path]) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


@pytest.fixture
def in_shards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Two trials of a hundred images in equal ranges of at most 60."""
    monkeypatch.setattr(studies, "shards", lambda *arguments: usual_shards(*arguments, target=60))
    return [(0, 50), (50, 100), (100, 150), (150, 200)]


# One file


def test_the_file_has_every_training_image_of_every_trial_in_order(trained: Store, tiny_study: Study) -> None:
    assert compute_curvature(tiny_study, LAST, trained)
    rows = rows_of(trained, tiny_study)
    assert list(rows.columns) == [column.name for column in TABLES["per_image_curvature"].file_columns]
    assert rows.trial.tolist() == [0] * 100 + [1] * 100
    for trial in range(2):
        data, own = trial_data(tiny_study, "plain", trial), rows[rows.trial == trial]
        np.testing.assert_array_equal(own.image_id, data.train_ids)
        np.testing.assert_array_equal(own.true_label, data.true_train_labels)
        np.testing.assert_array_equal(own.given_label, data.train_labels)
        np.testing.assert_array_equal(own.is_noisy, data.is_noisy)
    for name, value in {"epoch": 4, "k": 2, "method": "exact", "recipe": tiny_study.recipe_hash(LAST.arm)}.items():
        assert set(rows[name]) == {value}
    assert shard_files(trained) == []


def test_predictions_are_right_where_the_evaluation_while_training_said_so(trained: Store, tiny_study: Study) -> None:
    folder = trained.table_folder("image_progress", tiny_study.name, LAST.arm.key)
    rows = pd.concat([read_parquet(path).to_pandas() for path in folder.glob("*.parquet")])
    rows = rows[(rows.epoch == LAST.epoch) & (rows.split == "train")]
    given = {trial: trial_data(tiny_study, "plain", trial) for trial in range(2)}
    found = predicted_classes(tiny_study, LAST, trained, {trial: data.train_ids for trial, data in given.items()})
    for trial, data in given.items():
        correct = rows[rows.trial == trial].set_index("image_id").correct.loc[data.train_ids]
        assert 0 < correct.sum() < len(correct)
        np.testing.assert_array_equal(found[trial] == data.train_labels, correct)
    with pytest.raises(StaleError):
        predicted_classes(tiny_study, replace(LAST, epoch=3), trained, {0: data.train_ids})


def test_values_are_those_of_the_weights_on_standardised_images(trained: Store, tiny_study: Study) -> None:
    compute_curvature(tiny_study, LAST, trained)
    rows = rows_of(trained, tiny_study)
    weights, _ = load_checkpoint(trained, tiny_study, LAST)
    for trial in range(2):
        data = trial_data(tiny_study, "plain", trial)
        model = build("preact_resnet10", 2, 1, 10).double().eval()
        load_state(model, {name: tensor[trial].double() for name, tensor in weights.items()})
        chosen = [0, 99, *np.flatnonzero(data.is_noisy)[:2]]
        raw = load("digits").images[data.train_ids[chosen]].astype(np.float64)
        images = torch.from_numpy((raw - data.mean) / data.std).permute(0, 3, 1, 2)
        expected = dense(model, images, torch.from_numpy(data.train_labels[chosen]))
        own = rows[rows.trial == trial].iloc[chosen]
        for name in QUANTITIES:
            np.testing.assert_allclose(own[name], expected[name], rtol=1e-4, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
@pytest.mark.parametrize("estimator", ["exact", "top_directions"])
def test_precisions_agree_within_their_digits(
    precision: str, estimator: str, trained: Store, tiny_study: Study, make_study: MakeStudy
) -> None:
    compute_curvature(tiny_study, LAST, trained)
    single = rows_of(trained, tiny_study)
    # So small an error leaves nothing to probes: what differs is the precision.
    study = make_study(curvature={"estimators": (estimator,), "precision": precision, "relative_error": 1e-7})
    assert compute_curvature(study, LAST, trained)
    errors = (rows_of(trained, study)[["trace", "frobenius_norm"]] / single[["trace", "frobenius_norm"]] - 1).abs()
    assert (errors.median() < (1e-5 if precision == "float64" else 1e-2)).all()


def test_more_trials_than_a_stack_holds_keep_their_order(make_study: MakeStudy, store: Store) -> None:
    study = make_study({"architecture": "cnn5"}, trials=9, data={"dataset": "digits", "num_train": 40})
    checkpoint = Checkpoint(Arm("plain", 1), 0)
    train_arm(study, checkpoint.arm, store, 0)
    compute_curvature(study, checkpoint, store)
    rows = rows_of(store, study, checkpoint)
    weights, _ = load_checkpoint(store, study, checkpoint)
    for trial in (0, 7, 8):
        data, own = trial_data(study, "plain", trial), rows[rows.trial == trial]
        model = trained_network(study, checkpoint, weights, trial)
        images = standardised(study, data, data.train_ids, torch.device("cpu"), torch.float32)
        expected = per_image_curvature(model, images, torch.from_numpy(data.train_labels)).columns
        np.testing.assert_allclose(own.trace, expected["trace"], rtol=1e-6)
        np.testing.assert_array_equal(own.image_id, data.train_ids)


def test_the_headline_is_what_the_rows_say(trained: Store, tiny_study: Study) -> None:
    compute_curvature(tiny_study, LAST, trained)
    rows, manifest = rows_of(trained, tiny_study), PER_IMAGE_CURVATURE.manifest(trained, tiny_study, LAST)
    assert manifest is not None
    headline = manifest.headline
    assert headline["mean_trace"] == pytest.approx(rows.trace.mean())
    assert headline["median_trace"] == pytest.approx(rows.trace.median())
    by_trial = [auroc(own.trace.to_numpy(), own.is_noisy.to_numpy()) for _, own in rows.groupby("trial")]
    assert headline["auroc_trace"] == pytest.approx(np.mean(by_trial))
    assert headline["method"] == "exact"
    assert headline["images_per_second"] > 0
    assert (manifest.device, headline["gpu_seconds"], manifest.rows) == ("cpu", 0.0, {"table": 200})


# Again


def test_current_curvature_is_not_computed_again_and_equal_weights_give_equal_bytes(
    trained: Store, tiny_study: Study
) -> None:
    path = trained.result_path("per_image_curvature", "tiny", LAST)
    assert PER_IMAGE_CURVATURE.missing(trained, tiny_study) == list(tiny_study.iter_checkpoints())
    assert compute_curvature(tiny_study, LAST, trained)
    assert LAST not in PER_IMAGE_CURVATURE.missing(trained, tiny_study)
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    assert not compute_curvature(tiny_study, LAST, trained)
    assert path.stat().st_mtime_ns == written
    trained.manifest_path(path).unlink()
    assert compute_curvature(tiny_study, LAST, trained)
    assert path.read_bytes() == content


@pytest.mark.parametrize("harm", ["truncated", "altered", "deleted", "manifest"])
def test_harmed_curvature_is_computed_again(harm: str, trained: Store, tiny_study: Study) -> None:
    compute_curvature(tiny_study, LAST, trained)
    path = trained.result_path("per_image_curvature", "tiny", LAST)
    content = path.read_bytes()
    if harm == "manifest":
        trained.manifest_path(path).write_text('{"files"')
    elif harm == "deleted":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if harm == "truncated" else content[:100] + b"\x00" + content[101:])
    assert compute_curvature(tiny_study, LAST, trained)
    assert path.read_bytes() == content


def test_curvature_of_other_weights_is_computed_again(trained: Store, make_study: MakeStudy) -> None:
    study = make_study(curvature=DIFFERENCE)
    compute_curvature(study, LAST, trained)
    before = rows_of(trained, study)
    for path in trained.arm_folder("tiny", LAST.arm.key).iterdir():
        path.unlink()
    train_arm(study, LAST.arm, trained, 4, dtype=torch.float64)
    assert LAST in PER_IMAGE_CURVATURE.missing(trained, study)
    assert compute_curvature(study, LAST, trained)
    after = rows_of(trained, study)
    for name in ("trace", "fd_norm_h1"):
        assert (after[name] != before[name]).any()


def test_curvature_of_an_earlier_version_of_the_code_is_computed_again(
    trained: Store, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_curvature(tiny_study, LAST, trained)
    monkeypatch.setattr(checkpoint_module, "PER_IMAGE_CURVATURE", replace(PER_IMAGE_CURVATURE, version="next"))
    assert compute_curvature(tiny_study, LAST, trained)
    assert not compute_curvature(tiny_study, LAST, trained)


def test_finite_differences_are_added_and_what_was_there_is_kept(
    trained: Store, tiny_study: Study, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_curvature(tiny_study, LAST, trained)
    before = rows_of(trained, tiny_study)
    study = make_study(curvature=DIFFERENCE)
    manifest, weights = PER_IMAGE_CURVATURE.manifest(trained, study, LAST), checkpoint_manifest(trained, study, LAST)
    assert PER_IMAGE_CURVATURE.is_current(manifest, weights, tiny_study)
    assert not PER_IMAGE_CURVATURE.is_current(manifest, weights, study)
    with monkeypatch.context() as patched:
        patched.setattr("dd_core.results.rows.per_image_curvature", None)  # not to be computed again
        assert compute_curvature(study, LAST, trained)
    after = rows_of(trained, study)
    pd.testing.assert_frame_equal(after[before.columns], before)
    added = [name for name in after.columns if name not in before.columns]
    assert added == [
        f"fd_{kind}_{h}{end}"
        for h in ("h0p1", "h1")
        for kind in ("norm", "directional")
        for end in ("", "_standard_error")
    ]
    # Both studies are content with the file now, and so is one that asks for both at once.
    assert not compute_curvature(study, LAST, trained)
    assert not compute_curvature(tiny_study, LAST, trained)
    content = trained.result_path("per_image_curvature", "tiny", LAST).read_bytes()
    trained.result_path("per_image_curvature", "tiny", LAST).unlink()
    assert compute_curvature(study, LAST, trained)
    assert trained.result_path("per_image_curvature", "tiny", LAST).read_bytes() == content


def test_finite_differences_are_those_of_the_images(trained: Store, make_study: MakeStudy) -> None:
    study = make_study(seed=0, curvature=DIFFERENCE)
    compute_curvature(study, LAST, trained)
    rows = rows_of(trained, study)
    weights, _ = load_checkpoint(trained, study, LAST)
    for trial in range(2):
        data = trial_data(study, "plain", trial)
        expected = finite_difference_curvature(
            trained_network(study, LAST, weights, trial),
            standardised(study, data, data.train_ids, torch.device("cpu"), torch.float32),
            torch.from_numpy(data.train_labels),
            torch.from_numpy(data.train_ids),
            steps=(0.1, 1.0),
            num_probes=2,
            seed=study.seed + trial,
        )
        for name, values in expected.items():
            np.testing.assert_allclose(rows[rows.trial == trial][name], values, rtol=1e-6, atol=1e-9)


def test_other_steps_replace_the_earlier_and_the_hessian_is_kept(trained: Store, make_study: MakeStudy) -> None:
    first = make_study(curvature=DIFFERENCE)
    compute_curvature(first, LAST, trained)
    before = rows_of(trained, first)
    other = make_study(curvature={**DIFFERENCE, "finite_difference": {"steps": (1.0, 2.0), "num_probes": 2}})
    assert compute_curvature(other, LAST, trained)
    after = rows_of(trained, other)
    assert [name for name in after.columns if name.startswith("fd_norm") and not name.endswith("_standard_error")] == [
        "fd_norm_h1",
        "fd_norm_h2",
    ]
    pd.testing.assert_frame_equal(after[list(CURVATURE_COLUMNS)], before[list(CURVATURE_COLUMNS)])
    pd.testing.assert_series_equal(after["fd_norm_h1"], before["fd_norm_h1"])  # the probes belong to the image


def test_another_hessian_estimator_replaces_the_earlier_and_differences_are_kept(
    trained: Store, make_study: MakeStudy
) -> None:
    first = make_study(curvature=DIFFERENCE)
    compute_curvature(first, LAST, trained)
    before = rows_of(trained, first)
    other = make_study(curvature={**DIFFERENCE, "estimators": ("double_backward", "finite_difference")})
    assert compute_curvature(other, LAST, trained)
    after = rows_of(trained, other)
    assert set(after.method) == {"double_backward"}
    assert list(after.columns) == list(before.columns)
    pd.testing.assert_frame_equal(after.filter(like="fd_"), before.filter(like="fd_"))
    np.testing.assert_allclose(after.trace, before.trace, rtol=1e-2)


def test_differences_can_be_asked_for_at_some_epochs_alone(trained: Store, make_study: MakeStudy) -> None:
    settings = {**DIFFERENCE, "finite_difference": {**DIFFERENCE["finite_difference"], "epochs": (4,)}}  # type: ignore[dict-item]
    study = make_study(curvature=settings)
    early = Checkpoint(LAST.arm, 2)
    for checkpoint, expected in ((early, False), (LAST, True)):
        compute_curvature(study, checkpoint, trained)
        assert ("fd_norm_h1" in rows_of(trained, study, checkpoint)) is expected
        assert not compute_curvature(study, checkpoint, trained)
    everywhere = make_study(curvature=DIFFERENCE)
    assert not compute_curvature(everywhere, LAST, trained)
    assert compute_curvature(everywhere, early, trained)


# Shards


@pytest.mark.parametrize("settings", [{}, DIFFERENCE], ids=["exact", "with differences"])
def test_shards_in_any_order_make_the_file_that_one_range_makes(
    settings: Any, trained: Store, make_study: MakeStudy, request: pytest.FixtureRequest
) -> None:
    study = make_study(curvature=settings)
    compute_curvature(study, LAST, trained)
    whole = rows_of(trained, study)
    ranges = request.getfixturevalue("in_shards")
    assert study.curvature_ranges(LAST.epoch) == ranges
    for order in itertools.islice(itertools.permutations(ranges), 0, None, 11):
        trained.result_path("per_image_curvature", "tiny", LAST).unlink()
        for number, rows in enumerate(order):
            assert not trained.result_path("per_image_curvature", "tiny", LAST).exists()
            assert compute_shard(study, LAST, trained, rows)
            assert not compute_shard(study, LAST, trained, rows)
            assert len(shard_files(trained)) == (2 * (number + 1) if number < 3 else 0)
        pd.testing.assert_frame_equal(rows_of(trained, study), whole, rtol=1e-6, atol=1e-12)
    assert not any(compute_shard(study, LAST, trained, rows) for rows in ranges)


def test_shards_share_the_ranking_of_directions_that_the_first_of_a_trial_has_made(
    trained: Store, make_study: MakeStudy, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(curvature={"estimators": ("top_directions",), "relative_error": 0.02})
    compute_curvature(study, LAST, trained)
    unranked, made = rows_of(trained, study), []
    usual = rows_module.direction_ranking
    monkeypatch.setattr(
        rows_module, "direction_ranking", lambda *some, **more: made.append(usual(*some, **more)) or made[-1]
    )
    monkeypatch.setattr(rows_module, "_NUM_RANKING_IMAGES", 4)  # few enough to pay
    trained.result_path("per_image_curvature", "tiny", LAST).unlink()
    compute_curvature(study, LAST, trained)
    whole, ranges = rows_of(trained, study), request.getfixturevalue("in_shards")
    assert len(made) == 2
    assert (whole.trace != unranked.trace).any()
    trained.result_path("per_image_curvature", "tiny", LAST).unlink()
    contents = []
    for number, rows in enumerate(ranges):
        compute_shard(study, LAST, trained, rows)
        kept = [path for path in shard_files(trained) if "ranking-000" in path.name]
        contents.append([path.read_bytes() for path in kept])
        if number == 0:
            kept[1].write_bytes(contents[0][1][:-8])  # damaged, so it is made again
    assert contents[0] == contents[1] == contents[2]
    assert len(contents[0]) == 2
    assert len(made) == 2 + 2 + 1
    assert shard_files(trained) == []
    pd.testing.assert_frame_equal(rows_of(trained, study), whole, rtol=1e-6, atol=1e-12)


def test_the_shards_of_a_killed_worker_are_used(
    trained: Store, tiny_study: Study, in_shards: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows in in_shards[1:3]:
        compute_shard(tiny_study, LAST, trained, rows)
    before = stamps(shard_files(trained))
    assert len(before) == 4
    usual, computed = checkpoint_module.compute_rows, []

    def killed_in_the_last(*arguments: Any) -> Any:
        computed.append(arguments[4])
        if arguments[4] == in_shards[3]:
            raise KeyboardInterrupt
        return usual(*arguments)

    monkeypatch.setattr(checkpoint_module, "compute_rows", killed_in_the_last)
    with pytest.raises(KeyboardInterrupt):
        compute_curvature(tiny_study, LAST, trained)
    assert computed == [in_shards[0], in_shards[3]]
    assert {path: stamp for path, stamp in stamps(shard_files(trained)).items() if path in before} == before
    monkeypatch.setattr(checkpoint_module, "compute_rows", usual)
    assert compute_curvature(tiny_study, LAST, trained)
    assert len(rows_of(trained, tiny_study)) == 200
    assert shard_files(trained) == []


def test_a_worker_killed_before_the_merge_leaves_it_to_the_next(
    trained: Store, tiny_study: Study, in_shards: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoint_module, "write_result", killed)
        compute_curvature(tiny_study, LAST, trained)
    assert len(shard_files(trained)) == 8
    monkeypatch.setattr(checkpoint_module, "compute_rows", killed)
    compute_curvature(tiny_study, LAST, trained)
    assert len(rows_of(trained, tiny_study)) == 200
    assert shard_files(trained) == []


@pytest.mark.parametrize("harm", ["truncated", "altered", "deleted", "manifest", "settings", "weights"])
def test_a_harmed_or_foreign_shard_is_computed_again(
    harm: str, trained: Store, tiny_study: Study, make_study: MakeStudy, in_shards: list[tuple[int, int]]
) -> None:
    other = make_study(curvature={"precision": "float64"}) if harm == "settings" else tiny_study
    compute_shard(other, LAST, trained, in_shards[0])
    manifest, table = shard_files(trained)
    if harm == "weights":
        manifest.write_text(manifest.read_text().replace('"checkpoint_sha256": "', '"checkpoint_sha256": "f'))
    elif harm == "manifest":
        manifest.write_text("{")
    elif harm == "deleted":
        table.unlink()
    elif harm != "settings":
        content = table.read_bytes()
        table.write_bytes(content[:-9] if harm == "truncated" else content[:100] + b"\x00" + content[101:])
    computed = [compute_shard(tiny_study, LAST, trained, rows) for rows in in_shards]
    assert computed == [True] * 4
    assert len(rows_of(trained, tiny_study)) == 200


def padded_as_by_distributed_sampler(table: pa.Table) -> pa.Table:
    """Seed 002's mistake: 4 workers took every 4th image and repeated some, so that all had equally many."""
    strided = [index for worker in range(4) for index in range(worker, 50, 4)]
    return table.take([*strided[:-2], 0, 1])


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (padded_as_by_distributed_sampler, "200 rows for 200 images, 2 missing, 2 doubled or strange"),
        (lambda table: pa.concat_tables([table, table.slice(0, 4)]), "204 rows .* 0 missing, 4 doubled"),
        (lambda table: table.slice(1), "199 rows .* 1 missing, 0 doubled"),
        (
            lambda table: table.take([*range(49, -1, -1)]),
            "0 missing, 0 doubled or strange, all there but in another order",
        ),
        (lambda table: table.set_column(0, "trial", pa.array([1] * 50)), "50 missing, 50 doubled"),
        (
            lambda table: table.set_column(1, "image_id", pa.array([5000 + i for i in range(50)])),
            "50 missing, 50 doubled",
        ),
    ],
    ids=["DistributedSampler", "doubled", "lost", "reversed", "another trial", "strange images"],
)
def test_shards_that_make_no_whole_are_refused_and_nothing_is_written(
    harm: Any, sentence: str, trained: Store, tiny_study: Study, in_shards: list[tuple[int, int]]
) -> None:
    compute_shard(tiny_study, LAST, trained, in_shards[0])
    manifest_path, path = shard_files(trained)
    manifest = trained.read_manifest(manifest_path)
    assert manifest is not None
    write_parquet(path, harm(read_parquet(path)))
    trained.write_manifest(manifest_path, manifest.content, {"table": path})  # vouched for, as a wrong worker would
    with pytest.raises(StaleError, match=sentence) as caught:
        compute_curvature(tiny_study, LAST, trained)
    assert "\n" not in str(caught.value)
    assert not trained.result_path("per_image_curvature", "tiny", LAST).exists()
    path.unlink()  # what the sentence says to do
    assert compute_curvature(tiny_study, LAST, trained)
    assert len(rows_of(trained, tiny_study)) == 200


def test_the_proof_takes_nothing_but_the_very_rows() -> None:
    due = {"trial": np.array([0, 0, 1]), "image_id": np.array([3, 5, 3])}
    prove_complete({name: values.copy() for name, values in due.items()}, due)
    for trials, ids in (([0, 0], [3, 5]), ([0, 0, 1, 1], [3, 5, 3, 3]), ([0, 1, 0], [3, 3, 5]), ([0, 0, 0], [3, 5, 3])):
        with pytest.raises(StaleError, match="for 3 images"):
            prove_complete({"trial": np.array(trials), "image_id": np.array(ids)}, due)


def test_who_comes_too_late_leaves_the_file_as_it_is_and_no_shard(
    trained: Store, tiny_study: Study, in_shards: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, path = checkpoint_module.compute_rows, trained.result_path("per_image_curvature", "tiny", LAST)
    finished: list[dict[Path, tuple[int, int]]] = []

    def overtaken(*arguments: Any) -> Any:
        result = usual(*arguments)
        monkeypatch.setattr(checkpoint_module, "compute_rows", usual)
        compute_curvature(tiny_study, LAST, trained)  # another worker does everything meanwhile
        finished.append(stamps([path, trained.manifest_path(path)]))
        return result

    monkeypatch.setattr(checkpoint_module, "compute_rows", overtaken)
    compute_shard(tiny_study, LAST, trained, in_shards[1])
    assert stamps([path, trained.manifest_path(path)]) == finished[0]
    assert shard_files(trained) == []


def _work(study: Study, root: Path, ranges: list[tuple[int, int]], start: Any) -> None:
    torch.set_num_threads(1)
    start.wait()
    for rows in ranges:
        compute_shard(study, LAST, Store(root), rows)


@pytest.mark.parametrize("same", [True, False], ids=["the same shards", "a part each"])
def test_processes_that_finish_at_once_leave_one_sound_file(
    same: bool, trained: Store, tiny_study: Study, in_shards: list[tuple[int, int]]
) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    parts = [in_shards] * 3 if same else [in_shards[:1], in_shards[1:3], in_shards[3:]]
    workers = [context.Process(target=_work, args=(tiny_study, trained.root, part, start)) for part in parts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert shard_files(trained) == []
    rows, manifest = rows_of(trained, tiny_study), PER_IMAGE_CURVATURE.manifest(trained, tiny_study, LAST)
    assert manifest is not None
    trained.verify(manifest.files["table"])
    assert not rows.duplicated(["trial", "image_id"]).any()
    assert len(rows) == 200
    trained.result_path("per_image_curvature", "tiny", LAST).unlink()
    compute_curvature(tiny_study, LAST, trained)
    pd.testing.assert_frame_equal(rows, rows_of(trained, tiny_study), rtol=1e-6, atol=1e-12)


# Refusals


def test_an_untrained_a_foreign_and_a_harmed_checkpoint_are_refused(
    trained: Store, tiny_study: Study, make_study: MakeStudy
) -> None:
    with pytest.raises(StaleError, match="another recipe"):
        compute_curvature(make_study({"label_noise": 0.1}), LAST, trained)
    path = trained.checkpoint_path("tiny", LAST)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StaleError, match="damaged"):
        compute_curvature(tiny_study, LAST, trained)
    trained.checkpoint_manifest_path("tiny", LAST).unlink()
    with pytest.raises(StaleError, match="has not been trained"):
        compute_curvature(tiny_study, LAST, trained)
    assert not trained.result_path("per_image_curvature", "tiny", LAST).exists()
    assert shard_files(trained) == []


@pytest.mark.parametrize("settings", [{}, DIFFERENCE, {"estimators": ("double_backward",)}], ids=str)
@pytest.mark.parametrize("trial", [0, 1])
def test_weights_that_are_not_finite_leave_nothing_written(
    trial: int, settings: Any, trained: Store, make_study: MakeStudy
) -> None:
    study = make_study(curvature=settings)
    weights, manifest = load_checkpoint(trained, study, LAST)
    weights["linear.weight"][trial, 3, 2] = torch.nan
    path = trained.checkpoint_path("tiny", LAST)
    save_tensors(path, weights, {})
    files = {role: trained.root / entry.path for role, entry in manifest.files.items()}
    trained.write_manifest(path.with_suffix(".json"), manifest.content, files)
    with pytest.raises(UserError, match="not finite"):
        compute_curvature(study, LAST, trained)
    assert not trained.result_path("per_image_curvature", "tiny", LAST).exists()
    assert shard_files(trained) == []
