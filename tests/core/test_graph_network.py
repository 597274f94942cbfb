"""The network of graphs against one of PyTorch Geometric's layers, and what must hold of any: see each test."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dd_core.errors import UserError
from dd_core.models.build import build_trials, network_of
from dd_core.models.nsm.build import nsm
from dd_core.models.nsm.network import Network
from dd_core.study.graphs import NSM
from dd_core.study.study import Study
from tests.core.graph_batches import all_of, alone, drawn, general, in_another_order
from tests.core.pyg_network import PlainNetwork, global_mean_pool

# Graphs of many nodes, of one, without edges, of one edge.
SIZES, EDGES = (9, 1, 4, 2, 1, 12), (20, 0, 0, 1, 3, 30)


def network(k: int = 8, num_features: int = 6, trials: int | None = None, **settings: Any) -> Network:
    torch.manual_seed(3)
    made = nsm(k, num_features, 2, trials, NSM(domain="planning", num_relations=5, num_bases=3, **settings))
    assert isinstance(made, Network)
    general(made)
    return made.eval()


@pytest.mark.parametrize(
    ("fusion", "loops", "ratio", "largest"),
    [("none", "own", 0.5, None), ("equal", "last", 0.7, None), ("learned", "own", 0.3, 0.5)],
)
def test_it_computes_what_pygs_layers_do(fusion: str, loops: Any, ratio: float, largest: float | None) -> None:
    ours = network(fusion=fusion, loops=loops, pool_ratio=ratio, largest_log_scale=largest)
    theirs = PlainNetwork(8, 6, 5 + (loops == "own"), 3, ratio, fusion).double().take(ours)
    batch = drawn(SIZES, EDGES)
    batch = dataclasses.replace(batch, confidences=torch.ones_like(batch.confidences))
    found = ours(batch)
    logits, passes, error_1, error_2 = theirs(batch)
    torch.testing.assert_close(found.logits, logits)
    if fusion != "none":
        torch.testing.assert_close(found.passes, passes)
    sizes_2 = torch.tensor([math.ceil(ratio * size) for size in SIZES])
    graph_2 = torch.arange(len(SIZES)).repeat_interleave(sizes_2)
    errors = [global_mean_pool(error_1, batch.graph), global_mean_pool(error_2, graph_2)]
    torch.testing.assert_close(found.cycle_loss, torch.stack(errors, 1))
    sizes_3 = torch.tensor([math.ceil(ratio * size) for size in sizes_2.tolist()])
    torch.testing.assert_close(found.kept_share, (sizes_3 / batch.num_nodes.double()))


@pytest.mark.parametrize("ratio", [0.5, 0.13])
def test_graphs_without_edges_above_stay_as_published_ones_do(ratio: float) -> None:
    """Upstream decides for a whole batch: of one graph alone that is the same. Two nodes never have an edge above."""
    ours = network(above="with_edges", pool_ratio=ratio)
    theirs = PlainNetwork(8, 6, 6, 3, ratio).double().take(ours)
    theirs.first_step.is_always_above = theirs.second_step.is_always_above = False
    batch = drawn((2, *SIZES), (1, *EDGES))
    # An edge between the two nodes, and none from a node to itself, as those of triples.
    batch.edges[:, 0] = torch.tensor([0, 1])
    batch = dataclasses.replace(batch, confidences=torch.ones_like(batch.confidences))
    found, always = ours(batch).logits, network(pool_ratio=ratio)(batch).logits
    expected = torch.cat([theirs(alone(batch, number))[0] for number in range(batch.num_graphs)])
    torch.testing.assert_close(found, expected)
    differs = (found - always).abs().amax(1) > 1e-9
    assert differs[0]
    if ratio == 0.5:
        assert not differs.all()


def test_its_gradients_are_those_of_pygs_layers() -> None:
    """Also of the way down, where nodes that were not kept share a row."""
    ours = network()
    theirs = PlainNetwork(8, 6, 6, 3, 0.5).double().take(ours)
    batch = drawn((8, 8, 8), (20, 9, 30))
    batch = dataclasses.replace(batch, confidences=torch.ones_like(batch.confidences))
    features = [batch.features.clone().requires_grad_() for _ in range(2)]
    found = ours(dataclasses.replace(batch, features=features[0]))
    logits, _, error_1, error_2 = theirs(dataclasses.replace(batch, features=features[1]))
    # Of graphs of one size upstream's mean over all nodes is the mean over graphs.
    torch.testing.assert_close(found.cycle_loss.mean(0), torch.stack([error_1.mean(), error_2.mean()]))
    (found.logits.square().sum() + found.cycle_loss.mean(0) @ torch.tensor([0.7, 0.3]).double()).backward()
    (logits.square().sum() + 0.7 * error_1.mean() + 0.3 * error_2.mean()).backward()
    torch.testing.assert_close(features[0].grad, features[1].grad)
    for name, parameter in ours.named_parameters():
        if name.endswith(("linear_down.weight", "convolution_below.bases", "convolution_above.bases")):
            other = theirs.get_parameter(name.replace("bases", "messages.weight"))
            torch.testing.assert_close(parameter.grad, other.grad)


# What upstream's definitions give for 64 features and its numbers of relations and bases, without the two signs of
# PyG's poolings (SelectTopK.weight), which have no gradient. With both passes it has a third head that nothing trains.
PUBLISHED = {"planning": 756_284, "causal": 707_020, "knowledge_graph": 824_476}


@pytest.mark.parametrize(
    ("domain", "relations", "bases"), [("planning", 16, 8), ("causal", 20, 5), ("knowledge_graph", 66, 12)]
)
def test_at_k_64_it_has_the_published_networks_parameters(domain: Any, relations: int, bases: int) -> None:
    def size(network: nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    published = nsm(64, 64, 2, None, NSM(domain=domain, loops="last"))
    theirs = PlainNetwork(64, 64, relations, bases, 0.5)
    assert size(published) == size(theirs) - 2 == PUBLISHED[domain]
    # A relation of its own for loops: coefficients for each basis in four convolutions.
    assert size(nsm(64, 64, 2, None, NSM(domain=domain))) == PUBLISHED[domain] + 4 * bases
    head = 64 * 32 + 32 + 32 * 2 + 2
    for fusion, added in (("equal", head), ("learned", head + 128 * 64 + 64 + 64 * 2 + 2)):
        both = nsm(64, 64, 2, None, NSM(domain=domain, loops="last", fusion=fusion))
        assert size(both) == PUBLISHED[domain] + added == size(PlainNetwork(64, 64, relations, bases, 0.5, fusion)) - 2


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_the_order_of_nodes_and_edges_does_not_matter(seed: int, sizes: list[int]) -> None:
    batch = drawn(tuple(sizes), tuple(2 * size - 1 for size in sizes), seed=seed)
    ours = network(fusion="learned")
    torch.testing.assert_close(all_of(ours(in_another_order(batch, seed))), all_of(ours(batch)))


def test_a_graph_is_the_same_whatever_it_is_batched_with() -> None:
    """Upstream's is not: it leaves out a convolution where no graph of the batch has an edge left."""
    ours, batch = network(fusion="learned"), drawn(SIZES, EDGES)
    together = all_of(ours(batch))
    for number in range(len(SIZES)):
        torch.testing.assert_close(all_of(ours(alone(batch, number)))[0], together[number])


