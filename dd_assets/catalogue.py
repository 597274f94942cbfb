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


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """All studies, read once per process."""
    return read_studies(study_folders())


def broken_key(path: Path) -> list[str]:
    """The key of the asset that stands for a study file that cannot be used."""
    return ["broken_studies", re.sub(r"\W", "_", path.name)]
