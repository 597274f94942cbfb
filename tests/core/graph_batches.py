"""Graphs for the tests of graph networks: drawn ones as a batch, one of a batch, and the same in another order."""

import dataclasses

import torch
from torch import Tensor

from dd_core.models.nsm.batch import GraphBatch


def drawn(
    sizes: tuple[int, ...], edges: tuple[int, ...], num_relations: int = 5, num_features: int = 6, seed: int = 0
) -> GraphBatch:
    """Graphs of some numbers of nodes and edges, in float64: loops and several edges between two nodes may be there."""
    random = torch.Generator().manual_seed(seed)
    first, ends = 0, []
    for size, number in zip(sizes, edges, strict=True):
        ends.append(first + torch.randint(size, (2, number), generator=random))
        first += size
    num_nodes = torch.tensor(sizes)
    return GraphBatch(
        torch.randn(first, num_features, generator=random, dtype=torch.float64),
        torch.cat(ends, 1),
        torch.randint(num_relations, (sum(edges),), generator=random),
        torch.rand(sum(edges), generator=random, dtype=torch.float64),
        torch.arange(len(sizes)).repeat_interleave(num_nodes),
        num_nodes,
        sizes,
    )


def alone(batch: GraphBatch, number: int) -> GraphBatch:
    """One graph of a batch."""
    nodes = (batch.graph == number).nonzero()[:, 0]
    edges = (batch.graph[batch.edges[0]] == number).nonzero()[:, 0]
    return GraphBatch(
        batch.features[nodes],
        batch.edges[:, edges] - nodes[0],
        batch.relations[edges],
        batch.confidences[edges],
        torch.zeros(len(nodes), dtype=torch.int64),
        batch.num_nodes[number : number + 1],
        batch.sizes[number : number + 1],
    )


def in_another_order(batch: GraphBatch, seed: int) -> GraphBatch:
    """The same graphs: the nodes of each, and all edges, are shuffled."""
    random = torch.Generator().manual_seed(seed)
    keys = batch.graph + torch.rand(len(batch.graph), generator=random, dtype=torch.float64)
    order, of_edges = keys.argsort(), torch.randperm(len(batch.relations), generator=random)
    return dataclasses.replace(
        batch,
        features=batch.features[order],
        edges=order.argsort()[batch.edges[:, of_edges]],
        relations=batch.relations[of_edges],
        confidences=batch.confidences[of_edges],
    )


def general(network: torch.nn.Module) -> torch.nn.Module:
    """In float64 and general position: no weight is where its initialisation puts it."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.double().parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    return network


def all_of(outputs: tuple[Tensor, ...]) -> Tensor:
    """Everything that a network says of each graph, (B, numbers)."""
    return torch.cat([value.flatten(1) if value.ndim > 1 else value.unsqueeze(1) for value in outputs], 1)
