"""Assets ``loss_slopes`` and ``loss_slope_fits``: the loss curve of every run, and whether the runs are fit for it.

One step makes both, of every study that has losses of batches, trained here or imported. What is computed, and what is
computed again, is said by ``dd_core.results.loss_slopes``; what is checked, by ``dd_core.checks.campaign``.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from dd_assets.assets.checks import check_result, selected_checks
from dd_assets.assets.tables import refreshed, table_results, table_spec
from dd_assets.compute.local import this_machine
from dd_assets.laboratory import Laboratory
from dd_assets.steps.harms import warn_of_harms
from dd_assets.steps.narrowing import OfStudies
from dd_assets.steps.user_errors import shown_as_sentence
from dd_assets.steps.versions import TRAINED, digest_of_content, input_tags
from dd_core.errors import UserError
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.loss_slopes import LOSS_SLOPE_VERSION
from dd_core.words import counted

if TYPE_CHECKING:
    from dd_core.checks.campaign import Verdict
    from dd_core.results.loss_slopes import Rebuilt

LOSS_SLOPE_TABLES: Final = ("loss_slopes", "loss_slope_fits")
GROUP: Final = "loss_slopes"
_SOURCES: Final = ("training_batches", "training_evals", "training_monitors", "runs")
_KEY: Final = dg.AssetKey("loss_slopes")
_CHECKS: Final = {
    "runs_complete": "Every run that the study asks for is there, came to its end or diverged, and has every metric at "
    "its frequency.",
    "values_possible": "No loss of a batch is negative or, unless the run diverged, no number; no accuracy is outside "
    "0 to 1. What is out of the campaign's bounds is in the metadata: losses of 0 or of 10 nats, knees outside 1 to 20 "
    "epochs.",
    "runs_sound": "At most 10 % of the runs failed (diverged, failed, interrupted, still running), none took an hour "
    "for five epochs, and checkpoints of an arm are equally large.",
    "fit_to_be_analysed": "GO: all runs are there and complete, with all metrics, no value is impossible, and R^2 is "
    "above 0.95 in more than half of the fitted runs. `python -m dd_assets.check_campaign STUDY` prints it all.",
}


class LossSlopesConfig(OfStudies):
    """Narrows what is analysed; an empty list means every study with losses of batches."""


def loss_slope_assets(studies: dict[str, Study]) -> list[dg.AssetsDefinition]:
    """The step, and the node of the settings that it depends on."""
    settings = _settings(studies)
    specs = [table_spec(name, [TRAINED.key, settings.key], GROUP) for name in LOSS_SLOPE_TABLES]
    checks = [dg.AssetCheckSpec(name, asset=_KEY, description=text) for name, text in _CHECKS.items()]

    @dg.multi_asset(name="loss_slopes", specs=specs, check_specs=checks, can_subset=True)
    def loss_slopes(
        context: dg.AssetExecutionContext, config: LossSlopesConfig, laboratory: Laboratory
    ) -> Iterator[Any]:
        with shown_as_sentence():
            store = laboratory.store()
            asked = {study.name: study for study in config.asked(studies)}
            done = _rebuild(context, store, asked)
            rows = sum(one.rows for one in done.values())
            if not rows:
                _refuse_or_skip(context, store, asked, done)
                return
            facts = _facts(done) | warn_of_harms(context, store, asked.values(), (*_SOURCES, *LOSS_SLOPE_TABLES))
            others = [study for name, study in studies.items() if name not in asked]
            # Stale until a step does all.
            is_part = any(_has_batches(store, study) for study in others)
            tags = input_tags({TRAINED.key: ("partial", None)}) if is_part else None
            numbers = refreshed(store, LOSS_SLOPE_TABLES)
        yield from table_results(context, store, numbers, facts, tags)
        with shown_as_sentence():
            verdicts = _verdicts(store, [asked[name] for name, one in done.items() if one.rows])
            yield from selected_checks(context, _checked(verdicts))

    return [dg.AssetsDefinition(specs=[settings]), loss_slopes]


def _settings(studies: Mapping[str, Study]) -> dg.AssetSpec:
    """What study files say under ``loss_slopes``, and the version, as a node called after it; see docs/staleness.md."""
    of_studies = {
        name: settings
        for name, study in studies.items()
        if (settings := study.loss_slopes.model_dump(mode="json", exclude_defaults=True))
    }
    content = {"version": LOSS_SLOPE_VERSION, "studies": of_studies}
    return dg.AssetSpec(
        dg.AssetKey([f"settings-loss_slopes-{digest_of_content(content)}"]),
        description="What study files say under loss_slopes, and the version of the analysis.",
        group_name=GROUP,
        kinds={"yaml"},
        metadata={"content": dg.MetadataValue.json(content)},
    )


def _rebuild(context: dg.AssetExecutionContext, store: Store, studies: Mapping[str, Study]) -> dict[str, "Rebuilt"]:
    """Analyse what has changed of each study; what came of those that have runs."""
    from dd_core.results.loss_slopes import rebuild

    machine, done = this_machine(), {}
    for name, study in studies.items():
        one = rebuild(store, study, machine.num_workers or machine.num_cores)
        for sentence in one.left_out:
            context.log.warning(sentence)
        for arm, trace in one.failed.items():
            context.log.error(f"{name}/{arm} could not be analysed:\n{trace}")
        if one.computed:
            context.log.info(
                f"{name}: {counted(len(one.computed), 'arm')} analysed; runs by outcome: {_counts(one.outcomes)}"
            )
        if one.rows or one.failed or one.left_out:
            done[name] = one
    return done


def _refuse_or_skip(
    context: dg.AssetExecutionContext, store: Store, studies: Iterable[str], done: Mapping[str, "Rebuilt"]
) -> None:
    """Say that there is nothing to analyse: as a failure to those who want just this, else in the log."""
    reasons = [sentence for one in done.values() for sentence in one.left_out]
    reasons += [
        f"{name}/{arm}: {trace.strip().splitlines()[-1]}"
        for name, one in done.items()
        for arm, trace in one.failed.items()
    ]
    nothing = "; ".join(reasons) or (
        f"no loss of a batch has been recorded under {store.root} by {', '.join(studies)}; train a study, or import "
        "metrics with a loss for each step"
    )
    if len(context.job_def.nodes) == 1:
        raise UserError(nothing)
    context.log.warning(f"loss_slopes skipped: {nothing}")


def _facts(done: Mapping[str, "Rebuilt"]) -> dict[str, Any]:
    """Metadata."""
    outcomes = sum((one.outcomes for one in done.values()), Counter())
    not_analysed = [f"{name}/{arm}" for name, one in done.items() for arm in one.failed]
    return {
        "studies": ", ".join(name for name, one in done.items() if one.rows),
        "runs": outcomes.total(),
        "runs_by_outcome": _counts(outcomes),
        "arms_computed_now": sum(len(one.computed) for one in done.values()),
        **({"not_analysed": ", ".join(not_analysed)} if not_analysed else {}),
    }


def _counts(outcomes: Counter[str]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())


def _has_batches(store: Store, study: Study) -> bool:
    return store.table_folder("training_batches", study.name).is_dir()


def _verdicts(store: Store, studies: Iterable[Study]) -> list["Verdict"]:
    from dd_core.checks.campaign import CAMPAIGN_TABLES, examine
    from dd_core.tables.warehouse import connect

    with contextlib.closing(connect(store, CAMPAIGN_TABLES)) as connection:
        return [examine(store, study, connection) for study in studies]


def _checked(verdicts: list["Verdict"]) -> Iterator[dg.AssetCheckResult]:
    """The checks, each over all studies."""
    found: dict[str, list[str]] = {name: [] for name in _CHECKS}
    for verdict in verdicts:
        of_study = {
            "runs_complete": [*verdict.missing, *verdict.incomplete, *verdict.gaps],
            "values_possible": verdict.impossible,
            "runs_sound": verdict.alerts,
            "fit_to_be_analysed": verdict.reasons,
        }
        for name, problems in of_study.items():
            found[name] += [f"{verdict.study}: {problem}" for problem in problems]
    bounds = [f"{verdict.study}: {problem}" for verdict in verdicts for problem in verdict.out_of_range]
    more = {"values_possible": {"out_of_range": dg.MetadataValue.md("\n".join(f"- {text}" for text in bounds[:50]))}}
    num_runs = sum(verdict.num_expected for verdict in verdicts)
    for name, problems in found.items():
        facts = more.get(name, {}) if bounds else {}
        yield check_result(_KEY, name, problems, num_runs, severity=dg.AssetCheckSeverity.WARN, **facts)
