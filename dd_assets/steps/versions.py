"""What Dagster is told about versions, from which it says what is stale; the model is in docs/staleness.md.

Belongs here: the nodes of the graph that carry nothing but a version, and the tags of events. What is computed, and
when, is the business of the other modules.

Dagster knows one code version per asset, while a recipe belongs to a variant and settings to some epochs. So each
recipe and each set of settings is a node of its own, named after its content, on which just those partitions depend
that it concerns: a changed study file changes the names, and with them the dependencies of just these partitions.
Nothing has to be recorded for that.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import dagster as dg

from dd_assets.laboratory import Laboratory
from dd_assets.steps.partitions import box, checkpoints_key, result_key
from dd_assets.steps.user_errors import shown_as_sentence
from dd_core.jobs.job import digest_of
from dd_core.store.files import below, size_and_sha256
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.kinds import KINDS, Kind

# Records that are fetched at a time; SQLite takes no more than some thousand parameters.
_CHUNK: Final = 500
_DIGITS: Final = 10

# The version of an input and the number of the event that it was read from, None for an input without events.
Inputs = Mapping[dg.AssetKey, tuple[str, int | None]]


@dataclass(frozen=True)
class Declared:
    """A part of a study file on which partitions depend: its key ends in a digest of its content."""

    key: dg.AssetKey
    description: str
    content: dict[str, Any]
    arms: tuple[str, ...]
    epochs: tuple[str, ...]

    @property
    def spec(self) -> dg.AssetSpec:
        """The node, of which nothing is ever materialised."""
        return dg.AssetSpec(
            self.key,
            description=self.description,
            group_name=self.key.path[0],
            kinds={"yaml"},
            code_version=self.key.path[-1].rpartition("-")[2],
            partitions_def=box(self.arms, self.epochs),
            metadata={"content": dg.MetadataValue.json(self.content)},
        )

    @property
    def dep(self) -> dg.AssetDep:
        """For an asset partitioned by arm and epoch: only the partitions that this concerns depend on it."""
        arms, epochs = (dg.StaticPartitionMapping({key: key for key in keys}) for keys in (self.arms, self.epochs))
        dimensions = {
            "arm": dg.DimensionPartitionMapping("arm", arms),
            "epoch": dg.DimensionPartitionMapping("epoch", epochs),
        }
        return dg.AssetDep(self.key, partition_mapping=dg.MultiPartitionMapping(dimensions))

    def concerns(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint's partition depends on this."""
        return checkpoint.arm.key in self.arms and f"{checkpoint.epoch:04d}" in self.epochs


def digest_of_content(content: Any) -> str:
    """The end of the key of a ``Declared``."""
    return digest_of([json.dumps(content, sort_keys=True, separators=(",", ":"))])[:_DIGITS]


def recipes(study: Study) -> list[Declared]:
    """The recipe of each variant, without the width."""
    arms: dict[str, list[Arm]] = {variant: [] for variant in study.variants}
    for arm in study.arms.values():
        arms[arm.variant].append(arm)
    found = []
    for variant, own in arms.items():
        content = {name: value for name, value in study.recipe(own[0]).items() if name != "k"}
        key = dg.AssetKey([study.name, f"recipe-{variant}-{digest_of_content(content)}"])
        description = f"The recipe of {variant} in the study file: all that its weights depend on besides the width."
        found.append(Declared(key, description, content, tuple(arm.key for arm in own), study.epoch_keys))
    return found


def recipe_keys(study: Study) -> dict[str, dg.AssetKey]:
    """By arm the key of the recipe that all its checkpoints depend on, to be computed once for many of them."""
    return {arm: recipe.key for recipe in recipes(study) for arm in recipe.arms}


def settings_key(asset: dg.AssetKey, settings: Mapping[str, Any]) -> dg.AssetKey:
    """The key of the settings of what an asset computes."""
    return dg.AssetKey([*asset.path[:-1], f"settings-{asset.path[-1]}-{digest_of_content(settings)}"])


