"""Assets ``<study>/per_image_curvature`` and their driver ``curvature``, which also summarises them in a table."""

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field, ValidationError

from dd_assets.checkpoint_results import CheckpointResult, Narrowing, refresh_views, require_trained, select
from dd_assets.checks import check_curvature, curvature_check_specs
from dd_assets.errors import shown_as_sentence
from dd_assets.harms import warn_of_harms
from dd_assets.partitions import (
    checkpoint_partitions,
    checkpoints_key,
    per_image_curvature_key,
    wanted_checkpoints,
)
from dd_assets.resources import Laboratory
from dd_assets.tables import table_spec
from dd_assets.training import COMPUTE_POOL, RETRY, already_logged
from dd_core.curvature_settings import CurvatureSettings
from dd_core.errors import UserError
from dd_core.jobs.job import curvature_job
from dd_core.provenance import CURVATURE_VERSION, curvature_is_current
from dd_core.studies import Study
from dd_core.yaml_files import describe_problems

PER_IMAGE_CURVATURE = CheckpointResult(
    what="curvature",
    key=per_image_curvature_key,
    path=lambda store, study, checkpoint: store.manifest_path(store.curvature_path(study.name, checkpoint)),
    is_current=curvature_is_current,
    job=curvature_job,
    code_version=CURVATURE_VERSION,
)


class Estimators(dg.Config):
    """Which estimators, instead of what the study file says under ``curvature``; null leaves that as it is."""

    estimators: list[str] | None = Field(
        default=None, description="exact, top_directions or double_backward; and finite_difference if wanted"
    )
    precision: str | None = Field(default=None, description="float32, bfloat16 or float64")
    relative_error: float | None = Field(default=None, description="of top_directions, for example 0.01")
    num_probes: int | None = Field(default=None, description="of top_directions and double_backward")
    steps: list[float] | None = Field(default=None, description="h of finite_difference, standardised pixels")
    normalisation: str | None = Field(default=None, description="of finite_difference: per_step, sum or mean")
    mean_batch_size: int | None = Field(default=None, description="of normalisation mean")

    def applied_to(self, study: Study) -> Study:
        """The study with these settings in place of its own.

        Raises:
            UserError: they are impossible.
        """
        own = study.curvature.model_dump(mode="json")
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        for name in ("steps", "normalisation", "mean_batch_size"):
            if name in given:
                own["finite_difference"][name] = given.pop(name)
        own |= {name: value for name, value in given.items() if name in CurvatureSettings.model_fields}
        try:
            settings = CurvatureSettings.model_validate_json(json.dumps(own))
        except ValidationError as error:
            raise UserError(f"run config: {describe_problems(error)}") from error
        return study.model_copy(update={"curvature": settings})


class CurvatureConfig(Narrowing, Estimators):
    """What ``curvature`` looks at, and how."""


def per_image_curvature_asset(study: Study) -> dg.AssetsDefinition:
    """The asset of one study."""
    partitions = checkpoint_partitions(study)
    key = per_image_curvature_key(study.name)
    spec = dg.AssetSpec(
        key,
        deps=[checkpoints_key(study.name)],
        description=(
            "Curvature of the loss in input space for every training image of every trial: trace, Frobenius norm and "
            "largest eigenvalue of the Hessian, curvature along the gradient, gradient norm and loss; and finite "
            "differences where the study wants them."
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
    def per_image_curvature(
        context: dg.AssetExecutionContext, config: Estimators, laboratory: Laboratory
    ) -> Iterator[Any]:
        with shown_as_sentence():
            wanted = wanted_checkpoints(study, context)
            store = laboratory.store()
            require_trained(store, study, wanted)
            asked = config.applied_to(study)
            work = [(asked, checkpoint) for checkpoint in wanted]
            outcome, recorded = PER_IMAGE_CURVATURE.compute(context, laboratory, store, work, work)
            with outcome.raised_after("checkpoints", len(wanted), f"{recorded} of {len(wanted)} are recorded"):
                refresh_views(store)
                yield from check_curvature(store, study, key)
        yield already_logged(key)

    return per_image_curvature


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
            asked = {name: config.applied_to(study) for name, study in studies.items()}
            chosen = select(store, asked, config)
            todo = PER_IMAGE_CURVATURE.missing(store, chosen)
            context.log.info(f"{len(chosen)} trained checkpoints, {len(todo)} without current curvature")
            outcome, recorded = PER_IMAGE_CURVATURE.compute(context, laboratory, store, chosen, todo)
            with outcome.raised_after("checkpoints", len(todo), f"{recorded} of {len(todo)} are recorded"):
                rows = sum(rebuild(store, study) for study in {study.name: study for study, _ in chosen}.values())
                refresh_views(store)
                facts = warn_of_harms(context, store, studies.values(), ("curvature", "per_image_curvature"))
        yield dg.MaterializeResult(
            asset_key="curvature",
            metadata={
                "dagster/row_count": rows,
                "dagster/uri": str(store.table_folder("curvature")),
                "checkpoints": len(chosen),
                "computed_now": len(todo),
                **facts,
            },
        )

    return curvature
