"""Pictures of a training that goes on: drawn beside it in a thread, which may cost little and must harm nothing.

Dagster is told of none: a figure is materialised by its own asset, which replaces what is drawn here.
"""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import dagster as dg

from dd_assets.laboratory import Laboratory
from dd_assets.running.console import FOR_ALL
from dd_core.events import CheckpointWritten, Event, Finished, Progress, Report
from dd_core.figures import SO_FAR, Figure
from dd_core.store.store import Store
from dd_core.study.study import Study

# Before the first picture: what is trained sooner needs none. It comes when an epoch has been trained.
_FIRST_SECONDS: Final = 5.0
# Of the machine's processor time at most.
_SHARE: Final = 0.03


@contextlib.contextmanager
def figures_so_far(context: dg.AssetExecutionContext, laboratory: Laboratory, study: Study) -> Iterator[Report]:
    """Yields what is to be told of the events of a training; when it is left, no picture is being drawn any more.

    There are none of what trains on other machines, since a run there may have no core and no memory to spare.
    """
    if laboratory.compute != "local":
        yield lambda event: None
        return
    pictures = _Pictures(context, laboratory.store(), study)
    try:
        yield pictures.on_event
    finally:
        pictures.end()


class _Pictures:
    """One figure after the other, again and again, as far as there are news."""

    def __init__(self, context: dg.AssetExecutionContext, store: Store, study: Study):
        self._context, self._store, self._study = context, store, study
        self._next_at = time.monotonic() + _FIRST_SECONDS
        self._has_news = self._has_checkpoint = self._has_loaded = False
        self._drawn: list[Path] = []
        self._times = Counter[str]()
        self._is_told = False
        self._problem = ""
        self._thread: threading.Thread | None = None

    def on_event(self, event: Event) -> None:
        """Begin to draw if it is time to."""
        self._tell()
        self._has_news |= isinstance(event, CheckpointWritten | Finished)
        self._has_checkpoint |= isinstance(event, CheckpointWritten)
        if not self._drawn:
            self._has_news |= isinstance(event, Progress)
        is_drawing = self._thread is not None and self._thread.is_alive()
        if self._has_news and not is_drawing and not self._problem and time.monotonic() >= self._next_at:
            self._has_news = False
            self._thread = threading.Thread(target=self._draw, name="figures so far", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Wait for what is being drawn."""
        if self._thread is not None:
            self._thread.join()
            self._tell()

    def _draw(self) -> None:
        """Draw what was drawn least often, if there is something; what goes wrong is no reason to end a training."""
        try:
            from dd_core.figures.drawing.so_far import draw_so_far

            began = time.monotonic()
            for figure in sorted(SO_FAR, key=lambda figure: self._times[figure.name]):
                if not self._has_checkpoint and self._is_finished(figure):
                    continue
                if (page := draw_so_far(figure, self._study, self._store)) is not None:
                    self._drawn.append(page)
                    self._times[figure.name] += 1
                    break
            took = time.monotonic() - began if self._has_loaded else 0.0  # the first time most of it is loading
            self._has_loaded = True
            self._next_at = time.monotonic() + took / _SHARE / (os.cpu_count() or 1)
        except Exception as error:
            self._problem = f"{type(error).__name__}: {error}"

    def _is_finished(self, figure: Figure) -> bool:
        """Whether it shows all there is until a checkpoint is written; nothing would say that it is out of date."""
        manifest = self._store.read_manifest(self._store.figure_manifest_path(figure.name, self._study.name))
        return manifest is not None and self._store.is_sound(manifest)

    def _tell(self) -> None:
        """From the thread of the step: what the other has done is logged here."""
        if self._drawn and not self._is_told:
            self._is_told = True
            page = self._drawn[0]
            place = page.as_uri() if page.is_absolute() else str(page)
            self._context.log.info(f"a first picture, drawn anew while training goes on: {place}", extra=FOR_ALL)
        if self._problem and self._thread is not None:
            self._thread = None
            self._context.log.warning(f"no pictures while training goes on: {self._problem}")
