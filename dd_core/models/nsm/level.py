"""One level of the hierarchy: the graphs as they are there, and the graphs of the nodes that a pooling keeps of them.

Numbers of nodes are known on the CPU, so nobody waits for the device: edges that a pooling cuts stay in the arrays and
weigh nothing.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dd_core.models.nsm.batch import GraphBatch

# ceil(.07 * 100) is 8 in floating point.
_SLACK = 1e-9


@dataclass(frozen=True)
class Level:
    """B graphs of N nodes and E edges.

    Attributes:
        sources, targets: int64 (E,), numbers of nodes.
        relations: int64 (E,); None: all are of relation 0.
        confidences: (E,), 0 where an edge is cut.
        is_there: (E,), of the type of the confidences, 0 where an edge is cut, else 1.
        graph: int64 (N,), ascending.
        num_nodes: int64 (B,), on the device.
        sizes: the same on the CPU.
    """

    sources: Tensor
    targets: Tensor
    relations: Tensor | None
    confidences: Tensor
    is_there: Tensor
    graph: Tensor
    num_nodes: Tensor
    sizes: tuple[int, ...]

    @cached_property
    def loop_weights(self) -> Tensor:
        """1 over the number of messages that a node gets, with its own, (N,): each message's weight in their mean."""
        ones = self.confidences.new_ones(len(self.graph))
        return ones.index_add(0, self.targets, self.is_there).reciprocal()

    @cached_property
    def edge_weights(self) -> Tensor:
        """Weight of each edge's message in the mean of its target, (E,)."""
        return self.confidences * self.loop_weights.index_select(0, self.targets)

    @cached_property
    def first_nodes(self) -> Tensor:
        """The first node of each graph, int64 (B,)."""
        return self.num_nodes.cumsum(0) - self.num_nodes

    @cached_property
    def has_edges(self) -> Tensor:
        """Whether an edge of its graph is left, of each node, bool (N, 1)."""
        number = self.is_there.new_zeros(len(self.sizes))
        number = number.index_add(0, self.graph.index_select(0, self.targets), self.is_there)
        return (number > 0).index_select(0, self.graph).unsqueeze(1)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the nodes of each graph, (N, ...) to (B, ...)."""
        sums = values.new_zeros(len(self.sizes), *values.shape[1:]).index_add(0, self.graph, values)
        return sums / self.num_nodes.view(-1, *[1] * (values.ndim - 1))

    def kept_by(self, order: Tensor, ratio: float) -> "tuple[Level, Tensor, Tensor]":
        """The graphs of a share of the nodes of each, rounded up: never of none.

        Args:
            order: int64 (N,), nodes graph by graph, those to keep first.
            ratio: share of the nodes that are kept.

        Returns:
            The level above; the M nodes that it keeps, int64 (M,); the number there of each node, int64 (N,), M where
            it is not kept.
        """
        sizes = tuple(max(1, math.ceil(ratio * size - _SLACK)) for size in self.sizes)
        total, device = sum(sizes), self.graph.device
        num_nodes = (ratio * self.num_nodes.double() - _SLACK).ceil().long().clamp(min=1)
        graph = torch.arange(len(sizes), device=device).repeat_interleave(num_nodes, output_size=total)
        place = torch.arange(total, device=device)
        # The first place of a graph above moves to its first place in ``order``.
        moved = self.first_nodes - (num_nodes.cumsum(0) - num_nodes)
        kept = order.index_select(0, place + moved.index_select(0, graph))
        number = torch.full_like(self.graph, total).scatter(0, kept, place)
        sources, targets = number.index_select(0, self.sources), number.index_select(0, self.targets)
        remains = ((sources < total) & (targets < total)).to(self.is_there.dtype)
        above = Level(
            sources.clamp(max=total - 1),
            targets.clamp(max=total - 1),
            None,
            self.confidences * remains,
            self.is_there * remains,
            graph,
            num_nodes,
            sizes,
        )
        return above, kept, number


def lowest_level(batch: GraphBatch) -> Level:
    """The graphs that a network is given."""
    sources, targets = batch.edges
    is_there = torch.ones_like(batch.confidences)
    rest = (batch.graph, batch.num_nodes, batch.sizes)
    return Level(sources, targets, batch.relations, batch.confidences, is_there, *rest)
