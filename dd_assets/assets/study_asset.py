"""The skeleton of every asset of a study that is partitioned like its checkpoints: weights, and results of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from dd_assets.assets.checks import selected_checks
from dd_assets.compute import COMPUTE_POOL
from dd_assets.laboratory import Laboratory
from dd_assets.steps.checkpoint_results import refresh_views
from dd_assets.steps.follow import Outcome, reason_at_partitions
from dd_assets.steps.partitions import checkpoint_partitions
from dd_assets.steps.recording import RETRY, already_logged
from dd_assets.steps.user_errors import shown_as_sentence
from dd_assets.steps.versions import record_stocks
from dd_core.store.store import Store
from dd_core.study.study import Study


@dataclass(frozen=True)
class Done:
    """What a step has done.

    Attributes:
        outcome: how its job ended.
        what: plural of what did not finish, for people; ``total``: how many there were; ``kept``: what is there.
    """

    outcome: Outcome
    what: str
    total: int
    kept: str


@dataclass(frozen=True)
class StudyAsset:
    """One asset of one study.

    Attributes:
        study: whose it is; ``studies``: all of them.
        spec: key, dependencies, description and version.
        check_specs, check: its checks, which may run alone, and what evaluates them; it is skippable if it has any.
        config: of the run, if it has any.
    """

    study: Study
    studies: Mapping[str, Study]
    spec: dg.AssetSpec
    check_specs: list[dg.AssetCheckSpec]
    check: Callable[[Store, Study, dg.AssetKey], Iterable[dg.AssetCheckResult]]
    config: type[dg.Config] | None = None

    def computed_by(
        self, work: Callable[[dg.AssetExecutionContext, Laboratory, Store, Any], Done]
    ) -> dg.AssetsDefinition:
        """The asset whose partitions ``work`` computes and records; its last argument is the run config."""
        key, has_checks = self.spec.key, bool(self.check_specs)
        partitions = checkpoint_partitions(self.study)

        def run(context: dg.AssetExecutionContext, laboratory: Laboratory, config: Any = None) -> Iterator[Any]:
            with shown_as_sentence(), reason_at_partitions(context, key):
                store = laboratory.store()
                if not context.selected_asset_keys:  # a check alone
                    refresh_views(store)
                    yield from selected_checks(context, self.check(store, self.study, key))
                    return
                done = work(context, laboratory, store, config)
                with done.outcome.raised_after(done.what, done.total, done.kept):
                    refresh_views(store)
                    record_stocks(context, store, self.studies)
                    yield from selected_checks(context, self.check(store, self.study, key))
            yield already_logged(key)

        def plain(context: dg.AssetExecutionContext, laboratory: Laboratory) -> Iterator[Any]:
            yield from run(context, laboratory)

        def configured(context: dg.AssetExecutionContext, config: Any, laboratory: Laboratory) -> Iterator[Any]:
            yield from run(context, laboratory, config)

        configured.__annotations__["config"] = self.config
        decorated = dg.multi_asset(
            name="__".join(key.path),
            specs=[self.spec.replace_attributes(partitions_def=partitions, skippable=has_checks)],
            check_specs=self.check_specs,
            partitions_def=partitions,
            can_subset=has_checks,
            backfill_policy=dg.BackfillPolicy.single_run(),
            retry_policy=RETRY,
            pool=COMPUTE_POOL,
        )
        return decorated(plain if self.config is None else configured)
