"""The kinds of results that are computed from trained checkpoints, and which of them are there. Needs no torch.

Each kind has a table with one file per checkpoint, an asset per study (``<study>/<name>``) and a driver of all studies.
A new one is an entry of ``KINDS`` and a function, for most by ``dd_core.results.by_trial``; jobs, assets, staleness,
views and damage ask here. The registry stands beside the tables because views and damage know them by it; the functions
that compute stand in ``dd_core.results``.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dd_core.errors import UserError
from dd_core.store.manifests import Manifest
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.curvature import covers
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.columns import Table
from dd_core.tables.curvature import HESSIAN_SPECTRA, PER_IMAGE

Rows = tuple[int, int]


def _nothing(study: Study, epoch: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Kind:
    """One kind of result of a checkpoint.

    Attributes:
        name: of tasks, of the asset of a study and in manifests.
        what: for people, in the log.
        table: of one file per checkpoint.
        version: of the code; raise it when it changes what it computes, and what is stored is computed again.
        compute: "module:function", called with study, checkpoint, store and device, and where a task has them rows or
            group; it does nothing where a current result is there.
        description: of the asset.
        version_key: the version's name in manifests.
        settings: what the study wants at an epoch, as plain JSON values, as far as values depend on it.
        suffices: whether results with these settings have all that is wanted.
        epochs: those that are computed unless others are asked for, where not all are.
        ranges: ranges of rows that may be computed apart, of a study at an epoch; empty: a task is a checkpoint.
        ranks: processes that share the images of a task.
        summary: the table that is made of all results, if it is not their own; the driver is called like it.
        stock: name of the node that stands for all results of all studies.
        precision: in which a study wants it.
        objection: why it is not computed of a study, as a sentence about it; empty: it is.
    """

    name: str
    what: str
    table: Table
    version: str
    compute: str
    description: str
    version_key: str = "version"
    settings: Callable[[Study, int], dict[str, Any]] = _nothing
    suffices: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = lambda present, wanted: present == wanted
    epochs: Callable[[Study], tuple[int, ...]] | None = None
    ranges: Callable[[Study, int], Sequence[Rows]] = lambda study, epoch: ()
    ranks: Callable[[Study], int] = lambda study: 1
    summary: str = ""
    stock: str = ""
    precision: Callable[[Study], str] = lambda study: "float32"
    objection: Callable[[Study], str] = lambda study: ""

    def refuse(self, study: Study) -> None:
        """Pass only a study of which it is computed.

        Raises:
            UserError: it says why it is not.
        """
        if reason := self.objection(study):
            raise UserError(f"{study.name}: {reason}")

    @property
    def driver(self) -> str:
        """The asset of all studies."""
        return self.summary or self.table.name

    @property
    def function(self) -> Callable[..., bool]:
        """What computes it; loads torch."""
        module, _, name = self.compute.partition(":")
        found: Callable[..., bool] = getattr(importlib.import_module(module), name)
        return found

    def path(self, store: Store, study: Study, checkpoint: Checkpoint) -> Path:
        """The file of a checkpoint, parquet."""
        return store.result_path(self.table.name, study.name, checkpoint)

    def manifest_path(self, store: Store, study: Study, checkpoint: Checkpoint) -> Path:
        """The manifest of that file."""
        return store.manifest_path(self.path(store, study, checkpoint))

    def manifest(self, store: Store, study: Study, checkpoint: Checkpoint) -> Manifest | None:
        """The manifest of a checkpoint's result, if there is one."""
        return store.read_manifest(self.manifest_path(store, study, checkpoint))

    def manifests(
        self, store: Store, study: Study, checkpoints: Iterable[Checkpoint]
    ) -> dict[Checkpoint, Manifest | None]:
        """As ``manifest``, of several checkpoints."""
        wanted = list(checkpoints)
        paths = [self.manifest_path(store, study, checkpoint) for checkpoint in wanted]
        return dict(zip(wanted, store.read_manifests(paths), strict=True))

    def describes(self, result: Manifest, weights: Manifest) -> bool:
        """Whether a result is of these weights, by this code version, whatever its settings."""
        is_of_version = result.content.get(self.version_key) == self.version
        return is_of_version and result.checkpoint_sha256 == weights.weights_sha256

    def is_current(self, result: Manifest | None, weights: Manifest, study: Study) -> bool:
        """Whether it is, and has all that the study wants."""
        if result is None or not self.describes(result, weights):
            return False
        return self.suffices(result.settings, self.settings(study, weights.epoch))

    def missing(self, store: Store, study: Study) -> list[Checkpoint]:
        """Trained checkpoints that lack a current result, the file itself included."""
        if self.objection(study):
            return []
        trained = trained_checkpoints(store, study)
        present = self.manifests(store, study, trained)
        return [
            checkpoint
            for checkpoint, weights in trained.items()
            if weights.live_trials
            and not ((own := present[checkpoint]) and self.is_current(own, weights, study) and store.is_sound(own))
        ]


def _hessian_settings(study: Study, epoch: int) -> dict[str, Any]:
    return study.hessian.model_dump(mode="json", exclude={"epochs", "batch_size", "block_size", "ranks"})


def _needs_images(study: Study) -> str:
    return (
        ""
        if study.data.graphs is None
        else "the Hessian in the weights is computed of networks of images alone; of graphs the monitor hessian looks "
        "at the weights while they train"
    )


PER_IMAGE_CURVATURE = Kind(
    name="per_image_curvature",
    what="curvature",
    table=PER_IMAGE,
    version="2",
    version_key="curvature_version",
    compute="dd_core.results.per_image_curvature:compute_curvature",
    description="Curvature of the loss in input space for every training image or graph of every trial: trace, "
    "Frobenius norm and largest eigenvalue of the Hessian, curvature along the gradient, gradient norm and loss; and "
    "finite differences where the study wants them.",
    settings=lambda study, epoch: study.curvature.families(epoch),
    suffices=covers,
    ranges=lambda study, epoch: study.curvature_ranges(epoch),
    summary="curvature",
    stock="computed_curvature",
    precision=lambda study: study.curvature.precision,
    objection=lambda study: "" if study.data.graphs is None else study.curvature.objection_to_graphs,
)
HESSIAN = Kind(
    name="hessian",
    what="the Hessian in the weights",
    table=HESSIAN_SPECTRA,
    version="1",
    version_key="hessian_version",
    compute="dd_core.results.hessian:hessian_of_checkpoint",
    description="The Hessian of the training loss in the weights of every trial: largest and smallest eigenvalues, "
    "spectral density, exact and estimated traces, by layer, and the gradient's place in it. One row per trial of the "
    "table hessian_spectra.",
    settings=_hessian_settings,
    epochs=lambda study: study.hessian_epochs,
    ranks=lambda study: study.hessian.ranks,
    stock="computed_hessians",
    objection=_needs_images,
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (PER_IMAGE_CURVATURE, HESSIAN)}
