"""Studies from YAML files: what cannot be used is said in one sentence with the path of the key."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dd_core.errors import StudyError, UserError
from dd_core.studies import Study


def read_study(path: Path) -> Study:
    """Read and validate one study file.

    Raises:
        StudyError: with the file and, where there is one, the path of the offending key.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise StudyError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except YAMLError as error:
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise StudyError(f"{path}: not valid YAML{where} ({reason})") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path}: a study is a mapping of keys to values, not {type(content).__name__}")
    try:
        text = json.dumps({"name": path.stem, **content})
    except (TypeError, ValueError) as error:  # dates and the like; a list that contains itself
        raise StudyError(f"{path}: only numbers, text, lists and mappings belong in a study ({error})") from error
    try:
        study = Study.model_validate_json(text)
    except ValidationError as error:
        raise StudyError(f"{path}: {describe_problems(error)}") from error
    if study.name != path.stem:
        raise StudyError(f"{path}: name: is {study.name!r}, but the file is called {path.stem!r}; leave the key out")
    return study


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


@dataclass(frozen=True)
class Catalogue:
    """The studies found, and for each file that could not be used the reason."""

    studies: dict[str, Study]
    errors: dict[Path, str]

    def get(self, name: str) -> Study:
        """The study of that name.

        Raises:
            UserError: there is none, or its file has an error.
        """
        if name in self.studies:
            return self.studies[name]
        for path, reason in self.errors.items():
            if path.stem == name:
                raise StudyError(reason)
        raise UserError(f"there is no study {name!r}; there are {', '.join(sorted(self.studies)) or 'none'}")


def read_studies(folders: Iterable[Path]) -> Catalogue:
    """Read every ``*.yaml`` of the folders; a file with an error does not keep the others from loading.

    Of two files with the same name the first is taken and the second is reported as an error.
    """
    studies: dict[str, Study] = {}
    errors: dict[Path, str] = {}
    for folder in folders:
        if not folder.is_dir():
            errors[folder] = f"{folder}: the folder of study files does not exist"
            continue
        for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
            try:
                if path.stem in studies:
                    raise StudyError(f"{path}: there is a study {path.stem!r} already; rename this file")
                studies[path.stem] = read_study(path)
            except StudyError as error:
                errors[path] = str(error)
    return Catalogue(studies, errors)
