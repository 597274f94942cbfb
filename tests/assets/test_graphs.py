"""The assets of graph studies: three tables of one step, their checks, and what is refused before training."""

from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from graph_evaluations import graph_study, has_seen_labels, one_label, undecided, write_attempt, write_evaluations

from dd_assets import run_study
from dd_assets.assets.graphs import NAMES, graph_assets
from dd_assets.assets.memorization import memorization_assets
from dd_assets.assets.training import checkpoints_asset
from dd_assets.laboratory import Laboratory
from dd_assets.steps.follow import Outcome
from dd_core.results.memorization import has_images
from dd_core.store.store import Store
from dd_core.study.study import Study


def materialize(
    store: Store, assets: list[dg.AssetsDefinition], *only: str, **options: Any
) -> dg.ExecuteInProcessResult:
    resources = {"laboratory": Laboratory(root=str(store.root))}
    return dg.materialize(assets, selection=list(only), resources=resources, raise_on_error=False, **options)


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


def test_three_tables_are_made_in_one_step_and_checked(store: Store, tiny_study: Study) -> None:
    study = graph_study("planning", "causal", "knowledge_graph")
    arms = list(study.arms.values())
    for arm, says in zip(arms, (has_seen_labels, one_label, undecided), strict=True):
        write_evaluations(store, study, arm, [0, 10], says)
    write_attempt(store, study, arms[2], status=["finished", "diverged"], end_epoch=[None, 10])
    studies = {"graphs": study, "tiny": tiny_study}
    result = materialize(store, graph_assets(studies), *NAMES)
    assert result.success
    events = {e.asset_key.to_user_string(): e for e in result.asset_materializations_for_node("nsm_results")}
    told = {name: {k: v.value for k, v in event.metadata.items()} for name, event in events.items()}
    assert {name: facts["dagster/row_count"] for name, facts in told.items()} == {
        "graph_progress": 3 * 2 * 2 * 3, "nsm_results": 3 * 2 * 2 * 3, "nsm_claims": 12 + 13 + 13,
    }  # fmt: skip
    assert told["nsm_claims"]["arms_computed_now"] == 3 and told["nsm_claims"]["trials_diverged"] == 1
    assert not any("partial" in str(event.tags) for event in events.values())
    found = checks(result)
    collapsed, leak, diverged = (found[name] for name in ("collapse", "above_ceiling", "no_trial_diverged"))
    assert not collapsed.passed and collapsed.severity == dg.AssetCheckSeverity.WARN
    assert "graphs/causal.k002 trial 0 at epoch 10: full collapse, one label is predicted for 100.0 %" in str(
        collapsed.description
    )
    assert "planning" not in str(collapsed.metadata) and "knowledge" not in str(collapsed.metadata)
    assert not leak.passed and leak.severity == dg.AssetCheckSeverity.ERROR
    assert "graphs/planning.k002 trial 1 at epoch 10: 100.0 % of the test graphs are right, where 50.0 %" in str(
        leak.description
    )
    assert leak.metadata["problems"].value == 2 and leak.metadata["checked"].value == 3 * 2, (
        "best and last are one epoch"
    )
    assert diverged.description == "graphs/knowledge-graph.k002: trials 1"
    # Narrowed to another study there is nothing to do, and what is there is not all.
    untested = {"dataset": "nsm", "num_train": 100, "num_validation": 40}
    untested |= {"graphs": {"labels": "as_published", "num_test": 0, "features": "fresh", "num_features": 4}}
    other = graph_study("planning", name="other", trials=1, data=untested)
    write_evaluations(store, other, other.arms["planning.k002"], [10], undecided)
    config = {"ops": {"nsm_results": {"config": {"studies": ["other"]}}}}
    again = materialize(store, graph_assets({**studies, "other": other}), "nsm_results", run_config=config)
    (event,) = again.asset_materializations_for_node("nsm_results")
    assert event.metadata["arms_computed_now"].value == 1 and "partial" in str(event.tags)
    assert checks(again)["above_ceiling"].passed and checks(again)["collapse"].passed
    assert checks(again)["above_ceiling"].description == "there are no test graphs, so that nothing was tested"


