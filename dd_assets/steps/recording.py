"""Partitions recorded as their results appear, and what every compute step is told."""

from collections.abc import Mapping
from typing import Any, Final

import dagster as dg
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from dd_assets.steps.partitions import (
    checkpoints_key,
)
from dd_assets.steps.versions import declared_inputs, event_tags, recipe_keys
from dd_core.errors import StaleError
from dd_core.events import CheckpointWritten, Event
from dd_core.jobs.forecast import Forecast
from dd_core.store.manifests import Manifest
from dd_core.store.provenance import checkpoint_manifest
from dd_core.store.store import Store
from dd_core.study.study import TRAINER_VERSION, Checkpoint, Study

# A defect or a passing fault of the machine is tried once more, going on from the last resume point; users' mistakes,
# lost data and killed workers are not (one owner per failure).
RETRY: Final = dg.RetryPolicy(max_retries=1, delay=10, backoff=dg.Backoff.EXPONENTIAL)


class PartitionRecorder:
    """Logs each wanted checkpoint as a materialisation of its partition, once, as soon as its manifest is there."""

    def __init__(self, context: dg.AssetExecutionContext, store: Store, study: Study, wanted: list[Checkpoint]):
        """Nothing is logged yet."""
        self.context, self.store, self.study = context, store, study
        self.wanted = wanted
        self._of_event = {(f"{study.name}/{checkpoint.arm.key}", checkpoint.epoch): checkpoint for checkpoint in wanted}
        self.forecast: Forecast | None = None
        self.recorded: set[Checkpoint] = set()
        self._recipes = recipe_keys(study)

    def on_event(self, event: Event) -> None:
        """Record the checkpoint an event speaks of."""
        if isinstance(event, CheckpointWritten):
            task = event.task.partition(" ")[0]  # of a part, whose name goes on with its trials, the arm's
            checkpoint = self._of_event.get((task, event.epoch))
            if checkpoint is not None and checkpoint not in self.recorded:
                self._record(checkpoint)

    def record_rest(self) -> None:
        """Record what was there already, or whose event was lost: files are the truth."""
        for checkpoint in self.wanted:
            if checkpoint not in self.recorded:
                self._record(checkpoint)

    def _record(self, checkpoint: Checkpoint) -> None:
        try:
            manifest = checkpoint_manifest(self.store, self.study, checkpoint)
        except StaleError:
            return
        self.recorded.add(checkpoint)
        expected = self.forecast.metadata(checkpoint.arm) if self.forecast else {}
        recipe = self._recipes[checkpoint.arm.key]
        record_checkpoint(self.context, self.store, self.study, checkpoint, manifest, recipe, expected)


def record_checkpoint(
    context: dg.AssetExecutionContext,
    store: Store,
    study: Study,
    checkpoint: Checkpoint,
    manifest: Manifest,
    recipe: dg.AssetKey,
    expected: Mapping[str, float] | None = None,
) -> None:
    """Log that a checkpoint is there: its numbers, its place, its versions, and what was expected of its training.

    ``recipe``: the node in the graph that stands for its arm's.
    """
    metadata = {
        **{name: value for name, value in manifest.headline.items() if value == value},
        "dagster/uri": str(store.root / manifest.weights[0].path),
        "recipe": manifest.recipe,
        "bytes": sum(entry.bytes for entry in manifest.weights),
        **({"imported_from": dg.MetadataValue.json(manifest.sources)} if manifest.sources else {}),
        "device": manifest.device,
        **(expected or {}),
    }
    inputs = declared_inputs([recipe])
    key = checkpoints_key(study.name)
    log_partition(context, key, checkpoint, metadata, event_tags(manifest.weights_sha256, TRAINER_VERSION, inputs))


def already_logged(key: dg.AssetKey) -> dg.Output[None]:
    """The output of a step that has logged each of its partitions itself.

    Without an output Dagster would skip what depends on the step in the same run; with an ordinary one it would log
    each partition of the range once more, without its own metadata and data version. This mark, which Dagster puts on
    outputs of its own that have logged their events already, keeps it from that.
    """
    return dg.Output(
        None, output_name="__".join(key.path), metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True}
    )


def log_partition(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    checkpoint: Checkpoint,
    metadata: dict[str, Any],
    tags: dict[str, str],
) -> None:
    """Log one partition's materialisation now, with the tags of ``dd_assets.steps.versions.event_tags``.

    Numbers are rounded: people read and plot them here, and the tables have them as they are.
    """
    metadata = {name: _rounded(value) for name, value in metadata.items()}
    context.log_event(
        dg.AssetMaterialization(
            key,
            partition=dg.MultiPartitionKey({"arm": checkpoint.arm.key, "epoch": f"{checkpoint.epoch:04d}"}),
            metadata=metadata,
            tags=tags,
        )
    )


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
