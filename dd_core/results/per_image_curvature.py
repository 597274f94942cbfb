"""Per-image curvature of one trained checkpoint: from its weights to one parquet file with its manifest.

Large checkpoints are divided into shards, ranges of rows that any worker computes on its own. A shard is a file with a
manifest of its own; the process that finishes the last one merges them, after proving by trial and image id that every
row is there once. What all shards need and one can compute, the ranking of directions, lies beside them until then.
What a file already holds of the same weights is kept: another estimator adds columns, it does not start anew.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dd_core.analysis.auroc import auroc
from dd_core.curvature.input_space.top_directions import Ranking
from dd_core.curvature.trained import seen_data
from dd_core.data.trials import TrialData
from dd_core.errors import StaleError
from dd_core.machine.arithmetic import usable
from dd_core.machine.memory import name_of
from dd_core.results.by_trial import described, refuse_without_weights, unchanged_weights, write_result
from dd_core.results.ranking_files import read_ranking, write_ranking
from dd_core.results.rows import Families, MakeRanking, compute_rows
from dd_core.store.checkpoints import check_checkpoint, read_weights
from dd_core.store.files import remove
from dd_core.store.manifests import Manifest
from dd_core.store.store import Store
from dd_core.study.curvature import covers
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.columns import ARM, EPOCH, IMAGE, LABELS, SEEN
from dd_core.tables.files import TABLES, read_parquet, write_parquet
from dd_core.tables.kinds import PER_IMAGE_CURVATURE, Rows

_OWN_COLUMNS = tuple(c.name for c in (*ARM, EPOCH, IMAGE, *LABELS, *SEEN))
Columns = dict[str, np.ndarray]


def compute_curvature(
    study: Study,
    checkpoint: Checkpoint,
    store: Store,
    *,
    device: torch.device | None = None,
    rows: Rows | None = None,
) -> bool:
    """Compute the curvature of every training image that a trial has seen, unless a current result is there.

    Args:
        study: says which estimators, too.
        checkpoint: a trained checkpoint.
        store: where the weights are and the result goes.
        device: default the CPU.
        rows: some of ``study.curvature_ranges(epoch)``, from the first to before the second; default all.

    Returns:
        Whether anything was computed now.

    Raises:
        StaleError: the checkpoint is absent, damaged or of another recipe.
        UserError: the weights are not finite, or every trial has diverged.
    """
    first, last = rows or (0, study.trials * study.num_seen_images(checkpoint.epoch))
    ranges = [own for own in study.curvature_ranges(checkpoint.epoch) if first <= own[0] and own[1] <= last]
    return any([compute_shard(study, checkpoint, store, own, device=device) for own in ranges])


def compute_shard(
    study: Study,
    checkpoint: Checkpoint,
    store: Store,
    rows: Rows,
    *,
    device: torch.device | None = None,
) -> bool:
    """Compute one shard unless it is there, and merge all if none is missing.

    Arguments, result and errors are those of ``compute_curvature``; ``rows`` is one of the study's
    ``curvature_ranges``.
    """
    device = device or torch.device("cpu")
    weights = check_checkpoint(store, study, checkpoint)
    refuse_without_weights(study, checkpoint, weights)
    present = sound_curvature(store, study, checkpoint, weights)
    wanted = study.curvature.families(checkpoint.epoch)
    families = {name: own for name, own in wanted.items() if present is None or present.settings.get(name) != own}
    if not families:
        return False
    whole = _Whole(study, checkpoint, store, weights, families)
    computed = whole.computed(rows, device) if whole.shard(rows) is None else None
    whole.add(rows, computed)
    return computed is not None


def sound_curvature(store: Store, study: Study, checkpoint: Checkpoint, weights: Manifest) -> Manifest | None:
    """The manifest of a checkpoint's curvature if it is of these weights and its file is unharmed."""
    manifest = PER_IMAGE_CURVATURE.manifest(store, study, checkpoint)
    is_right = manifest is not None and PER_IMAGE_CURVATURE.describes(manifest, weights) and store.is_sound(manifest)
    return manifest if is_right else None


@dataclass(frozen=True)
class _Shard:
    """Columns of some rows, and what is known of their computation."""

    columns: Columns
    seconds: float
    device: str
    precision: str

    @property
    def spent(self) -> dict[str, Any]:
        """All but the columns, for a manifest."""
        return {"seconds": self.seconds, "device": self.device, "precision": self.precision}