def test_relations_directions_and_confidences_matter_below() -> None:
    ours, batch = network(), drawn(SIZES, EDGES)
    before = ours(batch).logits
    others: dict[str, Tensor] = {
        "relations": (batch.relations + 1) % 5,
        "edges": batch.edges.flip(0),
        "confidences": batch.confidences / 2,
        "features": batch.features + 1,
    }
    for name, value in others.items():
        after = ours(dataclasses.replace(batch, **{name: value})).logits
        differs = (after - before).abs().amax(1) > 1e-9
        assert differs[[0, 5]].all() and differs[[1, 2]].tolist() == 2 * [name == "features"], name


def test_second_derivatives() -> None:
    ours, batch = network(4, 4, fusion="learned"), drawn((4, 1), (5, 0), num_features=4)

    def loss(features: Tensor, bases: Tensor) -> Tensor:
        weights = {"first_step.convolution_below.bases": bases}
        outputs = torch.func.functional_call(ours, weights, dataclasses.replace(batch, features=features))
        return outputs.logits.square().sum() + outputs.cycle_loss.sum()

    bases = ours.first_step.convolution_below.bases.detach().clone().requires_grad_()
    features = batch.features.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (features, bases), fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, (features, bases), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_finite_and_close_in_autocast(dtype: torch.dtype) -> None:
    """Everything is kept, so that rounding does not decide about nodes."""
    ours = network(pool_ratio=1.0, fusion="learned").float()
    batch = drawn(SIZES, EDGES).to(torch.float32)
    exact = ours(batch)
    with torch.autocast("cpu", dtype):
        rounded = ours(batch)
        (rounded.logits.float().square().sum() + rounded.cycle_loss.sum()).backward()
    assert rounded.cycle_loss.dtype == torch.float32
    torch.testing.assert_close(all_of(rounded).float(), all_of(exact), rtol=0.1, atol=0.1)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in ours.parameters())
    assert torch.equal(rounded.kept_share, torch.ones(len(SIZES)))


