"""What a drawn figure says: its title, the lines below it, the rows of its data."""

import csv
import io
from typing import Any


def title(specification: dict[str, Any]) -> str:
    return " ".join(specification["title"]["text"])


def subtitle(specification: dict[str, Any]) -> str:
    return " ".join(specification["title"]["subtitle"])


def rows(specification: dict[str, Any], *keys: str) -> list[dict[str, Any]]:
    """All rows of a chart's data that have some columns."""
    tables = [
        list(csv.DictReader(io.StringIO(part))) if isinstance(part, str) else part
        for part in specification["datasets"].values()
    ]
    return [row for table in tables for row in table if set(keys) <= set(row)]
