"""Per-image curvature of one trained checkpoint: from its weights to one parquet file with its manifest.

Large checkpoints are divided into shards, ranges of rows that any worker computes on its own. A shard is a file with a
manifest of its own; whoever finishes the last one merges them, after proving by trial and image id that every row is
there once. What a file already holds of the same weights is kept: another estimator adds columns, it does not start
anew.
"""

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dd_core.analysis.auroc import auroc
from dd_core.data.trials import TrialData, trial_data
from dd_core.errors import StaleError, UserError
from dd_core.results.kinds import CURVATURE_VERSION, curvature_manifest, describes
from dd_core.results.rows import Families, compute_rows
from dd_core.store.checkpoints import check_checkpoint, identity, read_weights
from dd_core.store.files import remove
from dd_core.store.provenance import checkpoint_manifest, live_trials, weights_sha256
from dd_core.store.store import Store
from dd_core.study.curvature import covers
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.files import TABLES, read_parquet, to_arrow, write_parquet

Rows = tuple[int, int]
_OWN_COLUMNS = ("variant", "k", "recipe", "epoch", "trial", "image_id", "true_label", "given_label", "is_noisy")


def compute_curvature(
    study: Study,
    checkpoint: Checkpoint,
    store: Store,
    *,
    device: torch.device | None = None,
) -> bool:
    """Compute the curvature of every training image of every trial, unless a current result is there.

    Args:
        study: says which estimators, too.
        checkpoint: a trained checkpoint.
        store: where the weights are and the result goes.
        device: default the CPU.

    Returns:
        Whether anything was computed now.

    Raises:
        StaleError: the checkpoint is absent, damaged or of another recipe.
        UserError: the weights are not finite.
    """
    return any([compute_shard(study, checkpoint, store, rows, device=device) for rows in study.curvature_ranges])


def compute_shard(
    study: Study,
    checkpoint: Checkpoint,
    store: Store,
    rows: Rows,
    *,
    device: torch.device | None = None,
) -> bool:
    """Compute one shard unless it is there, and merge all if none is missing.

    Args:
        study: says which estimators, too.
        checkpoint: a trained checkpoint.
        store: where the weights are and the result goes.
        rows: one of ``study.curvature_ranges``.
        device: default the CPU.

    Returns:
        Whether it was computed now.

    Raises:
        StaleError: the checkpoint is absent, damaged or of another recipe.
        UserError: every trial has diverged.
    """
    device = device or torch.device("cpu")
    weights_manifest = check_checkpoint(store, study, checkpoint)
    trials = live_trials(weights_manifest)
    if not trials:
        raise UserError(
            f"every trial of {checkpoint.key} of {study.name} has diverged: there are no weights to look at"
        )
    present = sound_curvature(store, study, checkpoint, weights_sha256(weights_manifest))
    wanted = study.curvature.families(checkpoint.epoch)
    families = {name: own for name, own in wanted.items() if present is None or present["settings"].get(name) != own}
    if not families:
        return False
    about = _identity(study, checkpoint, weights_manifest, families)
    path = store.shard_path(study.name, checkpoint, rows)
    is_missing = _read_shard(store, study, checkpoint, rows, about) is None
    data = {trial: trial_data(study, checkpoint.arm.variant, trial) for trial in range(study.trials)}
    live = {trial: data[trial] for trial in trials}
    if is_missing:
        weights = read_weights(store, weights_manifest)
        columns, seconds = compute_rows(study, checkpoint, weights, list(data.values()), rows, families, device, trials)
    # Who merges removes the shards, so nobody else may be writing one; and who comes too late leaves none behind.
    path_of_all = store.curvature_path(study.name, checkpoint)
    with (
        store.lock("curvature", study.name, checkpoint.arm.key, f"{checkpoint.epoch:04d}"),
        unchanged_weights(store, study, checkpoint, weights_manifest, path_of_all),
    ):
        for leftover in (path, path_of_all):
            store.clean_temporaries(leftover.parent, f"{checkpoint.epoch:04d}.")
        present = sound_curvature(store, study, checkpoint, weights_sha256(weights_manifest))
        if present is not None and covers(present["settings"], families):
            return is_missing
        if is_missing:
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
            shard = {**about, "seconds": seconds, "device": name}
            if len(study.curvature_ranges) == 1:
                _write_whole(store, study, checkpoint, [(columns, shard)], about, live)
                return True
            remove(path.with_suffix(".json"))
            write_parquet(path, pa.table(columns))
            store.write_manifest(path.with_suffix(".json"), shard, {"table": path})
        _merge_if_complete(store, study, checkpoint, about, live)
    return is_missing


