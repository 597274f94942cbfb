"""A checkpoint of an arm from those of its parts: a manifest that names their weights, and rows as of one training."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dd_core.store.checkpoints import check_checkpoint, save_checkpoint
from dd_core.store.files import below, remove
from dd_core.store.parts import Part
from dd_core.store.store import Store
from dd_core.study.former_names import as_now
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import read_parquet, write_parquet
from dd_core.training.recorder import EVAL_METRICS, METRIC_TABLES
from dd_core.training.tidying import remove_foreign_files

if TYPE_CHECKING:
    import pyarrow as pa


def assemble(store: Store, study: Study, checkpoint: Checkpoint, parts: list[Part]) -> None:
    """Write the metrics since the checkpoint before, and the manifest. Hold the arm's lock.

    Args:
        store: where to.
        study: the whole.
        checkpoint: which arm and epoch.
        parts: all of them, in the order of the trials.

    Raises:
        StaleError, FileNotFoundError: a part does not have it, or is being trained anew.
    """
    arm = checkpoint.arm
    manifests = [check_checkpoint(part.store, part.study, checkpoint) for part in parts]
    after = _newest_epoch_before(store, study, checkpoint)
    remove_foreign_files(store, study, arm, "" if after is None else f"{after:04d}")
    written: dict[str, tuple[Path, int]] = {}
    headline = dict.fromkeys(as_now(dict.fromkeys(EVAL_METRICS)), math.nan)
    for name in METRIC_TABLES:
        path = store.table_folder(name, study.name, arm.key) / f"{checkpoint.epoch:04d}.parquet"
        table = rows_of_parts(name, study, checkpoint, parts, after)
        if table is None:
            path.unlink(missing_ok=True)
            continue
        write_parquet(path, table)
        written[name] = (path, table.num_rows)
        if name == "training_evals":
            headline = _headline(table, checkpoint.epoch)
    each = list(zip(parts, manifests, strict=True))
    weights = {f"weights.{part.store.name}": store.root / own.files["weights"].path for part, own in each}
    ended = {part.study.first_trial + trial: ending for part, own in each for trial, ending in own.ended.items()}
    devices = ", ".join(sorted({own.device for own in manifests}))
    save_checkpoint(store, study, checkpoint, weights, written, headline, devices, ended)


def remove_what_parts_need_no_more(store: Store, study: Study, arm: Arm, parts: list[Part], newest: int) -> None:
    """Remove files of parts up to an epoch, but for weights that the arm's manifests name. Hold the arm's lock."""
    found = {path for part in parts for path in below(part.store.folder, "[0-9]*.*") if int(path.stem) <= newest}
    paths = sorted(store.arm_folder(study.name, arm.key).glob("[0-9]*.json"))
    manifests = [manifest for manifest in store.read_manifests(paths) if manifest is not None]
    named = {store.root / entry.path for manifest in manifests for entry in manifest.files.values()}
    own = {path for path in found if path.suffix == ".json"}
    remove(*own)  # first, as they vouch for the others
    remove(*(found - own - named))


def _newest_epoch_before(store: Store, study: Study, checkpoint: Checkpoint) -> int | None:
    """The last epoch before a checkpoint up to which the arm's tables are written, whether the study still names it."""
    recipe = study.recipe_hash(checkpoint.arm)
    paths = sorted(store.arm_folder(study.name, checkpoint.arm.key).glob("[0-9]*.json"))
    before = [path for path in paths if int(path.stem) < checkpoint.epoch]
    manifests = zip(before, store.read_manifests(before), strict=True)
    epochs = [int(path.stem) for path, manifest in manifests if manifest is not None and manifest.recipe == recipe]
    return max(epochs, default=None)


def rows_of_parts(
    name: str, study: Study, checkpoint: Checkpoint, parts: list[Part], after: int | None
) -> "pa.Table | None":
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
    for name in as_now(dict.fromkeys(EVAL_METRICS)):
        values = evals[name].to_numpy()[there]
        values = values[~np.isnan(values)]
        headline[name] = float(values.mean()) if len(values) else math.nan
    return headline
