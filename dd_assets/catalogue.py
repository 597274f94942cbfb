"""Which studies there are: the package's own files and the user's folder."""

import re
from functools import lru_cache
from pathlib import Path

from dd_core.study.files import Catalogue, read_studies
from dd_core.study.own_code import studies_folder


def study_folders() -> list[Path]:
    """The package's studies, then the folder named by ``DD_STUDIES`` if it is set."""
    own = Path(__file__).parent / "studies"
    extra = studies_folder()
    return [own, extra] if extra else [own]


def catalogue() -> Catalogue:
    """All studies; read again when a file of their folders has come, gone or changed."""
    folders = study_folders()
    files = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    return _read(tuple(folders), tuple((path, _version(path)) for path in files))


@lru_cache(maxsize=1)
def _read(folders: tuple[Path, ...], _: tuple[tuple[Path, tuple[int, int]], ...]) -> Catalogue:
    return read_studies(folders)


def _version(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # gone by now, or a link to nowhere
        return 0, 0
    return status.st_mtime_ns, status.st_size


def broken_key(path: Path) -> list[str]:
    """The key of the asset that stands for a study file that cannot be used."""
    return ["broken_studies", re.sub(r"\W", "_", path.name)]
