"""How imported runs were trained: as their study file says, as the export they come from says, as the user says.

All who say something must agree; what nobody says of a new variant is asked for, never guessed.
"""

import json
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from dd_core.errors import UserError
from dd_core.exchange.runs import Run
from dd_core.study.recipe import Data, Variant, recipe_of
from dd_core.study.yaml_files import Strict, describe_problems
from dd_core.words import meant

Described = TypeVar("Described", bound=Strict)
_NEEDED = ("architecture", "label_noise", "batch_size", "optimizer.name", "optimizer.learning_rate")
_OPTIONS = {"optimizer.name": "optimizer", "optimizer.learning_rate": "learning-rate"}


def agreed_data(
    known: Data | None, runs: Iterable[Run], given: dict[str, Any], study: str, others: Iterable[str] = ()
) -> Data:
    """The data set of a study.

    Args:
        known: as the study file says.
        runs: those to be imported.
        given: keys of ``Data`` that the user says.
        study: its name.
        others: imported studies, one of which may have been meant.

    Raises:
        UserError: nobody says which data set it is, or two disagree.
    """
    exported = [_parsed(Data, settings["data"], f"data of {study}") for settings in _exported(runs)]
    if known is None and not exported and "dataset" not in given:
        raise UserError(
            f"study {study} is new, and which data set it is about is not in the files: pass --dataset"
            f"{meant(study, others)}"
        )
    return _agreed(Data, [*([known] if known else []), *exported], given, f"data of {study}", "study name")


def agreed_variant(known: Variant | None, runs: list[Run], given: dict[str, Any], name: str) -> Variant:
    """A variant of a study.

    Args:
        known: as the study file says.
        runs: those to be imported.
        given: keys of ``Variant`` that the user says, those of the optimiser in a dictionary of its own.
        name: of the variant.

    Raises:
        UserError: something that is needed is said by nobody, or two disagree.
    """
    exported = [_parsed(Variant, settings["variant"], f"variant {name}") for settings in _exported(runs)]
    if known is None and not exported:
        given = _over({"optimizer": _measured(runs)}, given)
        flat = {**given, **{f"optimizer.{key}": value for key, value in given["optimizer"].items()}}
        missing = [_OPTIONS.get(key, key.replace("_", "-")) for key in _NEEDED if key not in flat]
        if missing:
            raise UserError(
                f"variant {name} is new, and how it was trained is not in the files: pass "
                + ", ".join(f"--{option}" for option in missing)
            )
    return _agreed(Variant, [*([known] if known else []), *exported], given, f"variant {name}", "--variant")


def with_said(given: dict[str, Any], said: dict[str, Any], variant: str) -> dict[str, Any]:
    """What the user says of a variant, and what its files say.

    Raises:
        UserError: they say different things.
    """
    for key, value in said.items():
        if isinstance(value, dict) and isinstance(given.get(key), dict):
            with_said(given[key], value, variant)
        elif given.get(key, value) != value:
            raise UserError(
                f"variant {variant}: {key} is {value} as the files say, but {given[key]} as the option says"
            )
    return _over(given, said)


def _exported(runs: Iterable[Run]) -> list[dict[str, Any]]:
    return [source.settings for run in runs for source in run.sources if source.settings]


def _agreed(kind: type[Described], told: list[Described], given: dict[str, Any], what: str, choice: str) -> Described:
    """What all say; the keys given are said of the whole."""
    first = told[0] if told else _parsed(kind, given, what)
    by_user = _parsed(kind, _over(first.model_dump(mode="json"), given), what)
    for other in (*told, by_user):
        mine, theirs = recipe_of(first), recipe_of(other)
        for key in kind.model_fields:
            one, another = getattr(first, key), getattr(other, key)
            if mine.get(key) != theirs.get(key):
                raise UserError(f"{what}: {key} is ({one}) and cannot be ({another}) as well; choose another {choice}")
    return first


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both together; where both have a key, ``above`` counts."""
    merged = {**below, **above}
    for key, value in below.items():
        if isinstance(value, dict) and isinstance(above.get(key), dict):
            merged[key] = _over(value, above[key])
    return merged


def _parsed(kind: type[Described], content: dict[str, Any], what: str) -> Described:
    try:
        return kind.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise UserError(f"{what}: {describe_problems(error, kind)}") from error


def _measured(runs: list[Run]) -> dict[str, float]:
    """The largest learning rate, and the weight decay if it never changes, as the files say."""
    found = {}
    for key in ("learning_rate", "weight_decay"):
        parts = [
            v.value[np.isfinite(v.value)]
            for run in runs
            for table in ("training_batches", "training_monitors")  # of batches, or of epochs
            for v in run.content.get(table, {}).get(key, [])
        ]
        values = {float(value) for part in parts if len(part) for value in (part.min(), part.max())}
        if values and (key == "learning_rate" or len(values) == 1):
            found[key] = max(values)
    return found
