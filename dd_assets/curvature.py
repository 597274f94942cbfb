"""Assets ``<study>/per_image_curvature`` and their driver ``curvature``, which also summarises them in a table."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from dd_assets.checks import check_curvature, curvature_check_specs
from dd_assets.errors import shown_as_sentence
from dd_assets.partitions import (
    checkpoint_partitions,
    checkpoints_key,
    per_image_curvature_key,
    wanted_checkpoints,
)
from dd_assets.progress import Outcome, follow
from dd_assets.resources import Laboratory
from dd_assets.tables import table_spec
from dd_assets.training import COMPUTE_POOL, RETRY, already_logged, log_partition
from dd_core.data.datasets import require
from dd_core.errors import DataMissingError, StaleError, UserError
from dd_core.jobs.job import curvature_job
from dd_core.provenance import (
    CURVATURE_VERSION,
    checkpoint_manifest,
    curvature_is_current,
    curvature_manifest,
    trained_checkpoints,
)
from dd_core.store import Store
from dd_core.studies import Checkpoint, Study


def per_image_curvature_asset(study: Study) -> dg.AssetsDefinition:
    """The asset of one study."""
    partitions = checkpoint_partitions(study)
    key = per_image_curvature_key(study.name)
    spec = dg.AssetSpec(
        key,
        deps=[checkpoints_key(study.name)],
        description=(
            "Curvature of the loss in input space for every training image of every trial: exact trace, "
            "Frobenius norm and largest eigenvalue of the Hessian, gradient norm and loss."
        ),
        group_name=study.name,
        kinds={"pytorch", "parquet"},
        code_version=CURVATURE_VERSION,
        partitions_def=partitions,
    )

    @dg.multi_asset(
        name=f"{study.name}__per_image_curvature",
        specs=[spec],
        check_specs=curvature_check_specs(key),
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=RETRY,
        pool=COMPUTE_POOL,
    )
    def per_image_curvature(context: dg.AssetExecutionContext, laboratory: Laboratory) -> Iterator[Any]:
        with shown_as_sentence():
            wanted = wanted_checkpoints(study, context)
            store = laboratory.store()
            _require_trained(store, study, wanted)
            outcome, recorded = compute(context, laboratory, store, [(study, c) for c in wanted])
            with outcome.raised_after("checkpoints", len(wanted), f"{recorded} of {len(wanted)} are recorded"):
                _finish(store)
                yield from check_curvature(store, study, key)
        yield already_logged(key)

    return per_image_curvature


class CurvatureConfig(dg.Config):
    """Narrows what ``curvature`` looks at; empty lists mean everything trained."""

    studies: list[str] = Field(default=[], description="names of studies")
    arms: list[str] = Field(default=[], description="arms, for example s-core.k008")
    epochs: list[int] = Field(default=[], description="checkpoint epochs")


def curvature_asset(studies: dict[str, Study]) -> dg.AssetsDefinition:
    """The driver: computes what is missing, reports each partition, then rebuilds the summary table."""
    deps = [per_image_curvature_key(name) for name in studies]

    @dg.multi_asset(name="curvature", specs=[table_spec("curvature", deps)], retry_policy=RETRY, pool=COMPUTE_POOL)
    def curvature(
        context: dg.AssetExecutionContext, config: CurvatureConfig, laboratory: Laboratory
    ) -> Iterator[dg.MaterializeResult[Any]]:
        from dd_core.analysis.curvature_summary import rebuild

        with shown_as_sentence():
            store = laboratory.store()
            chosen = select(store, studies, config)
            todo = [
                (study, checkpoint)
                for study, checkpoint in chosen
                if not curvature_is_current(
                    curvature_manifest(store, study, checkpoint), checkpoint_manifest(store, study, checkpoint)
                )
            ]
            context.log.info(f"{len(chosen)} trained checkpoints, {len(todo)} without current curvature")
            outcome, recorded = compute(context, laboratory, store, todo) if todo else (Outcome(), 0)
            with outcome.raised_after("checkpoints", len(todo), f"{recorded} of {len(todo)} are recorded"):
                rows = sum(rebuild(store, study) for study in {study.name: study for study, _ in chosen}.values())
                _finish(store)
        yield dg.MaterializeResult(
            asset_key="curvature",
            metadata={
                "dagster/row_count": rows,
                "dagster/uri": str(store.table_folder("curvature")),
                "checkpoints": len(chosen),
                "computed_now": len(todo),
            },
        )

    return curvature


def select(store: Store, studies: dict[str, Study], config: CurvatureConfig) -> list[tuple[Study, Checkpoint]]:
    """The trained checkpoints the config asks for.

    Raises:
        UserError: an unknown name, or nothing trained among what was asked for.
    """
    unknown = sorted(set(config.studies) - set(studies))
    if unknown:
        raise UserError(f"there is no study {', '.join(unknown)}; there are {', '.join(studies)}")
    asked = [studies[name] for name in config.studies or studies]
    arms, epochs = set(config.arms), set(config.epochs)
    unknown = sorted(arms - {arm for study in asked for arm in study.arms})
    if unknown:
        raise UserError(f"no study asked for has the arm {', '.join(unknown)}")
    unknown_epochs = sorted(epochs - {epoch for study in asked for epoch in study.checkpoints})
    if unknown_epochs:
        raise UserError(f"no study asked for has a checkpoint at epoch {', '.join(map(str, unknown_epochs))}")
    chosen = [
        (study, checkpoint)
        for study in asked
        for checkpoint in trained_checkpoints(store, study)
        if (not arms or checkpoint.arm.key in arms) and (not epochs or checkpoint.epoch in epochs)
    ]
    if not chosen:
        names = ", ".join(study.name for study in asked)
        hint = next((training_command(study) for study in asked if _has_data(study)), "")
        first = f"; first run: dagster asset materialize {hint}" if hint else ""
        raise UserError(f"nothing asked for is trained yet in {names} under {store.root}{first}")
    return chosen


def _has_data(study: Study) -> bool:
    try:
        require(study.data.dataset)
    except DataMissingError:
        return False
    return True


def training_command(study: Study) -> str:
    """The options that train a whole study."""
    keys = [checkpoint.key for checkpoint in study.iter_checkpoints()]
    return f"--select '{study.name}/checkpoints' --partition-range '{keys[0]}...{keys[-1]}'"


def _require_trained(store: Store, study: Study, wanted: list[Checkpoint]) -> None:
    missing = []
    for checkpoint in wanted:
        try:
            checkpoint_manifest(store, study, checkpoint)
        except StaleError as error:
            missing.append((checkpoint, error))
    if missing:
        checkpoint, reason = missing[0]
        others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise StaleError(
            f"{reason}{others}; run: dagster asset materialize --select '{study.name}/checkpoints' "
            f"--partition '{checkpoint.key}'"
        )


def compute(
    context: dg.AssetExecutionContext, laboratory: Laboratory, store: Store, wanted: list[tuple[Study, Checkpoint]]
) -> tuple[Outcome, int]:
    """Compute per-image curvature and record each partition as it finishes; returns how it ended and how many."""
    studies = {study.name: study for study, _ in wanted}
    for study in studies.values():
        require(study.data.dataset)
    names = {f"{study.name}/{checkpoint.key}": (study, checkpoint) for study, checkpoint in wanted}
    job = curvature_job(store.root, studies, [(s.name, c) for s, c in wanted], *laboratory.workers())
    recorded = 0

    def on_event(event: dict[str, Any]) -> None:
        nonlocal recorded
        if event["event"] == "finished":
            study, checkpoint = names[event["task"]]
            manifest = curvature_manifest(store, study, checkpoint)
            if manifest is not None:
                recorded += 1
                _record(context, store, study, checkpoint, manifest)

    context.log.info(f"curvature of {len(job.tasks)} checkpoints with {job.num_workers} workers")
    return follow(context, laboratory, job, on_event), recorded


def _record(
    context: dg.AssetExecutionContext, store: Store, study: Study, checkpoint: Checkpoint, manifest: dict[str, Any]
) -> None:
    table = manifest["files"]["table"]
    metadata = {
        **manifest["headline"],
        "dagster/row_count": manifest["rows"]["table"],
        "dagster/uri": str(store.root / table["path"]),
        "recipe": manifest["recipe"],
        "device": manifest["device"],
    }
    log_partition(
        context, per_image_curvature_key(study.name), checkpoint, metadata, table["sha256"], CURVATURE_VERSION
    )


def _finish(store: Store) -> None:
    from dd_core.warehouse import refresh

    refresh(store)
