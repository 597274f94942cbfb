"""The page about a study: HTML with everything in it, so that it can be sent, kept and read without a network.

The same results and the same code give the same bytes: nothing on it is about when or where it was made.
"""

from importlib import resources
from pathlib import Path

from dd_core.errors import DataMissingError
from dd_core.figures.drawing.render import vega
from dd_core.figures.drawing.source import source_of
from dd_core.reports.costs import costs, machines
from dd_core.reports.figures import GROUPS, DrawnFigure, drawn_figures, files_of_figures
from dd_core.reports.findings import findings
from dd_core.reports.provenance import provenance
from dd_core.reports.recipe import recipe_tables
from dd_core.reports.results import results
from dd_core.reports.templates import environment
from dd_core.store.files import write_text
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Study

_TABLES = ("training_evals", "runs", "curvature", "nsm_results")
_TEMPLATE = resources.files("dd_core.reports") / "template"


def write_report(store: Store, study: Study) -> tuple[Path, list[str]]:
    """Write the page into the data root, as ``report_page``; returns where, and the sentences about what was found."""
    path, found = store.report_path(study.name), findings(store, study)
    write_text(path, report_page(store, study, found))
    return path, found


def report_page(store: Store, study: Study, found: list[str] | None = None) -> str:
    """One self-contained HTML page about the results of a study's present recipe.

    Figures are those in the data root, as they were drawn. One that was drawn from other results than there are now, or
    whose files are damaged, is left out and named; one by a version that did not note from what is shown with a note.

    Args:
        store: the data root; only read.
        study: any, imported ones included.
        found: its ``findings``, where they are known already.

    Raises:
        DataMissingError: there are no results of the present recipe.
        StoreError: a file cannot be read.
    """
    trained = trained_checkpoints(store, study)
    files = files_of_figures(store, study)
    tables = {*_TABLES, *(table for figure in files for table in figure.tables)}
    source = source_of(store, study)
    connection = source.connection(*tables)
    reached = results(study, connection)
    drawn, left_out = drawn_figures(files, study, source.digest)
    spent, used = costs(study, connection), machines(study, connection)
    if not (reached or trained or drawn):
        raise DataMissingError(
            f"there is nothing to report of {study.name}, as it has no results of its present recipe; {study.comes_by} "
            "first"
        )
    common, differing = recipe_tables(study)
    return (
        environment(_TEMPLATE)
        .get_template("page.html")
        .render(
            study=study,
            findings=findings(store, study) if found is None else found,
            results=reached,
            checkpoint=next(reversed(trained), None),
            sections=_sections(drawn),
            left_out=left_out,
            common=common,
            differing=differing,
            costs=spent,
            provenance=provenance(study, trained, *used),
            vega=vega() if drawn else "",
        )
    )


def _sections(drawn: list[DrawnFigure]) -> dict[str, list[DrawnFigure]]:
    """Figures by heading; those of images come last, as a gallery."""
    sections: dict[str, list[DrawnFigure]] = {}
    for figure in sorted(drawn, key=lambda figure: figure.is_gallery):
        title = "Gallery" if figure.is_gallery else GROUPS.get(figure.figure.group, figure.figure.group)
        sections.setdefault(title, []).append(figure)
    return sections
