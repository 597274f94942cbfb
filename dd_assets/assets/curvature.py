"""Assets ``<study>/per_image_curvature`` and their driver ``curvature``, which also summarises them in a table."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
from pydantic import Field, ValidationError

from dd_assets.assets.checks import check_curvature, curvature_check_specs, record_evaluations, selected_checks
from dd_assets.assets.tables import table_spec
from dd_assets.compute import COMPUTE_POOL
from dd_assets.laboratory import Laboratory
from dd_assets.steps.checkpoint_results import CheckpointResult, Narrowing, refresh_views, select
from dd_assets.steps.follow import reason_at_partitions
from dd_assets.steps.harms import warn_of_harms
from dd_assets.steps.partitions import checkpoint_partitions, per_image_curvature_key
from dd_assets.steps.recording import RETRY, already_logged
from dd_assets.steps.user_errors import shown_as_sentence
from dd_assets.steps.versions import CURVED, input_tags, record_stocks, table_version
from dd_core.errors import UserError
from dd_core.jobs.job import curvature_job
from dd_core.results.kinds import CURVATURE_VERSION, curvature_is_current
from dd_core.store.store import Store
from dd_core.study.curvature import CurvatureSettings
from dd_core.study.study import Study
from dd_core.study.yaml_files import describe_problems

PER_IMAGE_CURVATURE = CheckpointResult(
    what="curvature",
    key=per_image_curvature_key,
    path=lambda store, study, checkpoint: store.manifest_path(store.curvature_path(study.name, checkpoint)),
    is_current=curvature_is_current,
    settings=lambda study, epoch: study.curvature.families(epoch),
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


def per_image_curvature_asset(study: Study, studies: Mapping[str, Study]) -> dg.AssetsDefinition:
    """The asset of one of the studies."""
    partitions = checkpoint_partitions(study)
    key = per_image_curvature_key(study.name)
    spec = dg.AssetSpec(
        key,
        deps=PER_IMAGE_CURVATURE.deps(study),
        skippable=True,
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
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=RETRY,
        pool=COMPUTE_POOL,
    )
    def per_image_curvature(
        context: dg.AssetExecutionContext, config: Estimators, laboratory: Laboratory
    ) -> Iterator[Any]:
        with shown_as_sentence(), reason_at_partitions(context, key):
            store = laboratory.store()
            if not context.selected_asset_keys:  # a check alone
                refresh_views(store)
                yield from selected_checks(context, check_curvature(store, study, key))
                return
            outcome, num_wanted, recorded = PER_IMAGE_CURVATURE.compute_partitions(
                context, laboratory, store, study, config.applied_to(study)
            )
            with outcome.raised_after("checkpoints", num_wanted, f"{recorded} of {num_wanted} are recorded"):
                refresh_views(store)
                record_stocks(context, store, studies)
                yield from selected_checks(context, check_curvature(store, study, key))
        yield already_logged(key)

    return per_image_curvature


def curvature_asset(studies: dict[str, Study]) -> dg.AssetsDefinition:
    """The driver: computes what is missing, reports each partition, then rebuilds the summary table."""
    spec = table_spec("curvature", [CURVED.key])

    @dg.multi_asset(name="curvature", specs=[spec], retry_policy=RETRY, pool=COMPUTE_POOL)
    def curvature(
        context: dg.AssetExecutionContext, config: CurvatureConfig, laboratory: Laboratory
    ) -> Iterator[dg.MaterializeResult[Any]]:
        with shown_as_sentence():
            store = laboratory.store()
            asked = {name: config.applied_to(study) for name, study in studies.items()}
            left_out: list[str] = []
            chosen = select(store, asked, config, left_out.append)
            for sentence in left_out:
                context.log.warning(sentence)
            todo = PER_IMAGE_CURVATURE.missing(store, chosen)
            context.log.info(f"{len(chosen)} trained checkpoints, {len(todo)} without current curvature")
            outcome, recorded = PER_IMAGE_CURVATURE.compute(context, laboratory, store, chosen, todo, studies)
            names = {study.name for study, _ in chosen}
            with outcome.raised_after("checkpoints", len(todo), f"{recorded} of {len(todo)} are recorded"):
                PER_IMAGE_CURVATURE.record_what_is_there(context, store, [(studies[s.name], c) for s, c in chosen])
                version = record_stocks(context, store, studies)[CURVED.key]
                rows, is_whole = _summarise(context, store, studies, names)
                refresh_views(store)
                facts = warn_of_harms(context, store, studies.values(), ("curvature", "per_image_curvature"))
                for name in names:
                    key = per_image_curvature_key(name)
                    record_evaluations(context, check_curvature(store, studies[name], key))
        yield dg.MaterializeResult(
            asset_key="curvature",
            metadata={
                "dagster/row_count": rows,
                "dagster/uri": str(store.table_folder("curvature")),
                "checkpoints": len(chosen),
                "computed_now": len(todo),
                **facts,
            },
            data_version=dg.DataVersion(table_version(store, "curvature")),
            # Of what this very step has computed, which Dagster could not know when the step began.
            tags=input_tags({CURVED.key: (version if is_whole and not left_out else "partial", None)}),
        )

    return curvature


def _summarise(
    context: dg.AssetExecutionContext, store: Store, studies: Mapping[str, Study], asked: set[str]
) -> tuple[int, bool]:
    """Rebuild the summary of every study; returns its rows, and whether that was possible for all.

    Raises:
        UserError: it was not for one of those asked for.
    """
    from dd_core.results.curvature_summary import rebuild

    rows, is_whole = 0, True
    for name, study in studies.items():
        try:
            rows += rebuild(store, study)
        except UserError as error:
            if name in asked:
                raise
            context.log.warning(f"the curvature of {name} was not summarised anew: {error}")
            is_whole = False
    return rows, is_whole
