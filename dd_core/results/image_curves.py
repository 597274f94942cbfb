"""What the tables say of the training images of an arm at every evaluation, as arrays for one trial after the other."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.results.attempts import last_attempts
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.tables.damage import damaged_files
from dd_core.tables.files import read_parquet
from dd_core.tables.kinds import PER_IMAGE_CURVATURE

if TYPE_CHECKING:
    import pyarrow as pa

# What an evaluation may keep of an image, beside whether it is right.
VALUES = ("loss", "margin", "el2n", "gradient_norm")
_CURVATURES = ("trace", "fd_norm")


@dataclass(frozen=True)
class ImageCurves:
    """A trial.

    Attributes:
        trial: number.
        has_diverged: it ended in a loss that is no number.
        image_ids: int64 (images,), trained on, ascending.
        true_labels, given_labels: int64 (images,).
        copy_of: float64 (images,), NaN: its own pixels.
        duplicate: object (images,), exact, near or None.
        epochs: int64 (evaluations,), ascending.
        correct: float32 (evaluations, images), NaN where not evaluated.
        values: by name of ``VALUES`` the like, as far as recorded.
        curvature_epochs: int64 (checkpoints,).
        curvatures: trace and fd_norm (the first step) as far as computed, float64 (checkpoints, images).
        last_correct: by split its images and whether they are right at the arm's last evaluation.
    """

    trial: int
    has_diverged: bool
    image_ids: np.ndarray
    true_labels: np.ndarray
    given_labels: np.ndarray
    copy_of: np.ndarray
    duplicate: np.ndarray
    epochs: np.ndarray
    correct: np.ndarray
    values: dict[str, np.ndarray]
    curvature_epochs: np.ndarray
    curvatures: dict[str, np.ndarray]
    last_correct: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Sources:
    """The unharmed files that the curves of an arm are read from."""

    progress: list[Path]
    curvature: list[Path]
    images: Path
    runs: list[Path]

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return [*self.progress, *self.curvature, self.images, *self.runs]


def sources_of(store: Store, study: Study, arm: Arm, harmed: Collection[Path] = ()) -> Sources:
    """Where the curves of an arm lie: metrics, and current results of curvature."""
    folders = [store.table_folder(name, study.name, arm.key) for name in ("image_progress", "runs")]
    progress, runs = (sorted(path for path in folder.glob("*.parquet") if path not in harmed) for folder in folders)
    curvature = []
    if store.table_folder("per_image_curvature", study.name, arm.key).is_dir():
        trained = {c: weights for c, weights in trained_checkpoints(store, study).items() if c.arm == arm}
        results = PER_IMAGE_CURVATURE.manifests(store, study, trained)
        for checkpoint, weights in trained.items():
            result = results[checkpoint]
            if result is not None and PER_IMAGE_CURVATURE.describes(result, weights) and store.is_sound(result):
                curvature.append(PER_IMAGE_CURVATURE.path(store, study, checkpoint))
    return Sources(progress, curvature, store.table_folder("images", study.name) / f"{arm.variant}.parquet", runs)


def harmed_files(store: Store, study: Study) -> set[Path]:
    """The damaged files of the metrics that curves are read from."""
    return {harm.path for harm in damaged_files(store, ("image_progress", "runs"), study.name)}


def curves_of(study: Study, arm: Arm, sources: Sources) -> Iterator[ImageCurves]:
    """The trials of an arm in its present recipe that have evaluations of images, in the order of their numbers.

    Raises:
        StaleError: a file is damaged after all.
    """
    recipe = study.recipe_hash(arm)
    progress = [progress_rows(path, recipe, study.epochs) for path in sources.progress]
    progress = [rows for rows in progress if len(rows["trial"])]
    if not progress:
        return
    last_epoch = max(int(rows["epoch"].max()) for rows in progress)
    curvature = [_curvature(path, recipe) for path in sources.curvature]
    images = read_parquet(sources.images)
    columns = ("trial", "image_id", "split", "true_label", "given_label", "copy_of", "duplicate")
    about = {name: _values(images[name]) for name in columns if name in images.column_names}
    diverged = _diverged(sources.runs, recipe)
    for trial in sorted({int(trial) for rows in progress for trial in np.unique(rows["trial"])}):
        own = [_of(rows, trial) for rows in progress]
        yield _trial(
            trial, trial in diverged, last_epoch, own, [_of(rows, trial) for rows in curvature], _of(about, trial)
        )


Rows = Mapping[str, np.ndarray]


def progress_rows(path: Path, recipe: str, last_epoch: int, values: Collection[str] = VALUES) -> dict[str, np.ndarray]:
    """Rows of a file of ``image_progress`` of a recipe up to an epoch, as arrays; ``values`` as far as they are there.

    A split is told by its place in ``SPLITS``.
    """
    import pyarrow.compute as pc

    table = read_parquet(path)
    table = table.filter(pc.less_equal(table["epoch"], last_epoch))  # the study may have been longer
    names = ["trial", "epoch", "image_id", "split", "correct", *(n for n in values if n in table.column_names)]
    return _own_recipe(table, names, recipe)


def _curvature(path: Path, recipe: str) -> dict[str, np.ndarray]:
    table = read_parquet(path)
    differences = [n for n in table.column_names if n.startswith("fd_norm_") and not n.endswith("_standard_error")]
    rows = _own_recipe(table, ["trial", "epoch", "image_id", "trace", *differences[:1]], recipe)
    if differences:
        rows["fd_norm"] = rows.pop(differences[0])
    return rows


def _own_recipe(table: "pa.Table", names: list[str], recipe: str) -> dict[str, np.ndarray]:
    """Columns of the rows of a recipe."""
    import pyarrow.compute as pc

    own = table.filter(pc.equal(table["recipe"].cast("string"), recipe))
    found = {}
    for name in names:
        column = own[name].combine_chunks()
        found[name] = np.asarray(column.to_numpy(zero_copy_only=False)) if name != "split" else _splits(column)
    return found


SPLITS = ("train", "validation", "test", "left_out")


def _splits(column: "pa.DictionaryArray") -> np.ndarray:
    """The place of each row's split in ``SPLITS``, int8."""
    names = column.dictionary.to_pylist()
    places = np.array([SPLITS.index(name) for name in names], np.int8)
    return places[column.indices.to_numpy()]