def test_scores_of_images_leave_graphs_out_and_say_so(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    study = graph_study("planning")
    write_evaluations(store, study, study.arms["planning.k002"], [0, 10], undecided)
    result = materialize(store, memorization_assets({"graphs": study}), "memorization")
    (failure,) = result.get_step_failure_events()
    assert "no evaluation of images has been recorded" in str(failure.event_specific_data)
    assert "graphs is left out: scores are of images; of single graphs image_progress tells" in capfd.readouterr().err
    assert not store.table_folder("memorization", "graphs").exists()
    assert not has_images(store, study), "whoever scores the others has not left a part out"


def test_where_no_graph_was_evaluated_a_sentence_says_so(store: Store, tiny_study: Study) -> None:
    for asked, sentence in (
        ([], "no evaluation of graphs has been recorded under"),
        (["tinny"], "there is no study 'tinny'; did you mean 'tiny'?"),
    ):
        config = {"ops": {"nsm_results": {"config": {"studies": asked}}}}
        result = materialize(store, graph_assets({"tiny": tiny_study}), "nsm_results", run_config=config)
        assert not result.success
        (failure,) = result.get_step_failure_events()
        assert sentence in str(failure.event_specific_data)


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_what_is_outside_the_limits_is_refused_before_anything_is_trained(store: Store) -> None:
    fast = {"optimizer": {"name": "adam", "learning_rate": 2e-3}}
    study = graph_study("planning", "causal", variant=fast)
    asset = checkpoints_asset(study, {"graphs": study})
    assert "preflight" in {check.name for check in asset.check_specs}
    result = materialize(store, [asset], "graphs/checkpoints", partition_key="planning.k002|0000")
    assert not result.success
    (failure,) = result.get_step_failure_events()
    assert "variants.planning.optimizer.learning_rate: 0.002 is above 0.001, beyond which training is unstable" in str(
        failure.event_specific_data
    )
    assert not list(store.root.glob("checkpoints/*")) and not list(store.root.glob("tables/*"))


def test_run_study_makes_of_graphs_what_there_is_of_graphs(tiny_study: Study) -> None:
    assert {*NAMES} <= run_study._left_out(tiny_study)
    left_out = run_study._left_out(graph_study())
    assert left_out.isdisjoint({*NAMES, "image_progress"})
    assert {"curvature", "memorization", "hessian_spectra", "loss_slopes"} <= left_out


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning", "ignore::DeprecationWarning")
def test_a_domain_that_is_refused_does_not_keep_the_others_from_training(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"architecture": "nsm", "batch_size": 32, "optimizer": {"name": "adam", "learning_rate": 1e-4}}
    weights = {"planning": 0.01, "causal": 0.2}
    variants = {name: {**recipe, "nsm": {"domain": name, "cycle_weight": own}} for name, own in weights.items()}
    study = graph_study(variants=variants, trials=1, epochs=1, checkpoints=(0, 1))
    trained = []

    def follow(context: Any, laboratory: Any, job: Any, *listeners: Any) -> Outcome:
        trained.extend(task.name for task in job.tasks)
        return Outcome(failed={"graphs/planning.k002": "interrupted"})

    def forecast(store: Any, study: Any, job: Any, machine: Any) -> Any:
        nothing: Any = lambda *_: ""  # noqa: E731
        return SimpleNamespace(job=job, order=nothing, describe=nothing, compare=nothing)

    monkeypatch.setattr("dd_assets.assets.training.follow", follow)
    monkeypatch.setattr("dd_assets.assets.training.forecast", forecast)
    ends = dict(zip(("start", "end"), ("planning.k002|0000", "causal.k002|0001"), strict=True))
    tags = {f"dagster/asset_partition_range_{end}": key for end, key in ends.items()}
    result = materialize(store, [checkpoints_asset(study, {"graphs": study})], "graphs/checkpoints", tags=tags)
    assert trained == ["graphs/planning.k002"] and not result.success
    (failure,) = result.get_step_failure_events()
    assert "2 of 2 arms did not finish" in str(failure) and "graphs/planning.k002: interrupted" in str(failure)
    assert "graphs/causal.k002: graphs: variants.causal.nsm.cycle_weight: 0.2 is above 0.1" in str(failure)
