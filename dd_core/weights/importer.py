"""Weights that were trained elsewhere, as the checkpoints of a study of ours.

Everything is read, checked and written aside, a few files at a time, before anything is put into place by renaming. A
process killed between two of these renames leaves whole files only, and the same command completes them. Importing the
same files again changes nothing, and reads none of them as long as sizes and times are what they were.
"""

import datetime
import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dd_core.errors import UserError
from dd_core.exchange.settings import agreed_data, agreed_variant
from dd_core.exchange.staging import replace_if_changed, staging_folder
from dd_core.exchange.study_file import StudyFile, extended
from dd_core.models.build import network_of
from dd_core.store.checkpoints import save_checkpoint, save_tensors
from dd_core.store.files import sha256_of
from dd_core.store.manifests import Manifest
from dd_core.store.retirement import retire
from dd_core.store.store import Store
from dd_core.study.files import Catalogue, read_studies
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.attempts import attempt_numbers, attempt_path
from dd_core.tables.files import TABLES, to_arrow, write_result
from dd_core.tables.images import write_images
from dd_core.weights.class_orders import Orders, orders_of
from dd_core.weights.files import PUBLISHED, CheckpointFile, find_checkpoints
from dd_core.weights.published_checkpoints import (
    PUBLISHED_CLASSES,
    PUBLISHED_CURVATURE,
    PUBLISHED_DATA,
    PUBLISHED_SETTINGS,
)
from dd_core.weights.state_dicts import Expected, read_state


@dataclass(frozen=True)
class WeightsRequest:
    """What the user asks for.

    Attributes:
        study: name of the study that the checkpoints become part of.
        folder: of the files.
        pattern: how they are called, see ``find_checkpoints``; None: as ``PUBLISHED`` says.
        variant, k, trial: where the pattern does not say them.
        key: where in a file the weights are.
        data, settings: keys of ``Data`` and ``Variant`` that the user says.
        class_order: path of the order of classes, with {trial} where each has its own; None: where published code has
            it; empty: all classes are there from the beginning.
        classes: first, add and every of the class schedule; None: as published.
        description: of a new study.
        replace: whether weights of an earlier import may give way to others.
    """

    study: str
    folder: Path
    pattern: str | None = None
    variant: str | None = None
    k: int | None = None
    trial: int | None = None
    key: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    class_order: str | None = None
    classes: tuple[int, int, int] | None = None
    description: str = "Checkpoints of another system, imported."
    replace: bool = False

    @property
    def is_published(self) -> bool:
        """Whether the files are called as the published code calls them."""
        return self.pattern is None


@dataclass(frozen=True)
class ImportedWeights:
    """What came of it.

    Attributes:
        study: as its file says now.
        checkpoints: all that the files are of.
        written: files that are new or have changed, or would be.
        bytes: of weights that were written.
        retired: where weights of an earlier recipe were moved.
    """

    study: Study
    checkpoints: list[Checkpoint]
    written: list[Path]
    bytes: int
    retired: list[Path]


def import_checkpoints(
    store: Store, folders: list[Path], request: WeightsRequest, *, dry_run: bool = False
) -> ImportedWeights:
    """Import weights.

    Args:
        store: where checkpoints lie.
        folders: of study files; into the last, the user's, the file of the imported study is written.
        request: what to import.
        dry_run: check everything and say what would be written, but write nothing.

    Raises:
        UserError: a file or the request is wrong; nothing has been written.
        StoreError: something cannot be written.
    """
    if request.k is not None and request.k < 1:
        raise UserError(f"--k {request.k}: a width is a whole number above 0")
    if request.trial is not None and request.trial < 0:
        raise UserError(f"--trial {request.trial}: trials are counted from 0")
    with store.lock("import"):
        former = _existing(store, read_studies(folders), request.study)
        patterns = PUBLISHED if request.pattern is None else (request.pattern,)
        num_known = former.trials if former else 0
        files = find_checkpoints(request.folder, patterns, *_usual(former, request), request.trial, num_known)
        asked = "" if former and former.data.classes is None else request.class_order
        if former and former.data.classes is None and (request.classes or request.class_order):
            raise UserError(
                f"{request.study} has had all classes from the beginning, so --classes and --class-order do not fit; "
                "choose another study name"
            )
        orders = orders_of(request.folder, asked, request.is_published, {file.trial for file in files})
        if request.classes and not orders.texts:
            raise UserError("--classes needs --class-order, the file that lists the classes in the order they came in")
        with orders.beside(folders[-1], request.study):
            study_file = _study_file(folders[-1], former, files, request, orders)
            plan = _Plan(store, study_file.study, files, request)
            with staging_folder(store, f"import.{request.study}") as staging:
                plan.stage(None if dry_run else staging)
                if dry_run:
                    return plan.told([], study_file)
                orders.keep()
                study_file.write()
                return plan.told(plan.carried_out(), study_file)


