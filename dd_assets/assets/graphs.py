"""Assets of graph studies: every evaluation judged, results of trials, and claims beside measurements.

One step makes all three tables, of every study of graphs that was evaluated. What is computed, and what is computed
again, is said by ``dd_core.results.graphs``.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from dd_assets.assets.checks import check_result, selected_checks
from dd_assets.assets.tables import refreshed, table_results, table_spec
from dd_assets.laboratory import Laboratory
from dd_assets.steps.harms import warn_of_harms
from dd_assets.steps.narrowing import OfStudies
from dd_assets.steps.user_errors import shown_as_sentence
from dd_assets.steps.versions import TRAINED, digest_of_content, input_tags
from dd_core.errors import UserError
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.graphs import GRAPH_TABLES, GRAPHS_VERSION
from dd_core.words import counted

if TYPE_CHECKING:
    from dd_core.results.graphs import Rebuilt

NAMES: Final = tuple(table.name for table in GRAPH_TABLES)
GROUP: Final = "nsm"
_KEY: Final = dg.AssetKey("nsm_results")
# Probability that the check of leaks fails anywhere where nothing leaks.
_BY_CHANCE: Final = 0.01
_CHECKS: Final = {
    "collapse": "No network has collapsed to one label at its last epoch, as its test graphs show, or without such the "
    "validation graphs.",
    "above_ceiling": "No network is right more often on test graphs than can be expected of anybody who has not seen "
    "their labels, at its best and at its last epoch: what is, has a leak. By chance this fails at most "
    "once in a hundred times.",
    "no_trial_diverged": "No trial has diverged; rows of those that have end before that.",
}


class GraphsConfig(OfStudies):
    """Narrows what is judged; an empty list means every study of graphs that was evaluated."""


def graph_assets(studies: dict[str, Study]) -> list[dg.AssetsDefinition]:
    """The step, and the node of the settings that it depends on."""
    settings = _settings(studies)
    specs = [table_spec(name, [TRAINED.key, settings.key], GROUP) for name in NAMES]
    checks = [dg.AssetCheckSpec(name, asset=_KEY, description=text) for name, text in _CHECKS.items()]

    @dg.multi_asset(name="nsm_results", specs=specs, check_specs=checks, can_subset=True)
    def nsm_results(context: dg.AssetExecutionContext, config: GraphsConfig, laboratory: Laboratory) -> Iterator[Any]:
        with shown_as_sentence():
            store = laboratory.store()
            asked = {study.name: study for study in config.asked(studies)}
            done = _rebuild(context, store, asked)
            if not done:
                _refuse_or_skip(context, store, asked)
                return
            facts = _facts(done) | warn_of_harms(context, store, asked.values(), ("image_progress", "runs", *NAMES))
            # Stale until a step does all.
            is_part = any(_has_graphs(store, study) for name, study in studies.items() if name not in asked)
            tags = input_tags({TRAINED.key: ("partial", None)}) if is_part else None
            numbers = refreshed(store, NAMES)
        yield from table_results(context, store, numbers, facts, tags)
        with shown_as_sentence():
            yield from selected_checks(context, _checked(store, done))

    return [dg.AssetsDefinition(specs=[settings]), nsm_results]


def _settings(studies: Mapping[str, Study]) -> dg.AssetSpec:
    """How long the studies of graphs are, and the version, as a node called after it; see docs/staleness.md."""
    epochs = {name: study.epochs for name, study in studies.items() if study.data.graphs is not None}
    content = {"version": GRAPHS_VERSION, "epochs": epochs}
    return dg.AssetSpec(
        dg.AssetKey([f"settings-nsm_results-{digest_of_content(content)}"]),
        description="How many epochs the studies of graphs have, and the version of their results.",
        group_name=GROUP,
        kinds={"yaml"},
        metadata={"content": dg.MetadataValue.json(content)},
    )


def _rebuild(context: dg.AssetExecutionContext, store: Store, studies: Mapping[str, Study]) -> dict[str, "Rebuilt"]:
    """Judge what has changed of each study; what came of those that have rows."""
    from dd_core.results.graphs import rebuild

    done = {}
    for name, study in studies.items():
        one = rebuild(store, study)
        if one.computed:
            context.log.info(f"{name}: {counted(len(one.computed), 'arm')} judged")
        for arm, trials in one.diverged.items():
            context.log.warning(f"{name}/{arm}: diverged: trials {', '.join(map(str, trials))}")
        if one.arms:
            done[name] = one
    return done


def _refuse_or_skip(context: dg.AssetExecutionContext, store: Store, studies: Mapping[str, Study]) -> None:
    """Say that there is nothing to judge: as a failure to those who want just this, else in the log."""
    nothing = (
        f"no evaluation of graphs has been recorded under {store.root} by {', '.join(studies)}; train a study of "
        "graphs first: dagster asset materialize --select 'STUDY/checkpoints'"
    )
    if len(context.job_def.nodes) == 1:
        raise UserError(nothing)
    context.log.warning(f"nsm_results skipped: {nothing}")


def _facts(done: Mapping[str, "Rebuilt"]) -> dict[str, Any]:
    """Metadata."""
    return {
        "studies": ", ".join(done),
        "arms": sum(len(one.arms) for one in done.values()),
        "arms_computed_now": sum(len(one.computed) for one in done.values()),
        "trials_diverged": sum(len(trials) for one in done.values() for trials in one.diverged.values()),
    }


def _has_graphs(store: Store, study: Study) -> bool:
    return study.data.graphs is not None and store.table_folder("image_progress", study.name).is_dir()


_LAST = """
    SELECT study || '/' || arm AS arm, trial, epoch, collapse, largest_share
    FROM nsm_results WHERE result = 'last' AND list_contains($studies, study) AND split IN ('test', 'validation')
    QUALIFY row_number() OVER (PARTITION BY study, arm, trial ORDER BY split) = 1 ORDER BY study, arm, trial
