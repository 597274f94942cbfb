"""Weights on disk: checkpoints with their manifests, and the rolling point from which training resumes."""

import contextlib
import datetime
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dd_core.data.datasets import fingerprint
from dd_core.errors import StaleError
from dd_core.models.stacking import by_trial
from dd_core.store.files import local_copy, remove, write_atomically
from dd_core.store.manifests import Ending, Identity, Manifest
from dd_core.store.parts import PartStore
from dd_core.store.provenance import checkpoint_manifest
from dd_core.store.store import Store
from dd_core.study.measured import measured
from dd_core.study.study import Arm, Checkpoint, Study


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors atomically as safetensors (no pickle)."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in contiguous.items():
        if tensor.data_ptr() in seen:  # tied weights, of which safetensors would keep none
            contiguous[name] = tensor.clone()
        seen.add(tensor.data_ptr())

    def write(temporary: Path) -> None:
        try:
            save_file(contiguous, temporary, metadata)
        except SafetensorError as error:
            # It reports what the operating system said, a full disk for instance, in words: "... (os error 28)".
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            raise

    write_atomically(path, write)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata.

    Raises:
        StaleError: the file is missing, truncated or not safetensors.
    """
    try:
        with safe_open(local_copy(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StaleError(f"{path} cannot be read as safetensors ({error})") from error


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes of tensors, independent of the order they are kept in."""
    result = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        result.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def save_weights(
    store: Store, study: Study, checkpoint: Checkpoint, states: list[tuple[int, dict[str, Tensor]]]
) -> Path:
    """Write the weights of all trials to one file: of every stack its number of trials and its stacked weights."""
    # (T*n, ...) of each stack becomes (T, n, ...), and the stacks follow each other along the trials.
    stacked = {name: torch.cat([by_trial(state[name], count) for count, state in states]) for name in states[0][1]}
    path = store.checkpoint_path(study.name, checkpoint)
    # A single entry, because safetensors writes several in random order: equal weights shall be equal files.
    save_tensors(path, stacked, {"checkpoint": f"{study.name}/{checkpoint.key}"})
    return path


def save_checkpoint(
    store: Store,
    study: Study,
    checkpoint: Checkpoint,
    weights: dict[str, Path],
    tables: dict[str, tuple[Path, int]],
    headline: dict[str, float],
    device: str,
    ended: dict[int, Ending],
    sources: Mapping[str, Any] | None = None,
) -> None:
    """Write the manifest that vouches for the weights and for the metrics up to them, which makes a checkpoint exist.

    Args:
        store: where to.
        study: the study trained.
        checkpoint: which arm and epoch.
        weights: its files of weights by role: ``weights``, or ``weights.<part>`` of each part that trained apart.
        tables: the metric files of this segment and their row counts.
        headline: mean over trials of the evaluation, for people.
        device: what it was computed on.
        ended: trials that ended before the arm did, and how.
        sources: where its weights were imported from, by role.
    """
    manifest = {
        "kind": "checkpoint",
        **asdict(identity(study, checkpoint.arm)),
        "epoch": checkpoint.epoch,
        "recipe_content": study.recipe(checkpoint.arm),
        "measured": measured(study),
        "headline": headline,
        "rows": {name: rows for name, (_, rows) in tables.items()},
        "device": device,
        "ended": {str(trial): ending.model_dump() for trial, ending in ended.items()},
        "torch_version": torch.__version__,
        **({} if sources is None else {"sources": sources}),
        "written_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    files = {**weights, **{name: file for name, (file, _) in tables.items()}}
    store.write_manifest(store.checkpoint_manifest_path(study.name, checkpoint), manifest, files)


def make_way(store: Store, study: Study, checkpoint: Checkpoint) -> bool:
    """Before a checkpoint is written, again perhaps after a kill: no manifest must vouch for the new files.

    Returns:
        Whether it is to be written: not by a part that has to train again what is there of all, up to this epoch.
    """
    own = store.checkpoint_manifest_path(study.name, checkpoint)
    if not isinstance(store, PartStore):
        remove(own)
        return True
    with store.whole.lock(study.name, checkpoint.arm.key):  # nobody puts it together meanwhile
        try:
            for epoch in sorted(study.checkpoints, reverse=True):
                if epoch <= checkpoint.epoch:
                    check_checkpoint(store.whole, study.whole, Checkpoint(checkpoint.arm, epoch))
        except StaleError:
            remove(store.whole.checkpoint_manifest_path(study.name, checkpoint), own)
            return True
    return False


def identity(study: Study, arm: Arm) -> Identity:
    """What ties a result to its recipe and data; compared before anything is used."""
    return Identity(study.name, arm.key, study.recipe_hash(arm), study.trials, fingerprint(study.data.dataset))


def check_checkpoint(store: Store, study: Study, checkpoint: Checkpoint) -> Manifest:
    """The manifest of a checkpoint after its identity and every file it vouches for have been checked.

    That of a part is the arm's once all parts have got there; another process may remove the part's own just now.

    Raises:
        StaleError: there is no such checkpoint, or it is damaged, or of another recipe or data set.
    """
    if isinstance(store, PartStore):
        with contextlib.suppress(StaleError):
            return _check(store, study, checkpoint)
        store, study = store.whole, study.whole
    return _check(store, study, checkpoint)


def _check(store: Store, study: Study, checkpoint: Checkpoint) -> Manifest:
    manifest = checkpoint_manifest(store, study, checkpoint)
    for name in identity(study, checkpoint.arm).differs_from(manifest):
        raise StaleError(f"checkpoint {checkpoint.key} of {study.name} has another {name}; {study.comes_by} again")
    for entry in manifest.files.values():
        store.verify(entry)
    return manifest


def load_checkpoint(store: Store, study: Study, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], Manifest]:
    """The stacked weights of all trials and their manifest, after every check.

    Returns:
        Weights by name with the trials as leading dimension, (T, ...), so that ``weights[name][trial]`` fits a plain
        network and ``weights[name][trials].flatten(0, 1)`` a stacked one; the manifest.

    Raises:
        StaleError: there is no such checkpoint, or it is damaged, or of another recipe or data set.
    """
    manifest = check_checkpoint(store, study, checkpoint)
    return read_weights(store, manifest), manifest


def read_weights(store: Store, manifest: Manifest) -> dict[str, Tensor]:
    """The weights of all trials, (T, ...) each, from the files that a checkpoint's manifest names.

    Raises:
        StaleError: one is missing, truncated or not safetensors.
    """
    parts = [read_tensors(store.root / entry.path)[0] for entry in manifest.weights]
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