@dataclass(frozen=True)
class _Whole:
    """What one checkpoint lacks, and the shards of it.

    Attributes:
        weights: manifest of the checkpoint.
        families: the settings of what is lacking.
    """

    study: Study
    checkpoint: Checkpoint
    store: Store
    weights: Manifest
    families: Families

    @cached_property
    def about(self) -> dict[str, Any]:
        """What a shard or the result belongs to."""
        return described(PER_IMAGE_CURVATURE, self.study, self.checkpoint, self.weights, self.families)

    @cached_property
    def data(self) -> list[TrialData]:
        """The data of every trial, of the classes seen."""
        return [seen_data(self.study, self.checkpoint, trial) for trial in range(self.study.trials)]

    @cached_property
    def ranges(self) -> list[Rows]:
        """The rows of all shards."""
        return self.study.curvature_ranges(self.checkpoint.epoch)

    @property
    def live(self) -> dict[int, TrialData]:
        """The data of the trials that have weights."""
        return {trial: self.data[trial] for trial in self.weights.live_trials}

    @property
    def present(self) -> Manifest | None:
        """The manifest of the file that is there, if it is of these weights and unharmed."""
        return sound_curvature(self.store, self.study, self.checkpoint, self.weights)

    def computed(self, rows: Rows, device: torch.device) -> _Shard:
        """Compute a shard."""
        tensors, families = read_weights(self.store, self.weights), self.families
        # A result belongs to the precision that was asked for: what is more accurate is as good.
        precision = usable(families["hessian"]["precision"], device) if "hessian" in families else ""
        if precision:
            families = {**families, "hessian": {**families["hessian"], "precision": precision}}
        columns, seconds = compute_rows(
            self.study,
            self.checkpoint,
            tensors,
            self.data,
            rows,
            families,
            device,
            self.weights.live_trials,
            self.ranking,
        )
        return _Shard(columns, seconds, name_of(device), precision)

    def ranking(self, trial: int, make: MakeRanking) -> Ranking | None:
        """A trial's ranking of directions: where there are several shards, the first that one of them has made."""
        if len(self.ranges) == 1:
            return make()
        path = self._ranking_path(trial)
        if (found := read_ranking(self.store, path, self.about)) or (made := make()) is None:
            return found
        with self._lock():
            if found := read_ranking(self.store, path, self.about):
                return found
            present = self.present
            if present is None or not covers(present.settings, self.families):  # else nobody would remove it
                write_ranking(self.store, path, self.about, made)
        return made

    def add(self, rows: Rows, shard: _Shard | None) -> None:
        """Keep a shard that was computed now, and merge all if none is missing.

        Merging removes the shards. So all of this happens under one lock, and where the file has become whole meanwhile
        nothing is written.
        """
        store, study, checkpoint = self.store, self.study, self.checkpoint
        path, path_of_all = self._path(rows), PER_IMAGE_CURVATURE.path(store, study, checkpoint)
        with (
            self._lock(),
            unchanged_weights(store, study, checkpoint, self.weights, path_of_all),
        ):
            for leftover in (path, path_of_all):
                store.clean_temporaries(leftover.parent, f"{checkpoint.epoch:04d}.")
            present = self.present
            if present is not None and covers(present.settings, self.families):
                return
            if shard is not None and len(self.ranges) == 1:
                self._write([shard])
                return
            if shard is not None:
                remove(path.with_suffix(".json"))
                write_parquet(path, pa.table(shard.columns))
                content = {**self.about, **shard.spent}
                store.write_manifest(path.with_suffix(".json"), content, {"table": path})
            self._merge_if_complete()

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        arm, epoch = self.checkpoint.arm, self.checkpoint.epoch
        return self.store.lock("curvature", self.study.name, arm.key, f"{epoch:04d}")

    def _ranking_path(self, trial: int) -> Path:
        return self._path((0, 0)).with_name(f"{self.checkpoint.epoch:04d}.ranking-{trial:03d}.safetensors")

    def _path(self, rows: Rows) -> Path:
        return self.store.shard_path(PER_IMAGE_CURVATURE.table.name, self.study.name, self.checkpoint, rows)

    def _belongs(self, manifest: Manifest | None) -> bool:
        """Whether a shard is there and of this."""
        return manifest is not None and all(manifest.content.get(key) == value for key, value in self.about.items())

    def shard(self, rows: Rows) -> _Shard | None:
        """A shard that is there, or None if it is absent, damaged or of something else."""
        manifest = self.store.read_manifest(self._path(rows).with_suffix(".json"))
        if manifest is None or not self._belongs(manifest):
            return None
        try:
            table = read_parquet(self.store.verify(manifest.files["table"]))
        except (StaleError, OSError):  # a merge in another process removes shards
            return None
        columns = {name: table[name].to_numpy() for name in table.column_names}
        return _Shard(columns, manifest.seconds, manifest.device, manifest.precision)

    def _merge_if_complete(self) -> None:
        """Put the shards together once all are there; hold the lock."""
        paths = [self._path(rows).with_suffix(".json") for rows in self.ranges]
        # Manifests alone, as long as one is missing: else all shards would be read once for each.
        if not all(map(self._belongs, self.store.read_manifests(paths))):
            return
        found = [self.shard(rows) for rows in self.ranges]
        shards = [shard for shard in found if shard is not None]
        if len(shards) < len(found):
            return
        self._write(shards)
        rankings = [self._ranking_path(trial) for trial in self.weights.live_trials]
        remove(*paths, *(path.with_suffix(".json") for path in rankings))
        remove(*(path.with_suffix(".parquet") for path in paths), *rankings)

    def _write(self, shards: list[_Shard]) -> None:
        """Write the file from all its shards, after proving that they are the whole; hold the lock."""
        filled = [shard.columns for shard in shards if len(shard.columns["trial"])]  # of a diverged trial it is empty
        new = {name: np.concatenate([columns[name] for columns in filled]) for name in filled[0]}
        live = self.live
        expected = {
            "trial": np.repeat(list(live), [len(d.train_ids) for d in live.values()]),
            "image_id": np.concatenate([d.train_ids for d in live.values()]),
        }
        prove_complete(new, expected)
        present = self.present
        kept = present.settings if present else {}
        columns = new if present is None else self._with_others(new, present)
        num_rows, arm = len(columns["trial"]), self.checkpoint.arm
        seen = dict(zip((c.name for c in SEEN), self.study.seen_and_active(self.checkpoint.epoch), strict=True))
        full = {
            "variant": arm.variant,
            "k": arm.k,
            "recipe": self.about["recipe"],
            "epoch": self.checkpoint.epoch,
            **seen,
            "true_label": np.concatenate([d.true_train_labels for d in live.values()]),
            "given_label": np.concatenate([d.train_labels for d in live.values()]),
            "is_noisy": np.concatenate([d.is_noisy for d in live.values()]),
            **columns,
        }
        devices = sorted({shard.device for shard in shards})
        precisions = sorted({shard.precision for shard in shards} - {""})
        about = {
            **self.about,
            "settings": {**kept, **self.families},
            "headline": _headline(columns, live, sum(shard.seconds for shard in shards), devices),
            "device": ", ".join(devices),
            "precision": ", ".join(precisions) if precisions or present is None else present.precision,
        }
        write_result(PER_IMAGE_CURVATURE, self.store, self.study, self.checkpoint, full, num_rows, about)

    def _with_others(self, new: Columns, present: Manifest) -> Columns:
        """New columns with those of other families that the file has."""
        if covers(self.families, present.settings):
            return new
        table = read_parquet(self.store.verify(present.files["table"]))
        old = {name: table[name].to_numpy() for name in table.column_names}
        prove_complete(old, new)
        replaced = {c for family in self.families for c in _columns_of(family, table.column_names)}
        return {**{n: v for n, v in old.items() if n not in (*_OWN_COLUMNS, *replaced)}, **new}


def _headline(
    columns: Columns, data: Mapping[int, TrialData], seconds: float, devices: list[str]
) -> dict[str, float | str]:
    """Numbers for people."""
    trace, is_noisy = columns["trace"], np.concatenate([d.is_noisy for d in data.values()])
    by_trial = [auroc(trace[columns["trial"] == trial], d.is_noisy) for trial, d in data.items()]
    return {
        "mean_trace": float(trace.mean()),
        "median_trace": float(np.median(trace)),
        **({"auroc_trace": float(np.mean(by_trial))} if is_noisy.any() and not is_noisy.all() else {}),
        "method": ", ".join(sorted(set(columns["method"]))),
        "images_per_second": len(trace) / seconds,
        "gpu_seconds": seconds if devices != ["cpu"] else 0.0,
    }


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


def _columns_of(family: str, names: list[str]) -> list[str]:
    """Which columns of a file a family stands for."""
    optional = {name for name in names if TABLES["per_image_curvature"].optional_column(name) is not None}
    return [
        name for name in names if (name in optional) == (family == "finite_difference") and name not in _OWN_COLUMNS
    ]
