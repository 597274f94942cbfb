"""Asset ``report``: of every study that has results one page with all of it."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.definitions.composition import MappedInputPlaceholder

from dd_assets.laboratory import Laboratory
from dd_assets.steps.narrowing import OfStudies
from dd_assets.steps.user_errors import shown_as_sentence
from dd_core.errors import DataMissingError, UserError
from dd_core.figures import FIGURES
from dd_core.study.study import Study

if TYPE_CHECKING:
    from dd_core.store.store import Store

NAME = "report"
_DESCRIPTION = """\
One page for each study, `reports/<study>.html`: findings, results, every figure, recipe, costs, provenance and how to
cite it. It holds everything it needs, so it can be sent to someone, read without a network, and printed. Figures are
shown as they were drawn last; one that was drawn from other results than there are now is left out and named.
"""


def report_asset(studies: dict[str, Study]) -> dg.AssetsDefinition:
    """The asset of all studies.

    It comes after all figures, and some of them are always skipped. Dagster skips whatever depends on a skipped asset,
    unless many of them go into one input: hence a graph around the op.
    """
    write = _op(studies)
    figures = [figure.name for figure in FIGURES]
    graph = dg.GraphDefinition(
        NAME,
        description=_DESCRIPTION,
        node_defs=[write],
        dependencies={write.name: {"figures": dg.MultiDependencyDefinition([MappedInputPlaceholder] * len(figures))}},
        input_mappings=[
            dg.InputMapping(
                graph_input_name=name, mapped_node_name=write.name, mapped_node_input_name="figures", fan_in_index=index
            )
            for index, name in enumerate(figures)
        ],
        output_mappings=[
            dg.OutputMapping(graph_output_name="result", mapped_node_name=write.name, mapped_node_output_name="result")
        ],
        config=_narrowed,
    )
    return dg.AssetsDefinition.from_graph(
        graph,
        keys_by_input_name={name: dg.AssetKey(name) for name in figures},
        keys_by_output_name={"result": dg.AssetKey(NAME)},
        group_name="reports",
        descriptions_by_output_name={"result": _DESCRIPTION},
        tags_by_output_name={"result": {"dagster/kind/html": ""}},
    )


@dg.config_mapping
def _narrowed(config: OfStudies) -> dict[str, Any]:
    """The settings of the asset are those of its op."""
    return {"write": {"config": {"studies": config.studies}}}


def _op(studies: dict[str, Study]) -> dg.OpDefinition:
    @dg.op(name="write", ins={"figures": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing, is_required=False))
    def write(context: dg.OpExecutionContext, config: OfStudies, laboratory: Laboratory) -> Iterator[dg.Output[None]]:
        with shown_as_sentence():
            written, failed = _write_each(laboratory.store(), config.asked(studies), config.studies, context.log)
            if failed and not written:
                raise UserError("; ".join(f"report of {name} not written: {why}" for name, why in failed.items()))
            if not written:
                nothing = "report: no study has results yet"
                if len(context.job_def.nodes) == 1:  # somebody wants this very asset
                    raise UserError(nothing)
                context.log.warning(f"skipped: {nothing}")
        if written:
            yield dg.Output(None, metadata={**written, **{f"{name}_not_written": why for name, why in failed.items()}})

    return write


def _write_each(
    store: "Store", asked: Iterable[Study], named: list[str], log: dg.DagsterLogManager
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the page of every study that has results; of those that are named it is a mistake to have none.

    Returns:
        Metadata about those that were written; and by study, why one could not be.
    """
    from dd_core.reports.page import write_report

    written: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for study in asked:
        try:
            path, found = write_report(store, study)
        except DataMissingError as error:
            if study.name in named:
                raise
            log.debug(str(error))
        except UserError as error:
            failed[study.name] = str(error)
            log.error(f"report of {study.name} not written: {error}")
        else:
            link = f"[Report of {study.name}](/lab/reports/{study.name}.html)"
            written[study.name] = dg.MetadataValue.md("\n".join([link, "", *(f"- {sentence}" for sentence in found)]))
            written[f"{study.name}_file"] = dg.MetadataValue.path(str(path))
            log.info(f"report of {study.name}: {path}")
    return written, failed
