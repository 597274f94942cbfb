"""Dagster's web server with the pages of ``dd_assets.pages`` below ``/lab``, so that links in the UI lead to them.

``python -m dd_assets.running.webserver`` takes the options of ``dagster-webserver``. ``dagster dev`` starts that one,
which loads ``dd_assets.running.instance`` as ``dagster.yaml`` says; that calls ``add_pages`` as well.
"""

import os
from typing import Any

from dd_assets.pages import PREFIX


def add_pages() -> None:
    """Let the web server that this process makes have the pages; once."""
    from dagster_webserver import app
    from dagster_webserver.webserver import DagsterWebserver
    from starlette.requests import Request
    from starlette.responses import RedirectResponse
    from starlette.routing import Mount, Route

    from dd_assets.pages.app import pages

    if app.__dict__["DagsterWebserver"] is not DagsterWebserver:
        return

    class Webserver(DagsterWebserver[Any, Any]):
        """Dagster's, whose first page is the list of studies with their findings."""

        def build_routes(self) -> list[Any]:
            prefix = self._app_path_prefix
            site = pages(os.environ.get("DD_ROOT", "data"), has_ui=True)
            return [Route(f"{prefix}/", _to_studies), Mount(f"{prefix}{PREFIX}", site), *super().build_routes()]

    def _to_studies(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.url.path.rstrip('/')}{PREFIX}/")

    app.__dict__["DagsterWebserver"] = Webserver  # what it makes the application with


def main() -> None:
    """Dagster's command, with the pages."""
    from dagster_webserver import cli

    add_pages()
    cli.main()


if __name__ == "__main__":
    main()