def sound_curvature(
    store: Store, study: Study, checkpoint: Checkpoint, checkpoint_sha256: str
) -> dict[str, Any] | None:
    """The manifest of a checkpoint's curvature if it is of weights with this digest and its file is unharmed."""
    manifest = curvature_manifest(store, study, checkpoint)
    if manifest is None or not describes(manifest, checkpoint_sha256):
        return None
    try:
        store.verify(manifest, "table")
    except StaleError:
        return None
    return manifest


@contextlib.contextmanager
def unchanged_weights(
    store: Store, study: Study, checkpoint: Checkpoint, manifest: dict[str, Any], result: Path
) -> Iterator[None]:
    """Write a result of a checkpoint only while its weights are those that it was computed from.

    They may be retired or trained again while it is computed, even while it is written; then it is removed.

    Raises:
        StaleError: they are others, or gone.
    """
    _refuse_other_weights(store, study, checkpoint, manifest)
    gone: FileNotFoundError | None = None
    try:
        yield
    except FileNotFoundError as error:  # it was retired with the weights before its manifest was written
        gone = error
    try:
        _refuse_other_weights(store, study, checkpoint, manifest)
    except StaleError:
        own = store.read_manifest(store.manifest_path(result))
        if own is None or own.get("checkpoint_sha256") == weights_sha256(manifest):
            remove(store.manifest_path(result))
            remove(result)
        raise
    if gone is not None:
        raise gone


def _refuse_other_weights(store: Store, study: Study, checkpoint: Checkpoint, manifest: dict[str, Any]) -> None:
    now = checkpoint_manifest(store, study, checkpoint)
    if weights_sha256(now) != weights_sha256(manifest):
        raise StaleError(
            f"the weights of {checkpoint.key} of {study.name} have changed while this was computed; run the same "
            "command again"
        )


def _identity(
    study: Study, checkpoint: Checkpoint, weights_manifest: dict[str, Any], families: Families
) -> dict[str, Any]:
    """What a shard or result belongs to."""
    return {
        "kind": "per_image_curvature",
        **identity(study, checkpoint.arm),
        "epoch": checkpoint.epoch,
        "checkpoint_sha256": weights_sha256(weights_manifest),
        "curvature_version": CURVATURE_VERSION,
        "settings": families,
    }


def _read_shard(
    store: Store, study: Study, checkpoint: Checkpoint, rows: Rows, about: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """A shard's columns and manifest, or None if it is absent, damaged or of something else."""
    manifest = store.read_manifest(store.shard_path(study.name, checkpoint, rows).with_suffix(".json"))
    if manifest is None or not _belongs(manifest, about):
        return None
    try:
        table = read_parquet(store.verify(manifest, "table"))
    except (StaleError, OSError):  # a merge in another process removes shards
        return None
    return {name: table[name].to_numpy() for name in table.column_names}, manifest


def _belongs(manifest: dict[str, Any] | None, about: dict[str, Any]) -> bool:
    """Whether a shard is there and of that."""
    return manifest is not None and all(manifest.get(key) == value for key, value in about.items())


def _merge_if_complete(
    store: Store,
    study: Study,
    checkpoint: Checkpoint,
    about: dict[str, Any],
    data: dict[int, TrialData],
) -> None:
    """Put the shards together once all are there, with what the present file holds of other families; hold the lock."""
    ranges = study.curvature_ranges
    paths = [store.shard_path(study.name, checkpoint, rows).with_suffix(".json") for rows in ranges]
    # Manifests alone, as long as one is missing: else all shards would be read once for each.
    if not all(_belongs(manifest, about) for manifest in store.read_manifests(paths)):
        return
    found = [_read_shard(store, study, checkpoint, rows, about) for rows in ranges]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found):
        return
    _write_whole(store, study, checkpoint, parts, about, data)
    remove(*paths)
    remove(*(path.with_suffix(".parquet") for path in paths))


