"""What graph networks take and give: many graphs as one, and for each of them logits and losses of reconstruction."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class GraphBatch:
    """B graphs as one graph of N nodes and E edges without edges between them, on one device.

    Attributes:
        features: (N, num_features), floating point.
        edges: int64 (2, E), from and to, numbers of nodes of the batch.
        relations: int64 (E,), kind of each edge.
        confidences: (E,), weight of each edge's message.
        graph: int64 (N,), ascending, the graph that each node belongs to.
        num_nodes: int64 (B,), nodes of each graph.
        sizes: num_nodes on the CPU, as a tuple, so that nobody waits for the device to know them.
    """

    features: Tensor
    edges: Tensor
    relations: Tensor
    confidences: Tensor
    graph: Tensor
    num_nodes: Tensor
    sizes: tuple[int, ...]

    @property
    def num_graphs(self) -> int:
        """B."""
        return len(self.sizes)

    def to(self, dtype: torch.dtype) -> "GraphBatch":
        """With features and confidences in another floating point type."""
        rest = (self.graph, self.num_nodes, self.sizes)
        return GraphBatch(self.features.to(dtype), self.edges, self.relations, self.confidences.to(dtype), *rest)


class NSMOutputs(NamedTuple):
    """What a network says of B graphs; stacked networks of T trials have (B, T, ...).

    Attributes:
        logits: (B, classes).
        cycle_loss: (B, 2), mean squared error of the reconstruction of each level's nodes, per graph: of the features
            of the input, and of the level above.
        kept_share: (B,), share of the nodes of the input that both poolings keep. The way down starts from them alone
            and makes one of two rows of all other nodes, the same for all graphs, so that 1 minus it is about the floor
            of the first cycle loss where features are independent and of unit variance.
        pooling_entropy: (B,), entropy of the softmax, over a graph's nodes, of the first pooling's scores before their
            tanh, over the logarithm of the number of nodes, 0 to 1 (1 for a graph of one node).
        passes: (B, 2, classes), logits of the two passes, where they are fused; empty (B, 0, classes) otherwise.
    """

    logits: Tensor
    cycle_loss: Tensor
    kept_share: Tensor
    pooling_entropy: Tensor
    passes: Tensor
