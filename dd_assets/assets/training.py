"""Assets ``<study>/checkpoints``: the weights of every arm at the study's epochs, and the metrics up to them."""

from collections.abc import Mapping
from typing import Any, Final

import dagster as dg
from pydantic import Field

from dd_assets.assets.checks import check_checkpoints, checkpoint_check_specs
from dd_assets.assets.study_asset import Done, StudyAsset
from dd_assets.laboratory import Laboratory
from dd_assets.steps.checkpoint_results import import_command
from dd_assets.steps.follow import Outcome, follow
from dd_assets.steps.partitions import checkpoints_key, wanted_checkpoints, with_those_of_backfill
from dd_assets.steps.recording import PartitionRecorder
from dd_assets.steps.so_far import figures_so_far
from dd_assets.steps.versions import recipes
from dd_core.checks.preflight import refused_and_warned
from dd_core.data.datasets import require
from dd_core.errors import StudyError, UserError
from dd_core.forecast.work import warning_of_size
from dd_core.jobs.forecast import forecast
from dd_core.jobs.job import CheckpointTask, Job, TrainTask, digest_of, result_job, training_job
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.measured import asked_later
from dd_core.study.study import TRAINER_VERSION, Arm, Checkpoint, Study
from dd_core.tables.attempts import arm_is_complete
from dd_core.tables.kinds import KINDS, Kind
from dd_core.words import advice, counted

_TRAINED: Final = (
    "Training an arm to an epoch writes every earlier checkpoint of it too, and the tables training_batches, "
    "training_evals and image_progress."
)
_IMPORTED: Final = (
    "They were trained elsewhere and imported by dd_assets.import_checkpoints; materialising records what is there."
)


class TrainingConfig(dg.Config):
    """What is computed while arms train."""

    beside: list[str] = Field(
        default=[],
        description="kinds of results, such as per_image_curvature, to compute of each arm once it is trained, by "
        "workers for which no arm is left; on the cores of this machine alone",
    )


def checkpoints_asset(study: Study, studies: Mapping[str, Study]) -> dg.AssetsDefinition:
    """The asset of one of the studies."""
    key = checkpoints_key(study.name)
    spec = dg.AssetSpec(
        key,
        deps=[recipe.dep for recipe in recipes(study)],
        description=(
            f"{study.description}\n\nWeights of all {study.trials} trials of an arm after an epoch, safetensors. "
            f"{_IMPORTED if study.imported else _TRAINED}"
        ),
        group_name=study.name,
        kinds={"pytorch", "safetensors"},
        code_version=TRAINER_VERSION,
        metadata={
            "arms": len(study.arms),
            "trials": study.trials,
            "epochs": study.epochs,
            "dataset": study.data.title,
            "study": dg.MetadataValue.json(study.model_dump(mode="json")),
        },
    )

    def work(context: dg.AssetExecutionContext, laboratory: Laboratory, store: Store, config: Any) -> Done:
        own = wanted_checkpoints(study, context)
        if study.imported:
            return _recorded(context, store, study, own)
        wanted = with_those_of_backfill(study, context, key, own)
        done = _train(context, laboratory, store, study, wanted, _kinds(study, config))
        if len(wanted) > len(own):
            done.outcome.keep_only({f"{study.name}/{c.arm.key}" for c in own})
        return done

    checks = checkpoint_check_specs(study, key)
    return StudyAsset(study, studies, spec, checks, check_checkpoints, TrainingConfig).computed_by(work)


def _kinds(study: Study, config: TrainingConfig) -> list[Kind]:
    """The kinds of results that the run config names.

    Raises:
        UserError: there is no such kind, or not of this study.
    """
    for name in config.beside:
        if name not in KINDS:
            raise UserError(f"beside: there is no kind of result {name!r}; {advice(name, KINDS, 'kinds are')}")
        KINDS[name].refuse(study)
    return [KINDS[name] for name in dict.fromkeys(config.beside)]


def _recorded(context: dg.AssetExecutionContext, store: Store, study: Study, wanted: list[Checkpoint]) -> Done:
    """Record what has been imported; what has not cannot be made here."""
    recorder = PartitionRecorder(context, store, study, wanted)
    recorder.record_rest()
    missing = [f"{study.name}/{c.key}" for c in wanted if c not in recorder.recorded]
    how = f"is not imported yet; run: {import_command(study)}"
    kept = f"{len(recorder.recorded)} of {len(wanted)} checkpoints are there and recorded"
    return Done(Outcome(failed=dict.fromkeys(missing, how)), "checkpoints", len(wanted), kept)