def settings_of(study: Study, asset: dg.AssetKey, settings: Callable[[Study, int], dict[str, Any]]) -> list[Declared]:
    """The settings of what an asset computes, once for all epochs that have the same."""
    epochs: dict[dg.AssetKey, list[str]] = {}
    contents: dict[dg.AssetKey, dict[str, Any]] = {}
    for epoch in study.checkpoints:
        content = settings(study, epoch)
        key = settings_key(asset, content)
        contents[key] = content
        epochs.setdefault(key, []).append(f"{epoch:04d}")
    description = f"The settings of {asset.path[-1]} in the study file, as far as its values depend on them."
    return [Declared(key, description, contents[key], tuple(study.arms), tuple(epochs[key])) for key in epochs]


@dataclass(frozen=True)
class Stock:
    """All partitions of one kind of asset, of all studies, as one version that unpartitioned assets depend on.

    Dagster compares no dependency of more than a hundred partitions, and takes one on a study that is new for a change.
    It is recorded by whatever changes it.

    Attributes:
        name: of the node.
        partitioned: the key of the asset of a study.
        manifest: where a checkpoint's manifest lies.
        concerns: whether a study has such an asset.
    """

    name: str
    description: str
    partitioned: Callable[[str], dg.AssetKey]
    manifest: Callable[[Store, Study, Checkpoint], Path]
    concerns: Callable[[Study], bool] = lambda study: True

    @property
    def key(self) -> dg.AssetKey:
        """The key of the node."""
        return dg.AssetKey([self.name])

    def asset(self, studies: Mapping[str, Study]) -> dg.AssetsDefinition:
        """The asset, between the partitioned assets and what is made of all of them; seldom materialised by hand."""
        spec = dg.AssetSpec(
            self.key,
            deps=[self.partitioned(name) for name, study in studies.items() if self.concerns(study)],
            description=self.description,
            group_name="tables",
            kinds={"json"},
        )

        @dg.multi_asset(name=self.name, specs=[spec], backfill_policy=dg.BackfillPolicy.single_run())
        def stock(context: dg.AssetExecutionContext, laboratory: Laboratory) -> dg.MaterializeResult[None]:
            with shown_as_sentence():
                version = self.version(laboratory.store(), studies.values())
            return dg.MaterializeResult(asset_key=self.key, data_version=dg.DataVersion(version))

        return stock

    def version(self, store: Store, studies: Iterable[Study]) -> str:
        """Digest of what there is now."""
        paths: list[Path] = []
        for study in studies:
            checkpoints = list(study.iter_checkpoints())
            folder = self.manifest(store, study, checkpoints[0]).parent.parent
            if folder.is_dir():  # most studies have nothing, and many checkpoints
                paths += [self.manifest(store, study, checkpoint) for checkpoint in checkpoints]
        lines = [
            f"{entry.path} {entry.sha256}"
            for manifest in store.read_manifests(paths)
            if manifest is not None
            for entry in manifest.files.values()
        ]
        return digest_of(sorted(lines))

    def record(self, context: dg.AssetExecutionContext, store: Store, studies: Mapping[str, Study]) -> str:
        """Tell Dagster what there is now, after the partitions that a step has recorded; returns the version."""
        version = self.version(store, studies.values())
        keys = [self.partitioned(name) for name, study in studies.items() if self.concerns(study)]
        records = context.instance.get_asset_records(keys)
        latest = {r.asset_entry.asset_key: r.asset_entry.last_materialization_storage_id for r in records}
        # 1 is before the first event of any of them: whatever is recorded later is news.
        inputs = {key: ("all", latest.get(key) or 1) for key in keys}
        context.log_event(dg.AssetMaterialization(self.key, tags=event_tags(version, "1", inputs)))
        return version


TRAINED: Final = Stock(
    "trained_checkpoints",
    "All trained checkpoints with their metrics, of all studies, as one version: what tables of training are made of. "
    "It is recorded at the end of every training.",
    checkpoints_key,
    lambda store, study, checkpoint: store.checkpoint_manifest_path(study.name, checkpoint),
)


