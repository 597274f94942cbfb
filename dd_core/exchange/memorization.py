"""Published estimates of memorisation (Feldman & Zhang 2020) as rows of ``memorization_truth``.

Their ``.npz`` has the fields ``tr_labels`` and ``tr_mem``, in the order of TensorFlow's data set; an index map says
which image of ours each is. Labels prove it.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dd_core.data.datasets import load
from dd_core.errors import UserError
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.files import to_arrow, write_result

# Before the name of the file that rows came from.
IMPORTED = "import-"
# The source of what a study measures itself.
MEASURED = "subsets"
# Labels of CIFAR agree to the last; other orders agree by chance alone.
_MOST_WRONG = 0.0
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
    if path.stem == MEASURED:
        raise UserError(f"{path}: {MEASURED} is what a study's own measurement is called; rename the file")
    labels, values = _read(path, "tr_labels"), _read(path, "tr_mem").astype(float)
    ours = load(study.data.dataset).labels[: load(study.data.dataset).num_official_train]
    if labels.ndim != 1 or values.shape != labels.shape:
        raise UserError(f"{path}: tr_labels {labels.shape} and tr_mem {values.shape} are not one value for each image")
    places = np.arange(len(labels)) if index_map is None else _map(index_map, len(labels), len(ours))
    if len(labels) > len(ours):
        raise UserError(f"{path} has {len(labels)} images, {study.data.title} has {len(ours)} to train on")
    share = float((ours[places] != labels).mean()) if len(labels) else 1.0
    if share > _MOST_WRONG:
        hint = "" if index_map else "; it may be in TensorFlow's order: name an index map (--index-map FILE.npy)"
        raise UserError(f"{path}: {share:.1%} of its labels are not those of {study.data.title}{hint}")
    order = np.argsort(places)
    source = path.stem
    for arm in study.arms.values():
        columns = {
            "variant": arm.variant,
            "k": arm.k,
            "recipe": study.recipe_hash(arm),
            "image_id": places[order],
            "true_label": labels[order],
            "given_label": labels[order],
            "is_noisy": False,
            "source": source,
            "memorization": values[order],
            **dict.fromkeys(("num_in", "num_out", "correct_in", "correct_out", "standard_error")),
        }
        target = store.table_folder("memorization_truth", study.name, arm.key) / f"{IMPORTED}{source}.parquet"
        write_result(store, target, to_arrow("memorization_truth", columns, len(places)))
    return ImportedTruth(source, len(places), tuple(study.arms))


def _read(path: Path, field: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as content:
            if field not in content:
                raise UserError(f"{path} has no field {field}; it has {', '.join(content) or 'none'}")
            values: np.ndarray = content[field]
    except (OSError, ValueError, EOFError, TypeError, AttributeError, RuntimeError, *_DAMAGED) as error:
        raise UserError(f"{path} cannot be read as an .npz file ({type(error).__name__})") from error
    if values.dtype.kind not in "iuf":
        raise UserError(f"{path}: {field} holds no numbers but {values.dtype}")
    return values


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
