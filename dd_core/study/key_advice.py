"""What a misspelt key of a file was meant to be: the keys that a model has at a place, which pydantic does not tell."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel


def keys_at(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The keys that a model, and what it contains, takes at a place of a file.

    Args:
        model: of the whole file.
        place: keys and positions on the way there, as pydantic gives them, which has names of types among them.
    """
    there: list[Any] = [model]
    for part in place:
        there = list(_behind(there, part)) or there  # the name of a type leads nowhere
    return sorted({key for kind in there if _is_model(kind) for key in _keys(kind)})


def _behind(kinds: Iterable[Any], part: int | str) -> Iterator[Any]:
    for kind in kinds:
        if _is_model(kind):
            for name, field in kind.model_fields.items():
                if part in (name, field.alias):
                    yield from _flat(field.annotation)
        elif get_origin(kind) is not None and get_args(kind):
            yield from _flat(get_args(kind)[-1 if issubclass(get_origin(kind), dict) else 0])


def _flat(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union, and what is annotated; mappings and sequences as they are."""
    origin = get_origin(annotation)
    if origin is None or (isinstance(origin, type) and issubclass(origin, dict | list | tuple)):
        yield annotation
        return
    for part in get_args(annotation):
        yield from _flat(part)


def _keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield field.alias or name


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
