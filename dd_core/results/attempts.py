"""How the attempts at the trials of an arm ended, as far as the table ``runs`` says."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dd_core.tables.files import read_parquet


def attempts(paths: Iterable[Path], recipe: str) -> list[dict[str, Any]]:
    """Rows of ``runs`` of a recipe, one for each trial and attempt: its end where it has one, else its beginning.

    In the order of attempts. Columns that an earlier version did not know are missing.

    Raises:
        StaleError: a file is damaged.
    """
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for path in paths:
        for row in read_parquet(path).to_pylist():
            key = row["attempt"], row["trial"]
            if row["recipe"] == recipe and (key not in found or row["status"] != "running"):
                found[key] = row
    return [found[key] for key in sorted(found)]


def last_attempts(paths: Iterable[Path], recipe: str) -> dict[int, dict[str, Any]]:
    """The last attempt at each trial."""
    return {row["trial"]: row for row in attempts(paths, recipe)}
