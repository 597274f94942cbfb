"""What the head of a resume point says, from which a training goes on; opens nothing else. Needs no torch."""

import json

from dd_core.store.files import tensors_metadata
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study


def trained_epoch(store: Store, study: Study, arm: Arm) -> int:
    """The epoch from which training of an arm will go on: that of its resume point, 0 without a usable one."""
    return int(resume_metadata(store, study, arm).get("epoch", 0))


def resume_metadata(store: Store, study: Study, arm: Arm) -> dict[str, str]:
    """What the head of an arm's resume point says; nothing without an unharmed one of the present recipe."""
    try:
        metadata = tensors_metadata(store.resume_path(study.name, arm.key))
        is_of_this_recipe = json.loads(metadata["identity"])["recipe"] == study.recipe_hash(arm)
        content = {name: text for name, text in metadata.items() if name != "digest"}
        if not metadata["digest"].endswith(json.dumps(content, sort_keys=True)):
            return {}
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return {}
    return metadata if is_of_this_recipe else {}
