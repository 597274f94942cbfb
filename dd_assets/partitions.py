"""The partitions of a study: arm x epoch, the two dimensions Dagster allows, in its alphabetical order of names."""

import dagster as dg

from dd_core.errors import UserError
from dd_core.studies import Checkpoint, Study


def checkpoint_partitions(study: Study) -> dg.MultiPartitionsDefinition:
    """Keys like ``preact-resnet10.k004|0120``; a range from one key to another is the box between them."""
    return dg.MultiPartitionsDefinition(
        {
            "arm": dg.StaticPartitionsDefinition(list(study.arms)),
            "epoch": dg.StaticPartitionsDefinition(list(study.epoch_keys)),
        }
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


def checkpoints_key(study: str) -> dg.AssetKey:
    """Key of the study's trained checkpoints."""
    return dg.AssetKey([study, "checkpoints"])


def per_image_curvature_key(study: str) -> dg.AssetKey:
    """Key of the study's per-image curvature."""
    return dg.AssetKey([study, "per_image_curvature"])


def hessian_key(study: str) -> dg.AssetKey:
    """Key of the study's Hessians in the weights."""
    return dg.AssetKey([study, "hessian"])
