"""The web application: which address shows what. It only reads, and nothing outside of what it is there for."""

import re
import threading
import time
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from dd_assets.catalogue import catalogue
from dd_assets.pages.landing import Landing
from dd_assets.pages.live import LiveCurves
from dd_core.errors import UserError
from dd_core.figures import FIGURES
from dd_core.reports.templates import environment
from dd_core.store.files import read_all
from dd_core.store.store import Store

_MEDIA_TYPES = {"html": "text/html", "svg": "image/svg+xml", "json": "application/json"}
_STUDY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")
_KEPT_SECONDS = 1.5
_NOT_DRAWN = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="300" height="30"><text y="20" font-family="Arial, sans-serif" '
    'font-size="14" fill="#767676">Not drawn yet of any study.</text></svg>'
)
_TEMPLATE = resources.files("dd_assets.pages") / "template"
_HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}


def pages(root: str, *, has_ui: bool = False) -> Starlette:
    """The application over a data root.

    Args:
        root: a folder, or an address of an object store. It need not exist yet.
        has_ui: whether Dagster's UI lies one level above it.

    Raises:
        StoreError: that can be no data root.
    """
    site = _Site(Store(root), has_ui=has_ui)
    return Starlette(
        routes=[
            Route("/", site.landing),
            Route("/findings/{study}", site.findings),
            Route("/figures/{figure}.svg", site.newest),
            Route("/figures/{figure}", site.redirect),
            Route("/figures/{figure}/", site.figure),
            Route("/figures/{figure}/{study}.{kind}", site.figure_file),
            Route("/reports/{study}.html", site.report),
            Route("/live", site.live),
            Route("/live.json", site.live_curves),
            Route("/style.css", lambda _: _text(_style(), "text/css")),
            Route("/vega.js", lambda _: _text(_vega(), "text/javascript", {"Cache-Control": "max-age=3600"})),
        ],
        exception_handlers={UserError: _sentence},
    )


def _sentence(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"Error: {error}", status_code=500)


class _Site:
    """What the addresses answer. Plain functions, which Starlette runs in threads: reading files takes its time."""

    def __init__(self, store: Store, *, has_ui: bool):
        self.store, self.has_ui = store, has_ui
        self._landing, self._live = Landing(store, catalogue()), LiveCurves(store, {})
        self._lock = threading.Lock()
        self._curves: dict[str | None, tuple[float, dict[str, Any]]] = {}

    @property
    def entry(self) -> Landing:
        """With the studies as their files are now, which the code location has read at another time."""
        self._landing.catalogue = catalogue()
        return self._landing

    def landing(self, request: Request) -> Response:
        entry = self.entry
        values = {"studies": entry.studies(), "broken": entry.broken, "root": self.store.address}
        return self._page(request, "landing.html", **values)

    def findings(self, request: Request) -> Response:
        return JSONResponse(self.entry.findings(request.path_params["study"]), headers=_HEADERS)

    def redirect(self, request: Request) -> Response:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/figures/{request.path_params['figure']}/")

    def figure(self, request: Request) -> Response:
        """A figure of every study that has it, each as wide as it is."""
        name = request.path_params["figure"]
        figure = next((figure for figure in FIGURES if figure.name == name), None)
        if figure is None:
            raise HTTPException(404, f"there is no figure {name!r}")
        return self._page(request, "figure.html", figure=figure, studies=self.entry.studies_with(name))

    def newest(self, request: Request) -> Response:
        """A figure of the study of which it was drawn last."""
        name = request.path_params["figure"]
        study = self.entry.newest(name) if any(figure.name == name for figure in FIGURES) else None
        if study is None:
            return _text(_NOT_DRAWN, _MEDIA_TYPES["svg"])
        return self._file(self.store.figure_folder(name) / f"{study}.svg", _MEDIA_TYPES["svg"])

    def figure_file(self, request: Request) -> Response:
        figure, study, kind = (request.path_params[name] for name in ("figure", "study", "kind"))
        if kind not in _MEDIA_TYPES or all(figure != known.name for known in FIGURES) or not _STUDY.fullmatch(study):
            raise HTTPException(404, "there is no such figure")
        return self._file(self.store.figure_folder(figure) / f"{study}.{kind}", _MEDIA_TYPES[kind])

    def report(self, request: Request) -> Response:
        study = request.path_params["study"]
        if not _STUDY.fullmatch(study):
            raise HTTPException(404, "there is no such report")
        return self._file(self.store.report_path(study), "text/html")

    def live(self, request: Request) -> Response:
        return self._page(request, "live.html")

    def live_curves(self, request: Request) -> Response:
        asked = request.query_params.get("study")
        with self._lock:  # many may look at once, each asking every two seconds
            at, answer = self._curves.get(asked, (-_KEPT_SECONDS, {}))
            if time.monotonic() - at > _KEPT_SECONDS:
                self._live.studies = catalogue().studies
                answer = self._live.answer(asked)
                self._curves = {**dict(list(self._curves.items())[-9:]), asked: (time.monotonic(), answer)}
        return JSONResponse(answer, headers=_HEADERS)

    def _page(self, request: Request, template: str, **values: Any) -> Response:
        base = f"{request.scope.get('root_path', '')}/"  # where the application lies: links begin there
        text = _environment().get_template(template).render(base=base, has_ui=self.has_ui, **values)
        return HTMLResponse(text, headers=_HEADERS)

    def _file(self, path: Any, media_type: str) -> Response:
        try:
            (content,) = read_all([path])
        except OSError as error:
            raise HTTPException(404, f"{path.name[:80]} cannot be read ({error.strerror})") from None
        if content is None:
            raise HTTPException(404, f"{path.name} has not been made yet")
        return Response(content, media_type=media_type, headers=_HEADERS)


def _text(text: str, media_type: str, headers: Mapping[str, str] = _HEADERS) -> Response:
    return Response(text, media_type=media_type, headers=headers)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return environment(_TEMPLATE)


@lru_cache(maxsize=1)
def _style() -> str:
    """Reports and pages look alike."""
    reports = resources.files("dd_core.reports") / "template" / "page.css"
    return reports.read_text(encoding="utf-8") + (_TEMPLATE / "pages.css").read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _vega() -> str:
    from dd_core.figures.drawing.render import vega

    return vega()
