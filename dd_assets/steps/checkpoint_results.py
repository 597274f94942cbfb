"""What is computed from trained checkpoints, partition by partition: which, by a job, each recorded as it finishes.

Per-image curvature and the Hessian in the weights are two ``CheckpointResult``s; their modules say what is special.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from dd_assets.laboratory import Laboratory
from dd_assets.steps.follow import Outcome, follow
from dd_assets.steps.partitions import checkpoints_key, wanted_checkpoints, with_those_of_backfill
from dd_assets.steps.recording import log_partition, record_checkpoint
from dd_assets.steps.versions import (
    Declared,
    declared_inputs,
    event_tags,
    is_up_to_date,
    latest_materializations,
    recipes,
    settings_key,
    settings_of,
)
from dd_core.data.datasets import require
from dd_core.errors import DataMissingError, StaleError, UserError
from dd_core.jobs.job import Job, by_ranks, digest_of, is_of_checkpoint
from dd_core.store.provenance import checkpoint_manifest, live_trials, trained_checkpoints, weights_sha256
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study

Work = list[tuple[Study, Checkpoint]]


@dataclass(frozen=True)
class CheckpointResult:
    """One kind of result of a checkpoint.

    Attributes:
        what: for the log, for example "curvature".
        key: the asset of a study.
        path: of the manifest of a checkpoint's result.
        is_current: whether that is of these weights and has what the study wants.
        settings: what the study wants at an epoch, as plain JSON values, as far as values depend on it.
        job: the job that computes the results named; of root, studies, checkpoints, workers, threads.
        code_version: of the code that computes it.
    """

    what: str
    key: Callable[[str], dg.AssetKey]
    path: Callable[[Store, Study, Checkpoint], Path]
    is_current: Callable[[dict[str, Any] | None, dict[str, Any], Study], bool]
    settings: Callable[[Study, int], dict[str, Any]]
    job: Callable[..., Job]
    code_version: str

    def declared_settings(self, study: Study) -> list[Declared]:
        """The nodes of the settings in the study file."""
        return settings_of(study, self.key(study.name), self.settings)

    def deps(self, study: Study) -> list[dg.AssetDep]:
        """What a study's asset depends on: the weights, their recipes, and the settings."""
        declared = [*recipes(study), *self.declared_settings(study)]
        return [dg.AssetDep(checkpoints_key(study.name)), *(part.dep for part in declared)]

    def missing(self, store: Store, chosen: Work) -> Work:
        """Those of the trained checkpoints that lack a current result, the file itself included."""
        results = store.read_manifests([self.path(store, study, checkpoint) for study, checkpoint in chosen])
        return [
            (study, checkpoint)
            for (study, checkpoint), result, weights in zip(chosen, results, _weights(store, chosen), strict=True)
            if not (result and self.is_current(result, weights, study) and store.is_sound(result))
        ]

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
        has_weights = [bool(live_trials(weights)) for weights in _weights(store, wanted)]
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
        whole = self.job(store.root, studies, work, *machine.workers_and_threads())
        names = {task.name: (studies[task.study], task.checkpoint) for task in whole.tasks if is_of_checkpoint(task)}
        recorded: set[tuple[str, Checkpoint]] = set()
        recorder = _Recorder(context, store, self)

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] != "finished":
                return
            study, checkpoint = names[event["task"]]
            if (study.name, checkpoint) in recorded:
                return
            manifest = store.read_manifest(self.path(store, study, checkpoint))
            weights = checkpoint_manifest(store, study, checkpoint)
            # Of a checkpoint in several parts, the last one to finish makes it current.
            if manifest and self.is_current(manifest, weights, study):
                recorded.add((study.name, checkpoint))
                recorder.record(declared[study.name], checkpoint, manifest, weights)

        context.log.info(f"{self.what} of {len(wanted)} checkpoints on {machine.describe()}")
        outcome = Outcome()
        for job in by_ranks(whole.model_copy(update={"request": self._request(asked)})):
            outcome.add(follow(context, laboratory, job, on_event))
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
        return digest_of([self.what, self.code_version, *sorted(lines)])

    def record_what_is_there(self, context: dg.AssetExecutionContext, store: Store, chosen: Work) -> None:
        """Record current results of which Dagster knows nothing, or that it holds for stale."""
        recorder = _Recorder(context, store, self)
        results = store.read_manifests([self.path(store, study, checkpoint) for study, checkpoint in chosen])
        for (study, checkpoint), result, weights in zip(chosen, results, _weights(store, chosen), strict=True):
            if result is not None and self.is_current(result, weights, study):
                recorder.record(study, checkpoint, result, weights, again=False)


