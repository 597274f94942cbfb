"""What there is to see: the studies that have something, what each found, and where it is shown."""

import contextlib
import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dd_core.errors import StoreError, UserError
from dd_core.figures import FIGURES
from dd_core.store.store import Store
from dd_core.study.files import Catalogue
from dd_core.study.study import Study

# Figures that show the images themselves.
_GALLERIES = ("most_curved_images", "memorized_images")
_KEPT_SECONDS = 30.0


@dataclass(frozen=True)
class StudyEntry:
    """A study as it is listed.

    Attributes:
        name: of the study.
        description: what its file says; empty where that is not there any more.
        figures: names of the figures drawn.
        galleries: those of them that show the images themselves.
        has_report: whether its report is written.
        has_curves: whether anything is known of its training.
        has_assets: whether it has assets of its own.
    """

    name: str
    description: str
    figures: list[str]
    galleries: list[str]
    has_report: bool
    has_curves: bool
    has_assets: bool


class Landing:
    """The list of studies and their findings."""

    def __init__(self, store: Store, catalogue: Catalogue):
        """Nothing is read yet."""
        self.store, self.catalogue = store, catalogue
        self._findings: dict[str, tuple[tuple[float, Study] | None, float, list[str]]] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @property
    def broken(self) -> dict[str, str]:
        """Study files that cannot be used, and why."""
        return {path.name: reason for path, reason in self.catalogue.errors.items()}

    def studies(self) -> list[StudyEntry]:
        """All of which there is something in the data root; those that have found something first."""
        drawn = {figure.name: self._stems(self.store.figure_folder(figure.name)) for figure in FIGURES}
        reports = self._stems(self.store.root / "reports")
        folder = self.store.table_folder("training_evals")
        trained = {path.name.removeprefix("study=") for path in _children(folder) if path.name.startswith("study=")}
        trained |= {path.name.removeprefix("study=") for path in _children(self.store.live_folder())}
        entries = []
        for name in sorted({*reports, *trained, *(stem for stems in drawn.values() for stem in stems)} - {"none"}):
            study = self.catalogue.studies.get(name)
            figures = [figure for figure, stems in drawn.items() if name in stems]
            galleries = [figure for figure in figures if figure in _GALLERIES]
            entries.append(
                StudyEntry(
                    name=name,
                    description=study.description if study else "",
                    figures=figures,
                    galleries=galleries,
                    has_report=name in reports,
                    has_curves=name in trained,
                    has_assets=bool(study and study.has_checkpoints),
                )
            )
        return sorted(entries, key=lambda entry: not (entry.has_report or entry.figures))

    def studies_with(self, figure: str) -> list[str]:
        """Names of the studies of which a figure is drawn."""
        return sorted(self._stems(self.store.figure_folder(figure)))

    def newest(self, figure: str) -> str | None:
        """The study of which a figure was drawn last; None: of none."""
        paths = [self.store.figure_folder(figure) / f"{study}.svg" for study in self.studies_with(figure)]
        return max(paths, key=modified).stem if paths else None

    def findings(self, name: str) -> list[str]:
        """Sentences about a study; kept until a table changes, since finding them takes up to a second.

        While something trains, tables change all the time: they are sought once at a time and not too often, and who
        asks meanwhile gets those of before.
        """
        study = self.catalogue.studies.get(name)
        if study is None:
            return []
        stamp = (self._stamp(), study)
        kept, at, sentences = self._findings.get(name, (None, -math.inf, []))
        is_known = kept == stamp and stamp[0] > 0
        if is_known or time.monotonic() - at < _KEPT_SECONDS or not self._locks[name].acquire(blocking=kept is None):
            return sentences
        try:
            if self._findings.get(name, (None, at))[1] == at:  # nobody has sought them while this one waited
                self._findings[name] = stamp, time.monotonic(), self._sought(study)
            return self._findings[name][2]
        finally:
            self._locks[name].release()

    def _sought(self, study: Study) -> list[str]:
        from dd_core.reports.findings import findings

        try:
            with readable():
                return findings(self.store, study)
        except UserError as error:
            return [str(error)]

    def _stamp(self) -> float:
        """Changes when the tables do, since every change of them makes the warehouse file anew."""
        return modified(self.store.warehouse_path)

    @staticmethod
    def _stems(folder: Path) -> set[str]:
        return {path.stem for path in _children(folder) if path.suffix == ".html"}


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def modified(path: Path) -> float:
    """When it was written, in seconds since 1970; 0 where it is not, or the store does not tell."""
    try:
        return path.stat().st_mtime
    except (OSError, AttributeError):
        return 0.0


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turn what DuckDB says of files that it cannot read into one sentence."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise StoreError(f"the data root cannot be read just now: {str(error).splitlines()[0]}") from error
