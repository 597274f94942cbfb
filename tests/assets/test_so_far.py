"""Pictures of a training that goes on: they say how far it is, and whatever happens to them, training does not mind."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dd_assets.laboratory import Laboratory
from dd_assets.running.console import FOR_ALL
from dd_assets.steps import so_far
from dd_core.errors import StoreError
from dd_core.events import CheckpointWritten, Event, Progress, Started
from dd_core.figures import SO_FAR, Figure
from dd_core.figures.drawing import render
from dd_core.figures.drawing.current import draw
from dd_core.figures.drawing.so_far import draw_so_far
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study


class _Log(list[tuple[str, Any, str]]):
    """Of a step."""

    def info(self, text: str, extra: object = None) -> None:
        self.append(("info", extra, text))

    def warning(self, text: str) -> None:
        self.append(("warning", None, text))


def test_figures_say_how_far_the_study_is(trained: Store, make_study: Any) -> None:
    study = make_study(widths=(1, 2, 3))
    pages = [draw_so_far(figure, study, trained) for figure in SO_FAR]
    assert [page.parent.name for page in pages if page] == ["training_curves", "double_descent_curve", "epoch_by_width"]
    for page in pages:
        assert page is not None and page.is_file()
        assert '"Unfinished: 2 of 3 arms so far"' in page.with_suffix(".json").read_text(encoding="utf-8")
    written = draw(SO_FAR[0], study, trained)
    assert "Unfinished" not in written["json"].read_text(encoding="utf-8"), "the asset replaces it"
    # As if the second arm had not come to its end: its rows are there, but one arm makes no curve over widths.
    trained.checkpoint_manifest_path("tiny", Checkpoint(study.arms["plain.k002"], 4)).unlink()
    curves, over_widths, _ = SO_FAR
    assert draw_so_far(over_widths, study, trained) is None
    page = draw_so_far(curves, study, trained)
    assert page is not None
    assert '"Unfinished: 1 of 3 arms so far; k = 2 at epoch 4 of 4"' in page.with_suffix(".json").read_text("utf-8")
    manifest = trained.read_manifest(trained.figure_manifest_path(curves.name, "tiny"))
    assert manifest is not None and not trained.is_sound(manifest), "nothing vouches for it any more"


def test_a_manifest_does_not_vouch_for_a_picture_of_a_training(
    trained: Store, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not either where that is drawn between the figure and its manifest."""
    (curves, *_), write = SO_FAR, render.write

    def twice(*of: Any) -> dict[str, Path]:
        files = write(*of)
        monkeypatch.undo()
        draw_so_far(curves, tiny_study, trained)
        return files

    monkeypatch.setattr(render, "write", twice)
    files = draw(curves, tiny_study, trained)
    assert "Unfinished" in files["json"].read_text(encoding="utf-8")
    assert "Unfinished" not in draw(curves, tiny_study, trained)["json"].read_text(encoding="utf-8")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Pictures are drawn as soon as there are news, in no time; yields their names."""
    names: list[str] = []

    def picture(figure: Figure, study: Study, store: Store) -> Path | None:
        names.append(figure.name)
        if study.name == "broken":
            raise StoreError("a file is damaged")
        return None if figure.is_over_widths else store.figure_folder(figure.name) / f"{study.name}.html"

    monkeypatch.setattr("dd_core.figures.drawing.so_far.draw_so_far", picture)
    monkeypatch.setattr(so_far, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(so_far, "_SHARE", 1e9)
    yield names
    assert "figures so far" not in {thread.name for thread in threading.enumerate()}


def test_one_figure_is_drawn_after_the_other_and_the_first_is_told(
    drawn: list[str], store: Store, tiny_study: Study
) -> None:
    log = _Log()
    context: Any = SimpleNamespace(log=log)
    pictures = so_far._Pictures(context, store, tiny_study)
    events: list[Event] = [Started()]
    for epoch in range(1, 5):
        events += [Progress(epoch=epoch), CheckpointWritten(epoch=epoch)]
    for event in events:
        pictures.on_event(event)
        pictures.end()
    page = store.figure_folder("training_curves") / "tiny.html"
    assert log == [("info", FOR_ALL, f"a first picture, drawn anew while training goes on: {page.as_uri()}")]
    curves, by_width, over_widths = "training_curves", "epoch_by_width", "double_descent_curve"
    # An epoch alone is news only for the first; where there is nothing to draw yet, the next has its turn.
    assert drawn == [curves, *(over_widths, by_width, over_widths, curves) * 2]


def test_a_finished_figure_is_left_alone_until_a_checkpoint_is_written(
    drawn: list[str], store: Store, tiny_study: Study
) -> None:
    page = store.figure_folder("training_curves") / "tiny.html"
    page.parent.mkdir(parents=True)
    page.touch()
    store.write_manifest(store.figure_manifest_path("training_curves", "tiny"), {}, {"html": page})
    context: Any = SimpleNamespace(log=_Log())
    pictures = so_far._Pictures(context, store, tiny_study)
    for event in (Progress(epoch=1), CheckpointWritten(epoch=2)):
        pictures.on_event(event)
        pictures.end()
        assert ("training_curves" in drawn) == isinstance(event, CheckpointWritten)


def test_a_picture_that_cannot_be_drawn_is_a_warning_and_no_other_is_tried(
    drawn: list[str], store: Store, make_study: Any
) -> None:
    log = _Log()
    context: Any = SimpleNamespace(log=log)
    with so_far.figures_so_far(context, Laboratory(root=str(store.root)), make_study(name="broken")) as tell:
        tell(Progress(epoch=1))
    assert log == [("warning", None, "no pictures while training goes on: StoreError: a file is damaged")]
    assert drawn == ["training_curves"]


@pytest.mark.parametrize("compute", ["local", "slurm"])
def test_what_trains_in_no_time_or_elsewhere_has_no_picture(
    compute: str, drawn: list[str], store: Store, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compute == "local":
        monkeypatch.setattr(so_far, "_FIRST_SECONDS", 60.0)
    log = _Log()
    context: Any = SimpleNamespace(log=log)
    with so_far.figures_so_far(context, Laboratory(root=str(store.root), compute=compute), tiny_study) as tell:
        for epoch in range(5):
            tell(Progress(epoch=epoch))
    assert not log and not drawn
