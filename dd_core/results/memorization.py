"""The tables of memorisation, rebuilt from files alone: a file of each for every arm whose images were evaluated.

An arm is scored again only when its metrics, its curvature, what is set for it or ``MEMORIZATION_VERSION`` have
changed; what a file was made from is in its manifest. Needs no torch unless a study asks for GraNd or out-of-fold
predictions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dd_core.analysis.memorization.truth import reliability
from dd_core.errors import require_torch
from dd_core.exchange.memorization import imported_files
from dd_core.results.arm_files import ArmFiles, digest_of_sources, remove_others
from dd_core.results.boundary_forgetting import boundary_rows
from dd_core.results.image_curves import Sources, curves_of, harmed_files, sources_of
from dd_core.results.memorization_scores import (
    ArmScores,
    Columns,
    Membership,
    Probes,
    agreement_rows,
    detection_rows,
    influence_rows,
    membership_of,
    score_rows,
    truth_rows,
)
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import TABLES, read_parquet, to_arrow
from dd_core.tables.images import write_images
from dd_core.tables.memorization import MEMORIZATION_TABLES, MEMORIZATION_VERSION

NAMES = tuple(table.name for table in MEMORIZATION_TABLES)


@dataclass
class Rebuilt:
    """What came of a study.

    Attributes:
        arms: keys of the arms that have scores.
        computed: those of them that were scored now.
        diverged: by arm the trials that are left out because they diverged.
        reliability: by arm with random subsets, that of the truth.
        num_classes: by arm those that its last evaluation is of; images of others are still to come.
    """

    arms: list[str] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    diverged: dict[str, list[int]] = field(default_factory=dict)
    reliability: dict[str, float] = field(default_factory=dict)
    num_classes: dict[str, int] = field(default_factory=dict)


def has_images(store: Store, study: Study) -> bool:
    """Whether single images of a study were evaluated; single graphs are told of by image_progress alone."""
    return study.data.graphs is None and store.table_folder("image_progress", study.name).is_dir()


def rebuild(store: Store, study: Study) -> Rebuilt:
    """Write the study's part of all six tables; arms that have not changed stay, those that went are removed.

    Raises:
        DataMissingError: the data set is absent, and with it labels and splits.
    """
    done = Rebuilt()
    if has_images(store, study) and not study.imported:
        write_images(store, study)
        harmed = harmed_files(store, study)
        for arm in study.arms.values():
            sources = sources_of(store, study, arm, harmed)
            if sources.progress:
                _rebuild_arm(store, study, arm, sources, done)
    remove_others(store, study, NAMES, done.arms)
    return done


def _rebuild_arm(store: Store, study: Study, arm: Arm, sources: Sources, done: Rebuilt) -> None:
    truths = imported_files(store, study, arm)
    digest = _digest(store, study, arm, [*sources.paths, *truths, *_probed(store, study, arm)])
    files = ArmFiles(store, study, arm, NAMES)
    about = files.known(digest)
    if about is None:
        found = ArmScores(study, arm)
        boundaries, probes = [], _probes(store, study, arm)
        for curves in curves_of(study, arm, sources):
            if not curves.has_diverged and study.data.classes is not None:
                boundaries += boundary_rows(curves, study, arm)
            found.add(curves, probes)
        if not found.trials and not found.diverged:
            return  # all of it is of another recipe
        about = _write(files, found, boundaries, probes, _imported(truths), digest)
        done.computed.append(arm.key)
    known = json.loads(about)
    done.arms.append(arm.key)
    done.num_classes[arm.key] = known["num_classes"]
    if known["diverged"]:
        done.diverged[arm.key] = known["diverged"]
    if known["reliability"] is not None:
        done.reliability[arm.key] = known["reliability"]


def _probed(store: Store, study: Study, arm: Arm) -> list[Path]:
    """Manifests of the checkpoints that are looked at."""
    settings = study.memorization
    epochs = sorted({*settings.grand, *study.checkpoints[-1:]}) if settings.probes else []
    return [store.checkpoint_manifest_path(study.name, Checkpoint(arm, epoch)) for epoch in epochs]


def _probes(store: Store, study: Study, arm: Arm) -> Probes:
    if not study.memorization.probes:
        return Probes()
    require_torch(f"memorization.grand or memorization.out_of_fold of {study.name}")
    from dd_core.results.memorization_probes import probes_of

    return probes_of(store, study, arm)


def _digest(store: Store, study: Study, arm: Arm, paths: Sequence[Path]) -> str:
    settings = study.memorization.model_dump(mode="json")
    # A recipe may be the same for more epochs, or more evaluations.
    asked = [settings, study.epochs, study.evaluation.every]
    return digest_of_sources(store, json.dumps([MEMORIZATION_VERSION, study.recipe_hash(arm), *asked]), paths)


def _imported(paths: Sequence[Path]) -> dict[str, Membership | dict[int, float]]:
    """Truths that were imported, by source."""
    found: dict[str, Membership | dict[int, float]] = {}
    for path in paths:
        table = read_parquet(path).select(["image_id", "memorization", "source"])
        for row in table.to_pylist():
            of = found.setdefault(row["source"], {})
            assert isinstance(of, dict)
            if row["memorization"] is not None:
                of[row["image_id"]] = row["memorization"]
    return found


def _write(
    files: ArmFiles,
    found: ArmScores,
    boundaries: list[dict[str, Any]],
    probes: Probes,
    imported: dict[str, Membership | dict[int, float]],
    digest: str,
) -> str:
    """Write the six files of an arm; returns what is known of it, as JSON."""
    study, arm = files.study, files.arm
    content: dict[str, Columns | list[Columns]] = {name: [] for name in NAMES}
    about: dict[str, Any] = {"diverged": found.diverged, "reliability": None, "num_classes": 0}
    if found.trials:
        about["num_classes"] = study.num_classes_at(int(found.longest) - 1)
        if probes.predictions:
            found.add_confident_learning(probes, study.data.record.num_classes)
        truths = dict(imported)
        if study.data.subset is not None:
            members = membership_of(found)
            truths["subsets"] = members
            content["memorization_truth"] = truth_rows(found, members)
            content["memorization_influence"] = influence_rows(found, members)
            value = reliability(members.is_in, members.is_right)
            about["reliability"] = None if np.isnan(value) else value
        content["memorization"] = score_rows(found)
        content["memorization_detection"] = detection_rows(found)
        content["memorization_agreement"] = agreement_rows(found, truths)
        content["boundary_forgetting"] = boundaries
    constants = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm)}
    tables = {}
    for name, rows in content.items():
        columns = {**constants, **_columns(name, rows)}
        tables[name] = to_arrow(name, columns, len(rows) if isinstance(rows, list) else len(rows["image_id"]))
    text = json.dumps(about)
    files.write(tables, digest, text)
    return text


def _columns(name: str, rows: Columns | list[Columns]) -> Mapping[str, Any]:
    """Columns from rows, or as they are."""
    if not isinstance(rows, list):
        return rows
    fixed = [column.name for column in TABLES[name].file_columns if column.name not in ("variant", "k", "recipe")]
    return {column: [row.get(column) for row in rows] for column in fixed}