def _existing(store: Store, catalogue: Catalogue, name: str) -> Study | None:
    """The study with imported weights of that name, or None if the name is free."""
    is_known = name in catalogue.studies or any(path.stem == name for path in catalogue.errors)
    study = catalogue.get(name) if is_known else None
    if study is not None and study.imported != "weights":
        what = "has metrics of another system alone" if study.imported else "is trained here"
        raise UserError(f"{name} is a study that {what}; choose another name for what you import")
    if study is None and store.arm_folder(name, "").exists():
        raise UserError(f"a study called {name} has been trained under {store.root}; choose another name")
    return study


def _usual(former: Study | None, request: WeightsRequest) -> tuple[str, int | None]:
    """Variant and k where a path does not say them: as the user says, else the only one that there is."""
    variants = list(former.variants) if former else []
    widths = former.all_widths if former else (64,) if request.is_published else ()
    return (
        request.variant or (variants[0] if len(variants) == 1 else "imported"),
        widths[0] if request.k is None and len(widths) == 1 else request.k,
    )


def _study_file(
    folder: Path, former: Study | None, files: list[CheckpointFile], request: WeightsRequest, orders: Orders
) -> StudyFile:
    """The study file that covers these checkpoints too."""
    data, settings = request.data, request.settings
    if request.is_published and former is None:
        optimizer = {**PUBLISHED_SETTINGS["optimizer"], **settings.get("optimizer", {})}
        # Where it was trained on other images, their statistics are others as well.
        published = {} if "dataset" in data else PUBLISHED_DATA
        data, settings = {**published, **data}, {**PUBLISHED_SETTINGS, **settings, "optimizer": optimizer}
    if orders.name is not None and (former is None or request.classes):
        first, add, every = request.classes or PUBLISHED_CLASSES
        data = {**data, "classes": {"order": orders.name, "first": first, "add": add, "every": every}}
    variants = {}
    for name in dict.fromkeys(file.checkpoint.arm.variant for file in files):
        known = former.variants.get(name) if former else None
        # Which labels were wrong elsewhere nobody can say here.
        given = {"optimizer": {}, "label_noise": 0.0, **settings}
        variants[name] = agreed_variant(known, [], given, name)
    epochs: dict[Arm, list[int]] = {}
    for file in files:
        epochs.setdefault(file.checkpoint.arm, []).append(file.checkpoint.epoch)
    agreed = agreed_data(former.data if former else None, [], data, request.study)
    further: dict[str, Any] = {"imported": "weights"}
    if request.is_published:
        further["curvature"] = PUBLISHED_CURVATURE
    num_trials = 1 + max(file.trial for file in files)
    return extended(
        folder, request.study, former, request.description, agreed, variants, epochs, num_trials, further=further
    )


@dataclass(frozen=True)
class _Source:
    """A file of weights and where they shall lie.

    Attributes:
        file: of the user's.
        about: path, size, time and SHA-256 of it, as the manifest of its checkpoint says.
        target: in the store.
    """

    file: CheckpointFile
    about: dict[str, Any]
    target: Path


