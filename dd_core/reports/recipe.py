"""How a study trains: what all its variants have in common, and what differs between them."""

import json
from collections.abc import Mapping
from typing import Any

from dd_core.reports.parts import NOTHING, Grid
from dd_core.study.study import Study

_MOST_VARIANTS = 24  # with a row of their own


def recipe_tables(study: Study) -> tuple[Grid, Grid | None]:
    """Settings by the keys of study files; those with default values are in none of both, unless every recipe has them.

    Returns:
        What holds for all variants; and what differs, a row for each variant, or for each setting where there are very
        many variants. None: there is one variant.
    """
    by_variant = {arm.variant: _settings(study.recipe(arm)) for arm in study.arms.values()}
    keys = list(dict.fromkeys(key for settings in by_variant.values() for key in settings))
    differing = [key for key in keys if len({settings.get(key) for settings in by_variant.values()}) > 1]
    first = next(iter(by_variant.values()))
    about = {
        "widths": ", ".join(map(str, study.all_widths)),
        "epochs": str(study.epochs),
        "checkpoints after epoch": ", ".join(map(str, study.checkpoints)),
        "evaluations": f"every {study.evaluation.every} epochs" if study.evaluation.every > 1 else "every epoch",
    }
    common = Grid.of_facts({**{key: first[key] for key in keys if key not in differing}, **about})
    return common, _differences(by_variant, differing) if differing else None


def _differences(by_variant: Mapping[str, Mapping[str, str]], keys: list[str]) -> Grid:
    if len(by_variant) <= _MOST_VARIANTS:
        rows = [[name, *(own.get(key, NOTHING) for key in keys)] for name, own in by_variant.items()]
        return Grid(["variant", *keys], rows)
    values = {key: dict.fromkeys(own.get(key, NOTHING) for own in by_variant.values()) for key in keys}
    return Grid([f"of {len(by_variant)} variants", "values"], [[key, ", ".join(own)] for key, own in values.items()])


def _settings(recipe: Mapping[str, Any]) -> dict[str, str]:
    """A recipe as text by path; the variant's own settings without ``variant``."""
    return {
        path.removeprefix("variant."): text
        for path, text in _flat(recipe, "")
        if path not in ("k", "horizon_epochs", "imported", "trainer_version")
    }


def _flat(value: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}" if path else str(key))]
    return [(path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
