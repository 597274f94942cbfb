"""What is computed from trained checkpoints, partition by partition: which, by a job, each recorded as it finishes.

``dd_core.tables.kinds`` says which kinds there are, ``dd_assets.assets.results`` makes their assets.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import dagster as dg

from dd_assets.laboratory import Laboratory
from dd_assets.steps.follow import Outcome, follow
from dd_assets.steps.narrowing import Narrowing
from dd_assets.steps.partitions import checkpoints_key, result_key, wanted_checkpoints, with_those_of_backfill
from dd_assets.steps.recording import log_partition, record_checkpoint
from dd_assets.steps.versions import (
    Declared,
    declared_inputs,
    event_tags,
    is_up_to_date,
    latest_materializations,
    recipe_keys,
    recipes,
    settings_key,
    settings_of,
)
from dd_core.data.datasets import require
from dd_core.errors import DataMissingError, StaleError, UserError
from dd_core.events import Event, Finished
from dd_core.forecast.work import whole_cost
from dd_core.jobs.job import CheckpointTask, by_machines, digest_of, result_job
from dd_core.store.manifests import Manifest
from dd_core.store.provenance import checkpoint_manifest, trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.kinds import Kind
from dd_core.words import counted

Work = list[tuple[Study, Checkpoint]]


@dataclass(frozen=True)
class CheckpointResult:
    """One kind of result of a checkpoint, as steps compute and record it."""

    kind: Kind

    def key(self, study: str) -> dg.AssetKey:
        """The asset of a study."""
        return result_key(self.kind, study)

    def declared_settings(self, study: Study) -> list[Declared]:
        """The nodes of the settings in the study file."""
        return settings_of(study, self.key(study.name), self.kind.settings)

    def deps(self, study: Study) -> list[dg.AssetDep]:
        """What a study's asset depends on: the weights, their recipes, and the settings."""
        declared = [*recipes(study), *self.declared_settings(study)]
        return [dg.AssetDep(checkpoints_key(study.name)), *(part.dep for part in declared)]

    def missing(self, store: Store, chosen: Work) -> Work:
        """Those of the trained checkpoints that lack a current result, the file itself included."""
        results = self._results(store, chosen)
        return [
            (study, checkpoint)
            for (study, checkpoint), result, weights in zip(chosen, results, _weights(store, chosen), strict=True)
            if not (result and self.kind.is_current(result, weights, study) and store.is_sound(result))
        ]

    def _results(self, store: Store, chosen: Work) -> list[Manifest | None]:
        return store.read_manifests([self.kind.manifest_path(store, study, c) for study, c in chosen])

    def compute(
        self,
        context: dg.AssetExecutionContext,
        laboratory: Laboratory,
        store: Store,
        asked: Work,
        wanted: Work,
        declared: Mapping[str, Study],
    ) -> tuple[Outcome, int]:
        """Compute results and record each partition as it finishes; returns how it ended and how many.

        Args:
            context: of the step.
            laboratory: where jobs run.
            store: where the weights are and the results go.
            asked: what this is about; by it a job is found again that runs on while its orchestrator was away.
            wanted: what of it is missing.
            declared: the studies as their files say, whatever the run config asks for.
        """
        has_weights = [bool(weights.live_trials) for weights in _weights(store, wanted)]
        if not all(has_weights):
            lost = itertools.compress(wanted, (not has for has in has_weights))
            skipped = ", ".join(f"{study.name}/{checkpoint.key}" for study, checkpoint in lost)
            context.log.warning(f"every trial has diverged, so there is nothing to look at: {skipped}")
            wanted = list(itertools.compress(wanted, has_weights))
        if not wanted:
            return Outcome(), 0
        studies = {study.name: study for study, _ in wanted}
        for study in studies.values():
            require(study.data.dataset)
        machine = laboratory.machine(studies.values())
        work = [(study.name, checkpoint) for study, checkpoint in wanted]
        whole = result_job(self.kind.name, store.root, studies, work, *machine.workers_and_threads())
        names = {
            task.name: (studies[task.study], task.checkpoint)
            for task in whole.tasks
            if isinstance(task, CheckpointTask)
        }
        recorded: set[tuple[str, Checkpoint]] = set()
        recorder = _Recorder(context, store, self)

        def on_event(event: Event) -> None:
            if not isinstance(event, Finished):
                return
            study, checkpoint = names[event.task]
            if (study.name, checkpoint) in recorded:
                return
            manifest = self.kind.manifest(store, study, checkpoint)
            weights = checkpoint_manifest(store, study, checkpoint)
            # Of a checkpoint in several parts, the last one to finish makes it current.
            if manifest and self.kind.is_current(manifest, weights, study):
                recorded.add((study.name, checkpoint))
                recorder.record(declared[study.name], checkpoint, manifest, weights)

        context.log.info(f"{self.kind.what} of {counted(len(wanted), 'checkpoint')} on {machine.describe()}")
        outcome = Outcome()
        jobs = by_machines(whole.model_copy(update={"request": self._request(asked)}))
        for job in jobs:
            try:
                outcome.add(follow(context, laboratory, job, on_event))
            except UserError as error:  # a product of GPU that is not to be had keeps no other study from its results
                is_interrupted = not isinstance(error.__cause__, Exception | None)
                if len(jobs) == 1 or is_interrupted:
                    raise
                context.log.error(str(error))
                of = {task.name: names[task.name] for task in job.tasks}
                left = [name for name, (study, checkpoint) in of.items() if (study.name, checkpoint) not in recorded]
                outcome.failed |= dict.fromkeys(left, str(error))
        return outcome, len(recorded)

    def compute_partitions(
        self,
        context: dg.AssetExecutionContext,
        laboratory: Laboratory,
        store: Store,
        study: Study,
        asked: Study,
    ) -> tuple[Outcome, int, int]:
        """Compute the partitions of a run; returns how that ended, and how many there were and are recorded.

        Args:
            context: of the step.
            laboratory: where jobs run.
            store: where the weights are and the results go.
            study: as its file says.
            asked: the same with what the run config asks for.
        """
        own = wanted_checkpoints(study, context)
        require_trained(store, study, own)
        wanted = with_those_of_backfill(study, context, self.key(study.name), own)
        if len(wanted) > len(own):
            trained = trained_checkpoints(store, study)
            wanted = [checkpoint for checkpoint in wanted if checkpoint in trained]
        work = [(asked, checkpoint) for checkpoint in wanted]
        outcome, recorded = self.compute(context, laboratory, store, work, work, {study.name: study})
        if len(wanted) > len(own):
            outcome.keep_only({f"{study.name}/{checkpoint.key}" for checkpoint in own})
        return outcome, len(wanted), recorded

    def _request(self, asked: Work) -> str:
        """Digest of what was asked for, with everything that the results depend on."""
        lines = [
            f"{study.name} {c.key} {study.recipe_hash(c.arm)} {study.curvature.model_dump_json()} "
            f"{study.hessian.model_dump_json()}"
            for study, c in asked
        ]
        return digest_of([self.kind.what, self.kind.version, *sorted(lines)])

    def record_what_is_there(self, context: dg.AssetExecutionContext, store: Store, chosen: Work) -> None:
        """Record current results of which Dagster knows nothing, or that it holds for stale."""
        recorder = _Recorder(context, store, self)
        results = self._results(store, chosen)
        for (study, checkpoint), result, weights in zip(chosen, results, _weights(store, chosen), strict=True):
            if result is not None and self.kind.is_current(result, weights, study):
                recorder.record(study, checkpoint, result, weights, again=False)


