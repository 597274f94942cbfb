"""The best checkpoints of each trial, by lowest loss on its validation images, beside those that the study names."""

import datetime
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from dd_core.errors import StaleError
from dd_core.store.checkpoints import identity, read_tensors, save_tensors
from dd_core.store.files import remove
from dd_core.store.manifests import Manifest
from dd_core.store.provenance import harmed_best
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study


def save_best(
    store: Store, study: Study, arm: Arm, trial: int, epoch: int, loss_val_nats: float, weights: dict[str, Tensor]
) -> None:
    """Keep one trial's weights (those of a plain network) at an epoch; equal weights give equal files.

    Trials are counted from the first of the study; what is written of a part is as if it were of the whole.
    """
    path = _path(store, study, arm, trial, epoch)
    number = study.first_trial + trial
    save_tensors(path, weights, {"checkpoint": f"{study.name}/{arm.key}/{number}/{epoch}"})
    manifest = {
        "kind": "best checkpoint",
        **asdict(identity(study.whole, arm)),
        "trial": number,
        "epoch": epoch,
        "loss_val_nats": loss_val_nats,
        "torch_version": torch.__version__,
        "written_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    store.write_manifest(path.with_suffix(".json"), manifest, {"weights": path})


def load_best(store: Store, study: Study, arm: Arm, trial: int) -> tuple[dict[str, Tensor], Manifest]:
    """A trial's weights where its loss_val_nats was lowest, as those of a plain network, and their manifest.

    Raises:
        StaleError: none was kept (no validation images, or ``keep_best: 0``), or it is damaged or of another recipe.
    """
    for harm in harmed_best(store, study, arm):
        if f"trial-{trial:03d}.epoch-" in harm:
            key = Checkpoint(arm, study.checkpoints[-1]).key
            raise StaleError(
                f"{harm}; run: dagster asset materialize --select '{study.name}/checkpoints' --partition '{key}'"
            )
    found = [
        (manifest.loss_val_nats, manifest.epoch, manifest)
        for manifest in best_manifests(store, study, arm, f"trial-{trial:03d}.*.json")
    ]
    if not found:
        raise StaleError(
            f"no best checkpoint of trial {trial} of {arm.key} in {study.name} is kept; it needs data.num_validation "
            "and keep_best in the study, and training"
        )
    manifest = min(found, key=lambda entry: entry[:2])[2]
    tensors, _ = read_tensors(store.verify(manifest.files["weights"]))
    return tensors, manifest


def best_manifests(store: Store, study: Study, arm: Arm, pattern: str = "trial-*.json") -> list[Manifest]:
    """The manifests of the best checkpoints that are kept, of this recipe."""
    own = identity(study, arm)
    manifests = store.read_manifests(sorted(store.best_folder(study.name, arm.key).glob(pattern)))
    return [m for m in manifests if m is not None and not own.differs_from(m)]


def prune_best(store: Store, study: Study, arm: Arm, kept: list[list[int]]) -> None:
    """Remove all of these trials but the epochs named, trial by trial; the manifests go first."""
    own = {f"trial-{number:03d}" for number in study.trial_numbers}
    wanted = {_path(store, study, arm, trial, epoch).stem for trial, epochs in enumerate(kept) for epoch in epochs}
    for suffix in ("json", "safetensors"):
        found = store.best_folder(study.name, arm.key).glob(f"*.{suffix}")
        remove(*(path for path in sorted(found) if path.stem not in wanted and path.stem.split(".")[0] in own))


def _path(store: Store, study: Study, arm: Arm, trial: int, epoch: int) -> Path:
    name = f"trial-{study.first_trial + trial:03d}.epoch-{epoch:04d}.safetensors"
    return store.best_folder(study.name, arm.key) / name
