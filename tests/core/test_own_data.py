"""Images of a user's own: from a function, an npz file or class folders, as docs/data.md says."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import PATIENCE, REPOSITORY

from dd_core.data.datasets import Dataset, fingerprint, load, require
from dd_core.data.own import examination
from dd_core.data.own.arrays import checked_images, checked_labels
from dd_core.data.trials import trial_data
from dd_core.errors import DataMissingError, StudyError
from dd_core.exchange.runs import Run
from dd_core.exchange.settings import agreed_data
from dd_core.exchange.sources import Source
from dd_core.figures.drawing.pixels import data_uri
from dd_core.forecast.speed import speed_key
from dd_core.results.rows import compute_rows
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study.datasets import DATASETS
from dd_core.study.files import Catalogue, read_studies
from dd_core.study.own_data import OwnDataset
from dd_core.study.recipe import recipe_of
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.training.train import train_arm

pytestmark = pytest.mark.usefixtures("forget_datasets")

STUDY = """\
description: images of my own
data: {{dataset: {dataset}}}
variants: {{plain: {{architecture: preact_resnet10, batch_size: 4, optimizer: {{name: adam, learning_rate: 0.002}}}}}}
widths: [1]
trials: 2
epochs: 2
checkpoints: [0, 2]
"""
BESIDE = STUDY.format(dataset="digits").replace("digits}", "digits, num_train: 20}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of studies, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    examination._known.clear()
    folder = tmp_path / "my_studies"
    folder.mkdir()
    return folder


def written(folder: Path, dataset: str) -> Catalogue:
    """The studies of a folder after the study ``mine`` was written, with another beside it."""
    (folder / "mine.yaml").write_text(STUDY.format(dataset=dataset))
    (folder / "other.yaml").write_text(BESIDE)
    return read_studies([folder])


def mine(folder: Path, dataset: str) -> Study:
    return written(folder, dataset).get("mine")


def images_of(num: int, *shape: int, seed: int = 0) -> np.ndarray:
    images = np.random.default_rng(seed).integers(0, 256, (num, *shape), dtype=np.uint8)
    images.reshape(-1)[0] = 255
    return images


def labels_of(num: int, num_classes: int = 3) -> np.ndarray:
    return np.arange(num) % num_classes


def save_npz(path: Path, *shape: int, num: int = 30, num_test: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    images, labels = images_of(num + num_test, *shape, seed=seed), labels_of(num + num_test)
    arrays = {"images": images[:num], "labels": labels[:num]}
    if num_test:
        arrays |= {"test_images": images[num:], "test_labels": labels[num:]}
    np.savez_compressed(path, **arrays)
    return images, labels


def save_pictures(folder: Path, names: str, shape: tuple[int, ...], suffix: str = "png", num: int = 4) -> np.ndarray:
    """``num`` images in a folder for each name, in the order in which they are read."""
    images = images_of(len(names.split()) * num, *shape)
    for index, name in enumerate(sorted(names.split())):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(images[index * num :][:num]):
            Image.fromarray(image).save(folder / name / f"{number}.{suffix}")
    return images


def test_an_npz_file_is_found_beside_the_study_file(folder: Path) -> None:
    images, labels = save_npz(folder / "cells.npz", 12, 10, 3, num_test=6)
    study = mine(folder, "{npz: cells.npz}")
    record = study.data.record
    assert (record.image_shape, record.num_classes, record.num_train, record.num_test) == ((12, 10, 3), 3, 30, 6)
    assert (study.num_train_images, study.num_test_images, study.data.title) == (30, 6, "cells")
    dataset = load(study.data.dataset)
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert fingerprint(study.data.dataset) == dataset.sha256 == Dataset("any", images, labels, 30, 3).sha256
    assert trial_data(study, "plain", 0).test_ids.tolist() == list(range(30, 36))


def test_class_folders_are_read_in_the_order_of_their_names(folder: Path) -> None:
    images = save_pictures(folder / "leaves", "oak elm ash", (9, 8, 3))
    (folder / "leaves" / "oak" / ".DS_Store").write_text("left by a system")
    study = mine(folder, "{folder: leaves}, num_train: 10")
    dataset = load(study.data.dataset)
    np.testing.assert_array_equal(dataset.images, images)
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert study.data.record.class_names == ("ash", "elm", "oak")
    assert (study.num_train_images, study.num_test_images) == (10, 2)


def test_folders_may_be_divided_and_resized_and_grey(folder: Path) -> None:
    save_pictures(folder / "leaves" / "train", "oak elm", (20, 16))
    save_pictures(folder / "leaves" / "test", "oak", (16, 16), num=2)
    study = mine(folder, "{folder: leaves, resize: [12, 10]}")
    dataset = load(study.data.dataset)
    assert (dataset.images.shape, dataset.num_official_train) == ((10, 12, 10, 1), 8)
    assert dataset.labels.tolist() == [0] * 4 + [1] * 6
    with Image.open(folder / "leaves" / "test" / "oak" / "1.png") as image:
        theirs = np.asarray(image.resize((10, 12), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(dataset.images[9, :, :, 0], theirs)


def test_jpeg_files_are_what_pillow_says(folder: Path) -> None:
    save_pictures(folder / "leaves", "oak elm", (16, 16, 3), "jpg")
    dataset = load(mine(folder, "{folder: leaves, resize: 16}").data.dataset)
    with Image.open(folder / "leaves" / "elm" / "2.jpg") as image:
        np.testing.assert_array_equal(dataset.images[2], np.asarray(image.convert("RGB")))


MODULE = """\
import numpy as np
import torch
print("what a module prints harms nobody")

