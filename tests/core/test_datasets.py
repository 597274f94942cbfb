"""The data sets as their authors ship them; CIFAR through the real loader on small files in the official format."""

import hashlib
import pickle
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100
from upath import UPath

from dd_core.data.datasets import Dataset, load, require
from dd_core.errors import DataMissingError
from dd_core.study.datasets import DATASETS

pytestmark = pytest.mark.usefixtures("forget_datasets")

# Names as in the official archives: training batches, test batch, meta; rows per batch in the made files.
LAYOUT = {
    "cifar10": ([f"data_batch_{i}" for i in range(1, 6)], "test_batch", "batches.meta", b"labels"),
    "cifar100": (["train"], "test", "meta", b"fine_labels"),
}
ROWS = 4


def make_cifar(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """Write small files as Krizhevsky's (pickled, rows of 3072 bytes: 1024 red, 1024 green, 1024 blue).

    Returns:
        All rows and labels, the training batches in order and then the test batch.
    """
    random = np.random.default_rng(0)
    train, test, meta, key = LAYOUT[name]
    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    base = folder / source.base_folder
    base.mkdir(parents=True)
    all_rows, all_labels, sums = [], [], {}
    for file in [*train, test]:
        rows = random.integers(0, 256, (ROWS, 3072), dtype=np.uint8)
        labels = random.integers(0, DATASETS[name].num_classes, ROWS).tolist()
        content = {b"data": rows, key: labels}
        if name == "cifar100":
            content[b"coarse_labels"] = [0] * ROWS
        (base / file).write_bytes(pickle.dumps({k.decode(): v for k, v in content.items()}, protocol=2))
        all_rows.append(rows)
        all_labels += labels
    label_names = {"cifar10": "label_names", "cifar100": "fine_label_names"}[name]
    (base / meta).write_bytes(
        pickle.dumps({label_names: [str(i) for i in range(DATASETS[name].num_classes)]}, protocol=2)
    )
    for file in [*train, test, meta]:
        sums[file] = hashlib.md5((base / file).read_bytes()).hexdigest()
    # The files are made, so their sums are; torchvision's are the reference.
    record = replace(DATASETS[name], files={file: sums[file] for file in [*train, test]})
    monkeypatch.setitem(DATASETS, name, record)
    monkeypatch.setattr(source, "train_list", [[file, sums[file]] for file in train])
    monkeypatch.setattr(source, "test_list", [[test, sums[test]]])
    monkeypatch.setattr(source, "meta", {**source.meta, "filename": meta, "md5": sums[meta]})
    monkeypatch.setenv("DD_DATASETS", str(folder))
    monkeypatch.delenv("DD_DOWNLOAD", raising=False)
    return np.concatenate(all_rows), all_labels


def test_digits_are_the_1797_images_of_scikit_learn() -> None:
    digits = load("digits")
    assert (digits.images.shape, digits.images.dtype) == ((1797, 8, 8, 1), np.uint8)
    assert (digits.images.min(), digits.images.max()) == (0, 16)
    assert (digits.labels.dtype, set(digits.labels.tolist())) == (np.int64, set(range(10)))
    theirs = load_digits()
    np.testing.assert_array_equal(digits.images[..., 0], theirs.images)
    np.testing.assert_array_equal(digits.labels, theirs.target)
    assert digits.num_official_train == DATASETS["digits"].num_train == 1797
    # Counts per class of the UCI test set, as its description gives them.
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_has_official_train_then_test_images_upright_and_in_colour(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, labels = make_cifar(name, tmp_path, monkeypatch)
    require(name)
    dataset = load(name)
    assert dataset.images.shape == (len(rows), *DATASETS[name].image_shape)
    assert (dataset.images.dtype, dataset.labels.dtype) == (np.uint8, np.int64)
    assert dataset.num_official_train == len(rows) - ROWS
    assert dataset.labels.tolist() == labels
    for image, row in zip(dataset.images, rows, strict=True):
        for channel in range(3):
            np.testing.assert_array_equal(image[:, :, channel], row[1024 * channel :][:1024].reshape(32, 32))
    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    theirs = np.concatenate([source(tmp_path, train=train).data for train in (True, False)])
    np.testing.assert_array_equal(dataset.images, theirs)


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_the_sums_of_the_official_files_are_those_that_torchvision_knows(source: type[CIFAR10]) -> None:
    name = source.__name__.lower()
    assert DATASETS[name].files == {file: md5 for file, md5 in [*source.train_list, *source.test_list]}


@pytest.mark.parametrize("check", [require, load])
@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_absent_cifar_is_one_sentence_with_what_where_and_how(
    check: object, name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DD_DATASETS", str(tmp_path))
    monkeypatch.delenv("DD_DOWNLOAD", raising=False)
    with pytest.raises(DataMissingError) as caught:
        check(name)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    for part in (name, folder, str(tmp_path), "DD_DATASETS", "DD_DOWNLOAD=1"):
        assert part in message


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("harm", ["altered", "deleted"])
def test_cifar_files_that_are_not_the_official_ones_are_refused_unopened(
    name: str, harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cifar(name, tmp_path, monkeypatch)
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    victim = folder / LAYOUT[name][1]
    if harm == "altered":
        victim.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    else:
        victim.unlink()
    with pytest.raises(DataMissingError, match=f"{name} in .* incomplete or altered"):
        load(name)
    assert not (tmp_path / "sprung").exists()


@dataclass
class Trap:
    """Unpickling it makes a file."""

    path: Path

    def __reduce__(self) -> tuple[object, tuple[Path]]:  # noqa: D105
        return Path.touch, (self.path,)


def test_the_fingerprint_changes_with_every_pixel_and_label() -> None:
    images, labels = np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int64)
    same = Dataset("digits", images.copy(), labels.copy(), 2, 10)
    other_image, other_label = images.copy(), labels.copy()
    other_image[1, 7, 7, 0] = 1
    other_label[1] = 1
    base = Dataset("digits", images, labels, 2, 10).sha256
    assert same.sha256 == base
    assert Dataset("digits", other_image, labels, 2, 10).sha256 != base
    assert Dataset("digits", images, other_label, 2, 10).sha256 != base


def test_datasets_lie_below_the_data_root_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = make_cifar("cifar10", tmp_path / "datasets", monkeypatch)
    monkeypatch.delenv("DD_DATASETS")
    monkeypatch.setenv("DD_ROOT", str(tmp_path))
    assert len(load("cifar10").images) == len(rows)


def test_datasets_on_an_object_store_are_copied_to_this_machine_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, labels = make_cifar("cifar100", tmp_path / "own", monkeypatch)
    source = tmp_path / "own" / CIFAR100.base_folder
    there = UPath("memory://bucket/lab/datasets")
    (there / CIFAR100.base_folder).mkdir(parents=True)
    for path in source.iterdir():
        (there / CIFAR100.base_folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.delenv("DD_DATASETS")
    monkeypatch.setenv("DD_ROOT", "memory://bucket/lab")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    require("cifar100")
    assert load("cifar100").labels.tolist() == labels
    copies = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    load.cache_clear()
    assert len(load("cifar100").images) == len(rows)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == copies
    with pytest.raises(DataMissingError, match="looked for the folder cifar-10-batches-py in memory://bucket/lab/data"):
        require("cifar10")
