"""Asset ``resource_probe``: how fast each arm trains on this machine with one, two, ... workers, and what is best."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from dd_assets.assets.tables import table_spec
from dd_assets.compute import COMPUTE_POOL
from dd_assets.laboratory import Laboratory
from dd_assets.steps.follow import Outcome, follow
from dd_assets.steps.narrowing import OfStudies, refuse_unknown
from dd_assets.steps.partitions import checkpoints_key
from dd_assets.steps.user_errors import shown_as_sentence
from dd_core.data.datasets import require
from dd_core.errors import DataMissingError, UserError
from dd_core.events import Event, Finished, Measured
from dd_core.forecast.speed import speed_key
from dd_core.forecast.work import training_cost
from dd_core.jobs.job import probe_jobs
from dd_core.jobs.probe.run import default_counts
from dd_core.machine.devices import Machine
from dd_core.study.study import Arm, Study
from dd_core.words import counted


class ProbeConfig(OfStudies):
    """Narrows what is measured; empty lists mean everything."""

    studies: list[str] = Field(default=[], description="names of studies; default all whose data set is there")
    variants: list[str] = Field(default=[], description="names of variants; default one of those equally fast")
    widths: list[int] = Field(default=[], description="values of k")
    num_workers: list[int] = Field(
        default=[], description="numbers of workers; default 1 to 5, on a CPU 1 to 4 and one for each core"
    )
    seconds: float = Field(default=2.0, description="about how long to time each arm with each number of workers")

    def check(self, machine: Machine) -> None:
        """Pass only possible numbers of workers and seconds.

        Raises:
            UserError: they are not.
        """
        if not 0 < self.seconds <= 600:
            raise UserError(f"run config: seconds must be above 0 and at most 600, not {self.seconds:g}")
        most = max(16, machine.num_cores)
        wrong = [count for count in self.num_workers if not 1 <= count <= most]
        if wrong:
            raise UserError(f"run config: num_workers must be from 1 to {most} each, not {', '.join(map(str, wrong))}")

    def arms(self, studies: dict[str, Study]) -> tuple[list[tuple[Study, Arm]], list[str]]:
        """The arms to measure, the cheapest first, and why studies were left out.

        One of those that take equally long, as the arms of a grid do, unless variants are named.

        Raises:
            UserError: an unknown name, or nothing is left to measure.
        """
        asked = self.asked(studies)
        refuse_unknown("the variant", self.variants, {name for study in asked for name in study.variants})
        refuse_unknown("the width", self.widths, {k for study in asked for k in study.all_widths})
        trained, without_data = [], []
        for study in asked:
            try:
                require(study.data.dataset)
                trained.append(study)
            except DataMissingError as error:
                without_data.append(f"{study.name}: {error}")
        if not trained:
            raise DataMissingError("; ".join(without_data))
        return self.arms_of(trained), without_data

    def arms_of(self, asked: list[Study]) -> list[tuple[Study, Arm]]:
        """The arms to measure of some studies, the cheapest first.

        Raises:
            UserError: nothing is left to measure.
        """
        chosen = [
            (study, arm)
            for study in asked
            for arm in study.arms.values()
            if (not self.variants or arm.variant in self.variants) and (not self.widths or arm.k in self.widths)
        ]
        if not chosen:
            raise UserError(
                f"no arm of {', '.join(study.name for study in asked)} is of the variants and widths asked for"
            )
        if not self.variants:  # of the arms of a grid that are equally fast the first speaks for all
            alike = {(study.name, speed_key(study.recipe(arm))): (study, arm) for study, arm in reversed(chosen)}
            chosen = list(alike.values())
        return sorted(chosen, key=lambda pair: training_cost(pair[0], pair[1], 0, 1))


def resource_probe_asset(studies: dict[str, Study]) -> dg.AssetsDefinition:
    """The asset for all studies."""

    @dg.multi_asset(name="resource_probe", specs=[table_spec("resource_probe", [])], pool=COMPUTE_POOL)
    def resource_probe(
        context: dg.AssetExecutionContext, config: ProbeConfig, laboratory: Laboratory
    ) -> Iterator[dg.MaterializeResult[Any]]:
        from dd_core.tables.warehouse import refresh

        with shown_as_sentence():
            _refuse_a_selection_of_everything(context, studies)
            store, machine = laboratory.store(), laboratory.machine()
            config.check(machine)
            arms, without_data = config.arms(studies)
            for reason in without_data:
                context.log.info(f"left out: {reason}")
            counts = sorted(set(config.num_workers)) or default_counts(machine)
            context.log.info(
                f"probing {counted(len(arms), 'arm')} on {machine.describe()}, workers side by side: "
                f"{', '.join(map(str, counts))}, about {config.seconds:g} s each"
            )
            ended: list[Finished] = []

            def on_event(event: Event) -> None:
                if isinstance(event, Measured):
                    context.log.info(event.text)
                elif isinstance(event, Finished):
                    ended.append(event)

            jobs, outcome = probe_jobs(store.root, arms, counts, config.seconds), Outcome()
            for job in jobs:
                outcome.add(follow(context, laboratory, job, on_event))
            outcome.raise_if_failed("probes", len(jobs), "")
            refresh(store)
        yield dg.MaterializeResult(
            asset_key="resource_probe",
            metadata={
                "dagster/row_count": sum(end.rows or 0 for end in ended),
                "dagster/uri": str(store.table_folder("resource_probe")),
                "machine": ", ".join(dict.fromkeys(end.machine or "" for end in ended)),
                "recommended_workers": {arm: best for end in ended for arm, best in (end.recommended or {}).items()},
            },
        )

    return resource_probe


def _refuse_a_selection_of_everything(context: dg.AssetExecutionContext, studies: dict[str, Study]) -> None:
    """Measure nothing where a group is misspelt.

    Raises:
        UserError: everything is selected, which Dagster also takes a selection of nothing for, or checkpoints without
            a partition.
    """
    selected = set(context.run.asset_selection or ())
    has_partition = {"dagster/partition", "dagster/asset_partition_range_start"} & set(context.run.tags)
    if not has_partition and (not selected or selected & {checkpoints_key(name) for name in studies}):
        raise UserError("resource_probe was selected with everything else; name it alone: --select resource_probe")
