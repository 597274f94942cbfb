"""MNIST, Fashion-MNIST, SVHN, Tiny ImageNet from small files in their official form, beside torchvision's readers."""

import gzip
import hashlib
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from scipy.io import savemat

from dd_core.data.datasets import load, require
from dd_core.errors import DataMissingError
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.datasets import DATASETS
from dd_core.training.train import train_arm

pytestmark = pytest.mark.usefixtures("forget_datasets")

IDX = ["mnist", "fashion_mnist"]
NEW = [*IDX, "svhn", "tiny_imagenet"]
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _data_sets_lie_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_DATASETS", str(tmp_path))
    monkeypatch.delenv("DD_DOWNLOAD", raising=False)


def use(monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, bytes]) -> None:
    """The files are made, so their sums are."""
    sums = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], files=sums))


def make_idx(name: str, root: Path, monkeypatch: pytest.MonkeyPatch, *, packed: bool) -> None:
    folder = root / DATASETS[name].folder
    folder.mkdir(parents=True)
    files = {}
    for file, num in zip(DATASETS[name].files, (7, 7, 3, 3), strict=True):
        shape = (num, 28, 28) if "images" in file else (num,)
        values = RANDOM.integers(0, 10, shape, dtype=np.uint8)
        files[file] = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + values.tobytes()
        path = folder / (f"{file}.gz" if packed else file)
        path.write_bytes(gzip.compress(files[file]) if packed else files[file])
    use(monkeypatch, name, files)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", IDX)
