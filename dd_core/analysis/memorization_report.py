"""What a study says of memorisation, as text: what finds wrong labels and duplicates, and which score is right."""

import contextlib
from collections import defaultdict
from typing import Any

import duckdb
import numpy as np

from dd_core.analysis.loss_slope_report import CURRENT, query
from dd_core.analysis.memorization.sentences import (
    WRONG_LABEL,
    agreement_sentence,
    detection_words,
    labels_sentence,
    noise_words,
)
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.warehouse import connect

_TABLES = ("memorization_detection", "memorization_agreement", "memorization_truth")
# That a report has sentences about.
_MOST_ARMS = 6
_DETECTION = f"SELECT * FROM memorization_detection WHERE {CURRENT} AND auroc IS NOT NULL ORDER BY target DESC, score"
_AGREEMENT = f"SELECT * FROM memorization_agreement WHERE {CURRENT} AND spearman IS NOT NULL ORDER BY source, score"
_TRUTH = f"""
    SELECT arm, source, coalesce(is_noisy, false) AS is_noisy, list(memorization) AS found FROM memorization_truth
    WHERE {CURRENT} AND isfinite(memorization)
    GROUP BY arm, source, coalesce(is_noisy, false) ORDER BY arm, source, is_noisy
"""


def findings(store: Store, study: Study) -> list[str]:
    """Sentences about a study's memorisation; none where none was measured."""
    with contextlib.closing(connect(store, _TABLES, within=(study.name,))) as connection:
        sentences = [*_truths(study, connection), *_agreements(study, connection), *_detections(study, connection)]
    return [f"{sentence}." for sentence in sentences]


def _grouped(study: Study, rows: list[dict[str, Any]], key: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows by arm, in the study's order, and a further column; of many arms the first."""
    arms = [arm for arm in study.arms if any(row["arm"] == arm for row in rows)][:_MOST_ARMS]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted((row for row in rows if row["arm"] in arms), key=lambda row: arms.index(row["arm"])):
        groups[row["arm"], row[key]].append(row)
    return groups


def _truths(study: Study, connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [
        labels_sentence({row["is_noisy"]: np.array(row["found"]) for row in rows}, _name(study, arm, source))
        for (arm, source), rows in _grouped(study, query(connection, study, _TRUTH), "source").items()
    ]


def _agreements(study: Study, connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [
        f"{_name(study, arm, source)}: {agreement_sentence(rows)}"
        for (arm, source), rows in _grouped(study, query(connection, study, _AGREEMENT), "source").items()
    ]


def _detections(study: Study, connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [
        f"{arm}, what finds "
        + detection_words(rows, f"wrong labels ({noise_words(rows[0])})" if target == WRONG_LABEL else f"{target}s")
        for (arm, target), rows in _grouped(study, query(connection, study, _DETECTION), "target").items()
    ]


def _name(study: Study, arm: str, source: str) -> str:
    return arm if source == "subsets" else f"{arm}, truth from {source}"
