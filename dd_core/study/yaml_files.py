"""YAML files that people write: what cannot be used is said in one sentence with the path of the key.

A file is data of people and may be damaged or meant to harm: its size, and what its aliases unfold to, have limits, so
that one file keeps nobody from using the others.
"""

import json
import math
import re
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dd_core.errors import UserError
from dd_core.study.former_names import now
from dd_core.study.key_advice import keys_at
from dd_core.study.parsed_before import keep_mapping, kept_mapping
from dd_core.words import advice, meant, nearest

Model = TypeVar("Model", bound=BaseModel)

_MOST_BYTES = 2**20  # read in three seconds; a large study has some thousands
_MOST_VALUES = 100_000  # with every alias unfolded
_DEEPEST = 100  # brackets in brackets
_LONGEST_SHOWN = 60  # characters of a value in an error
_UNKNOWN_KEY = "extra_forbidden"  # pydantic's name
_QUOTED = re.compile(r"'([^']+)'")


def read_mapping(path: Path, what: str, *, may_be_empty: bool = False) -> dict[str, Any]:
    """The content of a file: numbers, text, lists and mappings alone.

    Args:
        path: of the file.
        what: it should hold, for people: ``a study``.
        may_be_empty: then it is an empty mapping.

    Raises:
        UserError: it cannot be read or used; the sentence names the file.
    """
    try:
        text = _text(path, what)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if (kept := kept_mapping(text)) is not None:
        return kept
    plain = _plain(path, text, what, may_be_empty)
    if plain:  # what is empty is no study, and no mistake in settings
        keep_mapping(text, plain)
    return plain


def _plain(path: Path, text: str, what: str, may_be_empty: bool) -> dict[str, Any]:
    """The content of a text, as ``read_mapping`` returns it."""
    from ruamel.yaml.error import YAMLError

    try:
        content = _parsed(text)
    except YAMLError as error:
        reason = str(getattr(error, "problem", None) or error).splitlines()[0].partition(" with value ")[0]
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: not valid YAML{where} ({reason})") from error
    except RecursionError:
        raise UserError(f"{path}: lists and mappings are nested too deeply for {what}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of the parser's own
        raise UserError(f"{path}: cannot be used ({_shortened(error)})") from error
    if content is None and may_be_empty:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: {what} is a mapping of keys to values, not {type(content).__name__}")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(content), parse_int=_whole_number)
    except (TypeError, ValueError) as error:  # dates and the like
        raise UserError(
            f"{path}: only numbers, text, lists and mappings belong in {what} ({_shortened(error)})"
        ) from error
    return plain


def _text(path: Path, what: str) -> str:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise UserError(f"{path}: is larger than {_MOST_BYTES // 2**20} MiB, which is too much for {what}")
    return content.decode("utf-8")


def _parsed(text: str) -> Any:
    """What ``YAML.load`` does, with a look at the size of the content before any of it is made."""
    from ruamel.yaml import YAML

    # The parser itself gives up at some 300 levels, but takes seconds to get there.
    if max(accumulate((ch in "[{") - (ch in "]}") for ch in text if ch in "[]{}"), default=0) > _DEEPEST:
        raise RecursionError
    constructor, parser = YAML(typ="safe", pure=True).get_constructor_parser(text)
    try:
        node = constructor.composer.get_single_node()
        if node is None:
            return None
        num_values = _num_values(node, {})
        if math.isinf(num_values):
            raise ValueError("only numbers, text, lists and mappings belong there, and nothing that contains itself")
        if num_values > _MOST_VALUES:
            raise ValueError(f"its aliases unfold to {num_values:.2g} values, more than {_MOST_VALUES:,}")
        return constructor.construct_document(node)
    finally:
        parser.dispose()


def _num_values(node: Any, known: dict[int, float]) -> float:
    """Values in a node, those behind an alias as often as they are used; infinite if it contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known: a question meanwhile comes from inside of it
        children = node.value if isinstance(node.value, list) else []
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1.0 + sum(_num_values(part, known) for part in parts)
    return known[id(node)]


def _whole_number(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= 2**64:
        raise ValueError(f"{digits[:20]}… is a number of {len(digits)} digits")
    return int(digits)


def _shortened(error: object) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= 200 else f"{words[:200]}…"


def validated(path: Path, model: type[Model], content: dict[str, Any]) -> Model:
    """The model of a file's content.

    Raises:
        UserError: with the file and the path of each offending key.
    """
    try:
        return model.model_validate_json(json.dumps(content), context={"folder": path.parent})
    except ValidationError as error:
        raise UserError(f"{path}: {describe_problems(error, model)}") from error


def describe_problems(error: ValidationError, model: type[BaseModel]) -> str:
    """All problems of a file in one line, each with the path of its key, and with what it was probably meant to be."""
    problems = error.errors()
    misspelt = {
        (*problem["loc"][:-1], nearest(str(problem["loc"][-1]), keys_at(model, problem["loc"][:-1])))
        for problem in problems
        if problem["type"] == _UNKNOWN_KEY
    }
    parts = []
    for problem in problems:
        *place, key = problem["loc"] or ("",)
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        shown = f" (got {_brief(given)})" if isinstance(given, int | float | str | bool) else ""
        if problem["type"] == _UNKNOWN_KEY:
            message, shown = f"there is no such key; {advice(str(key), keys_at(model, place), 'keys are')}", ""
        elif problem["type"] == "missing":
            if problem["loc"] in misspelt:  # the misspelt one has been named
                continue
            message, shown = "is missing", ""
        elif isinstance(given, str):
            allowed = _QUOTED.findall(message)
            # What a table calls it was meant for the name that training has for it.
            shown += meant(next((name for name in allowed if now(name).name == given), given), allowed)
        parts.append(f"{where}: {message}{shown}" if where else message)
    return "; ".join(parts)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


class Strict(BaseModel):
    """Immutable, nothing converted, nothing ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
