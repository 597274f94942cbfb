"""Published estimates of memorisation (Feldman & Zhang 2020) as rows of ``memorization_truth``.

Their ``.npz`` has the fields ``tr_labels`` and ``tr_mem``, in the order of TensorFlow's data set; an index map says
which image of ours each is. Labels prove it.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.data.datasets import load
from dd_core.errors import UserError
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.tables.files import read_parquet, to_arrow, write_result

if TYPE_CHECKING:
    import pyarrow as pa

# Before the name of the file that rows came from.
IMPORTED = "import-"
# The source of what a study measures itself.
MEASURED = "subsets"
# Raised by members of an archive that was cut off or changed.
_DAMAGED = (zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ImportedTruth:
    """What was imported: images, and the arms that have them."""

    source: str
    num_images: int
    arms: tuple[str, ...]


def import_memorization(store: Store, study: Study, path: Path, index_map: Path | None = None) -> ImportedTruth:
    """Write published estimates for every arm of a study.

    Args:
        store: where the table is.
        study: whose images they are of.
        path: the ``.npz``.
        index_map: ``.npy``, int (N,): the row of our data set of each of theirs; None: the same order.

    Raises:
        UserError: a file is none, lacks a field, or is of other images, as their labels tell; nothing is written.
        DataMissingError: the data set is absent.
    """
    import pyarrow as pa

    if path.stem == MEASURED:
        raise UserError(f"{path}: {MEASURED} is what a study's own measurement is called; rename the file")
    labels, values = _read(path, "tr_labels"), _differences(path, _read(path, "tr_mem"))
    ours = load(study.data.dataset).labels[: load(study.data.dataset).num_official_train]
    if labels.ndim != 1 or values.shape != labels.shape:
        raise UserError(f"{path}: tr_labels {labels.shape} and tr_mem {values.shape} are not one value for each image")
    places = np.arange(len(labels)) if index_map is None else _map(index_map, len(labels), len(ours))
    if len(labels) > len(ours):
        raise UserError(f"{path} has {len(labels)} images, {study.data.title} has {len(ours)} to train on")
    num_wrong = int((ours[places] != labels).sum())
    # Labels of CIFAR agree to the last; other orders agree by chance alone.
    if num_wrong or not len(labels):
        hint = "" if index_map else "; it may be in TensorFlow's order: name an index map (--index-map FILE.npy)"
        of = f"{num_wrong:,} of its {len(labels):,} labels"
        raise UserError(f"{path}: {of} are not those of {study.data.title}{hint}")
    order, source = np.argsort(places), path.stem
    kept = pa.table({"image_id": places[order], "true_label": labels[order], "memorization": values[order]})
    write_result(store, _folder(store, study) / f"{source}.parquet", kept)
    for arm in study.arms.values():
        _write(store, study, arm, source, kept)
    return ImportedTruth(source, len(places), tuple(study.arms))


def imported_files(store: Store, study: Study, arm: Arm) -> list[Path]:
    """The files of an arm in ``memorization_truth`` that were imported, as those of its present recipe.

    What was imported is kept outside of the tables, too, since all that an arm has there goes with its recipe.
    """
    for path in sorted(_folder(store, study).glob("*.parquet")):
        target = _target(store, study, arm, path.stem)
        manifest = store.read_manifest(store.manifest_path(target))
        is_own = manifest is not None and manifest.content.get("recipe") == study.recipe_hash(arm)
        if manifest is None or not is_own or not store.is_sound(manifest):
            _write(store, study, arm, path.stem, read_parquet(path))
    return sorted(store.table_folder("memorization_truth", study.name, arm.key).glob(f"{IMPORTED}*.parquet"))


def _folder(store: Store, study: Study) -> Path:
    return store.root / "imported" / "memorization_truth" / study.name


def _target(store: Store, study: Study, arm: Arm, source: str) -> Path:
    return store.table_folder("memorization_truth", study.name, arm.key) / f"{IMPORTED}{source}.parquet"


def _write(store: Store, study: Study, arm: Arm, source: str, kept: "pa.Table") -> None:
    """The rows of an arm."""
    # Theirs is the true label; which one ours was given is another matter in every trial.
    has_wrong, recipe = study.variants[arm.variant].label_noise > 0, study.recipe_hash(arm)
    columns = {
        "variant": arm.variant,
        "k": arm.k,
        "recipe": recipe,
        **{name: kept[name].to_numpy() for name in kept.column_names},
        "given_label": None if has_wrong else kept["true_label"].to_numpy(),
        "is_noisy": None if has_wrong else False,
        "source": source,
        **dict.fromkeys(("num_in", "num_out", "correct_in", "correct_out", "standard_error")),
    }
    table = to_arrow("memorization_truth", columns, kept.num_rows)
    write_result(store, _target(store, study, arm, source), table, recipe=recipe)


def _read(path: Path, field: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as content:
            if field not in content:
                raise UserError(f"{path} has no field {field}; it has {', '.join(content) or 'none'}")
            values: np.ndarray = content[field]
    except (OSError, ValueError, EOFError, TypeError, AttributeError, RuntimeError, *_DAMAGED) as error:
        raise UserError(f"{path} cannot be read as an .npz file ({type(error).__name__})") from error
    if values.dtype.kind not in "iuf":
        raise UserError(f"{path}: {field} holds no real numbers but {values.dtype}")
    return values


def _differences(path: Path, values: np.ndarray) -> np.ndarray:
    """Estimates of memorisation, if they are: differences of two shares."""
    if not bool((np.abs(values.astype(float)) <= 1).all()):
        raise UserError(f"{path}: tr_mem is a difference of two shares, a real number from -1 to 1 for each image")
    return values.astype(float)


def _map(path: Path, num: int, most: int) -> np.ndarray:
    try:
        with path.open("rb") as file:
            places = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as an .npy file ({type(error).__name__})") from error
    is_map = places.shape == (num,) and places.dtype.kind in "iu"
    if not is_map or len(np.unique(places)) != num or (num and (places.min() < 0 or places.max() >= most)):
        raise UserError(f"{path}: an index map of {num} images names each of their rows in 0 to {most - 1} once")
    return places.astype(np.int64)