def _stock(kind: Kind) -> Stock:
    return Stock(
        kind.stock or f"computed_{kind.name}",
        f"All results of {kind.what} of all studies as one version: what {kind.driver} and figures are made of. It is "
        "recorded whenever some were computed, or moved away because their arm was trained anew.",
        partial(result_key, kind),
        kind.manifest_path,
        lambda study: not kind.objection(study),
    )


STOCKS: Final = (TRAINED, *map(_stock, KINDS.values()))


def stock_of(kind: Kind) -> Stock:
    """The node that stands for all results of a kind."""
    return STOCKS[1 + list(KINDS).index(kind.name)]


def record_stocks(
    context: dg.AssetExecutionContext, store: Store, studies: Mapping[str, Study]
) -> dict[dg.AssetKey, str]:
    """Tell Dagster what there is of each kind, at the end of a step that may have changed it; returns the versions."""
    return {stock.key: stock.record(context, store, studies) for stock in STOCKS}


def table_version(store: Store, table: str) -> str:
    """Digest of the content of all files of a table; of a folder they are read, of an object store the digests are."""
    folder = store.table_folder(table)
    lines = []
    for path in sorted(below(folder, "*.parquet")):
        found = size_and_sha256(path)
        if found is not None:
            lines.append(f"{path.relative_to(folder)} {found[1]()}")
    return digest_of(lines)


def event_tags(data_version: str, code_version: str, inputs: Inputs) -> dict[str, str]:
    """The tags of a materialisation by which Dagster compares it with the present graph."""
    return {"dagster/data_version": data_version, "dagster/code_version": code_version, **input_tags(inputs)}


def input_tags(inputs: Inputs) -> dict[str, str]:
    """The part of the tags that says what something was made from."""
    tags = {}
    for key, (version, event) in inputs.items():
        tags[f"dagster/input_data_version/{key.to_user_string()}"] = version
        tags[f"dagster/input_event_pointer/{key.to_user_string()}"] = "NULL" if event is None else str(event)
    return tags


def declared_inputs(keys: Iterable[dg.AssetKey]) -> dict[dg.AssetKey, tuple[str, int | None]]:
    """The inputs that are ``Declared`` nodes, which have no events."""
    return {key: (key.path[-1], None) for key in keys}


def latest_materializations(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Sequence[str] | None = None
) -> dict[str, tuple[int, dict[str, str]]]:
    """By partition the number and the tags of its latest materialisation."""
    ids = instance.get_latest_storage_id_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION, set(partitions) if partitions is not None else None
    )
    numbers, found = list(ids.values()), {}
    for start in range(0, len(numbers), _CHUNK):
        chunk = numbers[start : start + _CHUNK]
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(key, storage_ids=chunk), limit=len(chunk)
        ).records
        for record in records:
            event = record.asset_materialization
            if event is not None and event.partition is not None:
                found[str(event.partition)] = (record.storage_id, dict(event.tags or {}))
    return found


def is_up_to_date(
    instance: dg.DagsterInstance, tags: Mapping[str, str], expected: Mapping[str, str], source: dg.AssetKey
) -> bool:
    """Whether a recorded event says what one recorded now would say.

    It may point to an earlier event of what it was made from, as long as Dagster still has that to compare with.
    """
    pointer = f"dagster/input_event_pointer/{source.to_user_string()}"

    def versions(of: Mapping[str, str]) -> dict[str, str]:
        wanted = ("dagster/data_version", "dagster/code_version", "dagster/input_data_version/")
        return {name: value for name, value in of.items() if name.startswith(wanted)}

    if versions(tags) != versions(expected):
        return False
    if tags[pointer] == expected[pointer]:
        return True
    earlier = dg.AssetRecordsFilter(source, storage_ids=[int(tags[pointer])])
    return bool(instance.fetch_materializations(earlier, limit=1).records)