class _Recorder:
    """Logs results as materialisations of their partitions, with what they were made from."""

    def __init__(self, context: dg.AssetExecutionContext, store: Store, result: CheckpointResult):
        """Nothing is read yet."""
        self.context, self.store, self.result = context, store, result
        self._latest: dict[dg.AssetKey, dict[str, tuple[int, dict[str, str]]]] = {}
        self._of_studies: dict[str, tuple[dict[str, dg.AssetKey], list[Declared]]] = {}

    def _declared(self, study: Study) -> tuple[dict[str, dg.AssetKey], list[Declared]]:
        """The key of the recipe by arm, and the nodes of the settings."""
        if study.name not in self._of_studies:
            self._of_studies[study.name] = recipe_keys(study), self.result.declared_settings(study)
        return self._of_studies[study.name]

    def record(
        self,
        study: Study,
        checkpoint: Checkpoint,
        manifest: Manifest,
        weights: Manifest,
        again: bool = True,
    ) -> None:
        """Log one result.

        Args:
            study: as its file says.
            checkpoint: whose result it is.
            manifest: of the result.
            weights: manifest of the checkpoint.
            again: also where Dagster knows all this.
        """
        key, table = self.result.key(study.name), manifest.files["table"]
        of_arms, settings = self._declared(study)
        wanted = [of_arms[checkpoint.arm.key], *(part.key for part in settings if part.concerns(checkpoint))]
        if not self.result.kind.is_current(
            manifest, weights, study
        ):  # the run config wanted others than the study file
            wanted[-1] = settings_key(key, manifest.settings)
        sha256 = weights.weights_sha256
        source = (sha256, self._event_of(study, checkpoint, weights))
        inputs = {checkpoints_key(study.name): source, **declared_inputs(wanted)}
        tags = event_tags(table.sha256, self.result.kind.version, inputs)
        recorded = self._latest_of(key).get(checkpoint.key, (0, {}))[1]
        if not again and is_up_to_date(self.context.instance, recorded, tags, checkpoints_key(study.name)):
            return
        metadata = {
            **manifest.headline,
            "dagster/row_count": manifest.rows["table"],
            "dagster/uri": str(self.store.root / table.path),
            "recipe": manifest.recipe,
            "device": manifest.device,
            **({"precision": manifest.precision} if manifest.precision else {}),
            "settings": dg.MetadataValue.json(manifest.settings),
        }
        log_partition(self.context, key, checkpoint, metadata, tags)

    def _event_of(self, study: Study, checkpoint: Checkpoint, weights: Manifest) -> int:
        """The number of the event that recorded these weights; where it was lost they are recorded now."""
        key, sha256 = checkpoints_key(study.name), weights.weights_sha256
        latest = self._latest_of(key)
        for attempt in range(3):
            number, tags = latest.get(checkpoint.key, (0, {}))
            if tags.get("dagster/data_version") == sha256:
                return number
            if attempt:
                recipe = self._declared(study)[0][checkpoint.arm.key]
                record_checkpoint(self.context, self.store, study, checkpoint, weights, recipe)
            latest |= latest_materializations(self.context.instance, key, [checkpoint.key])
        return latest[checkpoint.key][0]

    def _latest_of(self, key: dg.AssetKey) -> dict[str, tuple[int, dict[str, str]]]:
        if key not in self._latest:
            self._latest[key] = latest_materializations(self.context.instance, key)
        return self._latest[key]


