"""Assets ``<study>/checkpoints``: the weights of every arm at the study's epochs, and the metrics up to them."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import dagster as dg
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from dd_assets.checks import check_checkpoints, checkpoint_check_specs, selected_checks
from dd_assets.errors import shown_as_sentence
from dd_assets.estimates import Forecast, forecast
from dd_assets.partitions import checkpoint_partitions, checkpoints_key, wanted_checkpoints, with_those_of_backfill
from dd_assets.progress import Outcome, follow, reason_at_partitions
from dd_assets.resources import Laboratory
from dd_assets.versions import declared_inputs, event_tags, recipes, record_stocks
from dd_core.data.datasets import require
from dd_core.errors import StaleError
from dd_core.jobs.job import TrainTask, digest_of, training_job
from dd_core.measured import asked_later
from dd_core.provenance import arm_is_complete, checkpoint_manifest, trained_checkpoints
from dd_core.store import Store
from dd_core.studies import TRAINER_VERSION, Arm, Checkpoint, Study

# A defect or a passing fault of the machine is tried once more, going on from the last resume point; users' mistakes,
# lost data and killed workers are not (see DESIGN: one owner per failure).
RETRY: Final = dg.RetryPolicy(max_retries=1, delay=10, backoff=dg.Backoff.EXPONENTIAL)

# Runs that keep every core or GPU busy; dagster.yaml lets one of them run at a time, the others wait in the queue. A
# backfill over many arms is several runs, of which the first does the work (dd_assets.partitions).
COMPUTE_POOL: Final = "compute"


def checkpoints_asset(study: Study, studies: Mapping[str, Study]) -> dg.AssetsDefinition:
    """The asset of one of the studies."""
    key = checkpoints_key(study.name)
    partitions = checkpoint_partitions(study)
    spec = dg.AssetSpec(
        key,
        deps=[recipe.dep for recipe in recipes(study)],
        skippable=True,
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
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=RETRY,
        pool=COMPUTE_POOL,
    )
    def checkpoints(context: dg.AssetExecutionContext, laboratory: Laboratory) -> Iterator[Any]:
        from dd_core.warehouse import refresh

        with shown_as_sentence(), reason_at_partitions(context, key):
            store = laboratory.store()
            if not context.selected_asset_keys:  # a check alone
                refresh(store)
                yield from selected_checks(context, check_checkpoints(store, study, key))
                return
            own = wanted_checkpoints(study, context)
            wanted = with_those_of_backfill(study, context, key, own)
            require(study.data.dataset)
            machine = laboratory.machine([study])
            job = training_job(store.root, study, wanted, *machine.workers_and_threads())
            arms = {checkpoint.arm for checkpoint in wanted}
            until = {task.arm: task.until for task in job.tasks if isinstance(task, TrainTask)}
            unfinished = {arm for arm, epoch in until.items() if not arm_is_complete(store, study, arm, epoch)}
            todo = [task for task in job.tasks if isinstance(task, TrainTask) and task.arm in unfinished]
            recorder = PartitionRecorder(context, store, study, wanted)
            for sentence in _asked_later(store, study, arms):
                context.log.warning(sentence)
            in_parts = f" in {len(todo)} parts" if len(todo) > len(unfinished) else ""
            context.log.info(f"{len(arms)} arms of {study.name} wanted, {len(unfinished)} to train{in_parts}")
            outcome = Outcome()
            if todo:
                asked = digest_of([f"{c.key} {study.recipe_hash(c.arm)}" for c in sorted(wanted)])
                job = job.model_copy(update={"tasks": tuple(todo), "request": asked})
                expected = forecast(store, study, job, machine)
                recorder.forecast = expected
                context.log.info(expected.order())
                context.log.info(expected.describe())
                outcome = follow(context, laboratory, expected.job, recorder.on_event)
                context.log.info(expected.compare(outcome.seconds, outcome.finished))
            recorder.record_rest()
            if not outcome.failed:
                missing = {f"{study.name}/{c.arm.key}" for c in wanted if c not in recorder.recorded}
                outcome.failed |= dict.fromkeys(missing, "trained, but not all there; run the same command again")
            kept = f"{len(recorder.recorded)} of {len(wanted)} checkpoints are there and recorded"
            what, total = ("parts of arms", len(todo)) if in_parts else ("arms", len(arms))
            if len(wanted) > len(own):
                outcome.keep_only({f"{study.name}/{c.arm.key}" for c in own})
            with outcome.raised_after(what, total, kept):
                refresh(store)
                record_stocks(context, store, studies)
                yield from selected_checks(context, check_checkpoints(store, study, key))
        yield already_logged(key)

    return checkpoints


def _asked_later(store: Store, study: Study, arms: set[Arm]) -> list[str]:
    """What the study asks to be measured of arms that were trained, up to some epoch, without it."""
    lacking: dict[str, dict[str, int]] = {}
    for checkpoint, manifest in trained_checkpoints(store, study, arms).items():
        for what in asked_later(manifest, study):
            lacking.setdefault(what, {})[checkpoint.arm.key] = checkpoint.epoch
    return [
        f"{study.name} now asks for {what}; this is not there for what is trained: "
        + ", ".join(f"{arm} up to epoch {epoch}" for arm, epoch in list(until.items())[:8])
        + (f" and {len(until) - 8} other arms" if len(until) > 8 else "")
        + "; to have it, train under another study name, or ask for it only where it was measured"
        for what, until in lacking.items()
    ]


class PartitionRecorder:
    """Logs each wanted checkpoint as a materialisation of its partition, once, as soon as its manifest is there."""

    def __init__(self, context: dg.AssetExecutionContext, store: Store, study: Study, wanted: list[Checkpoint]):
        """Nothing is logged yet."""
        self.context, self.store, self.study = context, store, study
        self.wanted = wanted
        self._of_event = {(f"{study.name}/{checkpoint.arm.key}", checkpoint.epoch): checkpoint for checkpoint in wanted}
        self.forecast: Forecast | None = None
        self.recorded: set[Checkpoint] = set()

    def on_event(self, event: dict[str, Any]) -> None:
        """Record the checkpoint an event speaks of."""
        if event["event"] == "checkpoint":
            task = event["task"].partition(" ")[0]  # of a part, whose name goes on with its trials, the arm's
            checkpoint = self._of_event.get((task, event["epoch"]))
            if checkpoint is not None:
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
        record_checkpoint(self.context, self.store, self.study, checkpoint, manifest, expected)


def record_checkpoint(
    context: dg.AssetExecutionContext,
    store: Store,
    study: Study,
    checkpoint: Checkpoint,
    manifest: dict[str, Any],
    expected: Mapping[str, float] | None = None,
) -> None:
    """Log that a checkpoint is there: its numbers, its place, its versions, and what was expected of its training."""
    weights = manifest["files"]["weights"]
    metadata = {
        **{name: value for name, value in manifest["headline"].items() if value == value},
        "dagster/uri": str(store.root / weights["path"]),
        "recipe": manifest["recipe"],
        "bytes": weights["bytes"],
        "device": manifest["device"],
        **(expected or {}),
    }
    inputs = declared_inputs(recipe.key for recipe in recipes(study) if recipe.concerns(checkpoint))
    key = checkpoints_key(study.name)
    log_partition(context, key, checkpoint, metadata, event_tags(weights["sha256"], TRAINER_VERSION, inputs))


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
    """Log one partition's materialisation now, with the tags of ``dd_assets.versions.event_tags``."""
    context.log_event(
        dg.AssetMaterialization(
            key,
            partition=dg.MultiPartitionKey({"arm": checkpoint.arm.key, "epoch": f"{checkpoint.epoch:04d}"}),
            metadata=metadata,
            tags=tags,
        )
    )