def test_dropout_acts_in_training_alone() -> None:
    ours, batch = network(dropout=0.5), drawn(SIZES, EDGES)
    assert torch.equal(ours(batch).logits, ours(batch).logits)
    torch.manual_seed(0)
    drawn_once = ours.train()(batch).logits
    assert not torch.equal(drawn_once, ours(batch).logits)
    torch.manual_seed(0)
    assert torch.equal(drawn_once, ours(batch).logits)


def test_an_axis_of_trials_changes_nothing_else() -> None:
    plain, stacked = network(fusion="equal"), network(fusion="equal", trials=1)
    stacked.load_state_dict(plain.state_dict())
    for alone_, with_axis in zip(plain(drawn(SIZES, EDGES)), stacked(drawn(SIZES, EDGES)), strict=True):
        assert torch.equal(alone_.unsqueeze(1), with_axis)
    with pytest.raises(UserError, match="nsm: a graph network is not stacked, so there is no stack of 2"):
        nsm(4, 4, 2, 2, NSM(domain="causal"))


def test_k_is_the_width_of_everything_but_the_input_and_what_it_is_reconstructed_to() -> None:
    sizes = [sum(p.numel() for p in nsm(k, 64, 2, None, NSM(domain="causal")).parameters()) for k in (2, 4, 8, 16)]
    assert sizes == sorted(sizes) and sizes[0] < 6000
    for k in (2, 4):
        assert nsm(k, 64, 2, None, NSM(domain="causal"))(drawn(SIZES, EDGES, num_features=64).to(torch.float32))
    for k, num_features in ((5, 6), (6, 5)):
        with pytest.raises(UserError, match="so 5 must be an even number"):
            nsm(k, num_features, 2, None, NSM(domain="causal"))


def test_a_study_makes_it(make_study: Any) -> None:
    study: Study = make_study(
        variant={"architecture": "nsm", "nsm": {"domain": "causal"}, "label_noise": 0.0, "augmentation": {}},
        data={"dataset": "nsm", "num_train": 40, "graphs": {"labels": "grounded", "num_test": 4, "num_features": 6}},
        widths=(4,),
    )
    (arm,) = study.arms.values()
    first = build_trials(study, arm, [1])
    assert isinstance(first, Network) and first.has_trial_axis and not network_of(study, arm).has_trial_axis
    assert all(map(torch.equal, first.parameters(), build_trials(study, arm, [1]).parameters()))
    batch = drawn(SIZES, EDGES).to(torch.float32)
    assert first(batch).logits.shape == (6, 1, 2)
