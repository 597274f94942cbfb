"""One checkpoint of an arm from those of its parts: weights, rows as a whole training has them, best checkpoints."""

import contextlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dd_core.errors import StaleError
from dd_core.models.stacking import joined
from dd_core.store.best_checkpoints import best_manifests, save_best
from dd_core.store.checkpoints import read_tensors, save_checkpoint
from dd_core.store.manifests import Manifest
from dd_core.store.parts import Part
from dd_core.store.resume_points import resume_metadata
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import read_parquet, write_parquet
from dd_core.training.recorder import EVAL_METRICS, METRIC_TABLES
from dd_core.training.settling import progress_at

if TYPE_CHECKING:
    import pyarrow as pa


def newest_epoch_before(store: Store, study: Study, checkpoint: Checkpoint) -> int | None:
    """The last epoch before a checkpoint up to which the arm's tables are written, whether the study still names it."""
    recipe = study.recipe_hash(checkpoint.arm)
    paths = sorted(store.arm_folder(study.name, checkpoint.arm.key).glob("[0-9]*.json"))
    before = [path for path in paths if int(path.stem) < checkpoint.epoch]
    manifests = zip(before, store.read_manifests(before), strict=True)
    epochs = [int(path.stem) for path, manifest in manifests if manifest is not None and manifest.recipe == recipe]
    return max(epochs, default=None)


def assemble(
    store: Store,
    study: Study,
    checkpoint: Checkpoint,
    parts: list[Part],
    manifests: list[Manifest],
    after: int | None,
) -> None:
    """Write the metrics since an epoch, the weights, and their manifest. Hold the arm's lock.

    Args:
        store: where to.
        study: the whole.
        checkpoint: which arm and epoch.
        parts: all of them, in the order of the trials.
        manifests: of their checkpoints.
        after: the last epoch whose metrics are there; None: there are none yet.

    Raises:
        StaleError, FileNotFoundError: a file of a part has gone since it was checked.
    """
    written: dict[str, tuple[Path, int]] = {}
    headline = dict.fromkeys(EVAL_METRICS, math.nan)
    for name in METRIC_TABLES:
        path = store.table_folder(name, study.name, checkpoint.arm.key) / f"{checkpoint.epoch:04d}.parquet"
        table = _rows(name, study, checkpoint, parts, after)
        if table is None:
            path.unlink(missing_ok=True)
            continue
        write_parquet(path, table)
        written[name] = (path, table.num_rows)
        if name == "training_evals":
            headline = _headline(table, checkpoint.epoch)
    states = []
    for part in parts:
        tensors, _ = read_tensors(part.store.checkpoint_path(study.name, checkpoint))
        states.append((part.study.trials, {name: joined(tensor) for name, tensor in tensors.items()}))
    ended = {
        part.study.first_trial + trial: ending
        for part, manifest in zip(parts, manifests, strict=True)
        for trial, ending in manifest.ended.items()
    }
    devices = ", ".join(sorted({manifest.device for manifest in manifests}))
    save_checkpoint(store, study, checkpoint, states, written, headline, devices, ended)


def _rows(name: str, study: Study, checkpoint: Checkpoint, parts: list[Part], after: int | None) -> "pa.Table | None":
    """The rows of a table after one epoch up to another: trial by trial, monitors metric by metric; None without any.

    A part may have cut its files at other epochs, if the study named others meanwhile.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    tables = []
    is_in_order = name != "training_monitors"
    for part in parts:
        paths = sorted(part.store.table_folder(name).glob("*.parquet"))
        paths = [path for path in paths if (-1 if after is None else after) < int(path.stem) <= checkpoint.epoch]
        is_in_order = is_in_order and (len(paths) <= 1 or part.study.trials == 1)
        for path in paths:
            table = read_parquet(path)
            if after is not None:
                table = table.filter(pc.greater(table["epoch"], after))
            trials = pc.add(table["trial"], pa.scalar(part.study.first_trial, table["trial"].type))
            tables.append(_with_column(table, "trial", trials))
    # Files of an earlier version have narrower integers.
    whole = pa.concat_tables(tables, promote_options="permissive").unify_dictionaries() if tables else None
    if whole is None or not whole.num_rows:
        return None
    recipes = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(whole.num_rows, np.int32)), pa.array([study.recipe_hash(checkpoint.arm)])
    )
    whole = _with_column(whole, "recipe", recipes).combine_chunks()
    return whole if is_in_order else whole.take(_order(name, whole))


def _with_column(table: "pa.Table", name: str, values: Any) -> "pa.Table":
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), values)


def _order(name: str, table: "pa.Table") -> Any:
    """Where the rows belong; those of one trial, and metric, stay as they are."""
    import pyarrow as pa

    keys = {"trial": table["trial"]}
    if name == "training_monitors":
        keys = {"metric": table["metric"].cast(pa.string()), **keys}
    return pa.compute.sort_indices(pa.table(keys), [(key, "ascending") for key in keys])  # it is stable


def _headline(evals: "pa.Table", epoch: int) -> dict[str, float]:
    """The mean over trials of the evaluation at that epoch, as ``Session.evaluate`` has it."""
    there = evals["epoch"].to_numpy() == epoch
    headline = {}
    for name in EVAL_METRICS:
        values = evals[name].to_numpy()[there]
        values = values[~np.isnan(values)]
        headline[name] = float(values.mean()) if len(values) else math.nan
    return headline


def copy_best(part: Part, store: Store, study: Study, arm: Arm, newest: int) -> list[list[int]]:
    """Copy the best checkpoints that a part keeps to those of the arm. Hold the arm's lock.

    Args:
        part: of the arm.
        store: of the whole.
        study: the whole.
        arm: which arm of it.
        newest: epoch of the last checkpoint that has been put together.

    Returns:
        For each of the part's trials the epochs whose weights the arm should keep.
    """
    there = {(m.trial, m.epoch): m for m in best_manifests(store, study, arm)}
    decided, kept = _kept(part, store, study, Checkpoint(arm, newest))
    for manifest in best_manifests(part.store, part.study, arm):
        trial, epoch, loss = part.study.first_trial + manifest.trial, manifest.epoch, manifest.loss_val_nats
        if epoch > decided:
            kept[manifest.trial].add(epoch)
        elif epoch not in kept[manifest.trial]:
            continue  # it had given way, and a process was killed before it removed it
        with contextlib.suppress(StaleError):  # it has given way to a better one meanwhile
            if (trial, epoch) not in there or there[trial, epoch].loss_val_nats != loss:
                weights, _ = read_tensors(part.store.verify(manifest.files["weights"]))
                save_best(store, study, arm, trial, epoch, loss, weights)
    return [sorted(epochs) for epochs in kept]


def _kept(part: Part, store: Store, study: Study, newest: Checkpoint) -> tuple[int, list[set[int]]]:
    """Up to which epoch it is known which best checkpoints a part keeps, and these, by trial."""
    resume = resume_metadata(part.store, part.study, newest.arm)
    if int(resume.get("epoch", -1)) >= newest.epoch:
        progress = json.loads(resume["progress"])
        return int(resume["epoch"]), [{epoch for _, epoch in trial["kept"]} for trial in progress]
    # Its process was killed after the manifest and before the resume point.
    first = part.study.first_trial - study.first_trial
    stood = progress_at(store, study, newest)[first : first + part.study.trials]
    return newest.epoch, [{epoch for _, epoch in trial.kept} for trial in stood]