def _train(
    context: dg.AssetExecutionContext,
    laboratory: Laboratory,
    store: Store,
    study: Study,
    wanted: list[Checkpoint],
    kinds: list[Kind],
) -> Done:
    """Train what of the checkpoints is not there, and record all of them."""
    require(study.data.dataset)
    if size := warning_of_size(study):
        context.log.warning(size)
    machine = laboratory.machine([study])
    until: dict[Arm, int] = {}
    for checkpoint in wanted:
        until[checkpoint.arm] = max(until.get(checkpoint.arm, 0), checkpoint.epoch)
    unfinished = {arm for arm, epoch in until.items() if not arm_is_complete(store, study, arm, epoch)}
    refusals, warnings = refused_and_warned(study, {arm.variant for arm in unfinished})
    refused = {f"{study.name}/{arm.key}": refusals[arm.variant] for arm in unfinished if arm.variant in refusals}
    if refused and len(refused) == len(until):
        raise StudyError("; ".join(dict.fromkeys(refused.values())))
    for sentence in warnings:
        context.log.warning(sentence)
    unfinished = {arm for arm in unfinished if arm.variant not in refusals}
    left = [checkpoint for checkpoint in wanted if checkpoint.arm in unfinished]
    num_gpus = machine.num_devices if machine.num_gpus else 0
    job = training_job(store.root, study, left, *machine.workers_and_threads(), machine.num_places, num_gpus)
    todo = [task for task in job.tasks if isinstance(task, TrainTask)]
    recorder = PartitionRecorder(context, store, study, wanted)
    for sentence in _asked_later(store, study, set(until)):
        context.log.warning(sentence)
    in_parts = f" in {counted(len(todo), 'part')}" if len(todo) > len(unfinished) else ""
    networks = "one network" if len(todo) == 1 else f"{len(todo)} networks"
    shared = f" in {networks}, as arms that differ in rates alone share one" if any(t.also for t in todo) else ""
    arms = counted(len(until), "arm")
    context.log.info(f"{arms} of {study.name} wanted, {len(unfinished)} to train{in_parts or shared}")
    outcome = Outcome()
    if todo:
        asked = digest_of([f"{c.key} {study.recipe_hash(c.arm)}" for c in sorted(wanted)])
        job = job.model_copy(update={"request": asked})
        recorder.forecast = expected = forecast(store, study, job, machine)
        context.log.info(expected.order())
        context.log.info(expected.describe())
        _let_people_watch(store)
        job = expected.job
        if laboratory.compute == "local" and not machine.num_gpus:
            job = _with_results(job, study, left, kinds, machine.workers_and_threads()[0])
        with figures_so_far(context, laboratory, study) as picture:
            outcome = follow(context, laboratory, job, recorder.on_event, picture)
        context.log.info(expected.compare(outcome.seconds, outcome.finished))
    recorder.record_rest()
    _blame_each_arm(outcome, study, todo, {c.arm for c in wanted if c not in recorder.recorded})
    if not outcome.failed:
        missing = {f"{study.name}/{c.arm.key}" for c in wanted if c not in recorder.recorded}
        outcome.failed |= dict.fromkeys(missing - {*refused}, "trained, but not all there; run the same command again")
    outcome.failed |= refused
    if not outcome.failed:
        there = counted(len(wanted), "checkpoint")
        context.log.info(f"done: {there} of {study.name} below {store.arm_folder(study.name, '')}")
    what, total = ("parts of arms", len(todo) + len(refused)) if in_parts else ("arms", len(until))
    return Done(outcome, what, total, f"{len(recorder.recorded)} of {len(wanted)} checkpoints are there and recorded")


def _with_results(job: Job, study: Study, checkpoints: list[Checkpoint], kinds: list[Kind], num_workers: int) -> Job:
    """The job with results of its checkpoints beside it, but for those that need several processes each."""
    beside: list[CheckpointTask] = []
    for kind in kinds:
        epochs = study.checkpoints if kind.epochs is None else kind.epochs(study)
        chosen = [(study.name, checkpoint) for checkpoint in checkpoints if checkpoint.epoch in epochs]
        if chosen and kind.ranks(study) == 1:
            tasks = result_job(kind.name, job.root, job.studies, chosen, num_workers, job.threads).tasks
            beside += [task for task in tasks if isinstance(task, CheckpointTask)]
    num_workers = max(job.num_workers, min(num_workers, len(beside)))
    return job.model_copy(update={"beside": tuple(beside), "num_workers": num_workers})


def _let_people_watch(store: Store) -> None:
    """Have SQL show what trains, before anything is trained or since an earlier version that did not."""
    from dd_core.tables.live import is_in_views
    from dd_core.tables.warehouse import refresh

    if not is_in_views(store):
        refresh(store)


def _blame_each_arm(outcome: Outcome, study: Study, tasks: list[TrainTask], incomplete: set[Arm]) -> None:
    """Let a failure of arms that share a network be one of each of them that is not complete, if any is not."""
    for task in tasks:
        if task.also and (reason := outcome.failed.pop(task.name, None)) is not None:
            arms = [arm for arm in task.arms if arm in incomplete] or task.arms
            outcome.failed |= {f"{study.name}/{arm.key}": reason for arm in arms}


def _asked_later(store: Store, study: Study, arms: set[Arm]) -> list[str]:
    """What the study asks to be measured of arms that were trained, up to some epoch, without it."""
    lacking: dict[str, dict[str, int]] = {}
    for checkpoint, manifest in trained_checkpoints(store, study, arms).items():
        for what in asked_later(manifest.measured, study):
            lacking.setdefault(what, {})[checkpoint.arm.key] = checkpoint.epoch
    return [
        f"{study.name} now asks for {what}; this is not there for what is trained: "
        + ", ".join(f"{arm} up to epoch {epoch}" for arm, epoch in list(until.items())[:8])
        + (f" and {counted(len(until) - 8, 'other arm')}" if len(until) > 8 else "")
        + "; to have it, train under another study name, or ask for it only where it was measured"
        for what, until in lacking.items()
    ]
