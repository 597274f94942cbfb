"""The partitions of a study: arm x epoch, the two dimensions Dagster allows, in its alphabetical order of names."""

from collections.abc import Mapping, Sequence

import dagster as dg
from dagster import DagsterRunStatus as Status

from dd_core.errors import UserError
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.kinds import Kind


def checkpoint_partitions(study: Study) -> dg.MultiPartitionsDefinition:
    """Keys like ``preact-resnet10.k004|0120``; a range from one key to another is the box between them."""
    return box(list(study.arms), study.epoch_keys)


def box(arms: Sequence[str], epochs: Sequence[str]) -> dg.MultiPartitionsDefinition:
    """Every one of the arms at every one of the epochs."""
    return dg.MultiPartitionsDefinition(
        {"arm": dg.StaticPartitionsDefinition(list(arms)), "epoch": dg.StaticPartitionsDefinition(list(epochs))}
    )


def wanted_checkpoints(study: Study, context: dg.AssetExecutionContext) -> list[Checkpoint]:
    """The checkpoints of a run's partitions.

    Raises:
        UserError: there are none. Dagster takes a range whose end comes before its start for an empty one, and a
            selection of nothing (a misspelt group) for all assets.
    """
    first = next(study.iter_checkpoints()).key
    if not (context.has_partition_key or context.has_partition_key_range):
        raise UserError(f"checkpoints of {study.name} were selected without --partition, for example '{first}'")
    if not context.partition_keys:
        raise UserError(
            "the partition range selects no checkpoint: in FIRST...LAST neither the arm nor the epoch of LAST may come "
            f"before that of FIRST; the first of {study.name} is {first!r}"
        )
    return [study.checkpoint(key) for key in context.partition_keys]


def with_those_of_backfill(
    study: Study, context: dg.AssetExecutionContext, asset: dg.AssetKey, own: list[Checkpoint]
) -> list[Checkpoint]:
    """A run's own checkpoints, then those of the other runs of its backfill that it does the work of.

    Dagster cuts a box of arms x epochs into one run for each arm, or for each epoch if those are fewer. They come one
    after the other, and each alone would leave most of the machine idle. So the first run does the work of all, and the
    others find it done. If it was interrupted the next one goes on. Runs that are let work side by side keep to their
    own.
    """
    backfill_id = context.run.tags.get("dagster/backfill")
    backfill = context.instance.get_backfill(backfill_id) if backfill_id else None
    if backfill is None or backfill.asset_backfill_data is None:
        return own
    others = [
        run
        for run in context.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill.backfill_id}))
        if run.run_id != context.run_id and asset in (run.asset_selection or {asset})
    ]
    if any(run.status in (Status.STARTING, Status.STARTED, Status.CANCELING, Status.SUCCESS) for run in others):
        return own
    target = backfill.asset_backfill_data.target_subset.partitions_subsets_by_asset_key.get(asset)
    if target is None:
        return own
    # What failed or was cancelled has had its try.
    ended = {key for run in others if run.is_finished for key in _keys_of_run(study, run.tags)}
    left = set(target.get_partition_keys()) - ended - {checkpoint.key for checkpoint in own}
    return [*own, *(checkpoint for checkpoint in study.iter_checkpoints() if checkpoint.key in left)]


def _keys_of_run(study: Study, tags: Mapping[str, str]) -> list[str]:
    """The partitions that a run's tags name: one, or the box from one to another."""
    one = tags.get("dagster/partition", "")
    first = tags.get("dagster/asset_partition_range_start", one).split("|")
    last = tags.get("dagster/asset_partition_range_end", one).split("|")
    try:
        arms, epochs = (
            keys[keys.index(start) : keys.index(end) + 1]
            for keys, start, end in zip((list(study.arms), list(study.epoch_keys)), first, last, strict=True)
        )
    except ValueError:  # the study file has changed meanwhile
        return []
    return [f"{arm}|{epoch}" for arm in arms for epoch in epochs]


def checkpoints_key(study: str) -> dg.AssetKey:
    """Key of the study's trained checkpoints."""
    return dg.AssetKey([study, "checkpoints"])


def result_key(kind: Kind, study: str) -> dg.AssetKey:
    """Key of the study's results of a kind."""
    return dg.AssetKey([study, kind.name])
