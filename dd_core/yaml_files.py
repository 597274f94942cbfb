"""YAML files that people write: what cannot be used is said in one sentence with the path of the key."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dd_core.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def read_mapping(path: Path, what: str, *, may_be_empty: bool = False) -> dict[str, Any]:
    """The content of a file: numbers, text, lists and mappings alone.

    Args:
        path: of the file.
        what: it should hold, for people: ``a study``.
        may_be_empty: then it is an empty mapping.

    Raises:
        UserError: it cannot be read or used; the sentence names the file.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except YAMLError as error:
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: not valid YAML{where} ({reason})") from error
    if content is None and may_be_empty:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: {what} is a mapping of keys to values, not {type(content).__name__}")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(content))
    except (TypeError, ValueError) as error:  # dates and the like; a list that contains itself
        raise UserError(f"{path}: only numbers, text, lists and mappings belong in {what} ({error})") from error
    return plain


def validated(path: Path, model: type[Model], content: dict[str, Any]) -> Model:
    """The model of a file's content.

    Raises:
        UserError: with the file and the path of each offending key.
    """
    try:
        return model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise UserError(f"{path}: {describe_problems(error)}") from error


def describe_problems(error: ValidationError) -> str:
    """All problems of a file in one line, each with the path of its key."""
    parts = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        shown = f" (got {given!r})" if isinstance(given, int | float | str | bool) else ""
        parts.append(f"{where}: {message}{shown}" if where else message)
    return "; ".join(parts)
