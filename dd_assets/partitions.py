"""The partitions of a study: arm x epoch, the two dimensions Dagster allows, in its alphabetical order of names."""

import dagster as dg

from dd_core.studies import Study


def checkpoint_partitions(study: Study) -> dg.MultiPartitionsDefinition:
    """Keys like ``preact-resnet10.k004|0120``; a range from one key to another is the box between them."""
    return dg.MultiPartitionsDefinition(
        {
            "arm": dg.StaticPartitionsDefinition(list(study.arms)),
            "epoch": dg.StaticPartitionsDefinition(list(study.epoch_keys)),
        }
    )


def checkpoints_key(study: str) -> dg.AssetKey:
    """Key of the study's trained checkpoints."""
    return dg.AssetKey([study, "checkpoints"])


def per_image_curvature_key(study: str) -> dg.AssetKey:
    """Key of the study's per-image curvature."""
    return dg.AssetKey([study, "per_image_curvature"])
