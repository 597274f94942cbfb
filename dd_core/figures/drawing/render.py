"""A chart as files: a page that works offline, a picture and the specification; and a preview for Dagster's UI."""

import base64
import html
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import altair as alt
import vl_convert

from dd_core.figures.drawing import style
from dd_core.figures.drawing.quick import quickly
from dd_core.figures.drawing.zoom import HELP, is_zoomable
from dd_core.store.store import write_text

# Dagster stores metadata with every materialisation and loads it with the asset's page.
PREVIEW_BYTES = 150_000
TABLE, _PASSING = "table", "is_passing"  # in the specification's usermeta, which Vega ignores
_STYLE = """<style>
table { border-collapse: collapse; margin: 1em 14px; font: 13px/1.4 Arial, "Liberation Sans", Helvetica, sans-serif }
th, td { border-bottom: 1px solid #DDD; padding: 4px 10px; text-align: left; vertical-align: top }
</style>"""
# Charts are drawn for paper: in the dark all of one is inverted, but for photographs.
_PAGE_STYLE = """<style>
:root { color-scheme: light dark }
body { font: 13px/1.4 Arial, "Liberation Sans", Helvetica, sans-serif }
.vega-embed { color-scheme: light; color: black }
.vega-bindings, .help { margin: 6px 14px }
@media screen and (prefers-color-scheme: dark) {
  body { background: #141414; color: #E8E8E6 }
  .vega-embed { filter: invert(0.92) hue-rotate(180deg) }
  .vega-embed image { filter: hue-rotate(180deg) invert(1) }
}
</style>"""
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def render(chart: alt.TopLevelMixin, folder: Path, stem: str) -> dict[str, Path]:
    """Write a chart as ``<stem>.html``, ``<stem>.svg`` and ``<stem>.json``, each atomically.

    The page holds the JavaScript of Vega and asks nothing of the network.

    Args:
        chart: what to draw.
        folder: is made if need be.
        stem: file name without extension.

    Returns:
        The paths by format.

    Raises:
        StoreError: they cannot be written.
    """
    with quickly():
        specification = chart.to_dict(validate=False)  # Vega-Lite reads it next
    text = json.dumps(specification, ensure_ascii=False, allow_nan=False)
    before, after = _empty_page()
    page = f"{before}{for_script(text)}{after}"
    title = f"<title>{html.escape(stem)}</title>"
    page = page.replace("<title>Chart</title>", f"{title}{_PAGE_STYLE}", 1)
    if is_zoomable(specification):
        page = _at_the_end(page, f'<p class="help">{html.escape(HELP)}</p>')
    if table := specification.get("usermeta", {}).get(TABLE):
        page = _at_the_end(page, _as_html(**table))
    contents = {
        "html": page,
        "svg": vl_convert.vegalite_to_svg(
            json.dumps({**specification, "background": style.PAPER}), vl_version=VEGA_LITE
        ),
        "json": text,
    }
    paths = {}
    for kind, content in contents.items():
        paths[kind] = folder / f"{stem}.{kind}"
        write_text(paths[kind], content)
    return paths


@lru_cache(maxsize=1)
def _empty_page() -> tuple[str, str]:
    """What stands before and after a page's specification."""
    page: str = vl_convert.vegalite_to_html({}, vl_version=VEGA_LITE, bundle=True)
    before, _, after = page.rpartition("{};")
    return before, f";{after}"


def for_script(text: str) -> str:
    """JSON that may stand in a script element: nothing in it ends that, and it says the same."""
    return text.replace("<", "\\u003c")


def _at_the_end(page: str, part: str) -> str:
    before, end, after = page.rpartition("</body>")
    return f"{before}{part}{end}{after}"


def with_table(chart: alt.TopLevelMixin, head: Sequence[str], rows: Sequence[Sequence[str]]) -> alt.TopLevelMixin:
    """A chart whose page has a table below it, for words and numbers that one may want to search or copy.

    Args:
        chart: what is drawn.
        head: names of the columns.
        rows: plain text, a cell for each column.
    """
    return with_usermeta(chart, **{TABLE: {"head": list(head), "rows": [list(row) for row in rows]}})


def passing(chart: alt.TopLevelMixin) -> alt.TopLevelMixin:
    """A chart that lacks something which may be there when it is drawn next, from the same results."""
    return with_usermeta(chart, **{_PASSING: True})


def is_passing(chart: alt.TopLevelMixin) -> bool:
    """Whether it is one."""
    return _PASSING in _usermeta(chart)


def with_usermeta(chart: alt.TopLevelMixin, **entries: Any) -> alt.TopLevelMixin:
    """A chart whose specification carries further entries in its usermeta, which Vega ignores."""
    changed: Any = chart
    return cast("alt.TopLevelMixin", changed.properties(usermeta={**_usermeta(chart), **entries}))


def _usermeta(chart: Any) -> dict[str, Any]:
    return chart.usermeta if isinstance(chart.usermeta, dict) else {}


def _as_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"{_STYLE}<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def preview_markdown(picture: Path, address: str) -> str:
    """Markdown that shows a picture as wide as it is, with a link to the page on which it is interactive.

    Args:
        picture: an SVG file. Up to ``PREVIEW_BYTES`` it is inside, and stays what it was; a larger one is a link.
        address: of the figure's files on the web server that shows the Markdown, without their endings.
    """
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
    if len(source) > PREVIEW_BYTES:
        source = f"{address}.svg"
    return f"[Open interactive]({address}.html)\n\n![figure]({source})"
