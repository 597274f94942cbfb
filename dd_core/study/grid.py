"""Grids: a variant with lists of settings becomes a variant for each combination, before anything is validated.

A study file says ``grid: {learning_rate: [0.05, 0.1], weight_decay: [1e-4, 1e-3]}`` in a variant ``s-core``, and the
study has the variants ``s-core-lr0-05-wd1e-4``, … Their recipes are those of variants written out by hand. What was
varied stays with them as values (``Variant.family``, ``Variant.grid_values``), so nobody has to take names apart.
"""

import copy
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from dd_core.study.architectures import ARCHITECTURES
from dd_core.study.recipe import Variant
from dd_core.words import nearest

# More than Dagster's UI shows in finite time; a slip of a file must not fill the memory.
_MOST_VARIANTS = 10_000
_SHORT = {
    "learning_rate": "lr",
    "weight_decay": "wd",
    "momentum": "mom",
    "batch_size": "bs",
    "label_noise": "noise",
    "clip_norm": "clip",
}
# Settings of a variant that a grid leaves alone: what it fills in itself, and those with a list of their own.
_APART = ("grid", "grid_values", "family", "widths")


def unfolded(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a study with every grid unfolded; and its widths, where all variants have their own.

    Raises:
        ValueError: a grid names what is no setting, or nothing, or too much, or two of its variants have one name.
    """
    variants = content.get("variants")
    if not isinstance(variants, dict) or not all(isinstance(one, dict) for one in variants.values()):
        return content  # validation will say so
    unfolded_variants: dict[str, Any] = {}
    for family, variant in variants.items():
        for name, one in _unfolded_variant(str(family), variant) if "grid" in variant else [(family, variant)]:
            if name in unfolded_variants:
                raise ValueError(f"variants.{family}: there are two variants {name}; rename one, or its grid's values")
            unfolded_variants[name] = one
    content = {**content, "variants": unfolded_variants}
    own = [one.get("widths") for one in unfolded_variants.values()]
    if "widths" not in content and own and all(isinstance(widths, list | tuple) for widths in own):
        every = [k for widths in own for k in widths]
        content["widths"] = tuple(dict.fromkeys(every))
    return content


def _unfolded_variant(family: str, variant: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    grid = variant["grid"]
    where = f"variants.{family}.grid"
    if not isinstance(grid, dict) or not grid:
        raise ValueError(f"{where}: is a mapping of settings to lists of values, such as {{learning_rate: [0.1, 0.2]}}")
    for setting, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{where}.{setting}: is a list of at least one value")
    number = math.prod(map(len, grid.values()))
    if number > _MOST_VARIANTS:
        raise ValueError(f"{where}: makes {number:,} variants, more than {_MOST_VARIANTS:,}")
    paths = [_path_of(variant, str(setting), where) for setting in grid]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ValueError(f"{where}: names {'.'.join(twice)} twice")
    for values in itertools.product(*grid.values()):
        one = copy.deepcopy({key: value for key, value in variant.items() if key != "grid"})
        for path, value in zip(paths, values, strict=True):
            _set(one, path, copy.deepcopy(value), where)
        one["family"] = family
        one["grid_values"] = {column_of(path): _plain(value) for path, value in zip(paths, values, strict=True)}
        yield name_of(family, dict(zip(paths, values, strict=True))), one


def name_of(family: str, values: Mapping[tuple[str, ...], Any]) -> str:
    """The variant of a family with these values, by their paths in it."""
    return "-".join([family, *(_word(path, value) for path, value in values.items())])


def settings_of(variant: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Every setting that a grid may vary, by its full name and, where that is of one alone, by its last part.

    Args:
        variant: the content of a variant; its architecture decides what is under ``network``.
    """
    paths = list(_fields(Variant, ()))
    architecture = variant.get("architecture")
    if isinstance(architecture, str) and architecture in ARCHITECTURES:
        paths += [("network", name) for name in ARCHITECTURES[architecture].settings]
    found = {".".join(path): path for path in paths}
    last = [path[-1] for path in paths]
    return found | {path[-1]: path for path in paths if last.count(path[-1]) == 1}


def column_of(path: tuple[str, ...]) -> str:
    """What tables and figures call a setting: ``learning_rate``, ``optimizer``, ``schedule_warmup_epochs``."""
    if path[0] == "optimizer":
        return "optimizer" if path[-1] == "name" else path[-1]
    return "_".join(path)


def _fields(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is not None:
            yield from _fields(inner, (*above, name))
        elif not (not above and name in _APART) and "sha256" not in name:
            yield (*above, name)


def _path_of(variant: dict[str, Any], setting: str, where: str) -> tuple[str, ...]:
    known = settings_of(variant)
    if setting in known:
        return known[setting]
    full = [name for name in known if name.endswith(f".{setting}")]
    if len(full) == 1:
        return known[full[0]]
    if full:
        raise ValueError(f"{where}.{setting}: there are several; write {' or '.join(full)}")
    if setting.startswith(("network.", "loss.options.")):  # of the user's own code, which alone knows
        return tuple(setting.split("."))
    short = ", ".join(sorted(name for name in known if "." not in name))
    near = nearest(setting, known)
    instead = f"did you mean {near!r}?" if near else f"a grid takes {short}, or a path like schedule.name"
    raise ValueError(f"{where}.{setting}: is no setting of a variant; {instead}")


def _set(variant: dict[str, Any], path: tuple[str, ...], value: Any, where: str) -> None:
    inside = variant
    for key in path[:-1]:
        inside = inside.setdefault(key, {})
        if not isinstance(inside, dict):
            raise ValueError(f"{where}: sets {'.'.join(path)}, but {key} has no settings here")
    inside[path[-1]] = value


def _word(path: tuple[str, ...], value: Any) -> str:
    """A setting and its value as part of a name: ``lr0-05``, ``wd1e-4``, ``none``."""
    name = _SHORT.get(path[-1], path[-1])
    texts = [_text(one) for one in (value if isinstance(value, list | tuple) else [value])]
    if isinstance(value, str):  # says enough without the setting's name
        return _as_name(texts[0])
    return _as_name(f"{name}{'' if texts[0][:1].isdigit() else '-'}{'-'.join(texts)}")


def _as_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    text = f"{value:g}" if float(f"{value:g}") == value else repr(value)  # 1000000 and 1e6 are one value
    mantissa, _, exponent = text.partition("e")
    if not exponent and value and abs(value) <= 1e-2:  # 0.0001 is shorter as 1e-4, in whichever way it was written
        mantissa, _, exponent = f"{value:e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        if float(f"{mantissa}e{exponent}") != value:
            return text
    return f"{mantissa}e{int(exponent)}" if exponent else text


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value
