"""A data root asked from Python: it gives what is on disk, says what it cannot give, and writes nothing."""

import json
from pathlib import Path

import altair as alt
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dd_core
from dd_core.curvature.trained import standardised
from dd_core.data.trials import trial_data
from dd_core.errors import StaleError, UserError
from dd_core.models.build import build, network_of
from dd_core.store.store import Store
from dd_core.study.recorded import recorded_study
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.training.train import train_arm

from .exchanged import snapshot
from .monitored import MakeStudy
from .test_graph_training import make_graphs


def test_sql_checkpoints_and_networks_agree_and_nothing_is_written(trained: Store, tiny_study: Study) -> None:
    before = snapshot(trained.root)
    lab = dd_core.open(trained.root)
    assert lab.studies == ["tiny"]
    assert [own.checkpoint for own in lab.checkpoints("tiny")] == list(tiny_study.iter_checkpoints())
    found = lab.checkpoint("tiny", k=2)
    assert found.path == trained.checkpoint_path("tiny", Checkpoint(Arm("plain", 2), 4))
    assert found.manifest.recipe == tiny_study.recipe_hash(Arm("plain", 2))
    rows = lab.sql("SELECT train_error FROM training_evals WHERE k = ? AND epoch = 4 ORDER BY trial", [2]).fetchall()
    for trial, (train_error,) in enumerate(rows):
        own = trial_data(tiny_study, "plain", trial)
        data, model = found.training_data(trial), found.model(trial)
        expected = standardised(tiny_study, own, own.train_ids, torch.device("cpu"), torch.float32)
        assert torch.equal(data.images, expected)
        assert np.array_equal(data.image_ids, own.train_ids)
        assert np.array_equal(data.true_labels, own.true_train_labels)
        with torch.no_grad():
            wrong = model(data.images).argmax(1) != data.labels
        assert not model.training
        assert wrong.float().mean().item() == pytest.approx(train_error, abs=1e-6)
    assert snapshot(trained.root) == before


def test_weights_fit_the_plain_network_as_the_readme_types_it(trained: Store) -> None:
    lab = dd_core.open(trained.root)
    found = lab.checkpoint("tiny", "plain", k=2, epoch=4)
    assert lab.checkpoint("tiny", k=np.float64(2), epoch="4").checkpoint.key == "plain.k002|0004"  # type: ignore[arg-type]
    tensors = load_file(found.path)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.tensors().items())
    model = build("preact_resnet10", 2, 1, 10)
    model.load_state_dict({name: tensor[1] for name, tensor in tensors.items()})
    images = found.training_data(1).images[:8]
    with torch.no_grad():
        assert torch.equal(model.eval()(images), found.model(1).to(memory_format=torch.contiguous_format)(images))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"study": "tyny"}, "there is no study 'tyny'; did you mean 'tiny'?"),
        ({"variant": "plein"}, "there is no variant 'plein'; did you mean 'plain'?"),
        ({}, "there are several, so pass k=, one of 1, 2"),
        ({"k": 3}, "tiny, plain: there is no k 3; there are 1, 2"),
        ({"k": 2, "epoch": 3}, "tiny, plain.k002: there is no epoch 3; there are 0, 2, 4"),
        ({"k": 11}, "there is no k 11; there are 1, 2"),
        ({"k": True}, "there is no k True; there are 1, 2"),
        ({"k": ""}, "there is no k ''; there are 1, 2"),
        ({"study": ""}, "there is no study ''; there are tiny"),
        ({"study": 5}, "there is no study 5; there are tiny"),
    ],
)
def test_what_is_not_there_is_said_with_what_there_is(
    trained: Store, arguments: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError) as refusal:
        dd_core.open(trained.root).checkpoint(**{"study": "tiny", **arguments})  # type: ignore[arg-type]
    assert sentence in str(refusal.value)


