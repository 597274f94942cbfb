"""Copies among the training images: which they are, what they look like, and that everybody sees the same."""

from typing import Any

import numpy as np
import pytest
import torch

from dd_core.curvature.trained import standardised
from dd_core.data.augmentation import PlainImages, TrainingImages, plan_epoch
from dd_core.data.datasets import load
from dd_core.data.duplicates import Copies, draw_copies, images_of
from dd_core.data.trials import trial_data
from dd_core.errors import DataMissingError
from dd_core.store.store import Store
from dd_core.study.recipe import Augmentation, Duplicates
from dd_core.study.study import Study
from dd_core.tables.files import read_parquet
from dd_core.tables.images import write_images
from dd_core.tasks.images import Images

CPU = torch.device("cpu")
COPIED = {"dataset": "digits", "num_train": 100, "duplicates": {"exact": 7, "near": 5}}


def of_trial(study: Study, trial: int) -> tuple[Copies, Any]:
    data = trial_data(study, "plain", trial)
    assert data.copies is not None
    return data.copies, data


def test_copies_are_pairs_of_training_images_of_one_class_with_one_label(make_study: Any) -> None:
    study, plain = make_study(data=COPIED), make_study()
    labels = load("digits").labels
    seen = []
    for trial in range(2):
        copies, data = of_trial(study, trial)
        both = np.concatenate([copies.ids, copies.sources])
        assert len(set(both.tolist())) == 24 and set(both.tolist()) <= set(data.train_ids.tolist())
        np.testing.assert_array_equal(labels[copies.ids], labels[copies.sources])
        given = dict(zip(data.train_ids.tolist(), data.train_labels.tolist(), strict=True))
        assert [given[image] for image in copies.ids.tolist()] == [given[image] for image in copies.sources.tolist()]
        before = trial_data(plain, "plain", trial)
        np.testing.assert_array_equal(data.train_ids, before.train_ids)
        np.testing.assert_array_equal(data.true_train_labels, before.true_train_labels)
        others = ~np.isin(data.train_ids, copies.ids)
        np.testing.assert_array_equal(data.train_labels[others], before.train_labels[others])
        seen.append(tuple(copies.ids))
    assert seen[0] != seen[1]


def test_near_copies_are_moved_a_little_and_have_a_little_noise() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    copies = draw_copies(Duplicates(near=20), images, np.zeros(40, int), np.arange(40), 255, random)
    assert copies.num_exact == 0
    moves = set()
    for source, near in zip(copies.sources, copies.near, strict=True):
        padded = np.pad(images[source], ((2, 2), (2, 2), (0, 0))).astype(int)
        changes = {
            (y, x): np.abs(padded[2 + y : 34 + y, 2 + x : 34 + x] - near).max()
            for y in range(-2, 3)
            for x in range(-2, 3)
        }
        move = min(changes, key=lambda where: changes[where])
        assert 1 <= changes[move] <= 5  # 2 % of 255
        moves.add(move)
    assert (0, 0) not in moves and len(moves) > 5


def test_training_evaluations_curvature_and_figures_see_the_same_pixels(make_study: Any) -> None:
    study = make_study({"augmentation": {}}, data=COPIED)
    raw, labels = load("digits").images, load("digits").labels
    images = Images(study, "plain", [0, 1], CPU, torch.float64)
    assert images.num_train == 100
    for trial in range(2):
        copies, data = of_trial(study, trial)
        expected = raw.copy()
        expected[copies.ids[:7]] = raw[copies.sources[:7]]
        expected[copies.ids[7:]] = copies.near
        pixels = expected[data.train_ids].astype(np.float64)
        np.testing.assert_allclose(data.mean, [pixels.mean()], rtol=1e-6)
        np.testing.assert_allclose(data.std, [pixels.std()], rtol=1e-6)
        plain = (torch.from_numpy(expected).double().permute(0, 3, 1, 2) - float(data.mean[0])) / float(data.std[0])
        train = plain[torch.from_numpy(data.train_ids)]
        np.testing.assert_array_equal(images_of(raw, data.copies, data.image_ids), expected[data.image_ids])
        assert torch.equal(standardised(study, data, data.train_ids, CPU, torch.float64), train)
        evaluated, targets = images.evaluated(images.splits(0), 0, 1797)
        assert torch.equal(evaluated[:, trial : trial + 1], plain[torch.from_numpy(data.image_ids)])
        np.testing.assert_array_equal(targets[100:, trial], labels[data.test_ids])
        positions = torch.arange(100)[:, None].expand(-1, 2)
        assert torch.equal(images.at(positions)[0][:, trial : trial + 1], train)
        plan = images.plan(1)
        batch, given = images.batch(plan, 0, 100)
        assert torch.equal(batch[:, trial : trial + 1], train[plan.positions[:, trial]])
        np.testing.assert_array_equal(given[:, trial], data.train_labels[plan.positions[:, trial]])


