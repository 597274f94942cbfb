"""A picture of a figure in Markdown, for Dagster's UI. Needs nothing of what it was drawn with."""

import base64
from pathlib import Path

# Dagster stores metadata with every materialisation and loads it with the asset's page.
PREVIEW_BYTES = 150_000


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
