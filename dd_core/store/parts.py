"""The trials of an arm that train apart from each other, and where such a part keeps its results. Needs no torch.

Trials that share a network (a stack) train together; an arm with several stacks is divided into as many parts, which
need nothing of each other and may train anywhere. Each keeps its weights for good in a folder of its own, and the
manifest of a checkpoint names those of all parts. ``dd_core.training.train_part`` writes it, with the rows of all parts
in the arm's tables, when the last part has got there::

    parts/<study>/<arm>/trials-003/<epoch>.safetensors                      weights of these trials
    parts/<study>/<arm>/trials-003/resume.safetensors                       where these trials go on
    parts/<study>/<arm>/trials-003/<epoch>.json, tables/<table>/<epoch>.parquet     until the others have got there
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
    """The data root as a part of an arm sees it: a folder and a lock of its own, and the arm's ``runs`` and best.

    Attributes:
        whole: the data root as the arm sees it.
        folder: of the part.
        trials: numbers of its trials.
    """

    whole: Store
    folder: Path
    trials: range

    def __init__(self, whole: Store, study: str, arm: str, trials: range):
        """``trials``: numbers of those of the part."""
        object.__setattr__(self, "root", whole.root)
        object.__setattr__(self, "whole", whole)
        object.__setattr__(self, "folder", whole.parts_folder(study, arm) / f"trials-{trials.start:03d}")
        object.__setattr__(self, "trials", trials)

    @property
    def name(self) -> str:
        """The name of the part."""
        return self.folder.name

    def arm_folder(self, study: str, arm: str) -> Path:
        """The folder of the part's checkpoints."""
        return self.folder

    def best_folder(self, study: str, arm: str) -> Path:
        """That of the arm: each file there is of one trial."""
        return self.whole.best_folder(study, arm)

    def table_folder(self, table: str, study: str | None = None, arm: str | None = None) -> Path:
        """The folder of the part's rows of a table."""
        return self.whole.table_folder(table, study, arm) if table == "runs" else self.folder / "tables" / table

    @contextlib.contextmanager
    def lock(self, *parts: str, timeout: float | None = None) -> Iterator[None]:
        """Hold the lock of the part."""
        with self.whole.lock(*parts, self.name, timeout=timeout):
            yield

    def clean_temporaries(self, folder: Path, name: str = "") -> None:
        """Remove what a killed writer left, but nothing that other parts are writing."""
        if folder.is_relative_to(self.folder):
            super().clean_temporaries(folder, name)
        elif folder.name == "best":
            for trial in self.trials:
                super().clean_temporaries(folder, f"trial-{trial:03d}.")


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
        return cls(study.part(trials), PartStore(store, study.name, arm.key, trials))


def all_parts(store: Store, study: Study, arm: Arm) -> list[Part]:
    """Every part of an arm, in the order of the trials."""
    return [Part.of(store, study, arm, range(trials[0], trials[-1] + 1)) for trials in stacking(study, arm)]


def locks_of_parts(store: Store, study: Study, arm: Arm) -> list[tuple[str, str, str]]:
    """The locks of all parts that an arm has or has left, whatever its recipe was, as ``Store.lock`` takes them."""
    folder = store.parts_folder(study.name, arm.key)
    left = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    names = left | {part.store.name for part in all_parts(store, study, arm)}
    return [(study.name, arm.key, name) for name in sorted(names)]


def division(store: Store, study: Study, arm: Arm, on_gpu: bool = False) -> list[range]:
    """The numbers of the trials that should train together from now on; of one entry: the arm as a whole.

    An arm is divided into its stacks, unless it has been begun as a whole, and is at least as far as its parts are, or
    begins on a GPU where trials share a network that do not on a CPU.

    Args:
        store: says what has begun.
        study: what the arm belongs to.
        arm: which arm.
        on_gpu: it will train on a GPU, and other arms keep the others busy.
    """
    trials = [range(stack[0], stack[-1] + 1) for stack in stacking(study, arm)]
    if len(trials) == 1:
        return trials
    whole = trained_epoch(store, study, arm)
    shares_on_gpu = on_gpu and len(stacking(study, arm, on_gpu)) < len(trials)
    # Each is a read of a store: only those that decide.
    of_parts = (trained_epoch(part.store, part.study, arm) for part in all_parts(store, study, arm))
    if (whole and min(of_parts) <= whole) or (not whole and shares_on_gpu and not any(of_parts)):
        return [range(study.trials)]
    return trials
