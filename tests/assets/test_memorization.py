"""The assets of memorisation: six tables of one step, their checks, and what is said where there is nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from dd_assets import import_memorization
from dd_assets.assets.memorization import NAMES, memorization_assets
from dd_assets.laboratory import Laboratory
from dd_core.data.trials import trial_data
from dd_core.store.store import Store
from dd_core.study.files import Catalogue
from dd_core.study.study import Study
from dd_core.tables.files import to_arrow, write_parquet


def materialize(
    store: Store, studies: dict[str, Study], *only: str, config: dict[str, Any] | None = None
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        memorization_assets(studies),
        selection=list(only or NAMES),
        resources={"laboratory": Laboratory(root=str(store.root))},
        raise_on_error=False,
        run_config=config,
    )


def test_six_tables_are_made_in_one_step_and_checked(trained: Store, tiny_study: Study) -> None:
    result = materialize(trained, {"tiny": tiny_study})
    assert result.success
    events = result.asset_materializations_for_node("memorization")
    told = {e.asset_key.to_user_string(): {k: v.value for k, v in e.metadata.items()} for e in events}
    assert set(told) == set(NAMES)
    assert told["memorization"]["dagster/row_count"] == 2 * 2 * 100
    assert told["memorization"]["arms_computed_now"] == 2
    assert told["memorization_truth"]["dagster/row_count"] == 0, "no subsets"
    passed = {evaluation.check_name: evaluation.passed for evaluation in result.get_asset_check_evaluations()}
    assert passed == dict.fromkeys(
        ("every_image_is_scored", "areas_are_defined", "errors_are_known", "no_trial_diverged"), True
    )
    # Evaluated with an earlier recipe, say: it has nothing to be scored, so nothing is left out.
    studies = {"tiny": tiny_study, "other": tiny_study.model_copy(update={"name": "other"})}
    trained.table_folder("image_progress", "other").mkdir(parents=True)
    for asked, is_part in (([], False), (["tiny"], True)):
        config = {"ops": {"memorization": {"config": {"studies": asked}}}}
        again = materialize(trained, studies, "memorization_detection", config=config)
        (event,) = again.asset_materializations_for_node("memorization")
        assert event.metadata["arms_computed_now"].value == 0
        assert ("partial" in str(event.tags)) == is_part


def test_images_of_classes_still_to_come_are_not_missed(store: Store, make_study: Callable[..., Study]) -> None:
    study = make_study(
        {"label_noise": 0.0, "batch_size": 10},
        data={"dataset": "digits", "num_train": 100, "classes": {"first": 2, "add": 4, "every": 2}},
        memorization={"num_bootstraps": 100},
        widths=(1,),
    )
    arm, ids = study.arms["plain.k001"], [trial_data(study, "plain", trial).train_ids.tolist() for trial in (0, 1)]
    for seen, problems in ((60, False), (59, True)):
        where = [(t, e, i) for t in (0, 1) for e, num in ((1, 20), (2, 20), (3, seen)) for i in ids[t][:num]]
        trials, epochs, images = zip(*where, strict=True)
        columns = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm), "split": "train"}
        columns |= {"trial": trials, "epoch": epochs, "image_id": images, "loss": 0.5, "correct": True}
        path = store.table_folder("image_progress", study.name, arm.key) / "0004.parquet"
        write_parquet(path, to_arrow("image_progress", columns, len(where)))
        result = materialize(store, {study.name: study})
        (found,) = [one for one in result.get_asset_check_evaluations() if one.check_name == "every_image_is_scored"]
        assert found.passed is not problems
    assert "2 images of trials have no evaluation" in str(found.metadata)


def test_the_node_of_settings_is_another_where_the_number_of_epochs_changes_scores(
    make_study: Callable[..., Study],
) -> None:
    def key(**changes: Any) -> dg.AssetKey:
        return next(iter(memorization_assets({"tiny": make_study(**changes)})[0].keys))

    assert key(epochs=9) == key(), "no score of it depends on them"
    early: dict[str, Any] = {"evaluation": {"image_values": ("el2n",)}}
    assert key(epochs=9, **early) != key(**early)


def test_with_nothing_to_score_one_sentence_says_so(store: Store, tiny_study: Study) -> None:
    result = materialize(store, {"tiny": tiny_study})
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    assert f"no evaluation of images has been recorded under {store.root} by tiny; train a study first" in str(
        event.step_failure_data.error
    )


def test_the_command_refuses_an_unknown_study_and_a_file_that_is_none(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: str
) -> None:
    monkeypatch.setenv("DD_ROOT", str(store.root))
    assert import_memorization.main(["nothing", f"{tmp_path}/fz.npz"]) == 1
    assert "there is no study 'nothing'; there are" in capsys.readouterr().err
    broken = Catalogue({}, {Path("studies/broken.yaml"): "studies/broken.yaml: epochs: is missing"})
    with monkeypatch.context() as patch:
        patch.setattr(import_memorization, "catalogue", lambda: broken)
        assert import_memorization.main(["broken", f"{tmp_path}/fz.npz"]) == 1
    assert "Error: studies/broken.yaml: epochs: is missing" in capsys.readouterr().err
    assert import_memorization.main(["quickstart", f"{tmp_path}/fz.npz"]) == 1
    assert "fz.npz cannot be read as an .npz file (FileNotFoundError)" in capsys.readouterr().err
    from dd_core.data.datasets import load

    labels = load("digits").labels
    np.savez(f"{tmp_path}/fz.npz", tr_labels=labels, tr_mem=np.linspace(0, 1, len(labels)))
    assert import_memorization.main(["quickstart", f"{tmp_path}/fz.npz"]) == 0
    assert "fz: 1,797 images for preact-resnet10.k001" in capsys.readouterr().out
