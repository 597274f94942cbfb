"""The study file of imported runs: made when the first of them is imported, extended when more are.

Figures ask the study which arms there are, at which epochs, and what to call them.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from dd_core.errors import UserError
from dd_core.store.store import write_text
from dd_core.study.recipe import Data, Variant
from dd_core.study.study import Arm, Study
from dd_core.study.yaml_files import describe_problems

# Of these, figures choose the latest that all arms have.
_MOST_EPOCHS = 100


@dataclass(frozen=True)
class StudyFile:
    """A study file as it is and as it shall be.

    Attributes:
        path: of the file.
        former: its text, None if there is none yet.
        text: what it shall say.
        study: the study that is then.
    """

    path: Path
    former: str | None
    text: str
    study: Study

    @property
    def differs(self) -> bool:
        """Whether there is something to write."""
        return self.text != self.former

    def write(self) -> None:
        """Write it if it differs.

        Raises:
            StoreError: it cannot be written.
        """
        if self.differs:
            write_text(self.path, self.text)


def extended(
    folder: Path,
    name: str,
    former: Study | None,
    description: str,
    data: Data,
    variants: dict[str, Variant],
    epochs: dict[Arm, list[int]],
    num_trials: int,
    width_unit: float = 1.0,
    *,
    further: dict[str, Any] | None = None,
) -> StudyFile:
    """The study file that covers some runs as well as what it covers now.

    Args:
        folder: of study files.
        name: of the study.
        former: the study as its file says now, None if there is none.
        description: for a new file.
        data: the data set.
        variants: those of the runs.
        epochs: by arm, at which it was evaluated.
        num_trials: how many there are, those of earlier imports included.
        width_unit: the width that k = 1 stands for.
        further: other keys of a new file; with ``imported: weights`` every epoch becomes a checkpoint.

    Raises:
        UserError: something of it is impossible.
    """
    further = {"imported": True, **(further or {})}
    has_weights = further["imported"] == "weights"
    shown = {epoch for own in epochs.values() for epoch in own} if has_weights else _shown_epochs(epochs)
    widths = {name: set(former.widths_of(name)) for name in former.variants} if former else {}
    for arm in epochs:
        widths.setdefault(arm.variant, set()).add(arm.k)
    everywhere = set().union(*widths.values())
    content = former.model_dump(mode="json", exclude_defaults=True) if former else {}
    content = {
        "name": name,
        "description": description,
        **further,
        "data": data.model_dump(mode="json", exclude_defaults=True),
        **content,
        "variants": {
            **content.get("variants", {}),
            **{key: variant.model_dump(mode="json", exclude_defaults=True) for key, variant in variants.items()},
        },
        "widths": sorted(everywhere),
        **({} if width_unit == 1 else {"width_unit": width_unit}),
        "trials": max(content.get("trials", 1), num_trials),
        "epochs": max(content.get("epochs", 1), *shown),
        "checkpoints": sorted({*content.get("checkpoints", ()), *shown}),
    }
    for key, own in widths.items():
        content["variants"][key].pop("widths", None)
        if own != everywhere:
            content["variants"][key]["widths"] = sorted(own)
    # What a file of orders says is read anew: there may be orders of further trials.
    classes = content["data"].get("classes", {})
    classes.pop("found", None)
    path = next((p for suffix in (".yaml", ".yml") if (p := folder / f"{name}{suffix}").is_file()), None)
    text = path.read_text(encoding="utf-8") if path else None
    try:
        study = Study.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise UserError(f"study {name}: {describe_problems(error, Study)}") from error
    del content["name"]
    content["data"] = _as_written(content["data"], folder)
    wanted = text if text is not None and study == former else _yaml(content, text)
    return StudyFile(path or folder / f"{name}.yaml", text, wanted, study)


def _as_written(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Data as a study file in a folder says them, without what is found out when it is read."""
    classes, dataset = dict(data.get("classes", {})), data["dataset"]
    if Path(classes.get("order", "")).is_relative_to(folder):
        classes["order"] = str(Path(classes["order"]).relative_to(folder))
    if isinstance(dataset, dict):
        own = {key: dataset[key] for key in ("npz", "folder", "resize") if key in dataset}
        dataset = dataset.get("function", own)
    return {**data, "dataset": dataset, **({"classes": classes} if classes else {})}


def _shown_epochs(epochs: dict[Arm, list[int]]) -> set[int]:
    """About ``_MOST_EPOCHS`` of all epochs, spread evenly over 1 + epoch by ratio, and the last of every arm."""
    everything = np.array(sorted({epoch for of_arm in epochs.values() for epoch in of_arm}))
    if len(everything) <= _MOST_EPOCHS:
        return set(everything.tolist())
    wanted = np.geomspace(everything[0] + 1, everything[-1] + 1, _MOST_EPOCHS) - 1
    nearest = np.abs(everything[:, None] - wanted).argmin(axis=0)
    return {*everything[nearest].tolist(), *map(max, epochs.values())}


def _yaml(content: dict[str, Any], former: str | None) -> str:
    """These keys as YAML; comments and order of an existing file are kept."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt")
    yaml.width = 120
    yaml.default_flow_style = None  # a line for each list or mapping that holds no other
    keys: dict[str, Any] = yaml.load(former) if former else {}
    for key, value in content.items():
        if key == "variants" and key in keys:
            by_hand = {family for family, variant in keys[key].items() if "grid" in variant}
            own = {name: variant for name, variant in value.items() if variant.get("family") not in by_hand}
            keys[key].update({name: variant for name, variant in own.items() if name not in keys[key]})
            for name, variant in own.items():
                if "widths" in variant:
                    keys[key][name]["widths"] = variant["widths"]
                else:
                    keys[key][name].pop("widths", None)
        elif key not in keys or keys[key] != value:
            keys[key] = value
    text = io.StringIO()
    yaml.dump(keys, text)
    return text.getvalue()