def images():
    return torch.arange(20 * 8 * 8).reshape(20, 8, 8) % 17, torch.arange(20) % 2

def four():
    images, labels = images_of(20)
    return images, labels, *images_of(4)

def images_of(num):
    return np.zeros((num, 9, 9, 3), np.uint8), np.arange(num) % 2

def raises():
    images_of("ten")

def leaves():
    raise SystemExit(3)

def dies():
    import os
    os.abort()

def changes():
    return np.random.default_rng().integers(0, 256, (20, 8, 8)), np.arange(20) % 2

def a_list():
    return [1, 2, 3]

number = 3
"""


@pytest.fixture
def module(folder: Path) -> None:
    (folder / "my_images.py").write_text(MODULE)


@pytest.mark.usefixtures("module")
def test_a_function_beside_the_study_file_is_called_in_a_process_of_its_own(folder: Path) -> None:
    study = mine(folder, '"my_images:images"')
    assert "my_images" not in sys.modules
    assert (study.data.record.image_shape, study.data.record.highest) == ((8, 8, 1), 16)
    sys.modules.pop("my_images", None)
    dataset = load(study.data.dataset)
    np.testing.assert_array_equal(dataset.images.reshape(-1), np.arange(20 * 64) % 17)
    four = mine(folder, '"my_images:four"')
    assert (four.num_train_images, four.num_test_images) == (20, 4)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "sentence"),
    {
        "my_images:raises": r"my_images:raises failed \(TypeError: .*, my_images.py line \d+\)",
        "my_images:leaves": "my_images:leaves ended its process with exit code 3",
        "my_images:dies": "my_images:dies ended its process with exit code -6",
        "my_images:a_list": "must return images and labels, .* and returned 3 values",
        "my_images:number": "there is no function number in my_images",
        "my_pictures:all": "there is no module my_pictures in .*my_studies or on the PYTHONPATH",
        "my images:all": "is not of the form module:function",
    }.items(),
)
def test_a_function_that_fails_breaks_its_own_study_alone(folder: Path, name: str, sentence: str) -> None:
    found = written(folder, f'"{name}"')
    assert set(found.studies) == {"other"}
    (reason,) = found.errors.values()
    assert re.search(rf"mine\.yaml: data\.dataset: .*{sentence}", reason), reason
    assert "\n" not in reason


@pytest.mark.usefixtures("module")
def test_images_that_are_others_each_time_are_refused(folder: Path) -> None:
    study = mine(folder, '"my_images:changes"')
    with pytest.raises(DataMissingError, match="has other images or labels than when the study file was read"):
        load(study.data.dataset)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"labels": None}, "has no array labels; it has images"),
    "objects": ({"images": np.array([{}] * 30, dtype=object)}, "holds Python objects"),
    "a channel too many": ({"images": images_of(30, 8, 8, 4)}, "images have 4 channels"),
    "channels first": ({"images": images_of(30, 3, 8, 8)}, r"images\.transpose\(0, 2, 3, 1\) puts the channels last"),
    "flat": ({"images": images_of(30, 64)}, r"images have the shape \(30, 64\)"),
    "tiny": ({"images": images_of(30, 7, 8)}, "images are 8 pixels wide and 7 high; from 8 to 4096"),
    "fractions": ({"images": np.linspace(0, 1, 30 * 64).reshape(30, 8, 8)}, "fractions that are no multiples of 1/255"),
    "half": ({"images": np.full((30, 8, 8), 127.5)}, "fractions that are no multiples of 1/255"),
    "negative": ({"images": -np.ones((30, 8, 8))}, "values from -1 to 0 instead of 0 to 255"),
    "large": ({"images": np.full((30, 8, 8), 256)}, "values from 0 to 256"),
    "not finite": ({"images": np.full((30, 8, 8), np.nan)}, "not finite"),
    "text": ({"images": np.full((30, 8, 8), "a")}, "images are of type <U1 instead of numbers"),
    "few labels": ({"labels": labels_of(29)}, r"labels have the shape \(29,\); for 30 images it must be \(30,\)"),
    "float labels": ({"labels": labels_of(30) / 1}, "labels are of type float64 instead of whole numbers"),
    "negative labels": ({"labels": labels_of(30) - 1}, "labels hold -1"),
    "a gap": ({"labels": labels_of(30, 2) * 2}, "labels go up to 2, but none is 1"),
    "from 1": ({"labels": labels_of(30) + 1}, "labels go up to 3, but none is 0"),
    "one class": ({"labels": labels_of(30, 1)}, "fewer than 2 classes"),
    "a single image": ({"labels": np.array([2, *labels_of(29, 2)])}, "class 2 has a single image"),
    "no images": ({"images": images_of(30, 8, 8)[:0], "labels": labels_of(0)}, "fewer than 2 classes"),
    "test images alone": ({"test_images": images_of(3, 8, 8)}, "belong together"),
    "other test images": (
        {"test_images": images_of(3, 9, 8), "test_labels": labels_of(3)},
        r"test_images have the shape \(9, 8, 1\) and images \(8, 8, 1\)",
    ),
    "a new class": ({"test_images": images_of(3, 8, 8), "test_labels": labels_of(3) + 1}, "test_labels hold 3"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_used_is_one_sentence(folder: Path, case: str) -> None:
    changes, sentence = MISTAKES[case]
    arrays = {"images": images_of(30, 8, 8), "labels": labels_of(30), **changes}
    np.savez(folder / "cells.npz", **{name: array for name, array in arrays.items() if array is not None})
    found = written(folder, "{npz: cells.npz}")
    assert set(found.studies) == {"other"}
    (reason,) = found.errors.values()
    assert re.search(rf"mine\.yaml: data\.dataset: .*{sentence}", reason), reason
    assert "\n" not in reason


def _spoiled(folder: Path) -> None:
    (folder / "leaves" / "oak" / "1.png").write_bytes((folder / "leaves" / "oak" / "1.png").read_bytes()[:60])


def _no_picture(folder: Path) -> None:
    (folder / "leaves" / "oak" / "list.txt").write_text("oak")


def _other_size(folder: Path) -> None:
    Image.fromarray(images_of(1, 9, 8, 3)[0]).save(folder / "leaves" / "oak" / "1.png")


def _stray(folder: Path) -> None:
    (folder / "leaves" / "read_me.txt").write_text("all oaks")


def _empty(folder: Path) -> None:
    (folder / "leaves" / "yew").mkdir()


def _deep(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "leaves" / "oak" / "1.png")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (_spoiled, r"1\.png cannot be read as an image"),
        (_no_picture, r"list\.txt cannot be read as an image \(it is neither PNG nor JPEG\)"),
        (_other_size, r"1\.png is 8 pixels wide and 9 high, where 8 and 8 are expected; .* resize: \[height, width\]"),
        (_stray, r"read_me\.txt lies outside of the folders of classes"),
        (_empty, "yew has no images"),
        (_deep, r"1\.png has more than 8 bits a channel"),
    ],
)
def test_folders_that_cannot_be_used_are_one_sentence(
    folder: Path, harm: Callable[[Path], None], sentence: str
) -> None:
    save_pictures(folder / "leaves", "elm oak", (8, 8, 3))
    harm(folder)
    found = written(folder, "{folder: leaves}")
    assert set(found.studies) == {"other"}
    assert re.search(rf"mine\.yaml: data\.dataset: .*{sentence}", *map(str, found.errors.values())), found.errors


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    {
        "{npz: nowhere.npz}": r"nowhere\.npz is not there",
        "{folder: nowhere}": "nowhere is not there",
        "{npz: mine.yaml}": r"mine\.yaml cannot be read as an npz file",
        "{npz: a, folder: b}": r"is the name of a data set, module:function, \{npz: path\} or \{folder: path\}",
        "{zip: a}": "there is no key zip",
        "{npz: 3}": "npz: is the path of a file",
        "{npz: a, resize: 8}": r"resize: is for \{folder: path\}",
        "{folder: ., resize: [8]}": r"resize: .* \[height, width\]",
        "[digits]": "is the name of a data set",
        "letters": "Input should be 'digits' or 'cifar10'",
        "a/b": "is the name of a data set",
    }.items(),
)
def test_other_mistakes_name_the_key(folder: Path, dataset: str, sentence: str) -> None:
    found = written(folder, dataset)
    assert set(found.studies) == {"other"}
    assert re.search(rf"mine\.yaml: data\.dataset: .*{sentence}", *map(str, found.errors.values())), found.errors


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_pixels_are_taken_exactly(dtype: type) -> None:
    raw = np.arange(256, dtype=np.uint8).repeat(64).reshape(256, 8, 8)
    for same in (raw, raw.astype(np.int64), raw.astype(dtype), (raw / 255).astype(dtype)):
        np.testing.assert_array_equal(checked_images(same)[..., 0], raw)
        np.testing.assert_array_equal(checked_images(torch.from_numpy(same))[..., 0], raw)
    np.testing.assert_array_equal(checked_images(raw > 100)[..., 0], 255 * (raw > 100))
    assert checked_labels(torch.arange(3, dtype=torch.uint8), 3).tolist() == [0, 1, 2]


def test_the_recipe_follows_what_the_images_are_and_not_where(folder: Path) -> None:
    arm = Arm("plain", 1)
    save_npz(folder / "cells.npz", 8, 8)
    first = mine(folder, "{npz: cells.npz}")
    (folder / "moved").mkdir()
    (folder / "cells.npz").rename(folder / "moved" / "c.npz")
    moved = mine(folder, f"{{npz: {folder}/moved/c.npz}}")
    assert moved.recipe(arm) == first.recipe(arm) and moved.recipe_hash(arm) == first.recipe_hash(arm)
    save_npz(folder / "moved" / "c.npz", 8, 8, seed=1)
    changed = mine(folder, "{npz: moved/c.npz}")
    assert changed.recipe_hash(arm) != first.recipe_hash(arm)
    with pytest.raises(DataMissingError, match="has other images or labels"):
        load(moved.data.dataset)
    with pytest.raises(DataMissingError, match="is not there; every machine that computes must see it"):
        require(first.data.dataset)
    assert speed_key(first.recipe(arm)) == speed_key(changed.recipe(arm))
    other = {path: first.recipe(arm)["data"] for path in ("npz", str(folder))}
    assert not any(path in str(content) for path, content in other.items())


def test_files_are_looked_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[dict[str, Any]] = []
    usual = examination._look_at
    monkeypatch.setattr(examination, "_look_at", lambda source: looked.append(source) or usual(source))
    save_npz(folder / "cells.npz", 8, 8)
    first = mine(folder, "{npz: cells.npz}")
    assert mine(folder, "{npz: cells.npz}") == first
    examination._known.clear()  # as in another process
    assert mine(folder, "{npz: cells.npz}") == first
    assert len(looked) == 1
    os.utime(folder / "cells.npz", ns=(0, 0))
    assert mine(folder, "{npz: cells.npz}") == first
    assert len(looked) == 2
    for path in (folder.parent / "cache").rglob("*.json"):
        path.write_text('{"fou')  # a disk that was full
    examination._known.clear()
    assert mine(folder, "{npz: cells.npz}") == first


def test_a_study_needs_no_files_any_more_once_it_is_read(folder: Path) -> None:
    save_npz(folder / "cells.npz", 8, 8)
    study = mine(folder, "{npz: cells.npz}")
    (folder / "cells.npz").unlink()
    again = Study.model_validate_json(study.model_dump_json())  # as in a job file
    assert again == study
    assert isinstance(again.data.dataset, OwnDataset) and Path(str(again.data.dataset.npz)).is_absolute()


def test_metrics_of_own_images_can_be_imported_without_the_images(folder: Path) -> None:
    save_npz(folder / "cells.npz", 8, 8)
    study = mine(folder, "{npz: cells.npz}")
    exported = json.loads(json.dumps(recipe_of(study.data)))
    source = Source(folder / "metrics.csv", "plain", 1, 0, {"data": exported})
    data = agreed_data(None, [Run([source])], {}, "mine")
    text = STUDY.format(dataset=json.dumps(data.model_dump(mode="json")["dataset"])) + "imported: true\n"
    (folder / "imported.yaml").write_text(text)
    imported = read_studies([folder]).get("imported")
    assert imported.data.record.image_shape == (8, 8, 1)
    assert json.loads(json.dumps(recipe_of(imported.data))) == exported
    with pytest.raises(DataMissingError, match="the images themselves are not known"):
        load(imported.data.dataset)
    (folder / "imported.yaml").write_text(text.replace('{"found"', '{npz: cells.npz, "found"'))
    with pytest.raises(StudyError, match=r"data\.dataset: found: .* not for study files"):
        read_studies([folder]).get("imported")


def test_recipes_of_named_data_sets_are_what_they_were(make_study: Any) -> None:
    study = make_study()
    assert study.recipe(Arm("plain", 1))["data"] == {"dataset": "digits", "num_train": 100}
    assert study.recipe_hash(Arm("plain", 1)) == "9ca2bedea2977b0d"


@pytest.mark.parametrize("architecture", ["preact_resnet10", "preact_resnet18", "cnn5"])
@pytest.mark.parametrize("shape", [(28, 28), (64, 64, 3), (9, 20, 3)])
def test_images_of_any_size_are_trained_on_curved_and_drawn(
    folder: Path, store: Store, make_study: Any, architecture: str, shape: tuple[int, ...]
) -> None:
    save_npz(folder / "cells.npz", *shape, num=24, num_test=6)
    study = make_study(
        {"architecture": architecture, "batch_size": 12, "augmentation": {"shift_x": 3, "shift_y": 2, "flip": True}},
        data={"dataset": {"npz": str(folder / "cells.npz")}},
        widths=(1,),
        epochs=1,
        checkpoints=(0, 1),
    )
    arm = Arm("plain", 1)
    train_arm(study, arm, store, until=1)
    checkpoint = Checkpoint(arm, 1)
    weights, manifest = load_checkpoint(store, study, checkpoint)
    assert manifest.data_sha256 == load(study.data.dataset).sha256
    data = [trial_data(study, "plain", trial) for trial in range(2)]
    families = {"hessian": {"estimator": "exact", "precision": "float64"}}
    columns, _ = compute_rows(study, checkpoint, weights, data, (0, 6), families, torch.device("cpu"), range(2))
    assert len(columns["trace"]) == 6 and np.isfinite(columns["trace"]).all()
    image = load(study.data.dataset).images[0]
    assert data_uri(image, study.data.record, 16).startswith("data:image/png;base64,")


def blocks(kind: str) -> list[str]:
    text = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_example_of_the_page_runs_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "my_studies").mkdir()
    (tmp_path / "my_studies" / "my_data.py").write_text(blocks("python")[0])
    (tmp_path / "my_studies" / "three_or_eight.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "my_studies" / "broken.yaml").write_text(blocks("yaml")[0].replace("digits_3", "letters_3"))
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("DD_", "DAGSTER_"))}
    done = subprocess.run(
        ["bash", "-ec", blocks("bash")[0]],
        cwd=tmp_path,
        env={
            **inherited,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "HOME": str(tmp_path),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=5 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "three_or_eight, plain, epoch 4:" in done.stdout
    assert "broken.yaml: data.dataset: my_data:letters_3_and_8: there is no function" in done.stdout
    gallery = tmp_path / "data" / "figures" / "most_curved_images" / "three_or_eight.html"
    assert gallery.is_file() and "digits_3_and_8, 200 training images" in gallery.read_text(encoding="utf-8")


def test_every_file_the_page_names_is_a_record_and_every_record_is_on_the_page() -> None:
    page = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    for record in DATASETS.values():
        assert f"`{record.name}`" in page and (not record.folder or f"`{record.folder}/`" in page)
        assert f"{record.num_train:,}" in page and record.citation and record.licence
