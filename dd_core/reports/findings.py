"""What a study found, as sentences."""

from dd_core.analysis import graph_report, incremental_report, loss_slope_report, memorization_report
from dd_core.analysis.double_descent import find_double_descent
from dd_core.analysis.report import report, sentence
from dd_core.store.store import Store
from dd_core.study.study import Study

_KINDS = (loss_slope_report, incremental_report, memorization_report, graph_report)


def findings(store: Store, study: Study) -> list[str]:
    """Sentences about the results of the study's present recipe; none where nothing is trained, or says anything."""
    _, curves = report(store, study)
    found = []
    for variant, rows in curves.items():
        if (finding := find_double_descent(rows)) is not None:
            name = f"{variant}: " if len(study.variants) > 1 else ""
            found.append(f"{name}{sentence(finding, rows[0].trials)}")
    return found + [text for kind in _KINDS for text in kind.findings(store, study)]