def _write_whole(
    store: Store,
    study: Study,
    checkpoint: Checkpoint,
    parts: list[tuple[dict[str, np.ndarray], dict[str, Any]]],
    about: dict[str, Any],
    data: dict[int, TrialData],
) -> None:
    """Write the file of a checkpoint from all its shards, after proving that they are the whole; hold the lock."""
    filled = [part for part, _ in parts if len(part["trial"])]  # a shard of a diverged trial is empty
    columns = {name: np.concatenate([part[name] for part in filled]) for name in filled[0]}
    expected = {
        "trial": np.repeat(list(data), [len(d.train_ids) for d in data.values()]),
        "image_id": np.concatenate([d.train_ids for d in data.values()]),
    }
    prove_complete(columns, expected)
    write_curvature(store, study, checkpoint, columns, about, data, [manifest for _, manifest in parts])


def prove_complete(columns: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Pass only rows that are, one by one and in order, those of every trial's training images.

    Raises:
        StaleError: it says what is missing, doubled or out of place.
    """
    got = list(zip(columns["trial"].tolist(), columns["image_id"].tolist(), strict=True))
    due = list(zip(expected["trial"].tolist(), expected["image_id"].tolist(), strict=True))
    if got == due:
        return
    missing, extra = len(set(due) - set(got)), len(got) - len(set(got) & set(due))
    order = "" if missing or extra else ", all there but in another order"
    raise StaleError(
        f"the shards of a curvature file are no whole: {len(got)} rows for {len(due)} images, {missing} missing, "
        f"{extra} doubled or strange{order}; remove them and compute it again"
    )


def write_curvature(
    store: Store,
    study: Study,
    checkpoint: Checkpoint,
    columns: dict[str, np.ndarray],
    about: dict[str, Any],
    data: dict[int, TrialData],
    shard_manifests: list[dict[str, Any]],
) -> None:
    """Write the file of a checkpoint and its manifest: new columns, and those of other families it had before."""
    present = sound_curvature(store, study, checkpoint, about["checkpoint_sha256"])
    kept = present["settings"] if present else {}
    if present is not None and not covers(about["settings"], kept):
        table = read_parquet(store.verify(present, "table"))
        old = {name: table[name].to_numpy() for name in table.column_names}
        prove_complete(old, columns)
        replaced = {c for f in about["settings"] for c in _columns_of(f, table.column_names)}
        columns = {**{n: v for n, v in old.items() if n not in (*_OWN_COLUMNS, *replaced)}, **columns}
    num_rows, is_noisy = len(columns["trial"]), np.concatenate([d.is_noisy for d in data.values()])
    full = {
        "variant": checkpoint.arm.variant,
        "k": checkpoint.arm.k,
        "recipe": about["recipe"],
        "epoch": checkpoint.epoch,
        "true_label": np.concatenate([d.true_train_labels for d in data.values()]),
        "given_label": np.concatenate([d.train_labels for d in data.values()]),
        "is_noisy": is_noisy,
        **columns,
    }
    path = store.curvature_path(study.name, checkpoint)
    remove(store.manifest_path(path))  # it must not vouch for what is written in its place
    write_parquet(path, to_arrow("per_image_curvature", full, num_rows))
    seconds = sum(manifest["seconds"] for manifest in shard_manifests)
    devices = sorted({manifest["device"] for manifest in shard_manifests})
    by_trial = [auroc(columns["trace"][columns["trial"] == t], d.is_noisy) for t, d in data.items()]
    manifest = {
        **about,
        "settings": {**kept, **about["settings"]},
        "rows": {"table": num_rows},
        "headline": {
            "mean_trace": float(columns["trace"].mean()),
            "median_trace": float(np.median(columns["trace"])),
            **({"auroc_trace": float(np.mean(by_trial))} if is_noisy.any() and not is_noisy.all() else {}),
            "method": ", ".join(sorted(set(columns["method"]))),
            "images_per_second": num_rows / seconds,
            "gpu_seconds": seconds if devices != ["cpu"] else 0.0,
        },
        "device": ", ".join(devices),
        "written_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    store.write_manifest(store.manifest_path(path), manifest, {"table": path})


def _columns_of(family: str, names: list[str]) -> list[str]:
    """Which columns of a file a family stands for."""
    optional = {name for name in names if TABLES["per_image_curvature"].optional_column(name) is not None}
    return [
        name for name in names if (name in optional) == (family == "finite_difference") and name not in _OWN_COLUMNS
    ]
