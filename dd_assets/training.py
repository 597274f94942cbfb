"""Assets ``<study>/checkpoints``: the weights of every arm at the study's epochs, and the metrics up to them."""

from collections.abc import Iterator
from typing import Any, Final

import dagster as dg
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from dd_assets.checks import check_checkpoints, checkpoint_check_specs
from dd_assets.errors import shown_as_sentence
from dd_assets.estimates import Forecast, forecast
from dd_assets.partitions import checkpoint_partitions, checkpoints_key, wanted_checkpoints
from dd_assets.progress import Outcome, follow
from dd_assets.resources import Laboratory
from dd_core.data.datasets import require
from dd_core.errors import StaleError
from dd_core.jobs.job import TrainTask, training_job
from dd_core.provenance import arm_is_complete, checkpoint_manifest
from dd_core.store import Store
from dd_core.studies import TRAINER_VERSION, Checkpoint, Study

# A defect or a passing fault of the machine is tried once more, going on from the last resume point; users' mistakes,
# lost data and killed workers are not (see DESIGN: one owner per failure).
RETRY: Final = dg.RetryPolicy(max_retries=1, delay=10, backoff=dg.Backoff.EXPONENTIAL)

# Runs that keep every core or GPU busy; dagster.yaml lets one of them run at a time, the others wait in the queue. A
# backfill over many arms is several runs.
COMPUTE_POOL: Final = "compute"


def checkpoints_asset(study: Study) -> dg.AssetsDefinition:
    """The asset of one study."""
    key = checkpoints_key(study.name)
    partitions = checkpoint_partitions(study)
    spec = dg.AssetSpec(
        key,
        description=(
            f"{study.description}\n\nWeights of all {study.trials} trials of an arm after an epoch, safetensors. "
            "Training an arm to an epoch writes every earlier checkpoint of it too, and the tables training_batches, "
            "training_evals and image_progress."
        ),
        group_name=study.name,
        kinds={"pytorch", "safetensors"},
        code_version=TRAINER_VERSION,
        partitions_def=partitions,
        metadata={
            "arms": len(study.arms),
            "trials": study.trials,
            "epochs": study.epochs,
            "dataset": study.data.dataset,
            "study": dg.MetadataValue.json(study.model_dump(mode="json")),
        },
    )

    @dg.multi_asset(
        name=f"{study.name}__checkpoints",
        specs=[spec],
        check_specs=checkpoint_check_specs(key),
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=RETRY,
        pool=COMPUTE_POOL,
    )
    def checkpoints(context: dg.AssetExecutionContext, laboratory: Laboratory) -> Iterator[Any]:
        from dd_core.warehouse import refresh

        with shown_as_sentence():
            wanted = wanted_checkpoints(study, context)
            store = laboratory.store()
            require(study.data.dataset)
            job = training_job(store.root, study, wanted, *laboratory.workers())
            arms = {checkpoint.arm for checkpoint in wanted}
            todo = [
                task
                for task in job.tasks
                if isinstance(task, TrainTask) and not arm_is_complete(store, study, task.arm, task.until)
            ]
            recorder = PartitionRecorder(context, store, study, wanted)
            context.log.info(f"{len(arms)} arms of {study.name} wanted, {len(todo)} to train")
            outcome = Outcome()
            if todo:
                job = job.model_copy(update={"tasks": tuple(todo)})
                expected = forecast(store, study, job, laboratory.machine())
                recorder.forecast = expected
                context.log.info(expected.order())
                context.log.info(expected.describe())
                outcome = follow(context, laboratory, expected.job, recorder.on_event)
                context.log.info(expected.compare(outcome.seconds, outcome.finished))
            recorder.record_rest()
            kept = f"{len(recorder.recorded)} of {len(wanted)} checkpoints are there and recorded"
            with outcome.raised_after("arms", len(arms), kept):
                refresh(store)
                yield from check_checkpoints(store, study, key)
        yield already_logged(key)

    return checkpoints


class PartitionRecorder:
    """Logs each wanted checkpoint as a materialisation of its partition, once, as soon as its manifest is there."""

    def __init__(self, context: dg.AssetExecutionContext, store: Store, study: Study, wanted: list[Checkpoint]):
        """Nothing is logged yet."""
        self.context, self.store, self.study = context, store, study
        self.wanted = wanted
        self.forecast: Forecast | None = None
        self.recorded: set[Checkpoint] = set()

    def on_event(self, event: dict[str, Any]) -> None:
        """Record the checkpoint an event speaks of."""
        if event["event"] == "checkpoint":
            for checkpoint in self.wanted:
                if (f"{self.study.name}/{checkpoint.arm.key}", checkpoint.epoch) == (event["task"], event["epoch"]):
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
        weights = manifest["files"]["weights"]
        metadata = {
            **{name: value for name, value in manifest["headline"].items() if value == value},
            "dagster/uri": str(self.store.root / weights["path"]),
            "recipe": manifest["recipe"],
            "bytes": weights["bytes"],
            "device": manifest["device"],
            **(self.forecast.metadata(checkpoint.arm) if self.forecast else {}),
        }
        log_partition(
            self.context, checkpoints_key(self.study.name), checkpoint, metadata, weights["sha256"], TRAINER_VERSION
        )


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
    data_version: str,
    code_version: str,
) -> None:
    """Log one partition's materialisation now, with its versions, so that staleness downstream is exact."""
    context.log_event(
        dg.AssetMaterialization(
            key,
            partition=dg.MultiPartitionKey({"arm": checkpoint.arm.key, "epoch": f"{checkpoint.epoch:04d}"}),
            metadata=metadata,
            tags={"dagster/data_version": data_version, "dagster/code_version": code_version},
        )
    )
