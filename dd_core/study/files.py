"""Studies from YAML files: what cannot be used is said in one sentence with the path of the key."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dd_core.errors import StudyError, UserError
from dd_core.study.grid import unfolded
from dd_core.study.study import Study
from dd_core.study.yaml_files import read_mapping, validated
from dd_core.words import advice, meant


def read_study(path: Path) -> Study:
    """Read and validate one study file.

    Raises:
        StudyError: with the file and, where there is one, the path of the offending key.
    """
    try:
        content = unfolded({"name": path.stem, **read_mapping(path, "a study")})
        study = validated(path, Study, content)
    except UserError as error:
        raise StudyError(str(error)) from error
    except ValueError as error:
        raise StudyError(f"{path}: {error}") from error
    if study.name != path.stem:
        raise StudyError(f"{path}: name: is {study.name!r}, but the file is called {path.stem!r}; leave the key out")
    return study


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
        instead = meant(name, [path.stem for path in self.errors]) or f"; {advice(name, sorted(self.studies))}"
        raise UserError(f"there is no study {name!r}{instead}")


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
