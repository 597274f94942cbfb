"""Jinja templates of pages: those of reports, and those of the web server beside the UI, which look alike."""

from importlib.resources.abc import Traversable

import jinja2


def environment(folder: Traversable) -> jinja2.Environment:
    """Templates of a folder of a package: every value is escaped, and one that is missing is an error."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
