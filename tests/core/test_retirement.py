"""Recipes and data that change and come back: what was trained is put back, and no two stand side by side."""

import json
from typing import Any

import pytest
from support import results, stamps

from dd_core.errors import StaleError
from dd_core.results import per_image_curvature as curvature_checkpoint
from dd_core.results.hessian import hessian_of_checkpoint
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.files import write_json
from dd_core.store.manifests import Manifest
from dd_core.store.provenance import checkpoint_manifest
from dd_core.store.retirement import retired
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.attempts import arm_is_complete
from dd_core.training.session import Session
from dd_core.training.train import train_arm

ARM = Arm("plain", 1)
LAST = Checkpoint(ARM, 4)


@pytest.fixture
def other(make_study: Any) -> Study:
    """The same arms by another recipe."""
    return make_study({"label_noise": 0.1})


def train(store: Store, study: Study) -> str:
    """Train the arm; returns what was said."""
    notes: list[str] = []
    train_arm(study, ARM, store, 4, report=lambda news: notes.append(getattr(news, "text", "")))
    return " ".join(notes).strip()


def own(store: Store) -> dict[str, str]:
    return {path: digest for path, digest in results(store.root).items() if ARM.key in path}


def test_going_back_to_a_recipe_puts_its_results_back_instead_of_training_again(
    trained: Store, tiny_study: Study, other: Study
) -> None:
    compute_curvature(tiny_study, LAST, trained)
    first = own(trained)
    before = stamps(trained.root / "checkpoints", f"**/{ARM.key}/*.safetensors")
    assert "its recipe has changed" in train(trained, other)
    second = own(trained)
    for study, expected in ((tiny_study, first), (other, second)) * 3:
        said = train(trained, study)
        assert "its recipe has changed" in said and "its results are put back from" in said
        assert own(trained) == expected
        assert len(retired(trained, "tiny", ARM.key)) == 1, "what was put back is not retired any more"
        if study is tiny_study:
            assert stamps(trained.root / "checkpoints", f"**/{ARM.key}/*.safetensors") == before, "not trained again"


def test_results_of_other_data_are_retired_not_overwritten(
    trained: Store, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = own(trained)
    assert arm_is_complete(trained, tiny_study, ARM, 4)
    for path in trained.arm_folder("tiny", ARM.key).glob("[0-9]*.json"):
        manifest = trained.read_manifest(path)
        assert manifest is not None
        content = {**manifest.content, "data_sha256": "of other images"}
        trained.seal(path, Manifest.of(content, manifest.files))
    assert not arm_is_complete(trained, tiny_study, ARM, 4), "as the worker sees it"
    assert "its data set has changed" in train(trained, tiny_study)
    assert own(trained) == before
    (folder,) = retired(trained, "tiny", ARM.key)
    assert {path for path in results(folder)} == {path for path in before}


def test_one_manifest_with_another_recipe_among_right_ones_is_a_damaged_one(trained: Store, tiny_study: Study) -> None:
    before = own(trained)
    path = trained.checkpoint_manifest_path("tiny", LAST)
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["manifest"]  # as earlier versions wrote them: unsealed
    write_json(path, {**manifest, "recipe": "0" + manifest["recipe"][1:]})
    train(trained, tiny_study)
    assert retired(trained, "tiny", ARM.key) == []
    assert own(trained) == before


@pytest.mark.parametrize("what", ["curvature", "hessian"])
@pytest.mark.parametrize("moment", ["before it is written", "while it is written"])
def test_no_result_is_written_of_weights_that_were_trained_again_meanwhile(
    moment: str, what: str, trained: Store, make_study: Any, other: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(hessian={"num_images": 10, "quantities": ("exact_trace",)})
    usual, calls = Store.write_manifest, []

    def overtaken(store: Store, path: Any, content: dict[str, Any], files: Any) -> None:
        if content["kind"] in ("per_image_curvature", "hessian") and not calls:
            calls.append(path)
            train(trained, other)
        usual(store, path, content, files)

    if moment == "while it is written":
        monkeypatch.setattr(Store, "write_manifest", overtaken)
    else:
        module = curvature_checkpoint if what == "curvature" else hessian_module()
        name = "compute_rows" if what == "curvature" else "analyse_hessian"
        compute = getattr(module, name)

        def slow(*arguments: Any, **keywords: Any) -> Any:
            if not calls:
                calls.append(name)
                train(trained, other)
            return compute(*arguments, **keywords)

        monkeypatch.setattr(module, name, slow)
    run = compute_curvature if what == "curvature" else hessian_of_checkpoint
    with pytest.raises(StaleError, match=r"another recipe|have changed while"):
        run(study, LAST, trained)
    assert calls
    for table in ("per_image_curvature", "hessian_spectra"):
        assert not [path for path in trained.table_folder(table).rglob("*.parquet") if ARM.key in str(path)]
        assert not list(trained.root.glob(f"manifests/{table}/**/*.json"))
    assert checkpoint_manifest(trained, other, LAST)


def hessian_module() -> Any:
    from dd_core.results import hessian as hessian_checkpoint

    return hessian_checkpoint


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"torch_version": "1.0"}, "PyTorch 1.0 instead of"),
        ({"device": "cpu (ABACUS)"}, "on cpu (ABACUS) instead of cpu ("),
        ({}, ""),
    ],
)
def test_going_on_elsewhere_is_said(
    now: dict[str, str], said: str, store: Store, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_arm(tiny_study, ARM, store, 2)
    usual = Session._conditions.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Session, "_conditions", property(lambda self: {**usual(self), **now}))
    text = train(store, tiny_study)
    assert (f"going on at epoch 2 {said}" in text) if said else text == ""