def test_trials_with_the_same_images_but_other_copies_do_not_share_them(make_study: Any) -> None:
    """As where all images are trained on, of which stacks keep one copy."""
    study = make_study({"augmentation": {}}, data={**COPIED, "num_train": None, "num_validation": 0})
    data = [of_trial(study, trial)[1] for trial in range(2)]
    raw, setting = load("digits").images, Augmentation()
    training = TrainingImages(raw, data, setting, CPU, torch.float64)
    plain = PlainImages(raw, [d.train_ids for d in data], data, CPU, torch.float64)
    plan = plan_epoch(0, [0, 1], 1797, 1, setting, CPU)
    assert torch.equal(training.batch(plan, 0, 1797), plain.at(plan.positions))


def test_the_table_of_images_says_what_is_a_copy_of_what(make_study: Any, store: Store) -> None:
    study = make_study(data={**COPIED, "subset": 0.5}, trials=3)
    write_images(store, study)
    table = read_parquet(store.table_folder("images", "tiny") / "plain.parquet").to_pandas()
    copies, _ = of_trial(study, 0)
    of_image = dict(zip(copies.ids.tolist(), copies.sources.tolist(), strict=True))
    for trial in range(3):
        own = table[table.trial == trial].set_index("image_id")
        assert own.copy_of.dropna().astype(int).to_dict() == of_image
        assert set(own[own.duplicate == "exact"].index) == {*copies.ids[:7], *copies.sources[:7]}
        assert set(own[own.duplicate == "near"].index) == {*copies.ids[7:], *copies.sources[7:]}
        assert own.duplicate.isna().sum() == 1797 - 24
    assert set(table[table.copy_of.notna()].split) == {"train", "left_out"}


@pytest.mark.parametrize(
    ("duplicates", "sentence"),
    [
        ({"exact": 51}, "data.duplicates: 51 copies and what they are copies of are more than the 100 training"),
        ({}, "data.duplicates: exact and near are both 0; set one"),
        ({"near": -1}, "greater than or equal to 0"),
    ],
)
def test_more_copies_than_images_or_none_are_one_sentence(
    duplicates: dict[str, int], sentence: str, make_study: Any
) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_study(data={"dataset": "digits", "num_train": 100, "duplicates": duplicates})


def test_an_image_alone_in_its_class_has_no_copy(make_study: Any) -> None:
    """Each class of 100 digits can be short of one pair at most: 45 pairs at least, not always 50."""
    study = make_study(data={"dataset": "digits", "num_train": 100, "duplicates": {"exact": 50}})
    with pytest.raises(DataMissingError, match="50 copies need as many pairs of images of one class, and 100 training"):
        trial_data(study, "plain", 0)
    lonely = np.array([0, 0, 1, 2, 2])
    images = np.zeros((5, 4, 4, 1), np.uint8)
    copies = draw_copies(Duplicates(exact=2), images, lonely, np.arange(5), 16, np.random.default_rng(0))
    assert sorted(map(sorted, zip(copies.ids.tolist(), copies.sources.tolist(), strict=True))) == [[0, 1], [3, 4]]
