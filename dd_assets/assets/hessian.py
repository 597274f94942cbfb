"""Assets ``<study>/hessian``, the Hessian of the training loss in the weights, and their driver ``hessian_spectra``."""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from dd_assets.assets.tables import table_spec
from dd_assets.compute import COMPUTE_POOL
from dd_assets.laboratory import Laboratory
from dd_assets.steps.checkpoint_results import CheckpointResult, Narrowing, refresh_views, select
from dd_assets.steps.follow import reason_at_partitions
from dd_assets.steps.harms import warn_of_harms
from dd_assets.steps.partitions import checkpoint_partitions, hessian_key
from dd_assets.steps.recording import RETRY, already_logged
from dd_assets.steps.user_errors import shown_as_sentence
from dd_assets.steps.versions import HESSIANS, input_tags, record_stocks
from dd_core.errors import UserError
from dd_core.jobs.job import hessian_job
from dd_core.results.kinds import HESSIAN_VERSION, hessian_is_current, hessian_settings
from dd_core.study.study import Study

HESSIAN = CheckpointResult(
    what="the Hessian in the weights",
    key=hessian_key,
    path=lambda store, study, checkpoint: store.manifest_path(store.hessian_path(study.name, checkpoint)),
    is_current=hessian_is_current,
    settings=lambda study, epoch: hessian_settings(study),
    job=hessian_job,
    code_version=HESSIAN_VERSION,
)


def hessian_asset(study: Study, studies: Mapping[str, Study]) -> dg.AssetsDefinition:
    """The asset of one of the studies."""
    partitions = checkpoint_partitions(study)
    key = hessian_key(study.name)
    spec = dg.AssetSpec(
        key,
        deps=HESSIAN.deps(study),
        description=(
            "The Hessian of the training loss in the weights of every trial: largest and smallest eigenvalues, "
            "spectral density, exact and estimated traces, by layer, and the gradient's place in it. One row per trial "
            "of the table hessian_spectra."
        ),
        group_name=study.name,
        kinds={"pytorch", "parquet"},
        code_version=HESSIAN_VERSION,
        partitions_def=partitions,
    )

    @dg.multi_asset(
        name=f"{study.name}__hessian",
        specs=[spec],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=RETRY,
        pool=COMPUTE_POOL,
    )
    def hessian(context: dg.AssetExecutionContext, laboratory: Laboratory) -> Iterator[Any]:
        with shown_as_sentence(), reason_at_partitions(context, key):
            store = laboratory.store()
            outcome, num_wanted, recorded = HESSIAN.compute_partitions(context, laboratory, store, study, study)
            with outcome.raised_after("checkpoints", num_wanted, f"{recorded} of {num_wanted} are recorded"):
                refresh_views(store)
                record_stocks(context, store, studies)
        yield already_logged(key)

    return hessian


def hessian_spectra_asset(studies: dict[str, Study]) -> dg.AssetsDefinition:
    """The driver: analyses the checkpoints that lack it, at the epochs that the studies name."""
    spec = table_spec("hessian_spectra", [HESSIANS.key])

    @dg.multi_asset(name="hessian_spectra", specs=[spec], retry_policy=RETRY, pool=COMPUTE_POOL)
    def hessian_spectra(
        context: dg.AssetExecutionContext, config: Narrowing, laboratory: Laboratory
    ) -> Iterator[dg.MaterializeResult[Any]]:
        with shown_as_sentence():
            store = laboratory.store()
            trained = select(store, studies, config, context.log.warning)
            chosen = [(s, c) for s, c in trained if config.epochs or c.epoch in s.hessian_epochs]
            if not chosen:
                raise UserError(
                    "of what is asked for nothing is trained up to an epoch that the study names under hessian.epochs "
                    "(by default the last checkpoint); name others in the run config: epochs"
                )
            todo = HESSIAN.missing(store, chosen)
            context.log.info(f"{len(chosen)} checkpoints to analyse, {len(todo)} without a current result")
            outcome, recorded = HESSIAN.compute(context, laboratory, store, chosen, todo, studies)
            with outcome.raised_after("checkpoints", len(todo), f"{recorded} of {len(todo)} are recorded"):
                HESSIAN.record_what_is_there(context, store, chosen)
                version = record_stocks(context, store, studies)[HESSIANS.key]
                refresh_views(store)
                facts = warn_of_harms(context, store, studies.values(), ("hessian_spectra",))
        yield dg.MaterializeResult(
            asset_key="hessian_spectra",
            metadata={
                "dagster/row_count": sum(study.trials for study, _ in chosen),
                "dagster/uri": str(store.table_folder("hessian_spectra")),
                "checkpoints": len(chosen),
                "computed_now": len(todo),
                **facts,
            },
            data_version=dg.DataVersion(version),
            # Of what this very step has computed, which Dagster could not know when the step began.
            tags=input_tags({HESSIANS.key: (version, None)}),
        )

    return hessian_spectra
