"""What a study asks to be measured while it trains, and what of it was asked for only after training.

Evaluations and monitors change no weight, so they are no part of the recipe: a study may ask for more later, but what
was not measured then is not there. Each checkpoint's manifest has what was asked for when it was trained.
"""

from collections.abc import Mapping
from typing import Any

from dd_core.study.study import Study


def measured(study: Study) -> dict[str, Any]:
    """What is evaluated and monitored, plain JSON."""
    monitors = study.monitors.active(study.data.num_validation > 0)
    evaluation = study.evaluation.model_dump(mode="json")
    if not study.evaluation.image_values:  # which did not exist in earlier versions
        del evaluation["image_values"]
    return {
        "evaluation": evaluation,
        "monitors": {name: entry.model_dump(mode="json") for name, entry in monitors.items()},
    }


def asked_later(then: Mapping[str, Any] | None, study: Study) -> list[str]:
    """What a study asks for that was not measured when a checkpoint was trained.

    Args:
        then: what the checkpoint's manifest says was measured; one of an earlier version does not say, and nothing is
            found.
        study: as it is now.

    Returns:
        Parts of a sentence.
    """
    now = measured(study)
    if then is None:
        return []
    found = []
    every, before = now["evaluation"]["every"], then["evaluation"]["every"]
    if every % before:
        found.append(f"evaluations every {_epochs(every)} (trained with every {_epochs(before)})")
    images = [asked["evaluation"]["image_progress"] for asked in (then, now)]
    if images == ["checkpoints", "evaluations"]:
        found.append("values of single images at every evaluation (trained with those at checkpoints)")
    for name in study.evaluation.image_values:  # of graphs the others are always kept
        if name not in then["evaluation"].get("image_values", ()):
            found.append(f"{name} of single images (trained without it)")
    for name, entry in now["monitors"].items():
        former = then["monitors"].get(name)
        if former is None:
            found.append(f"the monitor {name} (trained without it)")
        elif former != entry:
            changed = [key for key in entry if former.get(key) != entry[key]]
            said = ", ".join(f"{key} {entry[key]} (trained with {former.get(key)})" for key in changed)
            found.append(f"the monitor {name} with {said}")
    return found


def _epochs(number: int) -> str:
    return "epoch" if number == 1 else f"{number} epochs"