def test_idx_files_are_read_as_torchvision_reads_them(
    name: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_idx(name, tmp_path, monkeypatch, packed=packed)
    require(name)
    dataset = load(name)
    assert (dataset.images.shape, dataset.images.dtype, dataset.num_official_train) == ((10, 28, 28, 1), np.uint8, 7)
    if packed:
        for path in (tmp_path / DATASETS[name].folder).iterdir():
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    source = getattr(torchvision.datasets, DATASETS[name].torchvision)
    theirs = [source(tmp_path, train=train) for train in (True, False)]
    np.testing.assert_array_equal(dataset.images[..., 0], np.concatenate([part.data.numpy() for part in theirs]))
    np.testing.assert_array_equal(dataset.labels, np.concatenate([part.targets.numpy() for part in theirs]))


def test_svhn_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "svhn"
    folder.mkdir()
    files = {}
    for (file, num), part in zip({"train_32x32.mat": 11, "test_32x32.mat": 5}.items(), ("train", "test"), strict=True):
        labels = (np.arange(num, dtype=np.uint8) % 10 + 1)[:, None]  # as in the files, 10 is the digit 0
        savemat(folder / file, {"X": RANDOM.integers(0, 256, (32, 32, 3, num), dtype=np.uint8), "y": labels})
        files[file] = (folder / file).read_bytes()
        entry = ["", file, hashlib.md5(files[file]).hexdigest()]
        monkeypatch.setitem(torchvision.datasets.SVHN.split_list, part, entry)
    use(monkeypatch, "svhn", files)
    dataset = load("svhn")
    theirs = [torchvision.datasets.SVHN(folder, split=part) for part in ("train", "test")]
    assert (dataset.images.shape, dataset.num_official_train) == ((16, 32, 32, 3), 11)
    images = np.concatenate([part.data for part in theirs]).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, np.concatenate([part.labels for part in theirs]))
    assert dataset.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def make_tiny_imagenet(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of three images, one of them grey as in the archive, and two validation images."""
    folder = root / "tiny-imagenet-200"
    for name in ("n02124075", "n01443537"):
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        (images.parent / f"{name}_boxes.txt").write_text("boxes")
        for number in range(3):
            shape = (64, 64) if number == 1 else (64, 64, 3)
            picture = Image.fromarray(RANDOM.integers(0, 256, shape, dtype=np.uint8))
            picture.save(images / f"{name}_{number}.JPEG")
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for number, name in enumerate(("n02124075", "n01443537")):
        picture = Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        picture.save(folder / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t9\t9\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    monkeypatch.setitem(
        DATASETS, "tiny_imagenet", replace(DATASETS["tiny_imagenet"], num_classes=2, num_train=6, num_test=2)
    )
    return folder


def test_tiny_imagenet_is_read_as_torchvision_reads_class_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_imagenet(tmp_path, monkeypatch)
    dataset = load("tiny_imagenet")
    theirs = torchvision.datasets.ImageFolder(folder / "train", is_valid_file=lambda name: name.endswith(".JPEG"))
    np.testing.assert_array_equal(dataset.images[:6], np.stack([np.asarray(image) for image, _ in theirs]))
    assert dataset.labels.tolist() == [*theirs.targets, 1, 0]
    with Image.open(folder / "val" / "images" / "val_1.JPEG") as image:
        np.testing.assert_array_equal(dataset.images[7], np.asarray(image))


def test_tiny_imagenet_with_a_file_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_imagenet(tmp_path, monkeypatch)
    next((folder / "train" / "n01443537" / "images").iterdir()).unlink()
    with pytest.raises(
        DataMissingError, match=r"2 classes, 5 training and 2 validation images instead of 2 classes, 6"
    ):
        load("tiny_imagenet")
    (folder / "val" / "val_annotations.txt").unlink()
    with pytest.raises(DataMissingError, match="incomplete or altered"):
        load("tiny_imagenet")


@pytest.mark.parametrize("harm", ["altered", "cut", "deleted"])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_that_are_not_the_official_ones_are_refused(
    harm: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_idx("mnist", tmp_path, monkeypatch, packed=packed)
    victim = sorted((tmp_path / "MNIST" / "raw").iterdir())[2]
    content = victim.read_bytes()
    if harm == "deleted":
        victim.unlink()
    else:
        victim.write_bytes(content[:40] if harm == "cut" else content[:-9] + bytes(9))
    with pytest.raises(DataMissingError, match=r"mnist in .* is incomplete or altered \(the MD5 sum of train-images"):
        load("mnist")


@pytest.mark.parametrize("check", [require, load])
@pytest.mark.parametrize("name", NEW)
def test_absent_data_sets_are_one_sentence_that_says_where_they_belong(
    name: str, check: object, tmp_path: Path
) -> None:
    with pytest.raises(DataMissingError) as caught:
        check(name)  # type: ignore[operator]
    message = str(caught.value)
    for part in (name, f"the folder {DATASETS[name].folder} in {tmp_path}", "DD_DATASETS"):
        assert part in message
    assert ("DD_DOWNLOAD=1" in message) == (name != "tiny_imagenet") and "\n" not in message


def test_official_sums_are_those_of_torchvision() -> None:
    theirs = {file: md5 for _, file, md5 in torchvision.datasets.SVHN.split_list.values() if "extra" not in file}
    assert DATASETS["svhn"].files == theirs
    for name in IDX:  # torchvision knows the sums of packed files only, ours are of what is in them
        source = getattr(torchvision.datasets, DATASETS[name].torchvision)
        assert [f"{file}.gz" for file in DATASETS[name].files] == [file for file, _ in source.resources]


@pytest.mark.parametrize("name", [name for name, record in DATASETS.items() if record.torchvision])
def test_torchvision_downloads_to_where_we_look(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, calls = DATASETS[name], []

    class Downloader:
        def __init__(self, root: Path, **options: object) -> None:
            calls.append((root, options))
            raise RuntimeError("there is no network")

    source = getattr(torchvision.datasets, record.torchvision)
    made = source.__new__(source)
    made.root = str(tmp_path / record.download_folder)
    below = getattr(
        made, "raw_folder", made.root if name == "svhn" else str(tmp_path / getattr(source, "base_folder", ""))
    )
    assert Path(below) == tmp_path / record.folder
    monkeypatch.setattr(torchvision.datasets, record.torchvision, Downloader)
    monkeypatch.setenv("DD_DOWNLOAD", "1")
    with pytest.raises(DataMissingError, match=f"{name} could not be downloaded to .*: there is no network"):
        load(name)
    assert calls == [(tmp_path / record.download_folder, {"download": True, **record.download_options[0]})]


def test_a_data_set_is_added_by_one_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_study: Any, store: Store
) -> None:
    """Study, recipe, loading, costs and figures need nothing else."""
    (tmp_path / "letters").mkdir()
    record = replace(
        DATASETS["mnist"], name="letters", title="Letters", num_classes=26, num_train=7, num_test=3, folder="letters"
    )
    monkeypatch.setitem(DATASETS, "letters", record)
    make_idx("letters", tmp_path / "made", monkeypatch, packed=True)
    for path in (tmp_path / "made" / "letters").iterdir():
        path.rename(tmp_path / "letters" / path.name)
    study = make_study({"batch_size": 3}, data={"dataset": "letters"})
    assert (study.num_train_images, study.num_test_images, study.data.title) == (7, 3, "Letters")
    assert study.recipe(next(iter(study.arms.values())))["data"] == {"dataset": "letters", "num_train": None}
    assert load("letters").num_classes == 26
    arm = study.arms["plain.k001"]
    train_arm(study, arm, store, until=4)
    assert set(trained_checkpoints(store, study)) == {c for c in study.iter_checkpoints() if c.arm == arm}
