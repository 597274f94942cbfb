"""The curvature table: its statistics against independent ones, and that it holds what is true now."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dd_core.results import curvature_summary
from dd_core.results.curvature_summary import rebuild, summarise
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.damage import sentences
from dd_core.tables.files import TABLES, read_parquet, write_parquet, write_result
from dd_core.training.train import train_arm

SCORES = ("trace", "frobenius_norm", "largest_eigenvalue", "gradient_curvature", "gradient_norm", "loss")
DIFFERENCES = ("fd_norm_h0p001", "fd_directional_h3")
VALUES = (*SCORES, "trace_standard_error")
ONE, TWO = (Checkpoint(Arm("plain", 1), epoch) for epoch in (2, 4))


def columns(num_images: int = 60, num_noisy: int = 12) -> dict[str, np.ndarray]:
    """Values rounded so that many of them tie."""
    random = np.random.default_rng(0)
    noisy = np.zeros(num_images, dtype=bool)
    noisy[random.permutation(num_images)[:num_noisy]] = True
    return {"is_noisy": noisy} | {
        name: random.exponential(size=num_images).round(1) + noisy / 2 for name in (*VALUES, *DIFFERENCES)
    }


def quantile(values: np.ndarray, share: float) -> float:
    """Linear interpolation between order statistics (Hyndman & Fan 1996, definition 7)."""
    ordered = sorted(values.tolist())
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def test_rows_hold_means_and_quantiles_of_all_clean_and_noisy_images() -> None:
    data = columns()
    rows = {row["subset"]: row for row in summarise(data)}
    masks = {"all": np.ones(60, bool), "clean": ~data["is_noisy"], "noisy": data["is_noisy"]}
    assert set(rows) == set(masks)
    for subset, mask in masks.items():
        assert rows[subset]["num_images"] == mask.sum()
        for name in VALUES:
            assert rows[subset][f"mean_{name}"] == pytest.approx(math.fsum(data[name][mask]) / mask.sum(), rel=1e-14)
        for share in (5, 25, 50, 75, 95):
            expected = quantile(data["trace"][mask], share / 100)
            assert rows[subset][f"trace_p{share:02d}"] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("score", [*SCORES, *DIFFERENCES])
def test_auroc_is_the_share_of_pairs_in_the_right_order_ties_half(score: str) -> None:
    data = columns()
    noisy, clean = data[score][data["is_noisy"]], data[score][~data["is_noisy"]]
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(noisy, clean)]
    assert 0 < pairs.count(0.5) < len(pairs)
    for row in summarise(data):
        assert row[f"auroc_{score}"] == pytest.approx(np.mean(pairs), rel=1e-14)
        assert row[f"auroc_{score}"] == pytest.approx(roc_auc_score(data["is_noisy"], data[score]), rel=1e-14)


def test_every_score_has_its_auroc_and_nothing_else_has() -> None:
    data = columns() | {"fd_norm_h0p001_standard_error": np.ones(60)}
    names = {name for name in summarise(data)[0] if name.startswith("auroc_")}
    assert names == {f"auroc_{score}" for score in (*SCORES, *DIFFERENCES)}
    fixed = {column.name for column in TABLES["curvature"].file_columns if column.name.startswith("auroc_")}
    assert fixed == {f"auroc_{score}" for score in SCORES}


def test_without_noisy_labels_there_is_one_row_and_no_auroc() -> None:
    (row,) = summarise(columns(num_noisy=0))
    assert row["subset"] == "all"
    assert math.isnan(row["auroc_trace"])


def test_with_noisy_labels_alone_there_is_no_clean_row_and_no_auroc() -> None:
    rows = summarise(columns(num_noisy=60))
    assert [row["subset"] for row in rows] == ["all", "noisy"]
    assert all(math.isnan(row["auroc_trace"]) for row in rows)


def test_a_score_that_is_not_finite_has_no_auroc_and_leaves_the_others() -> None:
    data = columns()
    data["loss"][0] = math.inf
    row = summarise(data)[0]
    assert math.isnan(row["auroc_loss"])
    assert 0 < row["auroc_trace"] < 1


def summary(store: Store, arm: Arm = ONE.arm) -> Path:
    return store.table_folder("curvature", "tiny", arm.key) / "summary.parquet"


def test_the_table_summarises_every_current_file_by_trial(trained: Store, tiny_study: Study) -> None:
    compute_curvature(tiny_study, ONE, trained)
    assert rebuild(trained, tiny_study) == 2 * 3
    rows = read_parquet(summary(trained)).to_pandas()
    images = read_parquet(trained.result_path("per_image_curvature", "tiny", ONE)).to_pandas()
    assert set(rows.columns) == {column.name for column in TABLES["curvature"].file_columns}
    for trial, subset in itertools.product(range(2), ("all", "clean", "noisy")):
        (row,) = rows.query("trial == @trial and subset == @subset").to_dict("records")
        own = images[images.trial == trial]
        own = own if subset == "all" else own[own.is_noisy == (subset == "noisy")]
        assert (row["num_images"], row["epoch"], row["k"]) == (len(own), 2, 1)
        assert row["mean_trace"] == pytest.approx(own.trace.mean(), rel=1e-12)
        assert row["trace_p50"] == pytest.approx(own.trace.median(), rel=1e-12)
        whole = images[images.trial == trial]
        assert row["auroc_loss"] == pytest.approx(roc_auc_score(whole.is_noisy, whole.loss), rel=1e-12)


def test_finite_differences_at_some_epochs_are_null_at_the_others(
    trained: Store, tiny_study: Study, make_study: Any
) -> None:
    compute_curvature(tiny_study, ONE, trained)
    assert rebuild(trained, tiny_study) == 6
    settings = {"steps": (0.5,), "num_probes": 2}
    study = make_study(curvature={"estimators": ("exact", "finite_difference"), "finite_difference": settings})
    compute_curvature(study, TWO, trained)
    assert rebuild(trained, study) == 12
    rows = read_parquet(summary(trained)).to_pandas()
    names = ["auroc_fd_norm_h0p5", "auroc_fd_directional_h0p5"]
    assert list(rows.columns)[-2:] == names
    assert rows[rows.epoch == 2][names].isna().all(axis=None)
    images = read_parquet(trained.result_path("per_image_curvature", "tiny", TWO)).to_pandas()
    for trial, score in itertools.product(range(2), ("norm", "directional")):
        own = images[images.trial == trial]
        expected = roc_auc_score(own.is_noisy, own[f"fd_{score}_h0p5"])
        found = rows[(rows.epoch == 4) & (rows.trial == trial)][f"auroc_fd_{score}_h0p5"]
        assert found.to_numpy() == pytest.approx([expected] * 3, rel=1e-12)
    # Once added at the first epoch, too, its rows are renewed.
    compute_curvature(study, ONE, trained)
    assert rebuild(trained, study) == 12
    assert read_parquet(summary(trained)).to_pandas()[names].notna().all(axis=None)


def test_rows_of_an_older_schema_are_taken_over_with_nulls(trained: Store, tiny_study: Study) -> None:
    compute_curvature(tiny_study, ONE, trained)
    rebuild(trained, tiny_study)
    table = read_parquet(summary(trained))
    write_result(trained, summary(trained), table.drop_columns(["auroc_gradient_curvature", "mean_gradient_curvature"]))
    compute_curvature(tiny_study, TWO, trained)
    assert rebuild(trained, tiny_study) == 12
    rows = read_parquet(summary(trained)).to_pandas()
    assert rows[rows.epoch == 2].mean_gradient_curvature.isna().all()
    assert rows[rows.epoch == 4].mean_gradient_curvature.notna().all()


def test_a_rebuild_reads_new_files_alone_and_gives_equal_bytes(
    trained: Store, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_curvature(tiny_study, ONE, trained)
    rebuild(trained, tiny_study)
    before = summary(trained).read_bytes()
    read: list[Checkpoint] = []
    usual = curvature_summary._summarise_file

    def counted(store: Store, study: Study, checkpoint: Checkpoint, *rest: Any) -> Any:
        read.append(checkpoint)
        return usual(store, study, checkpoint, *rest)

    monkeypatch.setattr(curvature_summary, "_summarise_file", counted)
    rebuild(trained, tiny_study)
    assert read == []
    assert summary(trained).read_bytes() == before
    compute_curvature(tiny_study, TWO, trained)
    assert rebuild(trained, tiny_study) == 2 * 2 * 3
    assert read == [TWO]
    after = summary(trained).read_bytes()
    summary(trained).unlink()
    rebuild(trained, tiny_study)
    assert summary(trained).read_bytes() == after


def test_rows_of_changed_files_and_recipes_are_dropped(trained: Store, tiny_study: Study, make_study: Any) -> None:
    for checkpoint in (ONE, Checkpoint(Arm("plain", 2), 2)):
        compute_curvature(tiny_study, checkpoint, trained)
    assert rebuild(trained, tiny_study) == 12
    changed = make_study({"label_noise": 0.1})
    assert rebuild(trained, changed) == 0
    assert not summary(trained).exists()
    assert rebuild(trained, tiny_study) == 12
    # One arm is trained and curved with the new recipe, the other not yet.
    train_arm(changed, ONE.arm, trained, 2)
    assert rebuild(trained, changed) == 0
    compute_curvature(changed, ONE, trained)
    assert rebuild(trained, changed) == 6
    rows = read_parquet(summary(trained)).to_pandas()
    assert set(rows.recipe) == {changed.recipe_hash(ONE.arm)}
    assert rows.query("trial == 0 and subset == 'noisy'").num_images.item() == 10
    assert not summary(trained, Arm("plain", 2)).exists()


def test_a_damaged_file_is_not_summarised_and_named(trained: Store, tiny_study: Study) -> None:
    for checkpoint in (ONE, TWO):
        compute_curvature(tiny_study, checkpoint, trained)
    path = trained.result_path("per_image_curvature", "tiny", ONE)
    path.write_bytes(path.read_bytes()[:-10])
    assert rebuild(trained, tiny_study) == 6
    assert set(read_parquet(summary(trained))["epoch"].to_pylist()) == {TWO.epoch}
    (sentence,) = sentences(trained, [tiny_study])
    assert sentence.startswith(f"{path} is damaged")
    assert sentence.endswith(f"--select 'tiny/per_image_curvature' --partition '{ONE.key}'")


@pytest.mark.parametrize("harm", ["truncated", "altered", "not parquet", "deleted", "unvouched"])
def test_a_harmed_summary_is_made_again(harm: str, trained: Store, tiny_study: Study) -> None:
    compute_curvature(tiny_study, ONE, trained)
    rebuild(trained, tiny_study)
    path = summary(trained)
    right = read_parquet(path)
    if harm == "deleted":
        path.unlink()
    elif harm == "unvouched":
        trained.manifest_path(path).write_text("{")
        write_parquet(path, right.slice(1))
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 4
        path.write_bytes({"truncated": content[:-9], "altered": content, "not parquet": b"x"}[harm])
    rebuild(trained, tiny_study)
    assert read_parquet(path).equals(right)
    assert sentences(trained, [tiny_study]) == []
