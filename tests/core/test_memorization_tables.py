"""The tables of memorisation, from trainings to rows: each value again by SQL or plain torch, and only when changed."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from dd_core.analysis.memorization.ranks import as_ordered
from dd_core.checks.expected import Course, Expectations
from dd_core.curvature.trained import standardised, trained_network
from dd_core.data.trials import trial_data
from dd_core.errors import UserError
from dd_core.exchange.memorization import import_memorization
from dd_core.results.memorization import rebuild
from dd_core.results.memorization_probes import gradient_norms, probes_of
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.retirement import retire
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.tables.memorization import SCORES
from dd_core.tables.warehouse import connect
from dd_core.tasks.losses import CrossEntropy
from dd_core.training.train import train_arm

from .exchanged import write_rows

MakeStudy = Callable[..., Study]
VALUES = ("margin", "el2n", "gradient_norm")


@pytest.fixture(scope="module")
def study(make_study: MakeStudy) -> Study:
    return make_study(
        {"batch_size": 20, "optimizer": {"name": "adam", "learning_rate": 0.01}},
        data={"dataset": "digits", "num_train": 100, "subset": 0.6, "duplicates": {"exact": 5, "near": 5}},
        trials=6,
        epochs=6,
        checkpoints=(0, 1, 3, 6),
        widths=(1,),
        evaluation={"image_values": VALUES},
        memorization={"num_bootstraps": 100, "grand": (1, 3), "out_of_fold": True, "influences": 2, "early": 2},
    )


@pytest.fixture(scope="module")
def lab(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("memorization") / "root")
    train_arm(study, study.arms["plain.k001"], store, until=6)
    for checkpoint in PER_IMAGE_CURVATURE.missing(store, study):
        compute_curvature(study, checkpoint, store)
    done = rebuild(store, study)
    assert (done.arms, done.computed, done.diverged) == (["plain.k001"], ["plain.k001"], {})
    return store


def rows(store: Store, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(connect(store)) as connection:
        return connection.sql(sql).fetchall()


def test_scores_are_those_that_sql_finds_in_the_tables_of_training(lab: Store) -> None:
    columns = (
        "num_evaluations, csl, confidence, area_under_margin, loss_sensitivity, el2n, first_learned_epoch, final_loss"
    )
    found = rows(lab, f"SELECT trial, image_id, {columns} FROM memorization ORDER BY trial, image_id")
    expected = rows(
        lab,
        """
        SELECT trial, image_id, count(*), sum(loss), avg(exp(-loss::DOUBLE)), avg(margin), sum(gradient_norm),
            avg(el2n) FILTER (epoch <= 2), min(epoch) FILTER (correct), arg_max(loss, epoch)
        FROM image_progress WHERE split = 'train' AND epoch > 0 GROUP BY ALL ORDER BY ALL
        """,
    )
    assert len(found) == 6 * 60
    np.testing.assert_allclose(np.array(found, float), np.array(expected, float), rtol=1e-5)
    found = rows(lab, "SELECT trial, image_id, trace_sum FROM memorization ORDER BY ALL")
    sql = "SELECT trial, image_id, sum(trace) FROM per_image_curvature WHERE epoch > 0 GROUP BY ALL ORDER BY ALL"
    np.testing.assert_allclose(np.array(found), np.array(rows(lab, sql)))
    unknown = rows(lab, "SELECT count(ssft), count(finite_difference_sum), count(grand) FROM memorization")
    assert unknown == [(0, 0, 360)], "no second split, no finite differences; GraNd of every image"


def test_ranks_are_the_shares_of_images_that_look_less_memorised(lab: Store) -> None:
    """As SciPy ranks them; what was never learned is more than all others, what was not measured has no rank."""
    for score in SCORES:
        sql = f"SELECT trial, image_id, m.{score}, r.{score} FROM memorization m JOIN memorization_ranks r "
        found = np.array(rows(lab, f"{sql} USING (trial, image_id) ORDER BY ALL"), float)
        for trial in range(6):
            _, _, values, ranks = found[found[:, 0] == trial].T
            ordered = as_ordered(score, values)
            others = max(1, (~np.isnan(ordered)).sum() - 1)
            shares = (scipy.stats.rankdata(ordered, "min", nan_policy="omit") - 1) / others
            np.testing.assert_allclose(ranks, np.where(np.isnan(ordered), np.nan, shares), err_msg=score)


def test_grand_is_the_mean_over_checkpoints_of_the_norm_of_each_gradient(lab: Store, study: Study) -> None:
    arm, found = study.arms["plain.k001"], []
    data = trial_data(study, "plain", 2)
    images = standardised(study, data, data.train_ids[:3], torch.device("cpu"), torch.float32)
    for epoch in (1, 3):
        weights, _ = load_checkpoint(lab, study, Checkpoint(arm, epoch))
        model = trained_network(study, Checkpoint(arm, epoch), weights, 2)
        norms = []
        for image, label in zip(images, data.train_labels[:3], strict=True):
            loss = torch.nn.functional.cross_entropy(model(image[None]), torch.tensor([label]))
            parts = torch.autograd.grad(loss, list(model.parameters()))
            norms.append(math.sqrt(sum(float(part.double().square().sum()) for part in parts)))
        vectorised = gradient_norms(model, images, torch.from_numpy(data.train_labels[:3]), CrossEntropy())
        np.testing.assert_allclose(vectorised.numpy(), norms, rtol=1e-4)
        found.append(norms)
    ids = ", ".join(map(str, data.train_ids[:3]))
    stored = rows(lab, f"SELECT grand FROM memorization WHERE trial = 2 AND image_id IN ({ids}) ORDER BY image_id")
    np.testing.assert_allclose(np.array(stored)[:, 0], np.mean(found, 0), rtol=1e-4)


def test_grand_of_classes_that_come_is_of_the_loss_that_was_trained_and_of_the_images_seen(
    store: Store, make_study: MakeStudy
) -> None:
    study = make_study(
        {"label_noise": 0.0, "batch_size": 10},
        data={"dataset": "digits", "num_train": 100, "classes": {"first": 2, "add": 4, "every": 1}},
        epochs=2,
        checkpoints=(1, 2),
        widths=(1,),
        trials=1,
        memorization={"num_bootstraps": 100, "grand": (1, 2)},
    )
    arm, data = study.arms["plain.k001"], trial_data(study, "plain", 0)
    train_arm(study, arm, store, until=2)
    found = probes_of(store, study, arm).grand[0]
    assert set(found) == set(data.train_ids[:60].tolist()), "four classes are still to come"
    assert data.order is not None
    norms: dict[int, list[float]] = {}
    for epoch, num_classes in ((1, 2), (2, 6)):
        weights, _ = load_checkpoint(store, study, Checkpoint(arm, epoch))
        model, seen = trained_network(study, Checkpoint(arm, epoch), weights, 0), data.order[:num_classes].tolist()
        images = standardised(study, data, data.train_ids[:25], torch.device("cpu"), torch.float32)
        for image, label, name in zip(images, data.train_labels, data.train_ids.tolist(), strict=False):
            if label in seen:
                outputs, target = model(image[None])[:, seen], torch.tensor([seen.index(label)])
                loss = torch.nn.functional.cross_entropy(outputs, target)
                parts = torch.autograd.grad(loss, list(model.parameters()))
                norms.setdefault(name, []).append(math.sqrt(sum(float(p.double().square().sum()) for p in parts)))
    assert [len(own) for own in norms.values()] == [2] * 20 + [1] * 5
    for name, own in norms.items():
        assert found[name] == pytest.approx(np.mean(own), rel=1e-4)


def test_confident_learning_has_predictions_of_trials_that_left_the_image_out(lab: Store, study: Study) -> None:
    sql = """SELECT any_value(confident_learning), count(DISTINCT trial) FROM memorization GROUP BY image_id"""
    found = np.array(rows(lab, sql), float)
    assert (~np.isnan(found[:, 0]) == (found[:, 1] < 6)).all(), "an image that every trial is trained on has none"
    probes, arm = probes_of(lab, study, study.arms["plain.k001"]), study.arms["plain.k001"].key
    sql = f"""SELECT image_id, exp(-loss::DOUBLE) FROM image_progress
        WHERE arm = '{arm}' AND trial = 3 AND epoch = 6 AND split = 'left_out' ORDER BY image_id"""
    ids, probabilities = probes.predictions[3]
    given = probabilities[np.arange(len(ids)), trial_data(study, "plain", 3).left_out_labels]
    np.testing.assert_allclose(np.stack([ids, given], 1), np.array(rows(lab, sql)), rtol=1e-4)


def test_truth_and_influence_are_differences_of_shares(lab: Store) -> None:
    found = rows(lab, "SELECT image_id, num_in, num_out, memorization FROM memorization_truth ORDER BY image_id")
    expected = rows(
        lab,
        """
        SELECT image_id, count(*) FILTER (split = 'train'), count(*) FILTER (split = 'left_out'),
            avg(correct::INT) FILTER (split = 'train') - avg(correct::INT) FILTER (split = 'left_out')
        FROM image_progress WHERE epoch = 6 AND split IN ('train', 'left_out') GROUP BY ALL
        HAVING bool_or(split = 'train') ORDER BY ALL
        """,
    )
    np.testing.assert_allclose(np.array(found, float), np.array(expected, float))
    test, image, influence = rows(
        lab, "SELECT test_image_id, image_id, influence FROM memorization_influence WHERE place = 1 ORDER BY 1 LIMIT 1"
    )[0]
    sql = f"""
        SELECT avg(t.correct::INT) FILTER (i.split = 'train') - avg(t.correct::INT) FILTER (i.split = 'left_out')
        FROM image_progress t JOIN images i USING (trial)
        WHERE t.image_id = {test} AND t.epoch = 6 AND i.image_id = {image}"""
    assert rows(lab, sql) == [(pytest.approx(influence),)]


def test_detection_and_agreement_are_those_of_scikit_learn_and_scipy(lab: Store) -> None:
    trials = rows(
        lab, "SELECT list(csl ORDER BY image_id), list(is_noisy ORDER BY image_id) FROM memorization GROUP BY trial"
    )
    areas = [sklearn.metrics.roc_auc_score(noisy, csl) for csl, noisy in trials]
    sql = """SELECT auroc, auroc_low, auroc_high, label_noise FROM memorization_detection
        WHERE score = 'csl' AND target = '{}'"""
    ((auroc, low, high, noise),) = rows(lab, sql.format("wrong label"))
    assert (auroc, noise) == (pytest.approx(np.mean(areas)), 0.2)
    assert low < auroc < high
    assert len(rows(lab, sql.format("exact duplicate"))) == len(rows(lab, sql.format("near duplicate"))) == 1
    sql = """SELECT avg(csl), any_value(t.memorization) FROM memorization JOIN memorization_truth t USING (image_id)
        GROUP BY image_id HAVING any_value(t.memorization) IS NOT NULL"""
    csl, memorised = np.array(rows(lab, sql)).T
    ((spearman, num),) = rows(
        lab,
        "SELECT spearman, num_images FROM memorization_agreement WHERE score = 'csl' AND images = 'all'",
    )
    assert (spearman, num) == (pytest.approx(scipy.stats.spearmanr(csl, memorised).statistic), len(csl))


def test_an_arm_is_scored_again_only_when_something_changed(lab: Store, study: Study, make_study: MakeStudy) -> None:
    assert rebuild(lab, study).computed == []
    path = next(lab.table_folder("memorization_detection").glob("*/*/analysis.parquet"))
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    assert rebuild(lab, study).computed == ["plain.k001"]
    assert path.read_bytes() == before, "the same bits again"


def test_published_estimates_are_another_truth_once_their_labels_agree(
    lab: Store, study: Study, tmp_path: Path
) -> None:
    from dd_core.data.datasets import load

    labels, random = load("digits").labels, np.random.default_rng(0)
    theirs = random.permutation(len(labels))[:900]
    file, order = tmp_path / "fz.npz", tmp_path / "map.npy"
    np.savez(file, tr_labels=labels[theirs], tr_mem=random.random(900))
    with pytest.raises(
        UserError, match=r"\d\d\d of its 900 labels are not those of .*; it may be in TensorFlow's order"
    ):
        import_memorization(lab, study, file)
    np.save(order, theirs[::-1])
    with pytest.raises(UserError, match=r"of its 900 labels are not those of"):
        import_memorization(lab, study, file, order)
    np.save(order, np.zeros(900, int))
    with pytest.raises(UserError, match=r"names each of their rows in 0 to 1796 once"):
        import_memorization(lab, study, file, order)
    order.write_bytes(b"none")
    with pytest.raises(UserError, match=r"cannot be read as an .npy file"):
        import_memorization(lab, study, file, order)
    np.savez(order.with_suffix(""), theirs)
    for content in (b"", b"PK\x03\x04none", order.with_suffix(".npz").read_bytes()):
        order.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot be read as an .npy file"):
            import_memorization(lab, study, file, order)
    np.savez(tmp_path / "text.npz", tr_labels=labels, tr_mem=labels.astype(str))
    with pytest.raises(UserError, match=r"text.npz: tr_mem holds no real numbers but <U"):
        import_memorization(lab, study, tmp_path / "text.npz")
    np.savez_compressed(tmp_path / "harmed.npz", tr_labels=labels, tr_mem=labels)
    whole = bytearray((tmp_path / "harmed.npz").read_bytes())
    whole[300:330] = b"\xff" * 30
    for content in (b"", bytes(whole)):
        (tmp_path / "harmed.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"harmed.npz cannot be read as an .npz file"):
            import_memorization(lab, study, tmp_path / "harmed.npz")
    file.rename(tmp_path / "subsets.npz")
    with pytest.raises(UserError, match=r"subsets is what a study's own measurement is called; rename the file"):
        import_memorization(lab, study, tmp_path / "subsets.npz")
    (tmp_path / "subsets.npz").rename(file)
    np.savez(tmp_path / "other.npz", labels=labels)
    with pytest.raises(UserError, match=r"has no field tr_labels; it has labels"):
        import_memorization(lab, study, tmp_path / "other.npz")
    np.save(order, theirs)
    for value in (np.nan, np.inf, 1.5, -2, 1j):
        np.savez(tmp_path / "odd.npz", tr_labels=labels[theirs], tr_mem=np.full(900, value))
        with pytest.raises(UserError, match=r"tr_mem (is a difference of two shares, a real|holds no real) number"):
            import_memorization(lab, study, tmp_path / "odd.npz", order)
    assert import_memorization(lab, study, file, order).num_images == 900
    assert rebuild(lab, study).computed == ["plain.k001"]
    sources = rows(lab, "SELECT source, count(*) FROM memorization_truth GROUP BY ALL ORDER BY ALL")
    assert sources[0] == ("fz", 900) and sources[1][0] == "subsets"
    found = rows(lab, "SELECT source, list(DISTINCT score ORDER BY score) FROM memorization_agreement GROUP BY ALL")
    scores = dict(found)
    assert set(scores["fz"]) - set(scores["subsets"]) == {"confident_learning"}, "made of the same predictions"
    # Theirs is memorisation of the true label, and of an image without a copy.
    sql = """SELECT count(DISTINCT image_id) FROM memorization JOIN memorization_truth t USING (image_id)
        WHERE t.source = 'fz' AND {}"""
    ((num_all,),) = rows(lab, sql.format("true"))
    ((num_as_theirs,),) = rows(lab, sql.format("NOT memorization.is_noisy AND duplicate IS NULL"))
    sql = "SELECT num_images FROM memorization_agreement WHERE source = 'fz' AND score = 'csl' AND images = 'all'"
    assert rows(lab, sql) == [(num_as_theirs,)] and num_as_theirs < num_all
    sql = "SELECT count(given_label), count(is_noisy), count(true_label) FROM memorization_truth WHERE source = 'fz'"
    assert rows(lab, sql) == [(0, 0, 900)], "which label it was given differs from trial to trial"


def test_what_was_imported_stays_when_a_recipe_changes(store: Store, make_study: MakeStudy, tmp_path: Path) -> None:
    from dd_core.data.datasets import load

    before, after = (make_study({"batch_size": size}, widths=(1,), trials=1) for size in (20, 30))
    arm, labels = before.arms["plain.k001"], load("digits").labels
    assert before.recipe_hash(arm) != after.recipe_hash(arm)
    np.savez(tmp_path / "fz.npz", tr_labels=labels, tr_mem=np.linspace(0, 1, len(labels)))
    import_memorization(store, before, tmp_path / "fz.npz")
    ids = trial_data(before, "plain", 0).train_ids.tolist()
    for study in (before, after):
        progress = [
            {"trial": 0, "epoch": 1, "image_id": i, "split": "train", "loss": n / 9, "correct": True}
            for n, i in enumerate(ids)
        ]
        write_rows(store, study, arm, "image_progress", progress)
        assert rebuild(store, study).computed == ["plain.k001"]
        for table in ("memorization_truth", "memorization_agreement"):
            found = rows(store, f"SELECT DISTINCT recipe, source FROM {table}")
            assert found == [(study.recipe_hash(arm), "fz")], table
        retire(store, study.name, arm.key, study.recipe_hash(arm))


def test_wrong_labels_that_are_not_there_make_areas_null_and_a_diverged_trial_is_left_out(
    store: Store, make_study: MakeStudy
) -> None:
    variant = {"label_noise": 0.0, "schedule": {"name": "constant"}}
    study = make_study(variant, epochs=8, widths=(1,), memorization={"early": 1})
    arm, ids = study.arms["plain.k001"], {t: trial_data(study, "plain", t).train_ids.tolist() for t in (0, 1)}
    progress = [
        {"trial": t, "epoch": e, "image_id": i, "split": "train", "loss": 0.5 * e, "correct": False, "el2n": e}
        for t in (0, 1)
        for e in (2, 4)
        for i in ids[t]
    ]
    write_rows(store, study, arm, "image_progress", progress)
    ended = [{"trial": t, "attempt": 1, "status": s} for t, s in ((0, "finished"), (1, "diverged"))]
    write_rows(store, study, arm, "runs", ended, part="attempt-0001.end")
    assert rebuild(store, study).diverged == {"plain.k001": [1]}
    columns = "count(*), max(trial), sum(csl), count(first_learned_epoch), sum(el2n)"
    found = rows(store, f"SELECT {columns} FROM memorization")
    assert found == [(100, 0, 300.0, 0, 200.0)], "never learned is null; EL2N has the first evaluation, however late"
    detection = rows(store, "SELECT DISTINCT auroc, auroc_low, num_trials FROM memorization_detection")
    assert detection == [(None, None, 0)]
    assert rows(store, "FROM memorization_truth") == rows(store, "FROM boundary_forgetting") == []
    # The same recipe with fewer epochs is scored anew, of those.
    shorter = make_study(variant, epochs=3, checkpoints=(0,), widths=(1,), memorization={"early": 1})
    assert shorter.recipe_hash(arm) == study.recipe_hash(arm)
    assert rebuild(store, shorter).computed == ["plain.k001"]
    assert rows(store, f"SELECT {columns} FROM memorization") == [(100, 0, 100.0, 0, 200.0)]
    assert rebuild(store, shorter).computed == []
    assert set(SCORES) > {score for (score,) in rows(store, "SELECT DISTINCT score FROM memorization_detection")}


def test_forgetting_at_boundaries_is_told_by_what_the_task_before_showed(store: Store, make_study: MakeStudy) -> None:
    classes = {"first": 2, "add": 4, "every": 2}
    study = make_study(
        {"label_noise": 0.0, "batch_size": 10, "schedule": {"name": "constant"}},
        data={"dataset": "digits", "num_train": 100, "classes": classes},
        epochs=6,
        checkpoints=(0, 2, 4, 6),
        widths=(1,),
        memorization={"num_bootstraps": 100},
    )
    arm, random = study.arms["plain.k001"], np.random.default_rng(0)
    data, losses = trial_data(study, "plain", 0), {}
    for epoch in range(1, 7):
        for image in data.train_ids[: study.num_seen_images(epoch)].tolist():
            losses[epoch, image] = float(np.float32(random.random()))
    progress = [
        {"trial": 0, "epoch": e, "image_id": i, "split": "train", "loss": loss, "correct": True}
        for (e, i), loss in losses.items()
    ]
    write_rows(store, study, arm, "image_progress", progress)
    rebuild(store, study)
    found = rows(store, "SELECT boundary, until, num_images, spearman, quintile_forgetting FROM boundary_forgetting "
                        "WHERE predictor = 'loss' AND statistic = 'max' ORDER BY boundary")  # fmt: skip
    assert [row[:3] for row in found] == [(2, 3, 20), (4, 5, 60)]
    images = data.train_ids[:60].tolist()
    most = [max(losses[e, i] for e in (3, 4)) for i in images]
    change = [losses[5, i] - losses[4, i] for i in images]
    assert found[1][3] == pytest.approx(scipy.stats.spearmanr(most, change).statistic)
    lowest = np.argsort(most)[:12]
    assert found[1][4][0] == pytest.approx(np.mean(np.array(change)[lowest]), rel=1e-5)
    kinds = rows(store, "SELECT DISTINCT predictor, statistic FROM boundary_forgetting ORDER BY ALL")
    assert kinds == [("csl", "sum"), ("loss", "max"), ("loss", "mean"), ("loss", "slope")]
    # Without the evaluation after a boundary its forgetting is unknown: by the end of the task much else has happened.
    write_rows(store, study, arm, "image_progress", [row for row in progress if row["epoch"] != 3])
    rebuild(store, study)
    assert rows(store, "SELECT DISTINCT boundary, until FROM boundary_forgetting") == [(4, 5)]


def test_images_kept_at_checkpoints_are_kept_after_classes_were_added(make_study: MakeStudy) -> None:
    data = {"dataset": "digits", "num_train": 100, "classes": {"first": 2, "add": 4, "every": 6}}
    for every, kept in ((1, [0, 6, 7, 12, 13, 18]), (3, [0, 6, 9, 12, 15, 18]), (4, [0, 6, 8, 12, 16, 18])):
        study = make_study(
            {"label_noise": 0.0, "batch_size": 10},
            data=data,
            epochs=18,
            checkpoints=(0, 6, 12, 18),
            evaluation={"every": every, "image_progress": "checkpoints"},
        )
        calendar = study.calendar("plain")
        course = Course(calendar, 18, calendar.steps_after(18))
        assert Expectations(study, [course]).evaluations(course, of_images=True).tolist() == kept
    study = make_study(epochs=18, checkpoints=(0, 6), evaluation={"image_progress": "checkpoints"})
    assert [epoch for epoch in range(19) if study.keeps_images(epoch)] == [0, 6]
