"""Assets of memorisation: scores of training images, what they detect, the truth, influence, agreement, forgetting.

One step makes all six tables, of every study whose images were evaluated. What is computed, and what is computed again,
is said by ``dd_core.results.memorization``.
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
from dd_assets.steps.versions import TRAINED, digest_of_content, input_tags, stock_of
from dd_core.errors import DataMissingError, UserError
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.tables.memorization import MEMORIZATION_TABLES, MEMORIZATION_VERSION
from dd_core.words import counted

if TYPE_CHECKING:
    from dd_core.results.memorization import Rebuilt

NAMES: Final = tuple(table.name for table in MEMORIZATION_TABLES)
GROUP: Final = "memorization"
_KEY: Final = dg.AssetKey("memorization")
_CHECKS: Final = {
    "every_image_is_scored": "Every training image of every trial that has not diverged has a cumulative sample loss "
    "of all evaluations; where classes come one group after the other, every image of those that came so far.",
    "areas_are_defined": "There are wrong labels or duplicates to be found: AUROC and average precision are defined.",
    "errors_are_known": "There are at least two trials of every arm, without which there are no intervals, and with "
    "random subsets every image is trained on by some trials and left out by others.",
    "no_trial_diverged": "No trial has diverged; those that have are in none of these tables.",
}


class MemorizationConfig(OfStudies):
    """Narrows what is scored; an empty list means every study whose images were evaluated."""


def memorization_assets(studies: dict[str, Study]) -> list[dg.AssetsDefinition]:
    """The step, and the node of the settings that it depends on."""
    settings = _settings(studies)
    deps = [TRAINED.key, stock_of(PER_IMAGE_CURVATURE).key, settings.key]
    specs = [table_spec(name, deps, GROUP) for name in NAMES]
    checks = [dg.AssetCheckSpec(name, asset=_KEY, description=text) for name, text in _CHECKS.items()]

    @dg.multi_asset(name="memorization", specs=specs, check_specs=checks, can_subset=True)
    def memorization(
        context: dg.AssetExecutionContext, config: MemorizationConfig, laboratory: Laboratory
    ) -> Iterator[Any]:
        from dd_core.results.memorization import has_images

        with shown_as_sentence():
            store = laboratory.store()
            asked = {study.name: study for study in config.asked(studies)}
            done, missing = _rebuild(context, store, asked)
            if not done:
                _refuse_or_skip(context, store, asked)
                return
            facts = _facts(done) | warn_of_harms(context, store, asked.values(), ("image_progress", "runs", *NAMES))
            # Stale until a step does all.
            left_out = [study for name, study in studies.items() if name not in asked or name in missing]
            is_part = any(has_images(store, study) for study in left_out)
            tags = input_tags({TRAINED.key: ("partial", None)}) if is_part else None
            numbers = refreshed(store, NAMES)
        yield from table_results(context, store, numbers, facts, tags)
        with shown_as_sentence():
            yield from selected_checks(context, _checked(store, done))

    return [dg.AssetsDefinition(specs=[settings]), memorization]


def _settings(studies: Mapping[str, Study]) -> dg.AssetSpec:
    """What study files say under ``memorization``, and the version, as a node called after it; docs/staleness.md."""
    of_studies = {}
    for name, study in studies.items():
        settings = study.memorization.model_dump(mode="json", exclude_defaults=True)
        # Which evaluations are early, and which tasks end, depends on how long the study is.
        if settings or "el2n" in study.evaluation.image_values or study.data.classes is not None:
            of_studies[name] = {**settings, "epochs": study.epochs}
    content = {"version": MEMORIZATION_VERSION, "studies": of_studies}
    return dg.AssetSpec(
        dg.AssetKey([f"settings-memorization-{digest_of_content(content)}"]),
        description="What study files say under memorization, epochs, and the version of the scores.",
        group_name=GROUP,
        kinds={"yaml"},
        metadata={"content": dg.MetadataValue.json(content)},
    )


def _rebuild(
    context: dg.AssetExecutionContext, store: Store, studies: Mapping[str, Study]
) -> tuple[dict[str, "Rebuilt"], list[str]]:
    """Score what has changed of each study; what came of those that have scores, and those whose data are absent."""
    from dd_core.results.memorization import rebuild

    done, missing = {}, []
    for name, study in studies.items():
        if study.data.graphs is not None:
            context.log.info(f"{name} is left out: scores are of images; of single graphs image_progress tells")
        try:
            one = rebuild(store, study)
        except DataMissingError as error:
            if len(studies) == 1:
                raise
            context.log.warning(f"{name}: {error}")
            missing.append(name)
            continue
        if one.computed:
            context.log.info(f"{name}: {counted(len(one.computed), 'arm')} scored")
        for arm, trials in one.diverged.items():
            context.log.warning(f"{name}/{arm}: diverged and left out: trials {', '.join(map(str, trials))}")
        if one.arms:
            done[name] = one
    return done, missing


def _refuse_or_skip(context: dg.AssetExecutionContext, store: Store, studies: Mapping[str, Study]) -> None:
    """Say that there is nothing to score: as a failure to those who want just this, else in the log."""
    nothing = (
        f"no evaluation of images has been recorded under {store.root} by {', '.join(studies)}; train a study first: "
        "dagster asset materialize --select 'STUDY/checkpoints'"
    )
    if len(context.job_def.nodes) == 1:
        raise UserError(nothing)
    context.log.warning(f"memorization skipped: {nothing}")


def _facts(done: Mapping[str, "Rebuilt"]) -> dict[str, Any]:
    """Metadata."""
    reliabilities = {f"{name}/{arm}": value for name, one in done.items() for arm, value in one.reliability.items()}
    return {
        "studies": ", ".join(done),
        "arms": sum(len(one.arms) for one in done.values()),
        "arms_computed_now": sum(len(one.computed) for one in done.values()),
        "trials_diverged": sum(len(trials) for one in done.values() for trials in one.diverged.values()),
        **({"reliability_of_truth": dg.MetadataValue.json(reliabilities)} if reliabilities else {}),
    }


_UNSCORED = """
    SELECT study || '/' || arm, count(*), min(trial), min(image_id)
    FROM memorization LEFT JOIN images USING (study, variant, trial, image_id)
    WHERE list_contains($studies, study) AND (csl IS NULL OR num_evaluations = 0)
        AND coalesce(class_rank, 0) < $seen[list_position($arms, study || '/' || arm)] GROUP BY ALL ORDER BY ALL
