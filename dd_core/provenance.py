"""Which results are there and still true of the study file: manifests compared with recipes. Needs no torch.

The orchestrator asks here what is to be done; workers ask again, with the stricter checks that open the files.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from dd_core.attempts import is_settled
from dd_core.curvature_settings import covers
from dd_core.data.datasets import load
from dd_core.errors import StaleError
from dd_core.estimate import resume_metadata
from dd_core.parts import PartStore
from dd_core.store import Store
from dd_core.studies import Arm, Checkpoint, Study

# Raise it when the curvature code changes what it computes; stored curvature of another version is computed again.
CURVATURE_VERSION = "2"
# The same for the Hessian in the weights.
HESSIAN_VERSION = "1"


def checkpoint_manifest(store: Store, study: Study, checkpoint: Checkpoint) -> dict[str, Any]:
    """The manifest of a checkpoint of the study's present recipe; opens no large file.

    Raises:
        StaleError: there is none, or it is of another recipe.
    """
    path = store.checkpoint_manifest_path(study.name, checkpoint)
    manifest = store.read_manifest(path)
    if manifest is None and path.exists():
        raise StaleError(
            f"{path} is damaged, so checkpoint {checkpoint.key} of {study.name} does not exist; train it again"
        )
    return _of_present_recipe(manifest, study, checkpoint)


def _of_present_recipe(manifest: dict[str, Any] | None, study: Study, checkpoint: Checkpoint) -> dict[str, Any]:
    if manifest is None:
        raise StaleError(f"checkpoint {checkpoint.key} of {study.name} has not been trained")
    recipe = study.recipe_hash(checkpoint.arm)
    if manifest.get("recipe") != recipe:
        raise StaleError(
            f"checkpoint {checkpoint.key} of {study.name} was trained with another recipe ({manifest.get('recipe')}, "
            f"the study file now says {recipe}); train it again"
        )
    return manifest


def trained_checkpoints(store: Store, study: Study, arms: set[Arm] | None = None) -> dict[Checkpoint, dict[str, Any]]:
    """The study's checkpoints that exist in its present recipe, with their manifests."""
    wanted = [checkpoint for checkpoint in study.iter_checkpoints() if arms is None or checkpoint.arm in arms]
    manifests = store.read_manifests([store.checkpoint_manifest_path(study.name, checkpoint) for checkpoint in wanted])
    found = {}
    for checkpoint, manifest in zip(wanted, manifests, strict=True):
        with contextlib.suppress(StaleError):
            found[checkpoint] = _of_present_recipe(manifest, study, checkpoint)
    return found


def live_trials(manifest: dict[str, Any]) -> list[int]:
    """The trials that have weights at a checkpoint: all but those that diverged before it."""
    ended = manifest.get("ended", {})
    return [t for t in range(manifest["trials"]) if ended.get(str(t), {}).get("status") != "diverged"]


def arm_is_complete(store: Store, study: Study, arm: Arm, until: int) -> bool:
    """Whether every checkpoint up to an epoch is there in the present recipe, unharmed, and nothing is left to be done.

    A worker asks the same once more under the arm's lock.
    """
    wanted = [Checkpoint(arm, epoch) for epoch in study.checkpoints if epoch <= until]
    try:
        manifests = [checkpoint_manifest(store, study, checkpoint) for checkpoint in wanted]
    except StaleError:
        return False
    data_sha256 = load(study.data.dataset).sha256
    return (
        all(m.get("data_sha256") == data_sha256 and store.is_sound(m) for m in manifests)
        and next(harmed_best(store, study, arm), None) is None
        and is_settled(store, study, arm)
    )


def harmed_best(store: Store, study: Study, arm: Arm) -> Iterator[str]:
    """Sentences about best checkpoints of an arm that are missing or damaged, as far as its resume point knows them."""
    folder = store.best_folder(study.name, arm.key)
    # A part hands them over to the arm. A resume point before the last checkpoint, after a kill in between, knows less
    # than what was settled since.
    metadata = {} if isinstance(store, PartStore) else resume_metadata(store, study, arm)
    last = max((int(path.stem) for path in store.arm_folder(study.name, arm.key).glob("[0-9]*.json")), default=0)
    if int(metadata.get("epoch", 0)) < last:
        metadata = {}
    progress = enumerate(json.loads(metadata.get("progress", "[]")))
    kept = {f"trial-{trial:03d}.epoch-{epoch:04d}" for trial, own in progress for _, epoch in own.get("kept", [])}
    there = {path.stem for path in folder.glob("trial-*.json")}
    for stem in sorted(kept | there):
        path = folder / f"{stem}.safetensors"
        manifest = store.read_manifest(path.with_suffix(".json"))
        if manifest is None:
            yield f"{path.with_suffix('.json')}, the manifest of a best checkpoint, is missing or damaged"
            continue
        try:
            store.verify(manifest, "weights")
        except StaleError as error:
            yield str(error)


def curvature_is_current(curvature: dict[str, Any] | None, checkpoint: dict[str, Any], study: Study) -> bool:
    """Whether per-image curvature is of these weights, by this code version, and has all that the study wants."""
    wanted = study.curvature.families(checkpoint["epoch"])
    return describes(curvature, checkpoint) and covers((curvature or {})["settings"], wanted)


def describes(curvature: dict[str, Any] | None, checkpoint: dict[str, Any]) -> bool:
    """Whether per-image curvature is of these weights, by this code version, whatever its settings."""
    return (
        curvature is not None
        and curvature.get("checkpoint_sha256") == checkpoint["files"]["weights"]["sha256"]
        and curvature.get("curvature_version") == CURVATURE_VERSION
    )


def missing_curvature(store: Store, study: Study) -> list[Checkpoint]:
    """Trained checkpoints that lack the per-image curvature the study wants."""
    trained = trained_checkpoints(store, study)
    present = curvature_manifests(store, study, trained)
    return [
        checkpoint
        for checkpoint, manifest in trained.items()
        if live_trials(manifest)
        and not ((own := present[checkpoint]) and curvature_is_current(own, manifest, study) and store.is_sound(own))
    ]


def curvature_manifest(store: Store, study: Study, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The manifest of a checkpoint's per-image curvature, if there is one."""
    return store.read_manifest(store.manifest_path(store.curvature_path(study.name, checkpoint)))


def curvature_manifests(
    store: Store, study: Study, checkpoints: Iterable[Checkpoint]
) -> dict[Checkpoint, dict[str, Any] | None]:
    """As ``curvature_manifest``, of several checkpoints."""
    wanted = list(checkpoints)
    paths = [store.manifest_path(store.curvature_path(study.name, checkpoint)) for checkpoint in wanted]
    return dict(zip(wanted, store.read_manifests(paths), strict=True))


def hessian_is_current(hessian: dict[str, Any] | None, checkpoint: dict[str, Any], study: Study) -> bool:
    """Whether a Hessian in the weights is of these weights, by this code version, with the study's settings."""
    return (
        hessian is not None
        and hessian.get("checkpoint_sha256") == checkpoint["files"]["weights"]["sha256"]
        and hessian.get("hessian_version") == HESSIAN_VERSION
        and hessian.get("settings") == hessian_settings(study)
    )


def hessian_settings(study: Study) -> dict[str, Any]:
    """The settings that change the result, as plain JSON values."""
    return study.hessian.model_dump(mode="json", exclude={"epochs", "batch_size", "block_size", "ranks"})


def hessian_manifest(store: Store, study: Study, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The manifest of a checkpoint's Hessian in the weights, if there is one."""
    return store.read_manifest(store.manifest_path(store.hessian_path(study.name, checkpoint)))