class _Plan:
    """What of the files is new, and what there will be of each checkpoint."""

    def __init__(self, store: Store, study: Study, files: list[CheckpointFile], request: WeightsRequest):
        """Nothing is read yet but the manifests of what was imported before."""
        self.store, self.study, self.files, self.request = store, study, files, request
        self._expected: dict[Arm, Expected] = {}
        self._num_parameters: dict[Arm, int] = {}
        self._new: dict[Checkpoint, list[tuple[_Source, Path]]] = {}
        wanted = list(study.iter_checkpoints())
        manifests = store.read_manifests([store.checkpoint_manifest_path(study.name, c) for c in wanted])
        found = {c: m for c, m in zip(wanted, manifests, strict=True) if m is not None}
        self._old = {c: m for c, m in found.items() if not self._is_of_recipe(m, c.arm)}
        self._known = {c: m for c, m in found.items() if c not in self._old}
        self._touched = {file.checkpoint for file in files}
        self._touched |= {c for c, manifest in self._known.items() if manifest.trials != study.trials}
        self._sound = {c: self._unharmed(m) for c, m in self._known.items() if c in self._touched}
        self._refuse_incomplete()

    def _is_of_recipe(self, manifest: Manifest, arm: Arm) -> bool:
        """Whether it was imported with the study's recipe, perhaps when there were fewer trials (and orders)."""
        then = self.study.model_copy(update={"trials": manifest.trials})
        return manifest.recipe == then.recipe_hash(arm)

    def _trials(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What an earlier import says of the trials of a checkpoint whose weights are unharmed, by role."""
        return dict(self._sound.get(checkpoint, {}))

    def _unharmed(self, manifest: Manifest) -> dict[str, Any]:
        """What a manifest says of the trials whose files are as it says."""
        sound = {role: Manifest({}, {role: entry}) for role, entry in manifest.files.items()}
        return {role: manifest.sources[role] for role, own in sound.items() if self.store.is_sound(own)}

    def _refuse_incomplete(self) -> None:
        """Pass only checkpoints of which there are, with those of earlier imports, all trials."""
        there = {checkpoint: set(self._trials(checkpoint)) for checkpoint in self._touched}
        for file in self.files:
            there[file.checkpoint].add(_role(file.trial))
        for checkpoint, roles in sorted(there.items()):
            missing = [trial for trial in self.study.trial_numbers if _role(trial) not in roles]
            if missing:
                raise UserError(
                    f"there is no file of trial {missing[0]} of {checkpoint.key}, though {self.study.name} has "
                    f"{self.study.trials} trials; import all trials up to the same epochs, or the first alone with "
                    "--pattern 'index-0_epoch-{epoch}.pt'"
                )

    def stage(self, staging: Path | None) -> None:
        """Read what is new, and write it aside; with None nothing is written."""
        for arm in dict.fromkeys(file.checkpoint.arm for file in self.files):
            self._expected[arm] = self._network(arm)
        # Hashing, reading and flushing leave the interpreter to others.
        with warnings.catch_warnings(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            # What cannot be read is refused in a sentence. Filters are of the process, so no thread sets them.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            done = [pool.submit(self._staged, file, staging) for file in self.files]
            try:
                for file, future in zip(self.files, done, strict=True):
                    if (new := future.result()) is not None:
                        self._new.setdefault(file.checkpoint, []).append(new)
            finally:
                pool.shutdown(cancel_futures=True)

    def _staged(self, file: CheckpointFile, staging: Path | None) -> tuple[_Source, Path] | None:
        """One file that is written aside; None if there is nothing new in it."""
        source = self._source(file, self._trials(file.checkpoint).get(_role(file.trial)))
        if source is None:
            return None
        state = read_state(file.path, self.request.key, self._expected[file.checkpoint.arm])
        staged = (staging or Path()) / file.checkpoint.arm.key / source.target.name
        if staging is not None:
            # All trials lie along the first dimension; this file has one.
            tensors = {name: tensor.unsqueeze(0) for name, tensor in state.items()}
            save_tensors(staged, tensors, {"checkpoint": f"{self.study.name}/{file.checkpoint.key}"})
        return source, staged

    def _source(self, file: CheckpointFile, known: dict[str, Any] | None) -> _Source | None:
        """What is to be imported; None if just this was.

        Raises:
            UserError: something else was.
        """
        status = file.path.stat()
        about: dict[str, Any] = {
            "path": str(file.path.absolute()),
            "bytes": status.st_size,
            "modified_ns": status.st_mtime_ns,
            "key": self.request.key,
        }
        if known is not None and all(known.get(name) == value for name, value in about.items()):
            return None
        about["sha256"] = sha256_of(file.path)
        if known is not None and all(known.get(name) == about[name] for name in ("sha256", "key")):
            return None
        if known is not None and not self.request.replace:
            raise UserError(
                f"{file.path} is not what was imported as {file.checkpoint.key}, trial {file.trial}, of "
                f"{self.study.name} ({known['path']}, SHA-256 {known['sha256'][:12]}…, now {about['sha256'][:12]}…); "
                "pass --replace to take it in its place, or choose another study name"
            )
        folder = self.store.arm_folder(self.study.name, file.checkpoint.arm.key)
        name = f"{file.checkpoint.epoch:04d}.trial-{file.trial:03d}.safetensors"
        return _Source(file, about, folder / name)

    def _network(self, arm: Arm) -> Expected:
        """What the weights of an arm must be."""
        with torch.random.fork_rng(devices=[]):
            network = network_of(self.study, arm)
        state = network.state_dict()
        self._num_parameters[arm] = sum(parameter.numel() for parameter in network.parameters())
        variant, num_classes = self.study.variants[arm.variant], self.study.data.record.num_classes
        return Expected(
            {name: tuple(tensor.shape) for name, tensor in state.items()},
            {name: tensor.dtype for name, tensor in state.items()},
            num_classes,
            f"{variant.architecture} of k = {arm.k} for {self.study.data.title}",
        )

    def carried_out(self) -> list[Path]:
        """Put all into place; returns where weights of an earlier recipe went."""
        arms = {c.arm: m.recipe for c, m in self._old.items()}
        retired = []
        for arm, recipe in arms.items():
            with self.store.lock(self.study.name, arm.key):
                retired.append(retire(self.store, self.study.name, arm.key, recipe))
        changed = [c for c in self._known if c in self._new or self._known[c].trials != self.study.trials]
        for checkpoint in sorted({*self._new, *changed}):
            with self.store.lock(self.study.name, checkpoint.arm.key):
                self._put(checkpoint)
        for arm in dict.fromkeys(checkpoint.arm for checkpoint in self._new):
            self._tell(arm)
        write_images(self.store, self.study)
        return [folder for folder in retired if folder is not None]

    def _put(self, checkpoint: Checkpoint) -> None:
        """One checkpoint: its new files, then the manifest that vouches for these and those that were there."""
        store, known = self.store, self._known.get(checkpoint, Manifest({}, {}))
        sources = self._trials(checkpoint)
        files = {role: store.root / known.files[role].path for role in sources}
        # The manifest stays meanwhile: it says where the other trials came from, and never vouches for another file.
        for source, staged in self._new.get(checkpoint, []):
            role = _role(source.file.trial)
            replace_if_changed(staged, source.target)
            sources[role], files[role] = source.about, source.target
        save_checkpoint(store, self.study, checkpoint, files, {}, {}, "", {}, sources)

    def _tell(self, arm: Arm) -> None:
        """A row of each trial in the table ``runs``, so that SQL finds what was imported like what was trained."""
        study, store = self.study, self.store
        variant = study.variants[arm.variant]
        epochs = [checkpoint.epoch for checkpoint in self._new if checkpoint.arm == arm]
        now = datetime.datetime.now(datetime.UTC)
        attempt = max(attempt_numbers(store, study, arm), default=0) + 1
        columns: dict[str, Any] = dict.fromkeys(column.name for column in TABLES["runs"].file_columns)
        columns |= {
            "variant": arm.variant,
            "k": arm.k,
            "trial": list(study.trial_numbers),
            "recipe": study.recipe_hash(arm),
            "attempt": attempt,
            "status": "imported",
            "reason": f"from {self.request.folder.absolute()}",
            "architecture": variant.architecture,
            "optimizer": variant.optimizer.name,
            "learning_rate": variant.optimizer.learning_rate,
            "weight_decay": variant.optimizer.weight_decay,
            "schedule": variant.schedule.name,
            "batch_size": variant.batch_size,
            "label_noise": variant.label_noise,
            "precision": variant.precision,
            "settings": json.dumps(study.recipe(arm), sort_keys=True),
            "family": variant.family or arm.variant,
            "seed": study.seed,
            "num_parameters": self._num_parameters[arm],
            "first_epoch": min(epochs),
            "last_epoch": max(epochs),
            "started_at": now,
            "ended_at": now,
        }
        write_result(store, attempt_path(store, study, arm, attempt, "end"), to_arrow("runs", columns, study.trials))

    def told(self, retired: list[Path], study_file: StudyFile) -> ImportedWeights:
        """What came of it."""
        new = [source for sources in self._new.values() for source, _ in sources]
        written = [source.target for source in new] + [study_file.path] * study_file.differs
        num_bytes = sum(source.about["bytes"] for source in new)
        checkpoints = sorted({file.checkpoint for file in self.files})
        return ImportedWeights(self.study, checkpoints, written, num_bytes, retired)


def _role(trial: int) -> str:
    """The role of a trial's weights in a manifest; roles sort as trials do."""
    return f"weights.{trial:03d}"
