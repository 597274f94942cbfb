"""Watch what trains: ``python -m dd_assets.watch`` (``make watch``), in a browser, without Dagster.

Serves the pages about a data root, first of all curves that grow while arms train. The same pages lie below ``/lab``
of the UI (``make ui``).
"""

import argparse
import contextlib
import os
import socket
import sys

from dd_assets.pages import PREFIX
from dd_assets.running.ending import ends_well
from dd_core.errors import UserError


@ends_well()
def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(prog="ddlab watch", description=__doc__)
    parser.add_argument("--root", default=os.environ.get("DD_ROOT", "data"), help="data root (DD_ROOT, or data)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default this machine alone")
    parser.add_argument("--port", type=int, help="default one more than DD_PORT, which is 3000 by default")
    options = parser.parse_args(argv)
    return _serve(options.root, options.host, _port(options.port))


def _port(asked: int | None) -> int:
    text = os.environ.get("DD_PORT", "3000")
    if asked is None and not text.isdigit():
        raise UserError(f"DD_PORT must be the number of a port, not {text!r}")
    return int(text) + 1 if asked is None else asked


def _serve(root: str, host: str, port: int) -> int:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import RedirectResponse
    from starlette.routing import Mount, Route

    from dd_assets.laboratory import existing_store  # with Dagster, which takes a second
    from dd_assets.pages.app import pages

    existing_store(root, is_written=False)
    site = Starlette(routes=[Route("/", lambda _: RedirectResponse(f"{PREFIX}/live")), Mount(PREFIX, app=pages(root))])
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"cannot listen at {host}:{port} ({error}); choose another port with --port or DD_PORT"
            ) from error
        print(f"Watch {root} at http://{host}:{listener.getsockname()[1]}{PREFIX}/live   (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # when it has come to its end
            uvicorn.Server(uvicorn.Config(site, log_level="warning")).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