def _weights(store: Store, work: Work) -> list[Manifest]:
    """The manifests of trained checkpoints.

    Raises:
        StaleError: one is not there any more.
    """
    found = store.read_manifests([store.checkpoint_manifest_path(study.name, c) for study, c in work])
    # The usual sentence for what is missing or of another recipe.
    return [
        manifest if manifest and manifest.recipe == study.recipe_hash(c.arm) else checkpoint_manifest(store, study, c)
        for manifest, (study, c) in zip(found, work, strict=True)
    ]


def select(
    store: Store, studies: Mapping[str, Study], config: Narrowing, warn: Callable[[str], None] = lambda text: None
) -> Work:
    """The trained checkpoints the config asks for.

    Args:
        store: where they are.
        studies: among which.
        config: which of them.
        warn: told what is left out because its recipe has changed since it was trained.

    Raises:
        UserError: an unknown name, or nothing trained among what was asked for.
    """
    asked = config.asked(studies)
    meant = [
        (study, Checkpoint(arm, epoch))
        for study in asked
        for arm in config.of(study)
        for epoch in study.checkpoints
        if not config.epochs or epoch in config.epochs
    ]
    trained = {study.name: trained_checkpoints(store, study) for study in asked}
    chosen = [(s, c) for s, c in meant if c in trained[s.name] and trained[s.name][c].live_trials]
    here = {study.name for study in asked if store.may_have(study.name)}
    changed = _of_another_recipe(store, [(s, c) for s, c in meant if s.name in here and c not in trained[s.name]])
    if changed and not chosen:
        raise UserError(changed)
    if changed:
        warn(changed)
    if not chosen:
        names = ", ".join(study.name for study in asked) if len(asked) <= 3 else f"any of the {len(asked)} studies"
        cheapest = min((study for study in asked if _can_be_trained(study)), key=whole_cost, default=None)
        first = f"; first run: dagster asset materialize {training_command(cheapest)}" if cheapest else ""
        if all(study.imported for study in asked):
            first = f"; first run: {import_command(asked[0])}"
        raise UserError(f"nothing asked for is trained yet in {names} under {store.root}{first}")
    return chosen


