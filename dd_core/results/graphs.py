"""The tables of graphs, rebuilt from files alone: a file of each for every arm whose graphs were evaluated.

An arm is judged again only when its evaluations, what ``runs`` says of it or ``GRAPHS_VERSION`` have changed. Needs no
torch.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dd_core.results.arm_files import ArmFiles, digest_of_sources, remove_others
from dd_core.results.attempts import attempts, last_attempts
from dd_core.results.graph_claims import claims_rows
from dd_core.results.graph_rows import ArmEvaluations, progress_of, results_of
from dd_core.results.image_curves import harmed_files, progress_rows
from dd_core.store.store import Store
from dd_core.study.graphs import GRAPH_VALUES
from dd_core.study.study import Arm, Study
from dd_core.tables.files import TABLES, to_arrow
from dd_core.tables.graphs import GRAPH_TABLES, GRAPHS_VERSION

NAMES = tuple(table.name for table in GRAPH_TABLES)


@dataclass
class Rebuilt:
    """What came of a study.

    Attributes:
        arms: keys of the arms that have rows.
        computed: those of them that were judged now.
        diverged: by arm the trials that diverged; their rows end before that.
    """

    arms: list[str] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    diverged: dict[str, list[int]] = field(default_factory=dict)


def rebuild(store: Store, study: Study) -> Rebuilt:
    """Write the study's part of all three tables; arms that have not changed stay, those that went are removed."""
    done = Rebuilt()
    if study.data.graphs is not None and store.table_folder("image_progress", study.name).is_dir():
        harmed = harmed_files(store, study)
        for arm in study.arms.values():
            _rebuild_arm(store, study, arm, harmed, done)
    remove_others(store, study, NAMES, done.arms)
    return done


def _rebuild_arm(store: Store, study: Study, arm: Arm, harmed: Collection[Path], done: Rebuilt) -> None:
    progress, runs = (
        sorted(path for path in store.table_folder(name, study.name, arm.key).glob("*.parquet") if path not in harmed)
        for name in ("image_progress", "runs")
    )
    if not progress:
        return
    # A recipe may be the same for more epochs.
    asked = json.dumps([GRAPHS_VERSION, study.recipe_hash(arm), study.epochs])
    digest = digest_of_sources(store, asked, [*progress, *runs])
    files = ArmFiles(store, study, arm, NAMES)
    about = files.known(digest)
    if about is None:
        evaluations = _evaluations(study, arm, progress, runs)
        if not evaluations.places:
            return  # all of it is of another recipe
        about = _write(files, evaluations, attempts(runs, study.recipe_hash(arm)), digest)
        done.computed.append(arm.key)
    done.arms.append(arm.key)
    if diverged := json.loads(about)["diverged"]:
        done.diverged[arm.key] = diverged


def _evaluations(study: Study, arm: Arm, progress: Sequence[Path], runs: Sequence[Path]) -> ArmEvaluations:
    recipe = study.recipe_hash(arm)
    values = ("loss", *GRAPH_VALUES)
    parts = [progress_rows(path, recipe, study.epochs, values) for path in progress]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return ArmEvaluations(study, arm, rows, last_attempts(runs, recipe))


def _write(files: ArmFiles, evaluations: ArmEvaluations, told: list[dict[str, Any]], digest: str) -> str:
    """Write the three files of an arm; returns what is known of it, as JSON."""
    study, arm = files.study, files.arm
    graphs, nsm = study.data.graphs, study.variants[arm.variant].nsm
    assert graphs is not None and nsm is not None
    progress = progress_of(evaluations)
    rows = {
        "graph_progress": progress,
        "nsm_results": results_of(evaluations, progress),
        "nsm_claims": claims_rows(evaluations, progress, told),
    }
    constants = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm)}
    constants |= {"domain": nsm.domain, "labels": graphs.labels}
    tables = {}
    for name, content in rows.items():
        own = [column.name for column in TABLES[name].file_columns if column.name not in constants]
        columns = {column: [row[column] for row in content] for column in own}
        tables[name] = to_arrow(name, {**constants, **columns}, len(content))
    is_diverged = {trial: row["status"] == "diverged" for trial, row in sorted(evaluations.attempts.items())}
    about = json.dumps({"diverged": [trial for trial, it_is in is_diverged.items() if it_is]})
    files.write(tables, digest, about)
    return about
