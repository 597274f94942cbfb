"""Relational convolution, scores and pooling against PyTorch Geometric's layers, and against their definitions."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy
from torch.nn.functional import softmax

from dd_core.models.nsm.layers import RelationalConvolution, Scores, best_first, entropy
from dd_core.models.nsm.level import Level, lowest_level
from tests.core.graph_batches import drawn, general
from tests.core.pyg_network import MeanOfAll, RGCNConv, SAGPooling, take_scores

# Also without edges, and of one node.
BATCH = drawn((5, 1, 7, 2, 1, 6), (9, 0, 20, 1, 2, 0))
LEVEL = lowest_level(BATCH)


def test_a_convolution_is_its_definition_edge_by_edge() -> None:
    layer = general(RelationalConvolution(6, 4, 7, 3, loop_relation=6))
    weights = torch.einsum("rb,bio->rio", layer.coefficients, layer.bases)
    expected = []
    for node, x in enumerate(BATCH.features):
        messages = [x @ weights[6]]
        for source, target, relation, confidence in zip(
            *BATCH.edges.tolist(), BATCH.relations.tolist(), BATCH.confidences, strict=True
        ):
            if target == node:
                messages.append(confidence * BATCH.features[source] @ weights[relation])
        expected.append(torch.stack(messages).mean(0) + x @ layer.root + layer.bias)
    torch.testing.assert_close(layer(BATCH.features, LEVEL), torch.stack(expected))


def test_it_is_pygs_where_the_confidences_are_one() -> None:
    layer, theirs = general(RelationalConvolution(6, 4, 7, 3, loop_relation=6)), MeanOfAll(6, 4, 7, 3).double()
    certain = dataclasses.replace(BATCH, confidences=torch.ones_like(BATCH.confidences))
    with torch.no_grad():
        theirs.take(layer)
    for relations in (BATCH.relations, torch.zeros_like(BATCH.relations)):
        level = lowest_level(dataclasses.replace(certain, relations=relations))
        expected = theirs(BATCH.features, BATCH.edges, relations)
        torch.testing.assert_close(layer(BATCH.features, level), expected)
    # Upper levels know no relations.
    torch.testing.assert_close(layer(BATCH.features, dataclasses.replace(level, relations=None)), expected)


def test_it_is_pygs_mean_where_a_node_gets_messages_of_one_relation() -> None:
    """PyG takes means by relation: with loops as edges of that relation they are the mean over all."""
    layer = general(RelationalConvolution(6, 4, 3, 2, loop_relation=1))
    theirs = RGCNConv(6, 4, 3, 2).double()
    with torch.no_grad():
        theirs.weight.copy_(layer.bases)
        theirs.comp.copy_(layer.coefficients)
        theirs.root.copy_(layer.root)
        theirs.bias.copy_(layer.bias)
    ones = torch.ones_like(BATCH.relations)
    level = lowest_level(dataclasses.replace(BATCH, relations=ones, confidences=torch.ones_like(BATCH.confidences)))
    nodes = torch.arange(len(BATCH.graph))
    edges = torch.cat([BATCH.edges, nodes.expand(2, -1)], 1)
    expected = theirs(BATCH.features, edges, torch.cat([ones, torch.ones_like(nodes)]))
    torch.testing.assert_close(layer(BATCH.features, level), expected)


@pytest.mark.parametrize("ratio", [0.13, 0.5, 0.7])
def test_a_pooling_keeps_what_pygs_keeps(ratio: float) -> None:
    scores, theirs = general(Scores(6)), SAGPooling(6, ratio).double()
    with torch.no_grad():
        take_scores(theirs, scores)
    own = scores(BATCH.features, LEVEL)
    above, kept, number = LEVEL.kept_by(best_first(own, LEVEL), ratio)
    x, edges, confidences, graph, expected, _ = theirs(BATCH.features, BATCH.edges, BATCH.confidences, BATCH.graph)
    assert torch.equal(kept, expected) and torch.equal(above.graph, graph)
    torch.testing.assert_close(BATCH.features[kept] * own[kept].tanh().unsqueeze(1), x)
    remains = above.is_there.bool()
    assert torch.equal(torch.stack([above.sources, above.targets])[:, remains], edges)
    assert torch.equal(above.confidences[remains], confidences) and not above.confidences[~remains].any()
    assert torch.equal(number[kept], torch.arange(len(kept))) and (number == len(kept)).sum() == len(own) - len(kept)


@settings(max_examples=50, deadline=None)
@given(
    ratio=st.one_of(st.floats(0, 1, exclude_min=True), st.integers(1, 100).map(lambda n: n / 100)),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=20),
)
def test_a_pooling_keeps_the_share_rounded_up_and_at_least_one(ratio: float, sizes: list[int]) -> None:
    batch = drawn(tuple(sizes), (0,) * len(sizes))
    level = lowest_level(batch)
    above, kept, _ = level.kept_by(torch.arange(len(batch.graph)), ratio)
    for size, number in zip(sizes, above.sizes, strict=True):
        assert 1 <= number <= size and -1e-8 <= number - ratio * size < 1 + 1e-8
    assert tuple(above.num_nodes.tolist()) == above.sizes == tuple(torch.bincount(batch.graph[kept]).tolist())


def test_a_share_that_is_a_whole_number_of_nodes_is_that_number() -> None:
    """Although .07 * 100 is 7.000000000000001 in floating point."""
    level = lowest_level(drawn((100,), (0,)))
    for percent in range(1, 101):
        assert level.kept_by(torch.arange(100), percent / 100)[0].sizes == (percent,)
        assert level.kept_by(torch.arange(100), percent / 100)[0].num_nodes.item() == percent


def test_entropy_is_scipys_over_the_logarithm_of_the_number() -> None:
    scores = torch.randn(len(BATCH.graph), dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 30
    found = entropy(scores, best_first(scores, LEVEL), LEVEL)
    for graph, size in enumerate(BATCH.sizes):
        shares = softmax(scores[BATCH.graph == graph], 0).numpy()
        expected = 1 if size == 1 else scipy_entropy(shares) / math.log(size)
        assert found[graph].item() == pytest.approx(expected, abs=1e-12)
    equal = entropy(torch.zeros_like(scores), best_first(scores, LEVEL), LEVEL)
    torch.testing.assert_close(equal, torch.ones_like(equal))


def test_edges_that_a_pooling_cuts_weigh_nothing() -> None:
    """The level above is the graph that is left, whatever is in the arrays beside."""
    order = best_first(BATCH.features[:, 0], LEVEL)
    above, kept, _ = LEVEL.kept_by(order, 0.5)
    remains = above.is_there.bool()
    assert remains.any() and not remains.all()
    edges = (above.sources, above.targets, None, above.confidences, above.is_there)
    small = Level(
        *(None if values is None else values[remains] for values in edges), above.graph, above.num_nodes, above.sizes
    )
    x = BATCH.features[kept]
    for layer in (RelationalConvolution(6, 4, 7, 3, loop_relation=6), Scores(6)):
        torch.testing.assert_close(general(layer)(x, above), layer(x, small))