def _of_another_recipe(store: Store, missing: Work) -> str:
    """A sentence on what is there of a recipe that the study file no longer says; empty where there is nothing."""
    manifests = store.read_manifests([store.checkpoint_manifest_path(study.name, c) for study, c in missing])
    old = [work for work, manifest in zip(missing, manifests, strict=True) if manifest is not None]
    if not old:
        return ""
    study = old[0][0]
    arms = {f"{s.name}/{c.arm.key}": None for s, c in old}
    named = ", ".join(itertools.islice(arms, 3)) + (f" and {counted(len(arms) - 3, 'other')}" if len(arms) > 3 else "")
    training = f"dagster asset materialize {training_command(study, (c for s, c in old if s is study))}"
    again = f"import them again: {import_command(study)}" if study.imported else f"train them again: {training}"
    return (
        f"the recipe in the study file has changed since {named} {'was' if len(arms) == 1 else 'were'} "
        f"{'imported' if study.imported else 'trained'} ({counted(len(old), 'checkpoint')}), so these are left out; "
        f"{again}"
    )


def import_command(study: Study) -> str:
    """What brings the checkpoints of a study that is not trained here."""
    return f"python -m dd_assets.import_checkpoints {study.name} FOLDER"


def _can_be_trained(study: Study) -> bool:
    if study.imported:
        return False
    try:
        require(study.data.dataset)
    except DataMissingError:
        return False
    return True


def training_command(study: Study, checkpoints: Iterable[Checkpoint] | None = None) -> str:
    """The options that train a whole study, or the smallest box of arms and epochs with some of its checkpoints."""
    wanted = set(study.iter_checkpoints() if checkpoints is None else checkpoints)
    arms = [arm for arm in study.arms.values() if arm in {checkpoint.arm for checkpoint in wanted}]
    epochs = sorted(checkpoint.epoch for checkpoint in wanted)
    keys = [Checkpoint(arms[0], epochs[0]).key, Checkpoint(arms[-1], epochs[-1]).key]
    return f"--select '{study.name}/checkpoints' --partition-range '{keys[0]}...{keys[-1]}'"


def require_trained(store: Store, study: Study, wanted: list[Checkpoint]) -> None:
    """Pass only trained checkpoints.

    Raises:
        StaleError: it names the first that is not, and the command that trains it.
    """
    missing = []
    for checkpoint in wanted:
        try:
            checkpoint_manifest(store, study, checkpoint)
        except StaleError as error:
            missing.append((checkpoint, error))
    if missing:
        checkpoint, reason = missing[0]
        others = f" (and {counted(len(missing) - 1, 'other')})" if len(missing) > 1 else ""
        training = f"dagster asset materialize --select '{study.name}/checkpoints' --partition '{checkpoint.key}'"
        raise StaleError(f"{reason}{others}; run: {import_command(study) if study.imported else training}")


def refresh_views(store: Store) -> None:
    """Rebuild the warehouse file."""
    from dd_core.tables.warehouse import refresh

    refresh(store)
