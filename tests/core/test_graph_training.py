"""Graphs go through the same trainer as images: against a plain loop of PyG, and with everything that it can do."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from dd_core.data.graphs.load import GENERATORS, load_problems
from dd_core.data.graphs.problems import Problems
from dd_core.data.randomness import generator, torch_seed
from dd_core.data.trials import trial_data
from dd_core.errors import StudyError, UserError
from dd_core.forecast.speed import Run, speed_key
from dd_core.forecast.work import training_flops
from dd_core.models.build import network_of
from dd_core.models.nsm.batch import GraphBatch, NSMOutputs
from dd_core.models.stacking import load_state
from dd_core.store.store import Store, sha256_of
from dd_core.study.graph_sizes import NUM_BASES, USED_RELATIONS
from dd_core.study.graphs import DOMAINS, GRAPH_VALUES, NUM_RELATIONS
from dd_core.study.stacks import kind, stacking
from dd_core.study.study import Arm, Study
from dd_core.tasks.graphs import GraphClassification
from dd_core.tasks.losses import CROSS_ENTROPY
from dd_core.training.monitors.hessian import Hessian
from dd_core.training.monitors.vectors import random_signs
from dd_core.training.step import Stepper
from dd_core.training.train import train_arm
from dd_core.training.trial_stack import TrialStack

from .comparison import ARM, Killed, assert_same_results, table
from .monitored import moment
from .test_resume import kill_before_step

CPU = torch.device("cpu")
OFF = dict.fromkeys(("validation", "norms", "hessian", "noise"))
MONITORS = {
    "validation": {"every": "1/2 epoch"},
    "norms": {"every": "1 step"},
    "hessian": {"every": "3 steps", "num_images": 8, "iterations": 2, "num_probes": 2},
    "noise": {"every": "2 steps", "num_batches": 2},
}
ADAM = {"name": "adam", "learning_rate": 0.01, "weight_decay": 1e-3, "clip_norm": 0.5}
SMALL = {"labels": "grounded", "num_test": 20, "num_features": 6}
MakeGraphs = Callable[..., Study]


def make_graphs(
    make_study: Any, variant: dict[str, Any] | None = None, nsm: Any = None, of: Any = None, **changes: Any
) -> Study:
    """Forty graphs to train on in batches of 16, 16 and 8, small nodes, dropout."""
    recipe = {
        "architecture": "nsm",
        "nsm": {"domain": "planning", "cycle_weight": 0.1, **(nsm or {})},
        "augmentation": {},
        "batch_size": 16,
        "optimizer": ADAM,
        "schedule": {"name": "constant"},
        "label_noise": 0.1,
        **(variant or {}),
    }
    data = {"dataset": "nsm", "num_train": 40, "num_validation": 24, "graphs": {**SMALL, **(of or {})}}
    made: Study = make_study(recipe, **{"data": data, "widths": (2,), "monitors": OFF, **changes})
    return made


@pytest.fixture
def graphs(make_study: Any) -> MakeGraphs:
    return functools.partial(make_graphs, make_study)


# --- against a plain loop


def loader(study: Study, problems: Problems, epoch: int) -> Iterator[Any]:
    """Batches of PyG's own loader, graph by graph, in the order of an epoch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.data import Data
        from torch_geometric.loader import DataLoader
    own, found = trial_data(study, "plain", 0), []
    for index, label in zip(own.train_ids, own.train_labels, strict=True):
        nodes = slice(*problems.first_node[index : index + 2])
        edges = slice(*problems.first_edge[index : index + 2])
        found.append(
            Data(
                x=torch.from_numpy(problems.features[problems.nodes[nodes]]).double(),
                edge_index=torch.from_numpy(problems.edges[:, edges]),
                relation=torch.from_numpy(problems.relations[edges]),
                confidence=torch.from_numpy(problems.confidences[edges]).double(),
                y=torch.tensor([label]),
            )
        )
    order = generator(study.seed, 0, "order", epoch).permutation(len(found))
    size = study.variants["plain"].batch_size
    yield from DataLoader(found, batch_sampler=[order[i : i + size].tolist() for i in range(0, len(found), size)])


