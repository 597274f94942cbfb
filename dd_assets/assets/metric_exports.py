"""Asset ``metric_exports``: the metrics of every run as CSV and JSON lines, for other systems."""

import dagster as dg

from dd_assets.laboratory import Laboratory
from dd_assets.steps.narrowing import OfArms
from dd_assets.steps.user_errors import shown_as_sentence
from dd_core.errors import UserError
from dd_core.study.study import Study
from dd_core.words import counted

_TABLES = ("training_batches", "training_evals", "training_monitors")
_DESCRIPTION = """\
The metrics of every run of the present recipes, with the keys of the loss-slope and double-descent campaigns, in full
precision: `exports/<study>/<arm>/trial-000/metrics.csv` and `metrics.jsonl` (a line for each step), and
`exports/<study>/<variant>/metrics_k<k>.jsonl` (an object for each epoch and trial). A value that is no finite number is
NaN, Infinity or -Infinity, in JSON as a string; what was not measured is an empty field or an absent key. Files that
would not change are not written. `python -m dd_assets.import_metrics` reads them.
"""


class ExportConfig(OfArms):
    """Narrows what is exported; empty lists mean everything."""


def metric_exports_asset(studies: dict[str, Study]) -> dg.AssetsDefinition:
    """The asset of all studies, imported ones included."""

    @dg.asset(
        name="metric_exports",
        deps=list(_TABLES),
        group_name="exports",
        kinds={"csv", "json"},
        description=_DESCRIPTION,
    )
    def metric_exports(
        context: dg.AssetExecutionContext, config: ExportConfig, laboratory: Laboratory
    ) -> dg.MaterializeResult[None]:
        from dd_core.exchange.exporter import ArmExport, export_arm

        exports: list[ArmExport] = []
        with shown_as_sentence():
            store = laboratory.store()
            for study, arms in {s.name: config.of(s) for s in config.asked(studies)}.items():
                found = {arm: export_arm(store, studies[study], arm) for arm in arms}
                old = [arm for arm in arms if not found[arm] and (store.exports_folder(study) / arm.key).exists()]
                if old:
                    keys = ", ".join(arm.key for arm in old)
                    context.log.warning(f"{study}: the exported files of {keys} are of an earlier recipe")
                done = [export for export in found.values() if export]
                if done:
                    written, files = sum(e.written for e in done), sum(len(e.files) for e in done)
                    context.log.info(
                        f"{study}: {written} of {counted(files, 'file')} written, {store.exports_folder(study)}"
                    )
                exports += done
            if not exports:
                what = ", ".join([*config.studies, *config.arms]) or "any study"
                raise UserError(f"there are no metrics of the present recipe of {what} under {store.root}; train first")
        return dg.MaterializeResult(
            metadata={
                "files": sum(len(export.files) for export in exports),
                "files_written": sum(export.written for export in exports),
                "dagster/row_count": sum(export.rows for export in exports),
                "bytes": sum(export.bytes for export in exports),
                "dagster/uri": str(store.exports_folder("")),
            }
        )

    return metric_exports
