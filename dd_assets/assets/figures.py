"""One asset per figure: draws a chart for each study that has the data, writes its files and previews it in the UI."""

import logging
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dd_assets.laboratory import Laboratory
from dd_assets.pages import PREFIX, figure_address
from dd_assets.steps.harms import warn_of_harms
from dd_assets.steps.narrowing import OfStudies
from dd_assets.steps.user_errors import shown_as_sentence
from dd_assets.steps.versions import input_tags, stock_of
from dd_core.errors import DataMissingError, UserError
from dd_core.figures import FIGURES, Figure
from dd_core.study.study import Study
from dd_core.tables.kinds import KINDS

if TYPE_CHECKING:
    from dd_core.store.store import Store


def figure_assets(studies: dict[str, Study]) -> list[dg.AssetsDefinition]:
    """The assets of all figures."""
    return [_figure_asset(figure, studies) for figure in FIGURES]


def _table_key(table: str) -> dg.AssetKey:
    """The node that stands for a table: of results that are summarised the one for those of all studies."""
    summarised = next((kind for kind in KINDS.values() if kind.table.name == table and kind.summary), None)
    return stock_of(summarised).key if summarised else dg.AssetKey(table)


def _figure_asset(figure: Figure, studies: dict[str, Study]) -> dg.AssetsDefinition:
    spec = dg.AssetSpec(
        figure.name,
        deps=[_table_key(table) for table in figure.tables],
        description=_description(figure),
        group_name=figure.group,
        kinds={"altair"},
        skippable=True,
    )

    @dg.multi_asset(name=figure.name, specs=[spec])
    def draw(
        context: dg.AssetExecutionContext, config: OfStudies, laboratory: Laboratory
    ) -> Iterator[dg.MaterializeResult[Any]]:
        with shown_as_sentence():
            store, asked = laboratory.store(), config.asked(studies)
            others = [study for study in studies.values() if study not in asked]
            facts = warn_of_harms(context, store, asked, figure.tables, anew=False)
            drawn, lacking, failed = _draw_each(figure, asked, store, context.log)
            if failed and not drawn:
                raise UserError("; ".join(f"{figure.name} of {name} not drawn: {why}" for name, why in failed.items()))
            if not drawn:
                nothing = _nothing_to_draw(figure, config.studies, lacking)
                if len(context.job_def.nodes) == 1:  # somebody wants this very figure
                    raise UserError(nothing)
                context.log.info(f"skipped: {nothing}")
            for name, why in (lacking | failed).items() if drawn else ():
                context.log.log(
                    logging.ERROR if name in failed else logging.INFO, f"{figure.name} of {name} not drawn: {why}"
                )
        if drawn:
            not_drawn = {f"{name}_not_drawn": why for name, why in (lacking | failed).items()}
            metadata = {**drawn, **_as_drawn_before(figure, others, store), **not_drawn, **facts}
            # Of the others' tables there may be news: stale until a step draws all.
            is_part = any(store.may_have(study.name) for study in others)
            tags = input_tags({dep.asset_key: ("partial", None) for dep in spec.deps}) if is_part else None
            yield dg.MaterializeResult(asset_key=figure.name, metadata=metadata, tags=tags)

    return draw


def _description(figure: Figure) -> str:
    """What it shows, and the picture of the study of which it was drawn last."""
    address = f"{PREFIX}/figures/{figure.name}"
    return f"{figure.description}\n\n[Interactive, and of every study]({address}/)\n\n![{figure.name}]({address}.svg)"


def _nothing_to_draw(figure: Figure, asked: list[str], lacking: dict[str, str]) -> str:
    nobody = "no study has" if not asked else f"{', '.join(asked)} {'does' if len(asked) == 1 else 'do'} not have"
    reasons = "".join(f"; {name}: {why}" for name, why in lacking.items())
    return f"{figure.name}: {nobody} the data yet; it is drawn from {' and '.join(figure.tables)}{reasons}"


def _draw_each(
    figure: Figure, studies: Iterable[Study], store: "Store", log: dg.DagsterLogManager
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Draw a figure for every study; what is wrong with one is no reason to leave out the others.

    Returns:
        Metadata of what was drawn; by study, why there is nothing to draw it from; and why it could not be drawn.
    """
    from dd_core.figures.drawing.current import draw

    drawn: dict[str, Any] = {}
    lacking: dict[str, str] = {}
    failed: dict[str, str] = {}
    for study in studies:
        try:
            files = draw(figure, study, store)
        except DataMissingError as error:
            lacking[study.name] = str(error)
        except UserError as error:
            failed[study.name] = str(error)
        except Exception as error:
            failed[study.name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            log.error(f"a defect in {figure.name} of {study.name}:\n{traceback.format_exc()}")
        else:
            if files:
                drawn |= _shown(figure, study, files["svg"], files["html"])
                log.info(f"{figure.name} of {study.name}: {files['html']}")
    return drawn, lacking, failed


def _as_drawn_before(figure: Figure, studies: Iterable[Study], store: "Store") -> dict[str, Any]:
    """Metadata of the figures that are there of studies that this run does not draw."""
    shown: dict[str, Any] = {}
    for study in studies:
        svg, html = (store.figure_folder(figure.name) / f"{study.name}.{kind}" for kind in ("svg", "html"))
        if svg.is_file() and html.is_file():
            shown |= _shown(figure, study, svg, html)
    return shown


def _shown(figure: Figure, study: Study, svg: Path, html: Path) -> dict[str, Any]:
    """Metadata of a study's figure."""
    from dd_core.figures.drawing.preview import preview_markdown

    address = figure_address(figure.name, study.name)
    return {
        study.name: dg.MetadataValue.md(preview_markdown(svg, address)),
        f"{study.name}_interactive": dg.MetadataValue.url(f"{address}.html"),
        f"{study.name}_file": dg.MetadataValue.path(str(html)),
    }