def as_batch(batch: Any) -> GraphBatch:
    sizes = batch.ptr.diff()
    parts = (batch.x, batch.edge_index, batch.relation, batch.confidence, batch.batch)
    return GraphBatch(*parts, sizes, tuple(sizes.tolist()))


def plain_losses(study: Study, network: torch.nn.Module, epochs: int) -> list[float]:
    """What a script would do: PyG's loader, torch's Adam and clipping, the loss written out."""
    settings = study.variants["plain"].nsm
    assert settings is not None and study.data.graphs is not None
    problems = load_problems(study.data.graphs, settings.domain, study.seed, study.num_evaluated_images)
    optimizer = torch.optim.Adam(network.train().parameters(), lr=0.01, weight_decay=1e-3)
    losses, step = [], 0
    for epoch in range(1, epochs + 1):
        for batch in loader(study, problems, epoch):
            torch.manual_seed(torch_seed(study.seed, 0, "network", step))
            found = network(as_batch(batch))
            loss = cross_entropy(found.logits, batch.y)
            if settings.fusion != "none":
                by_pass = [cross_entropy(logits, batch.y) for logits in found.passes.unbind(1)]
                loss = 0.5 * loss + 0.25 * by_pass[0] + 0.25 * by_pass[1]
            first, second = found.cycle_loss.mean(0)
            loss = loss + settings.cycle_weight * (0.7 * first + 0.3 * second)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
            step += 1
    return losses


@pytest.mark.parametrize(
    "settings",
    [
        {"domain": "planning"},
        {"domain": "causal", "fusion": "equal"},
        {"domain": "knowledge_graph", "fusion": "learned", "pool_ratio": 0.13},
    ],
    ids=lambda settings: settings["domain"],
)
def test_every_step_is_that_of_a_plain_loop(graphs: MakeGraphs, settings: dict[str, Any]) -> None:
    study = graphs(nsm=settings)
    stack = TrialStack(study, ARM, [0], CPU, torch.float64)
    network = network_of(study, ARM).double()
    load_state(network, stack.weights_of(0))
    ours = np.concatenate([stack.train_epoch(epoch).loss[:, 0] for epoch in (1, 2)])
    np.testing.assert_allclose(ours, plain_losses(study, network, 2), rtol=1e-9)
    for name, tensor in stack.weights_of(0).items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-7, atol=1e-9)


def test_an_evaluation_is_that_of_each_graph_alone(graphs: MakeGraphs, store: Store) -> None:
    """Loss, correctness and what else is kept, in the tables too, of training, validation and test graphs.

    Of two or three nodes that differ: which of equal ones a pooling keeps would be decided by rounding.
    """
    study = graphs(nsm={"domain": "causal"}, trials=1, epochs=1, checkpoints=(0, 1))
    stack = TrialStack(study, ARM, [0], CPU, torch.float64)
    network = network_of(study, ARM).double().eval()
    load_state(network, stack.weights_of(0))
    own, found, whole = trial_data(study, "plain", 0), stack.evaluate(0), stack.examples.whole
    assert whole.num_examples == 40 + 24 + 20 and set(found.values) == set(GRAPH_VALUES)
    for place in (0, 39, 40, 83):
        inputs, _ = stack.examples.evaluated(whole, place, place + 1)
        with torch.no_grad():
            alone: NSMOutputs = network(inputs)
        label = own.given_labels[place]
        assert found.loss[0, place] == pytest.approx(-alone.logits.log_softmax(1)[0, label].item(), rel=1e-6)
        assert found.correct[0, place] == (alone.logits[0].argmax() == label)
        expected = {
            "probability": alone.logits.softmax(1)[0, 1],
            "cycle_loss_1": alone.cycle_loss[0, 0],
            "cycle_loss_2": alone.cycle_loss[0, 1],
            "kept_share": alone.kept_share[0],
            "pooling_entropy": alone.pooling_entropy[0],
        }
        for name, value in expected.items():
            assert found.values[name][0, place] == pytest.approx(value.item(), rel=1e-6), name
    train_arm(study, ARM, store, 1, dtype=torch.float64)
    rows = table(store, study, ARM, "image_progress")
    assert set(rows.split) == {"train", "validation", "test"} and len(rows) == 2 * whole.num_examples
    first = rows[rows.epoch == 0]
    np.testing.assert_array_equal(first.image_id, own.image_ids)
    for name in GRAPH_VALUES:
        np.testing.assert_array_equal(first[name], found.values[name][0])


