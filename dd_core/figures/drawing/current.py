"""The files of a figure, drawn only where they do not show what there is now.

A manifest vouches for the files of a figure and says what they were drawn from: the rows of its tables, the study, and
the code of this package with what it draws with. It has the digests of what was drawn: it does not vouch for a picture
that a training puts in their place (``dd_core.figures.drawing.so_far``), whenever that is.
"""

import hashlib
import json
from functools import cache
from importlib import metadata
from pathlib import Path

from dd_core.figures import Figure
from dd_core.figures.drawing.selection import HASHED_BY
from dd_core.figures.drawing.source import Source, source_of
from dd_core.store.manifests import FileEntry, Manifest
from dd_core.store.store import Store
from dd_core.study.study import Study

_KINDS = ("html", "svg", "json")
_DRAWN_WITH = ("altair", "vl-convert-python", "numpy", "scipy")


def draw(figure: Figure, study: Study, store: Store) -> dict[str, Path]:
    """Bring the files of a figure of one study up to date.

    Args:
        figure: what to draw.
        study: of which.
        store: the data root.

    Returns:
        The paths by format; none where the study has no data for the figure.

    Raises:
        DataMissingError: the study has rows, but the figure needs more than that.
        StoreError: a file cannot be read or written.
    """
    if not any(_may_have_rows(store, table, study) for table in figure.tables):
        return {}
    source = source_of(store, study, {*figure.tables, "runs"})
    state = _state(figure, study, source)
    manifest = store.figure_manifest_path(figure.name, study.name)
    drawn = store.read_manifest(manifest)
    if drawn is not None and drawn.content.get("state") == state and store.is_sound(drawn):
        return {kind: store.root / drawn.files[kind].path for kind in _KINDS}
    from dd_core.figures.drawing.render import contents, is_passing, write  # loads Altair, which nothing above needs

    chart = figure.draw(study, store, source.connection(*figure.tables, "runs"), source.digest)
    if chart is None:
        return {}
    texts = contents(chart, study.name)
    files = write(texts, store.figure_folder(figure.name), study.name)
    if "" not in state.values() and not is_passing(chart):
        entries = {kind: _entry(store, path, texts[kind].encode()) for kind, path in files.items()}
        store.seal(manifest, Manifest({"state": state}, entries))
    return files


def _entry(store: Store, path: Path, content: bytes) -> FileEntry:
    return FileEntry(str(path.relative_to(store.root)), hashlib.sha256(content).hexdigest(), len(content))


def _may_have_rows(store: Store, table: str, study: Study) -> bool:
    try:
        return store.table_folder(table, study.name).is_dir()
    except OSError:
        return True  # who reads what is there will say what is wrong


def _state(figure: Figure, study: Study, source: Source) -> dict[str, str]:
    """Digests of what a figure is drawn from, by name; empty where one cannot be told from others."""
    tables = {table: source.digest(table) for table in figure.tables}
    others = {
        "study": study.model_dump_json(),
        "arms": source.said_of_arms(*figure.tables),
    }
    return HASHED_BY | tables | {name: _sha256(text) for name, text in others.items()} | {"code": _code()}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _code() -> str:
    """Digest of this package and of the versions of what it draws with: a figure may call any part of it."""
    folder = Path(__file__).parents[2]
    paths = sorted(path for kind in ("py", "csv") for path in folder.rglob(f"*.{kind}"))
    digest = hashlib.sha256(json.dumps([metadata.version(name) for name in _DRAWN_WITH]).encode())
    for path in paths:
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
