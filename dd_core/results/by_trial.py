"""A result of a checkpoint that has one row for each trial: from the trained networks to a file and its manifest.

What a kind of result shares with all others stands here, so that a new one says only what a row holds.
"""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dd_core.curvature.parameter_space.distributed import Group, agreeing, sum_over
from dd_core.curvature.trained import as_trained, seen_data, standardised, targets, trained_network
from dd_core.data.trials import TrialData
from dd_core.errors import StaleError, UserError
from dd_core.machine.memory import name_of
from dd_core.store.checkpoints import identity, load_checkpoint
from dd_core.store.files import remove
from dd_core.store.manifests import Manifest
from dd_core.store.provenance import checkpoint_manifest
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.files import to_arrow, write_parquet
from dd_core.tables.kinds import Kind

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TrainedTrial:
    """A trial at a checkpoint.

    Attributes:
        trial: its number.
        data: its images and labels; where classes come one group after the other, those of the classes seen.
        model: with the outputs of the classes seen, in eval mode, in channels-last memory, float32, on the CPU.
        device: where to compute.
        group: processes that share its images.
    """

    study: Study
    checkpoint: Checkpoint
    trial: int
    data: TrialData
    model: nn.Module
    device: torch.device
    group: Group | None

    def images(self, positions: Any = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        """Training images (N, channels, height, width) on the device as training saw them, without augmentation."""
        return standardised(self.study, self.data, self.data.train_ids[positions], self.device, dtype)

    def labels(self, positions: Any = slice(None)) -> Tensor:
        """The labels that training was told, as outputs of the model, int64 (N,), on the device."""
        return torch.from_numpy(targets(self.data, positions)).to(self.device)


def by_trial(
    kind: Kind,
    study: Study,
    checkpoint: Checkpoint,
    store: Store,
    row_of: Callable[[TrainedTrial], Row],
    *,
    device: torch.device | None = None,
    group: Group | None = None,
    most_ranks: int | None = None,
    headline: Callable[[Mapping[str, list[Any]]], Row] = lambda columns: {},
) -> bool:
    """Compute a row of every trial that has weights, unless a current result is there.

    Args:
        kind: of the result.
        study: the study.
        checkpoint: a trained checkpoint.
        store: where the weights are and the result goes.
        row_of: the values of the table's columns for one trial, but for those that tell which it is, and ``seconds``.
        device: default the CPU.
        group: processes that share the images; the first of them writes the result.
        most_ranks: how many of them there may be.
        headline: numbers for people, from the table's columns.

    Returns:
        Whether it was computed now.

    Raises:
        StaleError: the checkpoint is absent, damaged or of another recipe.
        UserError: it is not computed of such a study, every trial has diverged, or there are too many ranks; with a
            group on every rank.
    """
    kind.refuse(study)
    device = device or torch.device("cpu")
    rank, num_ranks = (group.rank(), group.size()) if group else (0, 1)
    with agreeing(group, device):
        weights, manifest = load_checkpoint(store, study, checkpoint)
        refuse_without_weights(study, checkpoint, manifest)
        if most_ranks is not None and num_ranks > most_ranks:
            raise UserError(f"{kind.name}.ranks is {num_ranks}, which is more than there are images")
    # The ranks may not see the same files at the same time: all of them do as the first.
    present = kind.manifest(store, study, checkpoint) if rank == 0 else None
    is_sound = present is not None and kind.is_current(present, manifest, study) and store.is_sound(present)
    if int(sum_over(group, torch.tensor([int(is_sound)], device=device))):
        return False
    rows = []
    for trial in manifest.live_trials:
        started = time.monotonic()
        data = seen_data(study, checkpoint, trial)
        model = as_trained(study, checkpoint, trained_network(study, checkpoint, weights, trial), data)
        row = row_of(TrainedTrial(study, checkpoint, trial, data, model, device, group))
        rows.append({"trial": trial, **row, "seconds": time.monotonic() - started})
    if rank == 0:
        with unchanged_weights(store, study, checkpoint, manifest, kind.path(store, study, checkpoint)):
            _write(kind, store, study, checkpoint, manifest, rows, device, num_ranks, headline)
    return True


def _write(
    kind: Kind,
    store: Store,
    study: Study,
    checkpoint: Checkpoint,
    weights: Manifest,
    rows: list[dict[str, Any]],
    device: torch.device,
    num_ranks: int,
    headline: Callable[[Mapping[str, list[Any]]], Row],
) -> None:
    arm = checkpoint.arm
    constants = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm), "epoch": checkpoint.epoch}
    columns = {c.name: [{**constants, **row}[c.name] for row in rows] for c in kind.table.file_columns}
    seconds = sum(row["seconds"] for row in rows)
    spent = {"seconds": seconds, "gpu_seconds": seconds * num_ranks if device.type == "cuda" else 0.0}
    about = {
        **described(kind, study, checkpoint, weights, kind.settings(study, checkpoint.epoch)),
        "headline": {**headline(columns), **spent, "ranks": num_ranks},
        "device": name_of(device),
    }
    write_result(kind, store, study, checkpoint, columns, len(rows), about)


def described(
    kind: Kind, study: Study, checkpoint: Checkpoint, weights: Manifest, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What a result, or a part of it, belongs to: the beginning of its manifest."""
    return {
        "kind": kind.name,
        **asdict(identity(study, checkpoint.arm)),
        "epoch": checkpoint.epoch,
        "checkpoint_sha256": weights.weights_sha256,
        kind.version_key: kind.version,
        "settings": settings,
    }


def write_result(
    kind: Kind,
    store: Store,
    study: Study,
    checkpoint: Checkpoint,
    columns: Mapping[str, Any],
    num_rows: int,
    about: Mapping[str, Any],
) -> None:
    """Write the file of a checkpoint and the manifest that vouches for it."""
    path = kind.path(store, study, checkpoint)
    remove(store.manifest_path(path))  # it must not vouch for what is written in its place
    write_parquet(path, to_arrow(kind.table.name, dict(columns), num_rows))
    written_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = {**about, "rows": {"table": num_rows}, "written_at": written_at}
    store.write_manifest(store.manifest_path(path), content, {"table": path})


def refuse_without_weights(study: Study, checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Pass only checkpoints at which a trial has weights.

    Raises:
        UserError: every trial has diverged.
    """
    if not manifest.live_trials:
        raise UserError(
            f"every trial of {checkpoint.key} of {study.name} has diverged: there are no weights to look at"
        )


@contextlib.contextmanager
def unchanged_weights(
    store: Store, study: Study, checkpoint: Checkpoint, manifest: Manifest, result: Path
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
        if own is None or own.checkpoint_sha256 == manifest.weights_sha256:
            remove(store.manifest_path(result))
            remove(result)
        raise
    if gone is not None:
        raise gone


def _refuse_other_weights(store: Store, study: Study, checkpoint: Checkpoint, manifest: Manifest) -> None:
    now = checkpoint_manifest(store, study, checkpoint)
    if now.weights_sha256 != manifest.weights_sha256:
        raise StaleError(
            f"the weights of {checkpoint.key} of {study.name} have changed while this was computed; run the same "
            "command again"
        )


def mean_of(columns: Mapping[str, list[Any]], *names: str) -> dict[str, float]:
    """Means over trials of those columns that every trial has."""
    return {name: float(np.mean(columns[name])) for name in names if None not in columns[name]}
