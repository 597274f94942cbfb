"""Asset ``curvature_exports``: per-image curvature as NumPy arrays, in the form of the published analysis."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from dd_assets.laboratory import Laboratory
from dd_assets.steps.checkpoint_results import Work, select
from dd_assets.steps.narrowing import Narrowing
from dd_assets.steps.user_errors import shown_as_sentence
from dd_assets.steps.versions import stock_of
from dd_core.errors import UserError
from dd_core.store.manifests import Manifest
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.kinds import PER_IMAGE_CURVATURE

_DESCRIPTION = """\
The published per-image curvature (finite differences) of every checkpoint that has it, as the analysis of incremental
CIFAR-100 writes it: `exports/<study>/<arm>/trial-000/epoch_0200/` with `per_image_curvature.npy`,
`per_image_directional_eig.npy`, `per_image_labels.npy` and `metadata.json`, and `per_image_ids.npy` beside them. There
is a value for each training image of the classes seen by then: 500 of each class of CIFAR-100, where none are left for
validation. Files that would not change are not written.
"""


def _analysed(store: Store, chosen: Work) -> Iterator[tuple[Study, Checkpoint, Manifest]]:
    """Those checkpoints that have per-image curvature of their present weights, with its manifest."""
    kind = PER_IMAGE_CURVATURE
    results = store.read_manifests([kind.manifest_path(store, study, c) for study, c in chosen])
    weights = store.read_manifests([store.checkpoint_manifest_path(study.name, c) for study, c in chosen])
    for (study, checkpoint), result, own in zip(chosen, results, weights, strict=True):
        if result is not None and own is not None and kind.describes(result, own):
            yield study, checkpoint, result


class CurvatureExportConfig(Narrowing):
    """Narrows what is exported; empty lists mean everything."""

    step: float | None = Field(default=None, description="h of the finite difference; default the smallest")


def curvature_exports_asset(studies: dict[str, Study]) -> dg.AssetsDefinition:
    """The asset of all studies that have checkpoints, imported ones included."""

    @dg.asset(
        name="curvature_exports",
        deps=[stock_of(PER_IMAGE_CURVATURE).key],
        group_name="exports",
        kinds={"numpy", "json"},
        description=_DESCRIPTION,
    )
    def curvature_exports(
        context: dg.AssetExecutionContext, config: CurvatureExportConfig, laboratory: Laboratory
    ) -> dg.MaterializeResult[None]:
        from dd_core.exchange.curvature_exporter import CurvatureExport, export_curvature

        with shown_as_sentence():
            store, done = laboratory.store(), list[CurvatureExport]()
            lacking: list[UserError] = []
            for study, checkpoint, curvature in _analysed(store, select(store, studies, config, context.log.warning)):
                try:
                    done.append(export_curvature(store, study, checkpoint, curvature, config.step))
                except UserError as error:
                    lacking.append(error)
                    context.log.warning(f"not exported: {error}")
            if not done and lacking:
                raise lacking[0]
            if not done:
                raise UserError(
                    "nothing asked for has per-image curvature yet; run: dagster asset materialize --select curvature"
                )
            for folder in dict.fromkeys(export.folder for export in done):
                context.log.info(f"exported: {folder}")
        return dg.MaterializeResult(
            metadata={
                "files": sum(export.files for export in done),
                "files_written": sum(export.written for export in done),
                "dagster/row_count": sum(export.rows for export in done),
                "dagster/uri": str(store.exports_folder("")),
            }
        )

    return curvature_exports