def test_fresh_features_are_a_function_of_seed_trial_and_epoch(graphs: MakeGraphs) -> None:
    stacks = [TrialStack(graphs(of={"features": "fresh"}), ARM, [trial], CPU, torch.float32) for trial in (0, 0, 1)]
    first, again, other = (stack.examples for stack in stacks)

    def features(examples: Any, epoch: int) -> Tensor:
        """Features of all nodes, as many in any order of the graphs."""
        found: Tensor = examples.plan(epoch).features
        return found

    assert torch.equal(features(first, 2), features(again, 2))
    assert features(first, 1).shape[1] == 6 and abs(features(first, 1).std() - 1) < 0.1
    # Two draws never have a row in common: those of epochs, of the evaluation, and of trials.
    draws = [features(first, 1), features(first, 2), first._evaluated.features]
    draws += [features(other, 1), features(other, 2), other._evaluated.features]
    rows = torch.cat(draws)
    assert len(rows.unique(dim=0)) == len(rows)
    whole = first.whole
    (seen, labels), (same, _) = first.evaluated(whole, 5, 7), again.evaluated(whole, 5, 7)
    by_position, given = first.at(torch.tensor([[5], [6]]))
    for found in (same.features, by_position.features):
        assert torch.equal(found, seen.features)
    assert torch.equal(by_position.edges, seen.edges) and torch.equal(given, labels)


def test_the_loss_is_what_its_formula_says() -> None:
    """Numbers that can be checked by hand: p = 1/2 of both passes, 3/4 fused."""
    logits = torch.tensor([[[0.0, np.log(3.0)]]])
    outputs = NSMOutputs(logits, torch.tensor([[[2.0, 10.0]]]), *torch.ones(2, 1, 1), torch.zeros(1, 1, 2, 2))
    labels = torch.tensor([[1]])
    task = GraphClassification(CROSS_ENTROPY, 0.5)
    half = np.log(2)
    expected = 0.5 * np.log(4 / 3) + 0.25 * half + 0.25 * half + 0.5 * (0.7 * 2 + 0.3 * 10)
    assert task.losses(outputs, labels, torch.float64).item() == pytest.approx(expected)
    assert task.scores(outputs, labels).item() == pytest.approx(np.log(4 / 3))
    assert task.value("probability", outputs, labels).item() == pytest.approx(0.75)


# --- everything that the trainer does

RECIPES: dict[str, dict[str, Any]] = {
    "plateau, float16": {
        "variant": {"schedule": {"name": "plateau", "patience": 0, "threshold": 0.5}, "precision": "float16"}
    },
    "early stopping, fresh features": {
        "variant": {"early_stopping": {"patience": 1, "min_delta": 0.5}},
        "of": {"features": "fresh"},
        "nsm": {"domain": "causal", "fusion": "learned"},
    },
    "bfloat16": {
        "variant": {"precision": "bfloat16", "interventions": {"l2_init": 0.01}},
        "nsm": {"domain": "knowledge_graph"},
    },
}


