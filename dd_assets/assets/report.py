"""Asset ``report``: of every study that has results one page with all of it."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from dd_assets.laboratory import Laboratory
from dd_assets.steps.narrowing import OfStudies
from dd_assets.steps.user_errors import shown_as_sentence
from dd_core.errors import DataMissingError, UserError
from dd_core.figures import FIGURES
from dd_core.study.study import Study

_DESCRIPTION = """\
One page for each study, `reports/<study>.html`: findings, results, every figure, recipe, costs, provenance and how to
cite it. It holds everything it needs, so it can be sent to someone, read without a network, and printed. Figures are
shown as they were drawn last; one that was drawn from other results than there are now is left out and named.
"""


def report_asset(studies: dict[str, Study]) -> dg.AssetsDefinition:
    """The asset of all studies."""
    spec = dg.AssetSpec(
        "report",
        deps=[figure.name for figure in FIGURES],
        description=_DESCRIPTION,
        group_name="reports",
        kinds={"html"},
        skippable=True,
    )

    @dg.multi_asset(name="report", specs=[spec])
    def report(
        context: dg.AssetExecutionContext, config: OfStudies, laboratory: Laboratory
    ) -> Iterator[dg.MaterializeResult[Any]]:
        from dd_core.reports.findings import findings
        from dd_core.reports.page import write_report

        written: dict[str, Any] = {}
        failed: dict[str, str] = {}
        with shown_as_sentence():
            store = laboratory.store()
            for study in config.asked(studies):
                try:
                    path = write_report(store, study)
                except DataMissingError as error:
                    if study.name in config.studies:
                        raise
                    context.log.debug(str(error))
                except UserError as error:
                    failed[study.name] = str(error)
                    context.log.error(f"report of {study.name} not written: {error}")
                else:
                    link = f"[Report of {study.name}](/lab/reports/{study.name}.html)"
                    found = [f"- {sentence}" for sentence in findings(store, study)]
                    written[study.name] = dg.MetadataValue.md("\n".join([link, "", *found]))
                    written[f"{study.name}_file"] = dg.MetadataValue.path(str(path))
                    context.log.info(f"report of {study.name}: {path}")
            if failed and not written:
                raise UserError("; ".join(f"report of {name} not written: {why}" for name, why in failed.items()))
            if not written:
                nothing = "report: no study has results yet"
                if len(context.job_def.nodes) == 1:  # somebody wants this very asset
                    raise UserError(nothing)
                context.log.warning(f"skipped: {nothing}")
        if written:
            not_written = {f"{name}_not_written": why for name, why in failed.items()}
            yield dg.MaterializeResult(asset_key="report", metadata={**written, **not_written})

    return report