"""
_UNDEFINED = """
    SELECT study || '/' || arm, any_value(target) FROM memorization_detection
    WHERE list_contains($studies, study) GROUP BY ALL HAVING count(auroc) = 0 ORDER BY ALL
"""
_FEW_TRIALS = """
    SELECT study || '/' || arm FROM memorization
    WHERE list_contains($studies, study) GROUP BY ALL HAVING count(DISTINCT trial) = 1 ORDER BY ALL
"""
_ONE_SIDED = """
    SELECT study || '/' || arm, count(*) FROM memorization_truth
    WHERE list_contains($studies, study) AND source = 'subsets' AND memorization IS NULL GROUP BY ALL ORDER BY ALL
"""


def _checked(store: Store, done: Mapping[str, "Rebuilt"]) -> Iterator[dg.AssetCheckResult]:
    """The checks, each over all studies."""
    from dd_core.tables.warehouse import connect

    seen = {f"{name}/{arm}": number for name, one in done.items() for arm, number in one.num_classes.items()}
    parameters = {"studies": list(done)}
    with contextlib.closing(connect(store, (*NAMES, "images"))) as connection:
        undefined, few, one_sided = (
            connection.execute(sql, parameters).fetchall() for sql in (_UNDEFINED, _FEW_TRIALS, _ONE_SIDED)
        )
        arms = {"arms": list(seen), "seen": list(seen.values())}
        unscored = connection.execute(_UNSCORED, {**parameters, **arms}).fetchall()
    found = {
        "every_image_is_scored": [
            f"{arm}: {number} images of trials have no evaluation, the first is image {image} of trial {trial}"
            for arm, number, trial, image in unscored
        ],
        "areas_are_defined": [
            f"{arm}: no image, or every one, is a {target}, so that AUROC and average precision are undefined (null)"
            for arm, target in undefined
        ],
        "errors_are_known": [
            *(f"{arm}: one trial has no spread between trials, so intervals are null" for (arm,) in few),
            *(f"{arm}: {number} images are on one side in all trials, their memorisation is null; train more trials"
              for arm, number in one_sided),
        ],
        "no_trial_diverged": [
            f"{name}/{arm}: {len(trials)} trials" for name, one in done.items() for arm, trials in one.diverged.items()
        ],
    }  # fmt: skip
    num_arms = sum(len(one.arms) for one in done.values())
    for name, problems in found.items():
        severity = dg.AssetCheckSeverity.ERROR if name == "every_image_is_scored" else dg.AssetCheckSeverity.WARN
        yield check_result(_KEY, name, problems, num_arms, severity=severity)
