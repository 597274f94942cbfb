"""What a set of problems is: many graphs as flat arrays, each with a label. The generators make them."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Problems:
    """N graphs of one domain, one after the other: M nodes and E edges in all.

    Attributes:
        domain, labels_kind: as a study names them.
        labels: int64 (N,), 0 or 1.
        group: int64 (N,), graphs of one group have one label: the scenario of published causal triples, else the index.
        first_node: int64 (N + 1,), nodes of graph i are ``first_node[i]:first_node[i + 1]``.
        first_edge: int64 (N + 1,), likewise.
        nodes: int64 (M,), the row of ``features`` of each node.
        edges: int64 (2, E), from and to, numbers of nodes within their graph.
        relations: int64 (E,), kind of each edge, below the domain's number.
        confidences: float32 (E,), weight of each edge's message, in (0, 1].
        features: float32 (R, num_features), what a network sees of each kind of node.
        best_probability: float64 (N,), probability of label 1 given all that a network can see of the graph (the Bayes
            posterior): the best accuracy on some graphs is the mean of max(p, 1 - p). Where labels follow from the
            index, whatever graphs show, it is the share of label 1 among the N.
    """

    domain: str
    labels_kind: str
    labels: "NDArray[np.int64]"
    group: "NDArray[np.int64]"
    first_node: "NDArray[np.int64]"
    first_edge: "NDArray[np.int64]"
    nodes: "NDArray[np.int64]"
    edges: "NDArray[np.int64]"
    relations: "NDArray[np.int64]"
    confidences: "NDArray[np.float32]"
    features: "NDArray[np.float32]"
    best_probability: "NDArray[np.float64]"

    @property
    def num_problems(self) -> int:
        """N."""
        return len(self.labels)

    @cached_property
    def num_nodes(self) -> "NDArray[np.int64]":
        """Nodes of each graph, int64 (N,)."""
        return np.diff(self.first_node)

    def ceiling(self, ids: "NDArray[np.int64]") -> float:
        """The best accuracy that anybody can expect on some graphs of whose labels no other graph says anything.

        All triples of a causal scenario have one label as published, and a split at random puts some of them into
        training. With few scenarios for each entity, how often a label comes with it there says more than the ceiling
        allows: 1 to 3 points after 400 training graphs, nothing after 1,600.
        """
        best = np.maximum(self.best_probability[ids], 1 - self.best_probability[ids])
        return float(best.mean()) if len(ids) else float("nan")
