"""Pages about a data root, beside Dagster's UI: studies and what they found, figures, reports, what trains just now.

Belongs here: a small web application (``app``) that reads the data root and knows nothing of Dagster, what its pages
say (``landing``, ``live``, the templates). ``dd_assets.running.webserver`` puts it below ``/lab`` of Dagster's own web
server, so that links like ``/lab/figures/<figure>/<study>.html`` work in the UI; ``dd_assets.watch`` serves it alone.
"""

from typing import Final

# Where they lie on Dagster's web server. Links in the UI begin with it, without host and port, so they stay true.
PREFIX: Final = "/lab"


def figure_address(figure: str, study: str) -> str:
    """Where the files of a figure lie, to be followed by .html, .svg or .json."""
    return f"{PREFIX}/figures/{figure}/{study}"
