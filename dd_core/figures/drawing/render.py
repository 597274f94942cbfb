"""A chart as files: a page that works offline, a picture and the specification."""

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from dd_core.cache import cache_folder, keep
from dd_core.figures.drawing import style
from dd_core.figures.drawing.quick import quickly
from dd_core.figures.drawing.zoom import HELP, is_zoomable
from dd_core.store.store import write_text

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
_PAGE = """<!DOCTYPE html>
<html>
<head>
<meta charset="UTF-8">
<title>{title}</title>
{style}
<script>{script}</script>
</head>
<body>
<div id="vega-chart"></div>
<script>
{{
    const spec = {specification};
    vegaEmbed("#vega-chart", spec, {{"renderer": "svg"}}).catch(console.error);
}}
</script>
{after}
</body>
</html>
"""
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
    return write(contents(chart, stem), folder, stem)


def write(texts: Mapping[str, str], folder: Path, stem: str) -> dict[str, Path]:
    """Write the files of a chart by their contents; returns the paths by format."""
    paths = {kind: folder / f"{stem}.{kind}" for kind in texts}
    for kind, path in paths.items():
        write_text(path, texts[kind])
    return paths


def contents(chart: alt.TopLevelMixin, stem: str) -> dict[str, str]:
    """What is in the files of a chart, by format."""
    with quickly():
        specification = chart.to_dict(validate=False)  # Vega-Lite reads it next
    text = json.dumps(specification, ensure_ascii=False, allow_nan=False)
    page = _PAGE.format(
        title=html.escape(stem),
        style=_PAGE_STYLE,
        script=vega(),
        specification=for_script(text),
        after=_after(specification),
    )
    return {
        "html": page,
        "svg": vl_convert.vegalite_to_svg(
            json.dumps({**specification, "background": style.PAPER}), vl_version=VEGA_LITE
        ),
        "json": text,
    }


@lru_cache(maxsize=1)
def vega() -> str:
    """The JavaScript of Vega, Vega-Lite and Vega-Embed, for a script element; it takes a second to make, once."""
    folder, made_by = cache_folder("vega"), metadata.version("vl-convert-python")
    path = folder / f"{VEGA_LITE}-by-vl-convert-{made_by}.js" if folder else None
    if path and (script := _as_kept(path)):
        return script
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE).replace("</script", "<\\/script")
    if path:
        keep(path, f"{_digest(script)}{script}".encode())
    return script


def _as_kept(path: Path) -> str | None:
    """A script with its digest before it, if it is as it was written."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    script = text.partition("\n")[2]
    return script if text.startswith(_digest(script)) else None


def _digest(script: str) -> str:
    return f"// {hashlib.sha256(script.encode()).hexdigest()}\n"


def _after(specification: dict[str, Any]) -> str:
    """What a page says below its chart."""
    words = f'<p class="help">{html.escape(HELP)}</p>' if is_zoomable(specification) else ""
    table = specification.get("usermeta", {}).get(TABLE)
    return words + (_as_html(**table) if table else "")


def for_script(text: str) -> str:
    """JSON that may stand in a script element: nothing in it ends that, and it says the same."""
    return text.replace("<", "\\u003c")


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
    """The chart, whose specification now carries further entries in its usermeta, which Vega ignores."""
    changed: Any = chart
    changed.usermeta = {**_usermeta(chart), **entries}  # as a property of a copy it would take as long as the chart
    return chart


def _usermeta(chart: Any) -> dict[str, Any]:
    return chart.usermeta if isinstance(chart.usermeta, dict) else {}


def _as_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"{_STYLE}<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"