class _Recorder:
    """Logs results as materialisations of their partitions, with what they were made from."""

    def __init__(self, context: dg.AssetExecutionContext, store: Store, kind: CheckpointResult):
        """Nothing is read yet."""
        self.context, self.store, self.kind = context, store, kind
        self._latest: dict[dg.AssetKey, dict[str, tuple[int, dict[str, str]]]] = {}

    def record(
        self,
        study: Study,
        checkpoint: Checkpoint,
        manifest: dict[str, Any],
        weights: dict[str, Any],
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
        key, table = self.kind.key(study.name), manifest["files"]["table"]
        declared = [*recipes(study), *self.kind.declared_settings(study)]
        wanted = [part.key for part in declared if part.concerns(checkpoint)]
        if not self.kind.is_current(manifest, weights, study):  # the run config wanted others than the study file
            wanted[-1] = settings_key(key, manifest["settings"])
        sha256 = weights_sha256(weights)
        source = (sha256, self._event_of(study, checkpoint, weights))
        inputs = {checkpoints_key(study.name): source, **declared_inputs(wanted)}
        tags = event_tags(table["sha256"], self.kind.code_version, inputs)
        recorded = self._latest_of(key).get(checkpoint.key, (0, {}))[1]
        if not again and is_up_to_date(self.context.instance, recorded, tags, checkpoints_key(study.name)):
            return
        metadata = {
            **manifest["headline"],
            "dagster/row_count": manifest["rows"]["table"],
            "dagster/uri": str(self.store.root / table["path"]),
            "recipe": manifest["recipe"],
            "device": manifest["device"],
            "settings": dg.MetadataValue.json(manifest["settings"]),
        }
        log_partition(self.context, key, checkpoint, metadata, tags)

    def _event_of(self, study: Study, checkpoint: Checkpoint, weights: dict[str, Any]) -> int:
        """The number of the event that recorded these weights; where it was lost they are recorded now."""
        key, sha256 = checkpoints_key(study.name), weights_sha256(weights)
        latest = self._latest_of(key)
        for attempt in range(3):
            number, tags = latest.get(checkpoint.key, (0, {}))
            if tags.get("dagster/data_version") == sha256:
                return number
            if attempt:
                record_checkpoint(self.context, self.store, study, checkpoint, weights)
            latest |= latest_materializations(self.context.instance, key, [checkpoint.key])
        return latest[checkpoint.key][0]

    def _latest_of(self, key: dg.AssetKey) -> dict[str, tuple[int, dict[str, str]]]:
        if key not in self._latest:
            self._latest[key] = latest_materializations(self.context.instance, key)
        return self._latest[key]


def _weights(store: Store, work: Work) -> list[dict[str, Any]]:
    """The manifests of trained checkpoints.

    Raises:
        StaleError: one is not there any more.
    """
    found = store.read_manifests([store.checkpoint_manifest_path(study.name, c) for study, c in work])
    # The usual sentence for what is missing or of another recipe.
    return [
        manifest
        if manifest and manifest.get("recipe") == study.recipe_hash(c.arm)
        else checkpoint_manifest(store, study, c)
        for manifest, (study, c) in zip(found, work, strict=True)
    ]


class Narrowing(dg.Config):
    """Narrows what a driver looks at; empty lists mean everything trained."""

    studies: list[str] = Field(default=[], description="names of studies")
    arms: list[str] = Field(default=[], description="arms, for example s-core.k008")
    epochs: list[int] = Field(default=[], description="checkpoint epochs")


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
    unknown = sorted(set(config.studies) - set(studies))
    if unknown:
        raise UserError(f"there is no study {', '.join(unknown)}; there are {', '.join(studies)}")
    asked = [studies[name] for name in config.studies or studies]
    arms, epochs = set(config.arms), set(config.epochs)
    unknown = sorted(arms - {arm for study in asked for arm in study.arms})
    if unknown:
        raise UserError(f"no study asked for has the arm {', '.join(unknown)}")
    unknown_epochs = sorted(epochs - {epoch for study in asked for epoch in study.checkpoints})
    if unknown_epochs:
        raise UserError(f"no study asked for has a checkpoint at epoch {', '.join(map(str, unknown_epochs))}")
    meant = [
        (study, checkpoint)
        for study in asked
        for checkpoint in study.iter_checkpoints()
        if (not arms or checkpoint.arm.key in arms) and (not epochs or checkpoint.epoch in epochs)
    ]
    trained = {study.name: trained_checkpoints(store, study) for study in asked}
    chosen = [(s, c) for s, c in meant if c in trained[s.name] and live_trials(trained[s.name][c])]
    changed = _of_another_recipe(store, [(s, c) for s, c in meant if c not in trained[s.name]])
    if changed and not chosen:
        raise UserError(changed)
    if changed:
        warn(changed)
    if not chosen:
        names = ", ".join(study.name for study in asked)
        hint = next((training_command(study) for study in asked if _has_data(study)), "")
        first = f"; first run: dagster asset materialize {hint}" if hint else ""
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
    named = ", ".join(itertools.islice(arms, 3)) + (f" and {len(arms) - 3} others" if len(arms) > 3 else "")
    return (
        f"the recipe in the study file has changed since {named} {'was' if len(arms) == 1 else 'were'} trained "
        f"({len(old)} checkpoints), so these are left out; train them again: dagster asset materialize "
        f"{training_command(study, (c for s, c in old if s is study))}"
    )


def _has_data(study: Study) -> bool:
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
        others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise StaleError(
            f"{reason}{others}; run: dagster asset materialize --select '{study.name}/checkpoints' "
            f"--partition '{checkpoint.key}'"
        )


def refresh_views(store: Store) -> None:
    """Rebuild the warehouse file."""
    from dd_core.tables.warehouse import refresh

    refresh(store)
