"""Graphs one after the other on a device: put into any order by a few gathers, and cut into batches by slicing."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dd_core.data.graphs.problems import Problems
from dd_core.models.nsm.batch import GraphBatch


@dataclass(frozen=True)
class GraphSequence:
    """B graphs of N nodes and E edges in all, as one graph of which consecutive ones can be cut out.

    Attributes:
        rows: int64 (N,), of the features, for each node.
        edges: int64 (2, E), numbers of nodes of the sequence.
        relations, confidences: (E,), of the edges.
        graph: int64 (N,), ascending, the place of each node's graph in the sequence.
        sizes: int64 (B,), nodes of each graph.
        labels: int64 (B,), given to them.
        features: (R, num_features), floating point.
        first_node, first_edge: int64 (B + 1,), on the CPU: where each graph begins.
    """

    rows: Tensor
    edges: Tensor
    relations: Tensor
    confidences: Tensor
    graph: Tensor
    sizes: Tensor
    labels: Tensor
    features: Tensor
    first_node: np.ndarray
    first_edge: np.ndarray

    @classmethod
    def of(cls, problems: Problems, device: torch.device, dtype: torch.dtype) -> "GraphSequence":
        """All problems in their own order, with their own labels."""
        owner = np.repeat(np.arange(problems.num_problems), problems.num_nodes)
        owner_of_edge = np.repeat(np.arange(problems.num_problems), np.diff(problems.first_edge))
        edges = problems.edges + problems.first_node[owner_of_edge]
        integers = (problems.nodes, edges, problems.relations, owner, problems.num_nodes, problems.labels)
        rows, edges_, relations, graph, sizes, labels = (torch.from_numpy(array).to(device) for array in integers)
        confidences, features = (
            torch.from_numpy(array).to(device, dtype) for array in (problems.confidences, problems.features)
        )
        first = problems.first_node, problems.first_edge
        return cls(rows, edges_, relations, confidences, graph, sizes, labels, features, *first)

    @property
    def num_nodes(self) -> int:
        """N."""
        return int(self.first_node[-1])

    def pick(self, places: np.ndarray) -> "GraphSequence":
        """The graphs at some places, int64 (B',), in this order; the device is not waited for."""
        device = self.graph.device
        chosen = torch.from_numpy(places).to(device)
        node, graph, first_node, shift = _parts(self.first_node, places, device)
        edge, graph_of_edge, first_edge, _ = _parts(self.first_edge, places, device)
        return GraphSequence(
            self.rows[node],
            self.edges[:, edge] - shift[graph_of_edge],
            self.relations[edge],
            self.confidences[edge],
            graph,
            self.sizes[chosen],
            self.labels[chosen],
            self.features,
            first_node,
            first_edge,
        )

    def with_labels(self, labels: Tensor) -> "GraphSequence":
        """With others, int64 (B,)."""
        return dataclasses.replace(self, labels=labels)

    def with_features(self, features: Tensor) -> "GraphSequence":
        """With those of every node, (N, num_features)."""
        rows = torch.arange(self.num_nodes, device=self.rows.device)
        return dataclasses.replace(self, rows=rows, features=features.to(self.features))

    def cut(self, start: int, stop: int) -> tuple[GraphBatch, Tensor]:
        """Graphs ``start:stop`` and their labels, (B', 1); the device is not waited for."""
        nodes = slice(self.first_node[start], self.first_node[stop])
        edges = slice(self.first_edge[start], self.first_edge[stop])
        batch = GraphBatch(
            self.features[self.rows[nodes]],
            self.edges[:, edges] - int(nodes.start),
            self.relations[edges],
            self.confidences[edges],
            self.graph[nodes] - start,
            self.sizes[start:stop],
            tuple(np.diff(self.first_node[start : stop + 1]).tolist()),
        )
        return batch, self.labels[start:stop, None]


def _parts(first: np.ndarray, places: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, np.ndarray, Tensor]:
    """Where the parts of graphs at some places lie, whose each is, where each graph begins now, and its shift.

    Args:
        first: int64 (B + 1,), where the parts (nodes, or edges) of each graph begin.
        places: int64 (B',), of the graphs.
        device: where all but the third lies.
    """
    numbers = first[places + 1] - first[places]
    begin = np.concatenate([[0], np.cumsum(numbers)])
    shift, length = (torch.from_numpy(array).to(device) for array in (first[places] - begin[:-1], numbers))
    total = int(begin[-1])
    owner = torch.arange(len(places), device=device).repeat_interleave(length, output_size=total)
    return torch.arange(total, device=device) + shift[owner], owner, begin, shift
