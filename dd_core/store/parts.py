"""The trials of an arm that train apart from each other, and where such a part keeps its results. Needs no torch.

Trials that share a network (a stack) train together; an arm with several stacks is divided into as many parts, which
need nothing of each other and may train anywhere. What a part has trained lies in a folder of its own until
``dd_core.training.train_part`` has put all parts together to the checkpoints and tables of the arm::

    parts/<study>/<arm>/trials-003/<epoch>.safetensors, <epoch>.json, best/, tables/<table>/<epoch>.parquet
    parts/<study>/<arm>/trials-003/resume.safetensors     stays, so that a study may be prolonged

Of a checkpoint that has been put together only the part's manifest stays, which then vouches for the arm's files.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dd_core.store.resume_points import trained_epoch
from dd_core.store.store import Store
from dd_core.study.stacks import stacking
from dd_core.study.study import Arm, Study


@dataclass(frozen=True, init=False)
class PartStore(Store):
    """The data root as a part of an arm sees it: with a folder and a lock of its own, but the arm's table ``runs``.

    Attributes:
        whole: the data root as the arm sees it.
        folder: of the part.
    """

    whole: Store
    folder: Path

    def __init__(self, whole: Store, study: str, arm: str, name: str):
        """``name``: of the part, see ``Part``."""
        object.__setattr__(self, "root", whole.root)
        object.__setattr__(self, "whole", whole)
        object.__setattr__(self, "folder", parts_folder(whole, study, arm) / name)

    @property
    def name(self) -> str:
        """The name of the part."""
        return self.folder.name

    def arm_folder(self, study: str, arm: str) -> Path:
        """The folder of the part's checkpoints."""
        return self.folder

    def table_folder(self, table: str, study: str | None = None, arm: str | None = None) -> Path:
        """The folder of the part's rows of a table."""
        return self.whole.table_folder(table, study, arm) if table == "runs" else self.folder / "tables" / table

    @contextlib.contextmanager
    def lock(self, *parts: str, timeout: float | None = None) -> Iterator[None]:
        """Hold the lock of the part."""
        with self.whole.lock(*parts, self.name, timeout=timeout):
            yield

    def clean_temporaries(self, folder: Path, name: str = "") -> None:
        """Remove what a killed writer left, but not where other parts are writing."""
        if folder.is_relative_to(self.folder):
            super().clean_temporaries(folder, name)

    def folders_of_arm(self, study: str, arm: str) -> list[Path]:
        """The part's own folder."""
        return [self.folder]

    def inside(self, folder: Path) -> "PartStore":
        """The same part in a folder as if that were the data root."""
        study, arm = self.folder.parent.parent.name, self.folder.parent.name
        return PartStore(Store(folder), study, arm, self.name)


@dataclass(frozen=True)
class Part:
    """Some trials of an arm as an arm of their own.

    Attributes:
        study: with these trials only.
        store: where their results are kept.
    """

    study: Study
    store: PartStore

    @classmethod
    def of(cls, store: Store, study: Study, arm: Arm, trials: range) -> "Part":
        """The part of an arm with the trials of these numbers."""
        return cls(study.part(trials), PartStore(store, study.name, arm.key, f"trials-{trials.start:03d}"))


def parts_folder(store: Store, study: str, arm: str) -> Path:
    """The folder of all parts of an arm."""
    return store.root / "parts" / study / arm


def all_parts(store: Store, study: Study, arm: Arm) -> list[Part]:
    """Every part of an arm, in the order of the trials."""
    return [Part.of(store, study, arm, range(trials[0], trials[-1] + 1)) for trials in stacking(study, arm)]


def division(store: Store, study: Study, arm: Arm) -> list[range]:
    """The numbers of the trials that should train together from now on; of one entry: the arm as a whole.

    An arm is divided into its stacks, unless it has been begun as a whole, and is at least as far as its parts are.
    """
    trials = [range(stack[0], stack[-1] + 1) for stack in stacking(study, arm)]
    if len(trials) > 1 and (begun := trained_epoch(store, study, arm)):
        of_parts = min(trained_epoch(part.store, part.study, arm) for part in all_parts(store, study, arm))
        if of_parts <= begun:
            return [range(study.trials)]
    return trials
