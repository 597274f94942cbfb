"""What a drawn figure says: its title, the lines below it, the rows of its data; and whether one can read it."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

_POINTS = {"bar", "circle", "image", "point", "rect", "rule", "square", "tick", "boxplot"}
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"


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


def marks(part: dict[str, Any], given: dict[str, Any], data: str | None) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Of a part of a chart every mark: its kind, its encoding with what it inherits, and the name of its data."""
    encoding = {**given, **part.get("encoding", {})}
    data = part.get("data", {}).get("name", data)
    if "mark" in part:
        kind = part["mark"] if isinstance(part["mark"], str) else part["mark"]["type"]
        yield kind, encoding, data
    for layer in part.get("layer", ()):
        yield from marks(layer, encoding, data)


def panels(part: dict[str, Any], data: str | None = None) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The panels of a chart, and the name of the data that each inherits."""
    data = part.get("data", {}).get("name", data)
    inner = [panel for kind in ("concat", "hconcat", "vconcat") for panel in part.get(kind, ())]
    if not inner:
        yield part, data
    for panel in inner:
        yield from panels(panel, data)


def assert_legible(specification: dict[str, Any], svg: str) -> None:
    """Data is said under the pointer, an axis has one form of numbers, and the page is seen behind.

    Of a line or an area Vega shows the first row wherever the pointer is: it needs points of the same data.
    """
    config = specification["config"]
    assert config["background"] == "transparent"
    for panel, data in panels(specification):
        drawn = [(kind, own, name) for kind, own, name in marks(panel, {}, data) if kind != "text"]
        shown = [
            (kind, name)
            for kind, own, name in drawn
            if kind in _POINTS and ("tooltip" in own or kind == "boxplot" or "tooltip" in config.get(kind, {}))
        ]
        for kind, own, name in drawn:
            if not any(isinstance(channel, dict) and "field" in channel for channel in own.values()):
                continue
            if kind in _POINTS:
                assert (kind, name) in shown, f"{kind} without tooltip: {own}"
            elif name is not None and len(specification["datasets"][name]) > 2:
                assert name in {of for _, of in shown}, f"{kind} without points: {own}"
    for group in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}g"):
        assert "mark-text" not in group.get("class", "") or "clip-path" not in group.attrib, "words are cut off"
        if "role-axis-label" in group.get("class", ""):
            labels = [text.text or "" for text in group]
            assert not any(re.fullmatch(r"[\d.]+e[-+\u2212]?\d+", label) for label in labels), labels
            powers = [
                "10" in label and label[-1] in "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
                for label in labels
            ]
            assert all(powers) or not any(powers), labels
