"""Which results are there and still true of the study file: manifests compared with recipes. Needs no torch.

The orchestrator asks here what is to be done; workers ask again, with the stricter checks that open the files.
"""

import json
from collections.abc import Iterator

from dd_core.errors import StaleError
from dd_core.store.manifests import Manifest
from dd_core.store.parts import PartStore
from dd_core.store.resume_points import resume_metadata
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study


def checkpoint_manifest(store: Store, study: Study, checkpoint: Checkpoint) -> Manifest:
    """The manifest of a checkpoint of the study's present recipe, of a part's that of the arm once there is one.

    Opens no large file.

    Raises:
        StaleError: there is none, or it is of another recipe.
    """
    path = store.checkpoint_manifest_path(study.name, checkpoint)
    manifest = store.read_manifest(path)
    if manifest is None and isinstance(store, PartStore):
        return checkpoint_manifest(store.whole, study.whole, checkpoint)
    if manifest is None and path.exists():
        raise StaleError(
            f"{path} is damaged, so checkpoint {checkpoint.key} of {study.name} does not exist; {study.comes_by} again"
        )
    return _of_present_recipe(manifest, study, checkpoint)


def _of_present_recipe(manifest: Manifest | None, study: Study, checkpoint: Checkpoint) -> Manifest:
    if manifest is None:
        done = "imported" if study.imported else "trained"
        raise StaleError(f"checkpoint {checkpoint.key} of {study.name} has not been {done}")
    recipe = study.recipe_hash(checkpoint.arm)
    if manifest.recipe != recipe:
        raise StaleError(
            f"checkpoint {checkpoint.key} of {study.name} was {'imported' if study.imported else 'trained'} with "
            f"another recipe ({manifest.recipe}, the study file now says {recipe}); {study.comes_by} again"
        )
    return manifest


def trained_checkpoints(store: Store, study: Study, arms: set[Arm] | None = None) -> dict[Checkpoint, Manifest]:
    """The study's checkpoints that exist in its present recipe, with their manifests."""
    if not store.may_have(study.name):
        return {}
    wanted = [checkpoint for checkpoint in study.iter_checkpoints() if arms is None or checkpoint.arm in arms]
    manifests = store.read_manifests([store.checkpoint_manifest_path(study.name, checkpoint) for checkpoint in wanted])
    recipes = {arm: study.recipe_hash(arm) for arm in {checkpoint.arm for checkpoint in wanted}}
    pairs = zip(wanted, manifests, strict=True)
    return {own: manifest for own, manifest in pairs if manifest is not None and manifest.recipe == recipes[own.arm]}


def harmed_best(store: Store, study: Study, arm: Arm) -> Iterator[str]:
    """Sentences about best checkpoints of an arm that are missing or damaged, as far as its resume point knows them."""
    folder = store.best_folder(study.name, arm.key)
    # A resume point before the last checkpoint, after a kill in between, knows less than what was settled since.
    metadata = resume_metadata(store, study, arm)
    stores = [store, store.whole] if isinstance(store, PartStore) else [store]
    manifests = (path for each in stores for path in each.arm_folder(study.name, arm.key).glob("[0-9]*.json"))
    last = max((int(path.stem) for path in manifests), default=0)
    if int(metadata.get("epoch", 0)) < last:
        metadata = {}
    progress = enumerate(json.loads(metadata.get("progress", "[]")), study.first_trial)
    kept = {f"trial-{trial:03d}.epoch-{epoch:04d}" for trial, own in progress for _, epoch in own.get("kept", [])}
    own = {f"trial-{number:03d}" for number in study.trial_numbers}
    there = {path.stem for path in folder.glob("trial-*.json") if path.stem.split(".")[0] in own}
    for stem in sorted(kept | there):
        path = folder / f"{stem}.safetensors"
        manifest = store.read_manifest(path.with_suffix(".json"))
        if manifest is None:
            yield f"{path.with_suffix('.json')}, the manifest of a best checkpoint, is missing or damaged"
            continue
        try:
            store.verify(manifest.files["weights"])
        except StaleError as error:
            yield str(error)
