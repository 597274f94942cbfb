"""The figures of a study as they were drawn, if they show what is there now."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

from dd_core.errors import StoreError
from dd_core.figures import DRAWN_FROM, FIGURES, Figure
from dd_core.figures.drawing.render import TABLE, for_script
from dd_core.figures.drawing.selection import HASHED_BY
from dd_core.figures.drawing.style import listed
from dd_core.reports.parts import Grid
from dd_core.store.files import read_all
from dd_core.store.store import Store
from dd_core.study.study import Study

GROUPS = {
    "figures": "Figures",
    "loss_slopes": "Loss slopes",
    "incremental": "Classes that come one after the other",
    "memorization": "Memorisation",
    "nsm": "Graph networks",
}
# Words of titles that would not be true of inverted colours, which keep only hues.
_NAMED_COLOURS = re.compile(r"\b(black|white|yellow|darker|lighter)\b", re.IGNORECASE)


@dataclass(frozen=True)
class DrawnFigure:
    """A figure of one study.

    Attributes:
        figure: what it is.
        claim: its title; empty where that depends on what is chosen in it.
        svg: the picture, as an element of a page with others like it.
        specification: Vega-Lite, JSON that may stand in a script element.
        table: words and numbers that belong below it.
        is_gallery: whether it shows images of the data set.
        is_on_paper: whether its colours would mean something else if they were inverted.
        is_known: whether it is known to show the present results.
    """

    figure: Figure
    claim: str
    svg: str
    specification: str
    table: Grid | None
    is_gallery: bool
    is_on_paper: bool
    is_known: bool = True

    @property
    def title(self) -> str:
        """Its name in words."""
        return in_words(self.figure.name)


def in_words(name: str) -> str:
    """A name of an asset as a heading: ``Curvature by width``."""
    words = name.replace("_", " ").capitalize()
    return re.sub("^(Gpu|Nsm)", lambda match: match[0].upper(), words)


def files_of_figures(store: Store, study: Study) -> dict[Figure, tuple[bytes, bytes | None]]:
    """Specification and picture, as bytes, of every figure of the study that has been drawn.

    Raises:
        StoreError: the operating system does not let us read one.
    """
    paths = [
        store.figure_folder(figure.name) / f"{study.name}.{kind}" for figure in FIGURES for kind in ("json", "svg")
    ]
    try:
        contents = read_all(paths)
    except OSError as error:
        raise StoreError(f"cannot read {error.filename}: {error.strerror}; check the data root (DD_ROOT)") from error
    pairs = zip(FIGURES, contents[::2], contents[1::2], strict=True)
    return {figure: (text, picture) for figure, text, picture in pairs if text is not None}


def drawn_figures(
    files: dict[Figure, tuple[bytes, bytes | None]], study: Study, digest: Callable[[str], str]
) -> tuple[list[DrawnFigure], list[str]]:
    """The figures that show the present results, as far as is known, and sentences about the others.

    Args:
        files: of the figures, by ``files_of_figures``.
        study: whose.
        digest: of the study's rows in a table, by its name.
    """
    drawn, damaged, others = [], [], []
    for figure, (text, picture) in files.items():
        try:
            found = _read(figure, text, picture)
        except (ValueError, KeyError, TypeError, AttributeError, ElementTree.ParseError):
            damaged.append(figure.name)
            continue
        then = json.loads(text).get("usermeta", {}).get(DRAWN_FROM, {})
        if not HASHED_BY.items() <= then.items():
            drawn.append(replace(found, is_known=False))
        elif any(then.get(table) != digest(table) for table in figure.tables):
            others.append(figure.name)
        else:
            drawn.append(found)
    left_out = []
    if damaged:
        left_out.append(_left_out(study, damaged, "its files are", "their files are", "damaged"))
    if others:
        left_out.append(_left_out(study, others, "it was", "they were", "drawn from other results than there are now"))
    return drawn, left_out


def _left_out(study: Study, names: list[str], one: str, several: str, what: str) -> str:
    command = f"dagster asset materialize --select '{','.join([*names, 'report'])}'"
    if len(names) == 1:
        return f"{names[0]} of {study.name} is left out, as {one} {what}; draw it again: {command}"
    return f"{listed(names)} of {study.name} are left out, as {several} {what}; draw them again: {command}"


def _read(figure: Figure, text: bytes, picture: bytes | None) -> DrawnFigure:
    """Raises one of several errors if a file is damaged."""
    if picture is None:
        raise ValueError("there is no picture")
    specification: dict[str, Any] = json.loads(text)
    ElementTree.fromstring(picture)
    title = specification.get("title", "")
    lines = title.get("text", "") if isinstance(title, dict) else title
    table = specification.get("usermeta", {}).get(TABLE)
    compact = json.dumps(specification, ensure_ascii=False, separators=(",", ":"))
    return DrawnFigure(
        figure,
        " ".join([lines] if isinstance(lines, str) else lines if isinstance(lines, Sequence) else []),
        _apart(picture.decode("utf-8"), f"{figure.name}-"),
        for_script(compact),
        Grid(table["head"], table["rows"]) if table else None,
        is_gallery="data:image/png" in compact,
        is_on_paper='"scheme":' in compact or bool(_NAMED_COLOURS.search(json.dumps(title))),
    )


def _apart(svg: str, prefix: str) -> str:
    """A picture whose names of clips and gradients are no other's on the page."""
    svg = re.sub(r'(\sid=")', rf"\g<1>{prefix}", svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)
