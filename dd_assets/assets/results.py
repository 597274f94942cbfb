"""The assets of every kind of result: one per study, partitioned like its checkpoints, and the driver of all studies.

What one kind has beside this (settings in the run config, checks, a summary) stands in a module of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from dd_assets.assets.checks import record_evaluations
from dd_assets.assets.study_asset import Done, StudyAsset
from dd_assets.assets.tables import table_spec
from dd_assets.compute import COMPUTE_POOL
from dd_assets.laboratory import Laboratory
from dd_assets.steps.checkpoint_results import CheckpointResult, Work, refresh_views, select
from dd_assets.steps.harms import warn_of_harms
from dd_assets.steps.narrowing import Narrowing
from dd_assets.steps.recording import RETRY
from dd_assets.steps.user_errors import shown_as_sentence
from dd_assets.steps.versions import input_tags, record_stocks, stock_of, table_version
from dd_core.errors import UserError
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.kinds import Kind
from dd_core.words import counted

Summarise = Callable[[dg.AssetExecutionContext, Store, Mapping[str, Study], set[str]], tuple[int, bool]]


@dataclass(frozen=True)
class ResultAssets:
    """The assets of one kind.

    Attributes:
        kind: what is computed.
        config, driver_config: run config, which may change a study by its method ``applied_to``.
        check_specs: the checks of a study's asset.
        check: evaluates them.
        summarise: rebuilds the summary of every study; returns its rows, and whether that was possible for all.
    """

    kind: Kind
    config: type[dg.Config] | None = None
    driver_config: type[Narrowing] = Narrowing
    check_specs: Callable[[Study, dg.AssetKey], list[dg.AssetCheckSpec]] = lambda study, key: []
    check: Callable[[Store, Study, dg.AssetKey], Iterable[dg.AssetCheckResult]] = lambda store, study, key: ()
    summarise: Summarise | None = None

    def of_study(self, study: Study, studies: Mapping[str, Study]) -> dg.AssetsDefinition:
        """The asset of one of the studies."""
        result = CheckpointResult(self.kind)
        spec = dg.AssetSpec(
            result.key(study.name),
            deps=result.deps(study),
            description=self.kind.description,
            group_name=study.name,
            kinds={"pytorch", "parquet"},
            code_version=self.kind.version,
        )

        def work(context: dg.AssetExecutionContext, laboratory: Laboratory, store: Store, config: Any) -> Done:
            asked = _applied(config, study)
            self.kind.refuse(asked)
            outcome, total, recorded = result.compute_partitions(context, laboratory, store, study, asked)
            return Done(outcome, "checkpoints", total, f"{recorded} of {total} are recorded")

        checks = self.check_specs(study, spec.key)
        return StudyAsset(study, studies, spec, checks, self.check, self.config).computed_by(work)

    def driver(self, studies: dict[str, Study]) -> dg.AssetsDefinition:
        """The asset of all studies: computes what is missing, reports each partition, then rebuilds the summary."""
        kind, stock = self.kind, stock_of(self.kind)

        def drive(context: dg.AssetExecutionContext, config: Any, laboratory: Laboratory) -> Iterator[Any]:
            with shown_as_sentence():
                store = laboratory.store()
                left_out: list[str] = []
                asked = self._able(store, studies, config, left_out.append)
                chosen = self._chosen(store, asked, config, left_out.append)
                for sentence in left_out:
                    context.log.warning(sentence)
                facts, tags, version = self._driven(context, laboratory, store, studies, chosen, bool(left_out))
            yield dg.MaterializeResult(
                asset_key=kind.driver, metadata=facts, data_version=dg.DataVersion(version), tags=tags
            )

        drive.__annotations__["config"] = self.driver_config
        specs = [table_spec(kind.driver, [stock.key])]
        return dg.multi_asset(name=kind.driver, specs=specs, retry_policy=RETRY, pool=COMPUTE_POOL)(drive)

    def _able(
        self, store: Store, studies: dict[str, Study], config: Narrowing, warn: Callable[[str], None]
    ) -> dict[str, Study]:
        """The studies, with what the run config changes of them, of which the kind is computed.

        Args:
            store: where checkpoints are.
            studies: all.
            config: may change them, or name some.
            warn: told which of those that are trained are left out.

        Raises:
            UserError: it is of none, or not of one that the run config names.
        """
        able, refused = dict[str, Study](), list[UserError]()
        for name, study in studies.items():
            asked = _applied(config, study)
            try:
                self.kind.refuse(asked)
                able[name] = asked
            except UserError as error:
                if name in config.studies:
                    raise
                refused.append(error)
                if store.may_have(name):
                    warn(f"left out: {error}")
        if refused and not able:
            raise refused[0]
        return able

    def _chosen(self, store: Store, studies: dict[str, Study], config: Narrowing, warn: Callable[[str], None]) -> Work:
        """The trained checkpoints that the run config asks for, by default at the epochs that the studies name."""
        trained = select(store, studies, config, warn)
        epochs_of = self.kind.epochs
        if epochs_of is None or config.epochs:
            return trained
        chosen = [(study, checkpoint) for study, checkpoint in trained if checkpoint.epoch in epochs_of(study)]
        if not chosen:
            raise UserError(
                f"of what is asked for nothing is trained up to an epoch that the study names under {self.kind.name}"
                ".epochs (by default the last checkpoint); name others in the run config: epochs"
            )
        return chosen

    def _driven(
        self,
        context: dg.AssetExecutionContext,
        laboratory: Laboratory,
        store: Store,
        studies: dict[str, Study],
        chosen: Work,
        is_part: bool,
    ) -> tuple[dict[str, Any], dict[str, str], str]:
        """Compute, record and summarise; returns metadata, tags and version of the driver's materialisation."""
        kind, result, stock = self.kind, CheckpointResult(self.kind), stock_of(self.kind)
        todo = result.missing(store, chosen)
        context.log.info(
            f"{counted(len(chosen), 'trained checkpoint')}, {len(todo)} without a current result: {kind.what}"
        )
        outcome, recorded = result.compute(context, laboratory, store, chosen, todo, studies)
        names = {study.name for study, _ in chosen}
        with outcome.raised_after("checkpoints", len(todo), f"{recorded} of {len(todo)} are recorded"):
            result.record_what_is_there(context, store, [(studies[s.name], c) for s, c in chosen])
            inputs = version = record_stocks(context, store, studies)[stock.key]
            rows = sum(study.trials for study, _ in chosen)
            if self.summarise is not None:
                rows, is_whole = self.summarise(context, store, studies, names)
                version = table_version(store, kind.driver)
                # Of what this very step has computed, which Dagster could not know when the step began.
                inputs = inputs if is_whole and not is_part else "partial"
            refresh_views(store)
            harms = warn_of_harms(context, store, studies.values(), {kind.driver, kind.table.name})
            for name in names:
                record_evaluations(context, self.check(store, studies[name], result.key(name)))
        context.log.info(
            f"done: {kind.what} of {counted(recorded, 'checkpoint')} computed, {len(chosen) - len(todo)} were there; "
            f"{counted(rows, 'row')} in {store.table_folder(kind.driver)}, in SQL the table {kind.driver}"
        )
        facts = {
            "dagster/row_count": rows,
            "dagster/uri": str(store.table_folder(kind.driver)),
            "checkpoints": len(chosen),
            "computed_now": len(todo),
            **harms,
        }
        return facts, input_tags({stock.key: (inputs, None)}), version


def _applied(config: Any, study: Study) -> Study:
    """The study with what the run config changes of it."""
    changed: Study = config.applied_to(study) if hasattr(config, "applied_to") else study
    return changed
