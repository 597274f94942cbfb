"""Which results of checkpoints are there and still true of checkpoint and study. Needs no torch."""

from collections.abc import Iterable
from typing import Any

from dd_core.store.provenance import live_trials, trained_checkpoints, weights_sha256
from dd_core.store.store import Store
from dd_core.study.curvature import covers
from dd_core.study.study import Checkpoint, Study

# Raise it when the curvature code changes what it computes; stored curvature of another version is computed again.
CURVATURE_VERSION = "2"


# The same for the Hessian in the weights.
HESSIAN_VERSION = "1"


def curvature_is_current(curvature: dict[str, Any] | None, checkpoint: dict[str, Any], study: Study) -> bool:
    """Whether per-image curvature is of these weights, by this code version, and has all that the study wants."""
    wanted = study.curvature.families(checkpoint["epoch"])
    return describes(curvature, weights_sha256(checkpoint)) and covers((curvature or {})["settings"], wanted)


def describes(curvature: dict[str, Any] | None, checkpoint_sha256: str) -> bool:
    """Whether per-image curvature is of weights with this digest, by this code version, whatever its settings."""
    return (
        curvature is not None
        and curvature.get("checkpoint_sha256") == checkpoint_sha256
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
        and hessian.get("checkpoint_sha256") == weights_sha256(checkpoint)
        and hessian.get("hessian_version") == HESSIAN_VERSION
        and hessian.get("settings") == hessian_settings(study)
    )


def hessian_settings(study: Study) -> dict[str, Any]:
    """The settings that change the result, as plain JSON values."""
    return study.hessian.model_dump(mode="json", exclude={"epochs", "batch_size", "block_size", "ranks"})


def hessian_manifest(store: Store, study: Study, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The manifest of a checkpoint's Hessian in the weights, if there is one."""
    return store.read_manifest(store.manifest_path(store.hessian_path(study.name, checkpoint)))
