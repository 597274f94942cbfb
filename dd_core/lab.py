"""A data root for whoever asks in Python: SQL, checkpoints as networks, figures. Nothing here writes below the root.

Everything comes from the root itself: which studies there are from its folders, how a network was made from the recipe
in the manifest of its checkpoint. No study file is needed, and none is asked.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dd_core.errors import StaleError, StoreError, UserError, require_torch
from dd_core.store.manifests import Manifest
from dd_core.store.store import Store, store_at
from dd_core.study.recorded import recorded_study
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.words import advice, listed

if TYPE_CHECKING:
    import altair as alt
    import duckdb
    from numpy.typing import NDArray
    from torch import Tensor, nn

_Name = TypeVar("_Name", str, int)
_ARM = re.compile(r"(?P<variant>.+)\.k(?P<k>\d{3,})")


class Lab:
    """A data root that is read and never written.

    Attributes:
        root: a ``Path``, or for an address a ``UPath``, which does what a ``Path`` does.
    """

    def __init__(self, root: str | Path | None = None):
        """``root``: a folder or an address like ``s3://bucket/folder``; default ``DD_ROOT``, else ``data``.

        Raises:
            UserError: it is not there, or is no folder at all.
        """
        if not isinstance(root, str | os.PathLike | None):
            raise UserError(f"a data root is a folder or an address, and not {root!r}")
        self._store = store_at(root)
        self.root = self._store.root
        if not self.root.is_dir():
            raise StoreError(
                f"there is no data root {self.root}; pass the folder that DD_ROOT names, or train something"
            )

    def __repr__(self) -> str:
        """As it was made."""
        return f"dd_core.open({self._store.address!r})"

    @property
    def studies(self) -> list[str]:
        """The names of the studies that have results here."""
        trained = {path.name for path in self.root.glob("checkpoints/[a-z]*")}
        return sorted(trained | {path.name[6:] for path in self.root.glob("tables/*/study=*")} - {"none"})

    def sql(self, query: str, parameters: Any = None) -> "duckdb.DuckDBPyRelation":
        """The rows of a query: ``.df()``, ``.pl()``, ``.arrow()``, ``.fetchall()`` are what one asks them for.

        Every table and view of ``warehouse.duckdb`` is there, its columns with comments, as the files are now; what
        trains at this moment is in ``training_evals`` up to its last evaluation.
        ``docs/queries.md`` has examples.

        Args:
            query: SQL of DuckDB.
            parameters: values of ``?`` or ``$name`` in it.

        Raises:
            duckdb.Error: the query is wrong.
        """
        from dd_core.tables.warehouse import connect

        return connect(self._store, live=True).sql(query, params=parameters)

    def checkpoints(self, study: str) -> list["TrainedCheckpoint"]:
        """All checkpoints of a study, by variant, k and epoch.

        Raises:
            UserError: there is no such study here.
        """
        study = self._known(study)
        found = [Checkpoint(arm, epoch) for arm in self._arms(study) for epoch in self._epochs(study, arm)]
        manifests = self._store.read_manifests([self._store.checkpoint_manifest_path(study, own) for own in found])
        pairs = zip(found, manifests, strict=True)
        return [TrainedCheckpoint(self._store, study, own, manifest) for own, manifest in pairs if manifest]

    def checkpoint(
        self, study: str, variant: str | None = None, *, k: int | None = None, epoch: int | None = None
    ) -> "TrainedCheckpoint":
        """A checkpoint: the weights of all trials of one arm after an epoch.

        Args:
            study: its name.
            variant: needed if the study has several.
            k: needed if the variant has several.
            epoch: default the last that is there.

        Raises:
            UserError: there is none; the sentence says what there is.
        """
        study = self._known(study)
        arms = self._arms(study)
        variant = _one(study, "variant", variant, sorted({arm.variant for arm in arms}))
        k = _one(f"{study}, {variant}", "k", k, [arm.k for arm in arms if arm.variant == variant])
        arm = Arm(variant, k)
        epochs = self._epochs(study, arm)
        if not epochs:
            raise UserError(f"{study}, {arm.key}: there is no checkpoint yet")
        wanted = _one(f"{study}, {arm.key}", "epoch", epochs[-1] if epoch is None else epoch, epochs)
        path = self._store.checkpoint_manifest_path(study, Checkpoint(arm, wanted))
        manifest = self._store.read_manifest(path)
        if manifest is None:
            raise StaleError(f"{path} is damaged, so this checkpoint does not exist; {_cure(study, arm, wanted)}")
        return TrainedCheckpoint(self._store, study, Checkpoint(arm, wanted), manifest)

    def figure(self, name: str, study: str) -> "alt.TopLevelMixin":
        """A figure as it was drawn last, a chart of Altair; a notebook shows it, and ``.save`` writes it elsewhere.

        Raises:
            UserError: it has not been drawn.
        """
        import altair as alt

        study = self._known(study)
        drawn = sorted(path.parent.name for path in (self.root / "figures").glob(f"*/{study}.json"))
        name = _one(study, "figure", name, drawn)
        text = (self._store.figure_folder(name) / f"{study}.json").read_text(encoding="utf-8")
        return alt.Chart.from_json(text)

    def report(self, study: str) -> Path:
        """The page about a study: findings, figures, costs, provenance, as one HTML file.

        Raises:
            UserError: it has not been written.
        """
        study = self._known(study)
        path = self.root / "reports" / f"{study}.html"
        if not path.is_file():
            raise UserError(f"{path} has not been written yet; run: ddlab report {study}")
        return path

    def _known(self, study: str) -> str:
        return _one(str(self.root), "study", study, self.studies)

    def _epochs(self, study: str, arm: Arm) -> list[int]:
        return sorted(int(path.stem) for path in self._store.arm_folder(study, arm.key).glob("[0-9]*.json"))

    def _arms(self, study: str) -> list[Arm]:
        folder = self._store.arm_folder(study, "any").parent
        found = (_ARM.fullmatch(path.name) for path in sorted(folder.glob("*.k*")))
        arms = sorted(Arm(match["variant"], int(match["k"])) for match in found if match)
        if not arms:
            raise UserError(f"{study} has no checkpoints in {self.root}, only tables")
        return arms


@dataclass(frozen=True)
class TrainedCheckpoint:
    """The weights of all trials of one arm after an epoch, and how they came to be.

    Attributes:
        study: name of the study.
        checkpoint: the arm and the epoch.
        manifest: what is recorded of it: ``manifest.content`` has all of it, its recipe and its errors among it.
    """

    _store: Store
    study: str
    checkpoint: Checkpoint
    manifest: Manifest

    def __repr__(self) -> str:
        """Which it is."""
        return f"<checkpoint {self.checkpoint.key} of {self.study}, {self.manifest.trials} trials>"

    @property
    def paths(self) -> list[Path]:
        """The files of weights, safetensors: one, or of trials that trained apart several, in the order of trials."""
        return [self._store.root / entry.path for entry in self.manifest.weights]

    @property
    def path(self) -> Path:
        """The file of weights.

        Raises:
            UserError: there are several.
        """
        first, *others = self.paths
        if others:
            raise UserError(f"the weights of {self!r} lie in {1 + len(others)} files: ask for its paths")
        return first

    def tensors(self) -> dict[str, "Tensor"]:
        """The weights of all trials by name, (trials, ...), after their SHA-256 has been compared with the manifest's.

        Raises:
            StaleError: a file is missing or damaged.
        """
        require_torch("reading weights")
        from dd_core.store.checkpoints import read_weights

        try:
            for entry in self.manifest.weights:
                self._store.verify(entry)
            return read_weights(self._store, self.manifest)
        except StaleError as error:
            raise StaleError(f"{error}; {_cure(self.study, self.checkpoint.arm, self.checkpoint.epoch)}") from error

    def model(self, trial: int = 0) -> "nn.Module":
        """One trial's network, trained, in eval mode, float32, on the CPU, in the memory format of its training.

        It takes images (B, channels, height, width) that are standardised as in training (``training_data`` has them),
        or the graphs of the study, and gives logits.

        Raises:
            UserError: there is no such trial, it has diverged, or the code of an own architecture is not here.
            StaleError: the weights are missing or damaged.
        """
        trial = self._live(trial)
        tensors = self.tensors()
        from dd_core.curvature.trained import trained_network

        return trained_network(self._study, self.checkpoint, tensors, trial)

    def training_data(self, trial: int = 0) -> "TrainingData":
        """The images that a trial was trained on, as the network sees them without augmentation.

        Where classes come one group after the other, those of the classes seen by this epoch.

        Raises:
            DataMissingError: the data set is not on this machine.
            UserError: there is no such trial, or the study is about graphs.
        """
        trial = self._live(trial)
        if self._study.data.graphs is not None:
            raise UserError(f"{self.study} is about graphs; there are no images of it")
        require_torch("standardising images")
        import torch

        from dd_core.curvature.trained import seen_data, standardised

        data = seen_data(self._study, self.checkpoint, trial)
        images = standardised(self._study, data, data.train_ids, torch.device("cpu"), torch.float32)
        return TrainingData(images, torch.from_numpy(data.train_labels), data.train_ids, data.true_train_labels)

    @cached_property
    def _study(self) -> Study:
        recipe = self.manifest.content.get("recipe_content", {})
        return recorded_study(self.study, self.checkpoint.arm, recipe, self.manifest.trials, self.checkpoint.epoch)

    def _live(self, trial: int) -> int:
        trial = _one(f"{self.study}, {self.checkpoint.key}", "trial", trial, range(self.manifest.trials))
        if trial not in self.manifest.live_trials:
            ending = self.manifest.ended[trial]
            raise UserError(
                f"trial {trial} of {self!r} diverged in epoch {ending.epoch} and has no weights; trials with weights: "
                f"{', '.join(map(str, self.manifest.live_trials)) or 'none'}"
            )
        return trial


@dataclass(frozen=True)
class TrainingData:
    """What one trial was trained on, in the order of its image ids.

    Attributes:
        images: float32 (N, channels, height, width), standardised.
        labels: int64 (N,), as given, some of them wrong.
        image_ids: int64 (N,), as in the column ``image_id`` of tables.
        true_labels: int64 (N,).
    """

    images: "Tensor"
    labels: "Tensor"
    image_ids: "NDArray[Any]"
    true_labels: "NDArray[Any]"


def _one(where: str, what: str, wanted: _Name | None, known: Sequence[_Name]) -> _Name:
    """What was asked for, if it is there; or the only one that is there, if nothing was asked for."""
    if wanted is None and len(known) == 1:
        return known[0]
    if wanted is None and known:
        raise UserError(f"{where}: there are several, so pass {what}=, one of {listed(known)}")
    by_text = {str(name): name for name in known}
    if isinstance(wanted, str) and wanted in by_text:
        return by_text[wanted]
    if not isinstance(wanted, bool) and wanted in known:
        return known[known.index(wanted)]  # of 4.0 and NumPy's 4 the 4
    has_names = isinstance(wanted, str) and all(isinstance(name, str) for name in known)
    instead = advice(str(wanted), map(str, known)) if has_names else f"there are {listed(known)}"
    raise UserError(f"{where}: there is no {what} {wanted!r}; {instead}")


def _cure(study: str, arm: Arm, epoch: int) -> str:
    key = Checkpoint(arm, epoch).key
    return f"make it again: dagster asset materialize --select '{study}/checkpoints' --partition '{key}'"
