"""What is computed from trained checkpoints, partition by partition: which, by a job, each recorded as it finishes.

Per-image curvature and the Hessian in the weights are two ``CheckpointResult``s; their modules say what is special.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from dd_assets.progress import Outcome, follow
from dd_assets.resources import Laboratory
from dd_assets.training import log_partition
from dd_core.data.datasets import require
from dd_core.errors import DataMissingError, StaleError, UserError
from dd_core.jobs.job import Job, by_ranks, digest_of, is_of_checkpoint
from dd_core.provenance import checkpoint_manifest, live_trials, trained_checkpoints
from dd_core.store import Store
from dd_core.studies import Checkpoint, Study

Work = list[tuple[Study, Checkpoint]]


@dataclass(frozen=True)
class CheckpointResult:
    """One kind of result of a checkpoint.

    Attributes:
        what: for the log, for example "curvature".
        key: the asset of a study.
        path: of the manifest of a checkpoint's result.
        is_current: whether that is of these weights and has what the study wants.
        job: the job that computes the results named; of root, studies, checkpoints, workers, threads.
        code_version: of the code that computes it.
    """

    what: str
    key: Callable[[str], dg.AssetKey]
    path: Callable[[Store, Study, Checkpoint], Path]
    is_current: Callable[[dict[str, Any] | None, dict[str, Any], Study], bool]
    job: Callable[..., Job]
    code_version: str

    def missing(self, store: Store, chosen: Work) -> Work:
        """Those of the trained checkpoints that lack a current result, the file itself included."""
        results = store.read_manifests([self.path(store, study, checkpoint) for study, checkpoint in chosen])
        return [
            (study, checkpoint)
            for (study, checkpoint), result, weights in zip(chosen, results, _weights(store, chosen), strict=True)
            if not (result and self.is_current(result, weights, study) and store.is_sound(result))
        ]

    def compute(
        self, context: dg.AssetExecutionContext, laboratory: Laboratory, store: Store, asked: Work, wanted: Work
    ) -> tuple[Outcome, int]:
        """Compute results and record each partition as it finishes; returns how it ended and how many.

        Args:
            context: of the step.
            laboratory: where jobs run.
            store: where the weights are and the results go.
            asked: what this is about; by it a job is found again that runs on while its orchestrator was away.
            wanted: what of it is missing.
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
                self._record(context, store, study, checkpoint, manifest)

        context.log.info(f"{self.what} of {len(wanted)} checkpoints on {machine.describe()}")
        outcome = Outcome()
        for job in by_ranks(whole.model_copy(update={"request": self._request(asked)})):
            outcome.add(follow(context, laboratory, job, on_event))
        return outcome, len(recorded)

    def _request(self, asked: Work) -> str:
        """Digest of what was asked for, with everything that the results depend on."""
        lines = [
            f"{study.name} {c.key} {study.recipe_hash(c.arm)} {study.curvature.model_dump_json()} "
            f"{study.hessian.model_dump_json()}"
            for study, c in asked
        ]
        return digest_of([self.what, self.code_version, *sorted(lines)])

    def _record(
        self,
        context: dg.AssetExecutionContext,
        store: Store,
        study: Study,
        checkpoint: Checkpoint,
        manifest: dict[str, Any],
    ) -> None:
        table = manifest["files"]["table"]
        metadata = {
            **manifest["headline"],
            "dagster/row_count": manifest["rows"]["table"],
            "dagster/uri": str(store.root / table["path"]),
            "recipe": manifest["recipe"],
            "device": manifest["device"],
            "settings": dg.MetadataValue.json(manifest["settings"]),
        }
        log_partition(context, self.key(study.name), checkpoint, metadata, table["sha256"], self.code_version)


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


def select(store: Store, studies: dict[str, Study], config: Narrowing) -> Work:
    """The trained checkpoints the config asks for.

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
    chosen = [
        (study, checkpoint)
        for study in asked
        for checkpoint, manifest in trained_checkpoints(store, study).items()
        if live_trials(manifest)
        and (not arms or checkpoint.arm.key in arms)
        and (not epochs or checkpoint.epoch in epochs)
    ]
    if not chosen:
        names = ", ".join(study.name for study in asked)
        hint = next((training_command(study) for study in asked if _has_data(study)), "")
        first = f"; first run: dagster asset materialize {hint}" if hint else ""
        raise UserError(f"nothing asked for is trained yet in {names} under {store.root}{first}")
    return chosen


def _has_data(study: Study) -> bool:
    try:
        require(study.data.dataset)
    except DataMissingError:
        return False
    return True


def training_command(study: Study) -> str:
    """The options that train a whole study."""
    keys = [checkpoint.key for checkpoint in study.iter_checkpoints()]
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
    from dd_core.warehouse import refresh

    refresh(store)
