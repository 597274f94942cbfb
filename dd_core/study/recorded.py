"""A study of one arm, made again from the recipe that the manifest of a checkpoint keeps.

So a data root can be read without the study files that it came from, and whatever these say now: of what is not part of
a recipe (monitors, which estimators) the study has the defaults.
"""

import copy
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from dd_core.errors import StaleError
from dd_core.study.own_code import source_digest
from dd_core.study.study import Arm, Study
from dd_core.study.yaml_files import describe_problems

_LAST_EPOCH = 9999  # the number of epochs is part of a recipe only where the schedule depends on it


def recorded_study(name: str, arm: Arm, recipe: Mapping[str, Any], trials: int, epoch: int) -> Study:
    """A study with this arm alone, whose recipe is the one that is passed.

    Args:
        name: of the study.
        arm: its variant and k.
        recipe: what ``Study.recipe`` gave when the arm was trained or imported.
        trials: their number.
        epoch: of a checkpoint, which is among those of the study.

    Raises:
        StaleError: the recipe is of another version of the platform, or names code of one's own that has changed.
        UserError: that code is not here.
    """
    data = copy.deepcopy(recipe.get("data", {}))
    for part, derived in (("graphs", "generator_version"), ("classes", "order_sha256")):
        if isinstance(data.get(part), dict):
            data[part].pop(derived, None)
    content = {
        "name": name,
        "description": f"as the manifest of {arm.key} at epoch {epoch} has it",
        "imported": recipe.get("imported", False),
        "data": data,
        "variants": {arm.variant: recipe.get("variant")},
        "widths": [arm.k],
        "width_unit": recipe.get("width_unit", 1.0),
        "trials": trials,
        "seed": recipe.get("seed", 0),
        "epochs": recipe.get("horizon_epochs") or _LAST_EPOCH,
        "checkpoints": sorted({0, epoch}),
        "evaluation": {"every": recipe.get("evaluation_every", 1)},
    }
    try:
        study = Study.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise StaleError(
            f"the recipe of {name}/{arm.key} cannot be read by this version of the platform, here: "
            f"{describe_problems(error, Study)}"
        ) from error
    variant = study.variants[arm.variant]
    for own, digest in ((variant.architecture, variant.architecture_sha256), (variant.loss.name, variant.loss.sha256)):
        if digest is not None and source_digest(own) != digest:
            raise StaleError(f"{name}/{arm.key} was made with another source of {own} than the one that is here now")
    return study
