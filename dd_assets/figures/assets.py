"""One asset per figure: draws a chart for each study that has the data, writes its files and previews it in the UI."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from dd_assets.errors import shown_as_sentence
from dd_assets.figures import FIGURES, Figure
from dd_assets.resources import Laboratory
from dd_assets.versions import CURVED
from dd_core.errors import UserError
from dd_core.studies import Study


def figure_assets(studies: dict[str, Study]) -> list[dg.AssetsDefinition]:
    """The assets of all figures."""
    return [_figure_asset(figure, studies) for figure in FIGURES]


def _table_keys(table: str, studies: dict[str, Study]) -> list[dg.AssetKey]:
    """The node that stands for a table: of per-image curvature the one for that of all studies."""
    return [CURVED.key if table == "per_image_curvature" else dg.AssetKey(table)]


def _figure_asset(figure: Figure, studies: dict[str, Study]) -> dg.AssetsDefinition:
    spec = dg.AssetSpec(
        figure.name,
        deps=[key for table in figure.tables for key in _table_keys(table, studies)],
        description=figure.description,
        group_name="figures",
        kinds={"altair"},
        skippable=True,
    )

    @dg.multi_asset(name=figure.name, specs=[spec])
    def draw(context: dg.AssetExecutionContext, laboratory: Laboratory) -> Iterator[dg.MaterializeResult[Any]]:
        import contextlib

        from dd_assets.figures.render import preview_markdown, render
        from dd_core.warehouse import connect

        metadata: dict[str, Any] = {}
        obstacles: list[str] = []
        with shown_as_sentence():
            store = laboratory.store()
            with contextlib.closing(connect(store)) as connection:
                for study in studies.values():
                    try:
                        chart = figure.draw(study, store, connection)
                    except UserError as error:  # one study's missing images are no reason to leave out the others
                        obstacles.append(f"{figure.name} of {study.name} not drawn: {error}")
                        context.log.warning(obstacles[-1])
                        continue
                    if chart is not None:
                        files = render(chart, store.figure_folder(figure.name), study.name)
                        metadata[study.name] = dg.MetadataValue.md(preview_markdown(files["svg"]))
                        metadata[f"{study.name}_file"] = dg.MetadataValue.path(str(files["html"]))
                        context.log.info(f"{figure.name} of {study.name}: {files['html']}")
            if obstacles and not metadata:
                raise UserError("; ".join(obstacles))
            if not metadata:
                needs = " and ".join(figure.tables)
                raise UserError(f"{figure.name}: no study has the data yet; it is drawn from {needs}")
        yield dg.MaterializeResult(asset_key=figure.name, metadata=metadata)

    return draw