def test_missing_and_damaged_weights_trials_and_pages_are_refused_in_a_sentence(trained: Store) -> None:
    lab = dd_core.open(trained.root)
    found = lab.checkpoint("tiny", k=1)
    with pytest.raises(UserError, match="there is no trial 2; there are 0, 1"):
        found.model(2)
    whole = found.path.read_bytes()
    found.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = r"make it again: dagster asset materialize --select 'tiny/checkpoints' --partition 'plain.k001\|0004'"
    with pytest.raises(StaleError, match=f"SHA-256 differs from its manifest; {again}"):
        found.model()
    found.path.unlink()
    with pytest.raises(StaleError, match=f"not on disk; {again}"):
        found.tensors()
    trained.checkpoint_manifest_path("tiny", found.checkpoint).write_text("{")
    with pytest.raises(StaleError, match=f"damaged, so this checkpoint does not exist; {again}"):
        lab.checkpoint("tiny", k=1)
    with pytest.raises(UserError, match="there is no figure 'curve'; there are none"):
        lab.figure("curve", "tiny")
    with pytest.raises(UserError, match="has not been written yet; run: ddlab report tiny"):
        lab.report("tiny")
    with pytest.raises(UserError, match="there is no data root"):
        dd_core.open(trained.root / "elsewhere")
    with pytest.raises(UserError, match="a data root is a folder or an address, and not 5"):
        dd_core.open(5)  # type: ignore[arg-type]


def test_figures_and_reports_are_those_that_were_written(trained: Store) -> None:
    chart = alt.vconcat(alt.Chart(alt.InlineData([{"k": 1}])).mark_point().encode(x="k:Q"))
    for path, text in (("figures/curve/tiny.json", chart.to_json()), ("reports/tiny.html", "<p>")):
        (trained.root / path).parent.mkdir(parents=True)
        (trained.root / path).write_text(text, encoding="utf-8")
    lab = dd_core.open(trained.root)
    assert lab.figure("curve", "tiny").to_dict() == chart.to_dict()
    assert lab.report("tiny").read_text(encoding="utf-8") == "<p>"
    with pytest.raises(UserError, match="there is no figure 'curves'; did you mean 'curve'"):
        lab.figure("curves", "tiny")


OWN = "from torch import nn\n\ndef net(k, channels, num_classes):\n    return nn.Sequential(nn.Flatten(), {})\n"
LAYERS = "nn.Linear(64, 8 * k), nn.BatchNorm1d(8 * k), nn.ReLU(), nn.Linear(8 * k, num_classes)"


def test_a_network_of_ones_own_comes_with_its_counters(
    make_study: MakeStudy, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab_network.py").write_text(OWN.format(LAYERS), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    study = make_study(variant={"architecture": "lab_network:net"}, widths=(1,))
    train_arm(study, Arm("plain", 1), store, until=4)
    found = dd_core.open(store.root).checkpoint("tiny")
    state = found.model(1).state_dict()
    assert state["2.num_batches_tracked"].item() == 16
    plain = network_of(study, Arm("plain", 1))
    plain.load_state_dict({name: tensor[1] for name, tensor in load_file(found.path).items()})
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())
    (tmp_path / "lab_network.py").write_text("net = None\n", encoding="utf-8")
    with pytest.raises(StaleError, match="was made with another source of lab_network:net than the one that is here"):
        dd_core.open(store.root).checkpoint("tiny").model()


def test_the_network_of_a_graph_study_comes_from_its_manifest(make_study: MakeStudy, store: Store) -> None:
    train_arm(make_graphs(make_study), Arm("plain", 2), store, until=2)
    found = dd_core.open(store.root).checkpoint("tiny")
    model = found.model()
    assert all(torch.equal(tensor, found.tensors()[name][0]) for name, tensor in model.state_dict().items())
    with pytest.raises(UserError, match="is about graphs; there are no images of it"):
        found.training_data()


def test_every_study_that_comes_with_the_platform_is_read_back_from_its_recipe() -> None:
    from dd_assets.catalogue import catalogue

    for study in catalogue().studies.values():
        for arm in {own.variant: own for own in study.arms.values()}.values():
            recipe = json.loads(json.dumps(study.recipe(arm)))
            again = recorded_study(study.name, arm, recipe, study.trials, study.checkpoints[-1])
            assert again.recipe_hash(arm) == study.recipe_hash(arm)
    with pytest.raises(StaleError, match="cannot be read by this version of the platform, here: data"):
        recorded_study("tiny", arm, {**recipe, "data": {**recipe["data"], "colour": 1}}, 2, 4)
