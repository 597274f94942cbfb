"""Asset checks of a study: files match their manifests, metrics are complete and in range, row counts match.

They are part of the asset's own step: a step that reports its partitions one by one has no output for a separate check
to wait for. A check that fails is shown at the asset; it does not undo what was recorded.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg

from dd_core.store import Store
from dd_core.studies import Study

_FILES = "files_match_manifests"
_METRICS = "metrics_complete_and_in_range"
_ROWS = "one_row_per_image"


def checkpoint_check_specs(key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """What is checked after training."""
    return [
        dg.AssetCheckSpec(
            _FILES,
            asset=key,
            description="Every trained checkpoint and its metric files are as their manifest says (size, SHA-256).",
        ),
        dg.AssetCheckSpec(
            _METRICS,
            asset=key,
            description="Every step and evaluation up to the last checkpoint is in the tables once, and in range.",
        ),
    ]


def curvature_check_specs(key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """What is checked after per-image curvature."""
    return [
        dg.AssetCheckSpec(
            _ROWS,
            asset=key,
            description="Every curvature file has each training image of each trial exactly once, with finite values.",
        )
    ]


def check_checkpoints(store: Store, study: Study, key: dg.AssetKey) -> Iterator[dg.AssetCheckResult]:
    """Run the checks of ``checkpoint_check_specs``."""
    from dd_core.analysis.integrity import damaged_checkpoints, metric_gaps

    yield _result(key, _FILES, *damaged_checkpoints(store, study))
    yield _result(key, _METRICS, *_with_tables(store, study, metric_gaps))


def check_curvature(store: Store, study: Study, key: dg.AssetKey) -> Iterator[dg.AssetCheckResult]:
    """Run the checks of ``curvature_check_specs``."""
    from dd_core.analysis.integrity import curvature_gaps

    yield _result(key, _ROWS, *_with_tables(store, study, curvature_gaps))


def _with_tables(store: Store, study: Study, look: Callable[..., tuple[list[str], int]]) -> tuple[list[str], int]:
    from dd_core.warehouse import connect

    with contextlib.closing(connect(store)) as connection:
        return look(store, study, connection)


def _result(key: dg.AssetKey, name: str, problems: list[str], checked: int) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {"checked": checked, "problems": len(problems)}
    if problems:
        metadata["first_problems"] = dg.MetadataValue.md("\n".join(f"- {problem}" for problem in problems[:20]))
    summary = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
    return dg.AssetCheckResult(
        asset_key=key, check_name=name, passed=not problems, metadata=metadata, description=summary or None
    )