"""
# The best epoch may be the last.
_TESTED = """
    SELECT DISTINCT study || '/' || arm AS arm, trial, epoch, accuracy, bayes_ceiling, p_above_ceiling
    FROM nsm_results WHERE list_contains($studies, study) AND split = 'test' AND p_above_ceiling IS NOT NULL
    ORDER BY arm, trial, epoch
"""


def _checked(store: Store, done: Mapping[str, "Rebuilt"]) -> Iterator[dg.AssetCheckResult]:
    """The checks, each over all studies."""
    from dd_core.tables.warehouse import connect

    with contextlib.closing(connect(store, NAMES)) as connection:
        last, tested = (connection.execute(sql, {"studies": list(done)}).fetchall() for sql in (_LAST, _TESTED))
    collapsed = [
        f"{arm} trial {trial} at epoch {epoch}: {grade} collapse, one label is predicted for {100 * share:.1f} %"
        for arm, trial, epoch, grade, share in last
        if grade != "none"
    ]
    leaks = [
        f"{arm} trial {trial} at epoch {epoch}: {100 * accuracy:.1f} % of the test graphs are right, where "
        f"{100 * ceiling:.1f} % can be expected (p = {p:.1g})"
        for arm, trial, epoch, accuracy, ceiling, p in tested
        if p < _BY_CHANCE / len(tested)
    ]
    diverged = [
        f"{name}/{arm}: trials {', '.join(map(str, trials))}"
        for name, one in done.items()
        for arm, trials in one.diverged.items()
    ]
    warn, error = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR
    yield check_result(_KEY, "collapse", collapsed, len(last), severity=warn)
    leak = check_result(_KEY, "above_ceiling", leaks, len(tested), severity=error)
    yield leak if tested else leak._replace(description="there are no test graphs, so that nothing was tested")
    num_arms = sum(len(one.arms) for one in done.values())
    yield check_result(_KEY, "no_trial_diverged", diverged, num_arms, severity=warn)
