"""The library: studies, models, training, curvature, tables. It never imports Dagster.

``dd_core.open("data")`` gives a data root to Python: SQL, checkpoints as networks, figures (``dd_core.lab``). Nothing
else is imported here, so that ``import dd_core.study.study`` stays cheap for the command line; import the module that
owns what you need (``dd_core.study.study``, ``dd_core.training``, ``dd_core.curvature``, ...).
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dd_core.lab import Lab


def open(root: str | Path | None = None) -> "Lab":
    """A data root, to be read: ``dd_core.open("data").sql("SELECT ...").df()``.

    Args:
        root: a folder, or an address like ``s3://bucket/folder``; default ``DD_ROOT``, else ``data``.

    Raises:
        StoreError: it is not there.
    """
    from dd_core.lab import Lab

    return Lab(root)
