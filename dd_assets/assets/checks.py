"""Asset checks of a study: files match their manifests, metrics are complete and in range, row counts match.

They are part of the asset's own step, which can also be run for a check alone. The driver ``curvature`` evaluates those
of the assets that it drives. A check that fails is shown at the asset; it does not undo what was recorded.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.training import METRIC_TABLES

_FILES = "files_match_manifests"
_PREFLIGHT = "preflight"
_METRICS = "metrics_complete_and_in_range"
_ROWS = "one_row_per_image"
_SEEN = "only_seen_classes"
# Sentences about problems that a check shows.
_SHOWN = 50


def checkpoint_check_specs(study: Study, key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """What is checked of checkpoints: of imported ones, which have no metrics, the files alone."""
    files = dg.AssetCheckSpec(
        _FILES,
        asset=key,
        description="Every checkpoint and its metric files are as their manifest says (size, SHA-256).",
    )
    if study.imported:
        return [files]
    preflight = dg.AssetCheckSpec(
        _PREFLIGHT,
        asset=key,
        description="Labels of training graphs are balanced (45 % at least), the cycle loss weighs at most 0.05 and "
        "the learning rate is at most 5e-4: beyond that the authors of these networks warn. Looked at before training, "
        "too, and twice that far refused unless the variant says nsm: {preflight: warn}.",
    )
    return [
        files,
        *([preflight] if study.data.graphs is not None else []),
        dg.AssetCheckSpec(
            _METRICS,
            asset=key,
            description="Up to the last checkpoint, or where a trial ended before it, every metric of batches, "
            "monitors, evaluations and images is in the tables once at every step or epoch where the study asks for "
            "it, finite and in range. A monitor's value that was NaN counts as missing.",
        ),
    ]


def curvature_check_specs(study: Study, key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """What is checked after per-image curvature."""
    rows = dg.AssetCheckSpec(
        _ROWS,
        asset=key,
        description="Every curvature file has each training image of each trial exactly once, with finite values.",
    )
    if study.data.classes is None:
        return [rows]
    seen = dg.AssetCheckSpec(
        _SEEN,
        asset=key,
        description="Every curvature file has all images of the classes that its trial had seen by then, and of no "
        "others. A checkpoint at the end of a task has not seen the classes of the next, though published code counts "
        "them: the table in the metadata has both numbers.",
    )
    return [rows, seen]


def check_checkpoints(store: Store, study: Study, key: dg.AssetKey) -> Iterator[dg.AssetCheckResult]:
    """Run the checks of ``checkpoint_check_specs``."""
    from dd_core.checks.integrity import damaged_checkpoints, largest_batch_loss, metric_gaps
    from dd_core.tables.warehouse import connect

    yield check_result(key, _FILES, *damaged_checkpoints(store, study))
    if study.imported:
        return
    if study.data.graphs is not None:
        from dd_core.checks.preflight import preflight

        problems = [finding.sentence for finding in preflight(study)]
        yield check_result(key, _PREFLIGHT, problems, len(study.variants), severity=dg.AssetCheckSeverity.WARN)
    with contextlib.closing(connect(store, METRIC_TABLES)) as connection:
        problems, num_trials = metric_gaps(store, study, connection)
        largest = largest_batch_loss(study, connection)
    facts: dict[str, Any] = dict(progress_of(store, study))
    if largest is not None:  # for people to judge: which loss is too large, no check can know
        facts |= {"largest_train_loss": largest[0], "largest_loss_at": largest[1]}
    yield check_result(key, _METRICS, problems, num_trials, **facts)


def progress_of(store: Store, study: Study) -> dict[str, str]:
    """How much of a study is trained: an arm counts when all its checkpoints are there, not when it has begun."""
    there = Counter(checkpoint.arm for checkpoint in trained_checkpoints(store, study))
    num_whole = sum(number == len(study.checkpoints) for number in there.values())
    total = len(study.arms) * len(study.checkpoints)
    return {
        "arms_trained": f"{num_whole} of {len(study.arms)}",
        "checkpoints_trained": f"{there.total()} of {total}",
    }


def check_curvature(store: Store, study: Study, key: dg.AssetKey) -> Iterator[dg.AssetCheckResult]:
    """Run the checks of ``curvature_check_specs``."""
    from dd_core.checks.integrity import curvature_gaps
    from dd_core.checks.seen_classes import seen_classes, verification_table
    from dd_core.tables.warehouse import connect

    with contextlib.closing(connect(store, ("per_image_curvature",))) as connection:
        problems, num_files = curvature_gaps(store, study, connection)
        seen = seen_classes(store, study, connection) if study.data.classes else None
    yield check_result(key, _ROWS, problems, num_files)
    if seen is not None:
        unseen, table, num_files = seen
        yield check_result(key, _SEEN, unseen, num_files, classes=dg.MetadataValue.md(verification_table(table)))


def selected_checks(
    context: dg.AssetExecutionContext, results: Iterable[dg.AssetCheckResult]
) -> Iterator[dg.AssetCheckResult]:
    """Those of the results that a run was asked for."""
    wanted = {key.name for key in context.selected_asset_check_keys}
    return (result for result in results if result.check_name in wanted)


def record_evaluations(context: dg.AssetExecutionContext, results: Iterable[dg.AssetCheckResult]) -> None:
    """Log checks of an asset that is not this step's own but that it has materialised partitions of."""
    for result in results:
        assert result.asset_key is not None
        assert result.check_name is not None
        latest = context.instance.fetch_materializations(result.asset_key, limit=1).records
        evaluation = dg.AssetCheckEvaluation(
            asset_key=result.asset_key,
            check_name=result.check_name,
            passed=result.passed,
            metadata=result.metadata,
            severity=result.severity,
            description=result.description,
            target_materialization_data=AssetCheckEvaluationTargetMaterializationData(
                storage_id=latest[0].storage_id, run_id=latest[0].run_id, timestamp=latest[0].timestamp
            )
            if latest
            else None,
        )
        dg.DagsterEvent.asset_check_evaluation(context.get_step_execution_context(), evaluation)


def check_result(
    key: dg.AssetKey,
    name: str,
    problems: list[str],
    checked: int,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    **facts: Any,
) -> dg.AssetCheckResult:
    """A check by what is wrong: passed if nothing is; ``checked`` is how many things were looked at."""
    metadata: dict[str, Any] = {"checked": checked, "problems": len(problems), **facts}
    if problems:
        metadata["first_problems"] = dg.MetadataValue.md("\n".join(f"- {problem}" for problem in problems[:_SHOWN]))
    summary = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=name,
        passed=not problems,
        metadata=metadata,
        severity=severity,
        description=summary or None,
    )