@pytest.mark.usefixtures("fast_float16")
@pytest.mark.parametrize("recipe", RECIPES)
def test_training_killed_anywhere_has_the_bits_of_an_undisturbed_one(
    graphs: MakeGraphs, recipe: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, clipping, two trials, wrong labels, the best kept, and monitors, in every one."""
    study, undisturbed = graphs(**RECIPES[recipe], monitors=MONITORS), Store(store.root / "undisturbed")
    train_arm(study, ARM, undisturbed, 4)
    for step in (8, 11):
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            kill_before_step(step, patch)
            train_arm(study, ARM, store, 4, resume_seconds=0)
    torch.rand(7)
    train_arm(study, ARM, store, 4, resume_seconds=0)
    assert_same_results(store, undisturbed, study)
    ours, theirs = (
        {path.name: sha256_of(path) for path in s.best_folder(study.name, ARM.key).glob("*.safetensors")}
        for s in (store, undisturbed)
    )
    assert ours == theirs and len(ours) >= 2
    metrics = set(table(store, study, ARM, "training_monitors").metric)
    assert metrics >= {"validation_loss", "gradient_norm", "largest_eigenvalue", "hessian_trace", "gradient_variance"}
    endings = set(table(store, study, ARM, "runs").dropna(subset="reason").status)
    rates = table(store, study, ARM, "training_batches").learning_rate
    assert ("plateau" in recipe) == (rates.nunique() > 1)
    assert ("early" in recipe) == ("stopped early" in endings)


def test_reduced_precision_is_close_to_float32_and_has_a_gradient_scale(graphs: MakeGraphs) -> None:
    losses = {}
    for precision in ("float32", "tf32", "bfloat16", "float16"):
        study = graphs({"precision": precision}, trials=1)
        stack = TrialStack(study, ARM, [0], CPU, torch.float32)
        losses[precision] = stack.train_epoch(1).loss
        assert (stack.stepper.arithmetic.scaler is not None) == (precision == "float16")
        assert all(parameter.dtype == torch.float32 for parameter in stack.model.parameters())
        evaluated = stack.evaluate(1)
        assert np.isfinite(evaluated.loss).all() and all(np.isfinite(v).all() for v in evaluated.values.values())
    np.testing.assert_array_equal(losses["tf32"], losses["float32"])  # on a CPU
    for precision in ("bfloat16", "float16"):
        np.testing.assert_allclose(losses[precision], losses["float32"], rtol=0.05)
        assert not np.array_equal(losses[precision], losses["float32"])


def test_an_overflowing_gradient_skips_the_step(graphs: MakeGraphs) -> None:
    stack = TrialStack(graphs({"precision": "float16"}), ARM, [0], CPU, torch.float32)
    scale = {"scale": torch.tensor(2.0**120, dtype=torch.float64), "_growth_tracker": torch.tensor(3.0)}
    stack.stepper.arithmetic.load_state(scale)
    before = stack.weights_of(0)
    stack.run_steps(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.weights_of(0).items())
    assert stack.stepper.arithmetic.state()["scale"] == 2.0**119


def test_memory_that_runs_out_halves_the_graphs_at_a_time_and_changes_no_loss(
    graphs: MakeGraphs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, whole = graphs(nsm={"dropout": 0.0}), Store(store.root / "whole")
    train_arm(study, ARM, whole, 2, dtype=torch.float64)
    usual, notes = Stepper._forward_backward, []

    def forward_backward(stepper: Stepper, batch: GraphBatch, *arguments: Any) -> Any:
        if batch.num_graphs > 5:
            raise torch.OutOfMemoryError(f"no memory for {batch.num_graphs}")
        return usual(stepper, batch, *arguments)

    monkeypatch.setattr(Stepper, "_forward_backward", forward_backward)
    report = lambda news: notes.append(getattr(news, "text", ""))  # noqa: E731
    train_arm(study, ARM, store, 2, dtype=torch.float64, report=report)
    told = [note for note in notes if "out of memory" in note]
    assert len(told) == 2 and "with 8 graphs at a time; going on from the last resume point with 4" in told[1]
    assert not any("BatchNorm" in note for note in told)
    ours, theirs = (table(s, study, ARM, "training_batches") for s in (store, whole))
    np.testing.assert_allclose(ours.train_loss, theirs.train_loss, rtol=1e-9)
    monkeypatch.setattr(Stepper, "_forward_backward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(UserError, match=r"cannot be trained with 1 graphs at a time \(none\); use a device"):
        train_arm(graphs({"batch_size": 2}), ARM, Store(store.root / "none"), 2)


def test_a_trial_that_diverges_leaves_the_others_alone(graphs: MakeGraphs, store: Store) -> None:
    study = graphs()
    alone, usual = Store(store.root / "alone"), Stepper.__call__
    train_arm(study, ARM, alone, 2)
    with pytest.MonkeyPatch.context() as patch:

        def call(stepper: Stepper, *arguments: Any) -> Any:
            loss, accuracy = usual(stepper, *arguments)
            if stepper is first[0]:
                loss = loss * torch.nan
            return loss, accuracy

        first: list[Stepper] = []
        made = Stepper.__init__
        patch.setattr(Stepper, "__init__", lambda self, *a, **b: (made(self, *a, **b), first.append(self))[0])
        patch.setattr(Stepper, "__call__", call)
        train_arm(study, ARM, store, 2)
    runs = table(store, study, ARM, "runs").dropna(subset="reason")
    assert dict(zip(runs.trial, runs.status, strict=True)) == {0: "diverged"}
    ours, theirs = (table(s, study, ARM, "training_evals") for s in (store, alone))
    last = [rows[(rows.trial == 1) & (rows.epoch == 2)].train_loss.item() for rows in (ours, theirs)]
    assert last[0] == last[1] and not len(ours[(ours.trial == 0) & (ours.epoch == 2)])


def test_the_hessian_of_the_monitor_is_the_dense_one(graphs: MakeGraphs) -> None:
    """Largest eigenvalue and trace in float64, of the loss that is trained, cycle loss and all."""
    study = graphs(nsm={"domain": "causal", "num_relations": 20, "num_bases": 1}, of={"num_features": 2})
    stack = TrialStack(study, ARM, [0], CPU, torch.float64)
    stack.run_steps(3)
    network = network_of(study, ARM).double().eval()
    load_state(network, stack.weights_of(0))
    inputs, targets = stack.training_examples(torch.arange(12)[:, None])
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        found: NSMOutputs = functional_call(network, weights, (inputs,))
        first, second = found.cycle_loss.mean(0)
        return cross_entropy(found.logits, targets[:, 0]) + 0.1 * (0.7 * first + 0.3 * second)

    flat = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    dense = hessian(loss, flat, vectorize=True)
    assert isinstance(dense, Tensor)
    monitor = Hessian(stack, 12, "lanczos", 40, "hutchinson", 4)
    found = monitor.measure(moment(stack, step=6))
    _, *probes = random_signs(stack, 6, 5, len(dense), torch.float64)
    value, residual, (trace, _) = (found[name] for name in ("lambda_max", "lambda_max_residual", "hutch_trace"))
    assert isinstance(value, Tensor) and isinstance(residual, Tensor)
    largest = torch.linalg.eigvalsh(dense)[-1]
    assert abs(value[0] - largest) <= residual[0] + 1e-12 and residual[0] < 1e-3 * largest
    estimate = torch.stack([(probe[0] @ dense) @ probe[0] for probe in probes]).mean()
    torch.testing.assert_close(trace[0], estimate, rtol=1e-9, atol=0)


# --- what is not for graphs


def test_graphs_share_no_network(graphs: MakeGraphs) -> None:
    study = graphs()
    assert stacking(study, ARM) == [[0], [1]] and kind(study, Arm("plain", 2)) == ""


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"variant": {"augmentation": {"flip": True}}}, "variants.plain.augmentation: shifts, crops"),
        ({"variant": {"compile": "default"}}, "variants.plain.compile: graphs differ in size"),
        ({"monitors": {"plasticity": {}}}, "monitors.plasticity: looks at units image by image"),
        ({"evaluation": {"image_values": ("margin",)}}, "evaluation.image_values: is for images"),
        (
            {"variant": {"interventions": {"continual_backprop": {}}}},
            "continual_backprop: which units of nsm feed which is not known",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_for_images_alone_is_refused_before_training(
    graphs: MakeGraphs, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((StudyError, ValueError), match=sentence):
        graphs(**changes)


def test_relations_that_the_network_does_not_know_are_one_sentence(graphs: MakeGraphs) -> None:
    """When the study is read, also where no graph of these labels has the relations that are missing."""
    sentence = r"nsm\.num_relations: 13 are fewer than the 15 kinds of edges of causal; raise it, or leave it out"
    with pytest.raises((StudyError, ValueError), match=sentence):
        graphs(nsm={"domain": "causal", "num_relations": 13})
    assert graphs(nsm={"domain": "causal", "num_relations": 15})
    assert {domain: len(relations) for (domain, _), (_, _, relations) in GENERATORS.items()} == USED_RELATIONS


def test_the_recipe_is_another_for_other_graphs_and_networks(graphs: MakeGraphs, monkeypatch: Any) -> None:
    changes: dict[str, dict[str, Any]] = {
        "": {},
        "domain": {"nsm": {"domain": "causal"}},
        "loss": {"nsm": {"cycle_weight": 0.2}},
        "labels": {"of": {"labels": "as_published"}},
        "test": {"of": {"num_test": 21}},
    }
    for domain in DOMAINS:  # a number that is said and the same one that is not
        said = graphs(nsm={"domain": domain, "num_bases": NUM_BASES[domain], "num_relations": NUM_RELATIONS[domain]})
        assert said.recipe_hash(ARM) == graphs(nsm={"domain": domain}).recipe_hash(ARM)
        network = said.recipe(ARM)["variant"]["nsm"]
        assert (network["num_bases"], network["num_relations"]) == (NUM_BASES[domain], NUM_RELATIONS[domain])
        settings = graphs(nsm={"domain": domain, "num_bases": 99}).variants["plain"].nsm
        assert settings is not None and settings.num_bases == NUM_RELATIONS[domain]
    hashes = {name: graphs(**change).recipe_hash(ARM) for name, change in changes.items()}
    assert len(set(hashes.values())) == len(changes)
    monkeypatch.setattr("dd_core.study.study.GENERATOR_VERSION", "of tomorrow")
    assert graphs().recipe_hash(ARM) not in hashes.values()


# --- what it costs


@pytest.mark.parametrize(
    ("domain", "size"), [("planning", 64), ("causal", 64), ("knowledge_graph", 64), ("causal", 16)]
)
def test_costs_are_those_that_torch_counts(graphs: MakeGraphs, domain: str, size: int) -> None:
    """Costs are those of graphs of the mean size, so that labels as published and grounded ones differ a little."""
    study = graphs(nsm={"domain": domain}, of={"num_features": size}, widths=(32,))
    arm = Arm("plain", 32)
    stack = TrialStack(study, arm, [0], CPU, torch.float32)
    inputs, _ = stack.examples.evaluated(stack.examples.whole, 0, 40)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        stack.model(inputs)
    assert training_flops(study, arm) / 3 == pytest.approx(counter.get_total_flops() / 40, rel=0.2)
    key = speed_key(study.recipe(arm))
    assert Run("tiny", key, 1, 0.0, 1.0).flops == training_flops(study, arm)
    others = graphs(nsm={"domain": "causal" if domain == "planning" else "planning"}, widths=(32,))
    assert speed_key(others.recipe(arm)) != key
    # What takes no time: how long others took tells how long this takes.
    free = {"cycle_weight": 0.3, "dropout": 0.2, "loops": "last", "largest_log_scale": 1.0}
    others = graphs(nsm={"domain": domain, **free}, of={"num_features": size, "num_test": 21}, widths=(32,))
    assert speed_key(others.recipe(arm)) == key