def _values(column: "pa.ChunkedArray") -> np.ndarray:
    """Numbers, or text and None as objects; of a column of nulls Arrow makes no text by itself."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        return np.array(column.to_pylist(), object)
    found: np.ndarray = column.to_numpy()
    return found


def _of(rows: Rows, trial: int) -> dict[str, np.ndarray]:
    """The rows of one trial; files have them one trial after the other."""
    trials = rows["trial"]
    if len(trials) and (np.diff(trials) >= 0).all():
        own: slice | np.ndarray = slice(*np.searchsorted(trials, [trial, trial + 1]).tolist())
    else:
        own = trials == trial
    return {name: values[own] for name, values in rows.items()}


def _diverged(paths: list[Path], recipe: str) -> set[int]:
    """Trials whose last attempt ended in a loss that is no number."""
    return {trial for trial, row in last_attempts(paths, recipe).items() if row["status"] == "diverged"}


def _trial(
    trial: int,
    has_diverged: bool,
    last_epoch: int,
    progress: list[dict[str, np.ndarray]],
    curvature: list[dict[str, np.ndarray]],
    images: Rows,
) -> ImageCurves:
    trained = images["split"] == "train"
    ids = images["image_id"][trained]
    order = np.argsort(ids)
    ids = ids[order]
    about = {name: values[trained][order] for name, values in images.items()}
    nothing = np.full(len(ids), None, object)
    train = [{name: values[rows["split"] == 0] for name, values in rows.items()} for rows in progress]
    epochs = np.unique(np.concatenate([rows["epoch"] for rows in train]))
    epochs = epochs[epochs > 0]
    names = [name for name in VALUES if any(name in rows for rows in train)]
    last = [{name: values[rows["epoch"] == last_epoch] for name, values in rows.items()} for rows in progress]
    checkpoints = np.unique(np.concatenate([np.zeros(0, int), *(rows["epoch"] for rows in curvature)]))
    checkpoints = checkpoints[checkpoints > 0]
    kinds = [name for name in _CURVATURES if any(name in rows for rows in curvature)]
    return ImageCurves(
        trial=trial,
        has_diverged=has_diverged,
        image_ids=ids.astype(np.int64),
        true_labels=about["true_label"].astype(np.int64),
        given_labels=about["given_label"].astype(np.int64),
        copy_of=about.get("copy_of", np.full(len(ids), np.nan)).astype(float),
        duplicate=about.get("duplicate", nothing),
        epochs=epochs.astype(np.int64),
        correct=_curve("correct", train, epochs, ids, np.float32),
        values={name: _curve(name, train, epochs, ids, np.float32) for name in names},
        curvature_epochs=checkpoints.astype(np.int64),
        curvatures={name: _curve(name, curvature, checkpoints, ids, np.float64) for name in kinds},
        last_correct={split: _last(last, place) for place, split in enumerate(SPLITS)},
    )


def _curve(
    name: str, parts: list[dict[str, np.ndarray]], epochs: np.ndarray, ids: np.ndarray, dtype: type[np.floating]
) -> np.ndarray:
    """(epochs, images) of one column; NaN where there is no row."""
    found: np.ndarray = np.full((len(epochs), len(ids)), np.nan, dtype)
    for rows in parts:
        if name in rows:
            is_wanted = rows["epoch"] > 0
            places = np.searchsorted(epochs, rows["epoch"][is_wanted])
            found[places, np.searchsorted(ids, rows["image_id"][is_wanted])] = rows[name][is_wanted]
    return found


def _last(parts: list[dict[str, np.ndarray]], split: int) -> tuple[np.ndarray, np.ndarray]:
    own = [rows["split"] == split for rows in parts]
    ids = np.concatenate([rows["image_id"][mask] for rows, mask in zip(parts, own, strict=True)])
    right = np.concatenate([rows["correct"][mask] for rows, mask in zip(parts, own, strict=True)])
    order = np.argsort(ids)
    return ids[order].astype(np.int64), right[order].astype(float)
