"""Layers on graphs: the relational convolution by bases, and the scores by which a pooling keeps nodes."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from dd_core.models.nsm.level import Level


class RelationalConvolution(nn.Module):
    """``h_i = mean_j(c_ij W_r(ij) x_j) + W_0 x_i + b``, ``W_r = sum_b a_rb V_b`` (Schlichtkrull et al. 2018, eq. 2, 3).

    The mean is over all messages of a node, its own to itself with confidence 1 included, and not over those of each
    relation as in the paper. All bases are applied to all nodes in one product, and an edge combines them.
    """

    def __init__(self, inputs: int, outputs: int, num_relations: int, num_bases: int, loop_relation: int):
        """Weights as PyTorch Geometric's RGCNConv draws them: Glorot's of every basis, of coefficients, of the root."""
        super().__init__()
        self.loop_relation = loop_relation
        self.bases = nn.Parameter(_glorot(num_bases, inputs, outputs))
        self.coefficients = nn.Parameter(_glorot(num_relations, num_bases))
        self.root = nn.Parameter(_glorot(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, level: Level) -> Tensor:
        """(N, inputs) to (N, outputs)."""
        outputs = self.root.shape[1]
        if level.relations is None:
            # One relation needs one matrix.
            shared, loop = self._weights(0, self.loop_relation)
            products = x @ torch.cat([shared, loop, self.root], 1)
            sent = products[:, :outputs].index_select(0, level.sources).to(level.edge_weights.dtype)
            messages = sent * level.edge_weights.unsqueeze(1)
        else:
            (loop,) = self._weights(self.loop_relation)
            products = x @ torch.cat([*self.bases, loop, self.root], 1)
            sent = products[:, : -2 * outputs].index_select(0, level.sources).unflatten(1, (-1, outputs))
            coefficients = self.coefficients.index_select(0, level.relations) * level.edge_weights.unsqueeze(1)
            # Not bmm: its backward pass over matrices of one row takes three times as long.
            messages = (sent * coefficients.unsqueeze(2)).sum(1)
        own, root = products[:, -2 * outputs :].chunk(2, 1)
        still = torch.addcmul(root + self.bias, own, level.loop_weights.unsqueeze(1))
        return still.index_add(0, level.targets, messages.to(still.dtype))

    def _weights(self, *relations: int) -> Tensor:
        """Matrices of some relations, (R, inputs, outputs)."""
        chosen = torch.stack([self.coefficients[relation] for relation in relations])
        return (chosen @ self.bases.flatten(1)).unflatten(1, self.bases.shape[1:])


class Scores(nn.Module):
    """A score of every node from itself and those before it: ``w_0 x_i + sum_j w_1 x_j + b`` (PyG's GraphConv to 1)."""

    def __init__(self, inputs: int):
        """Weights as two linear layers draw them."""
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(2, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(1).uniform_(-bound, bound))

    def forward(self, x: Tensor, level: Level) -> Tensor:
        """(N, inputs) to (N,)."""
        own, sent = linear(x, self.weight).to(x.dtype).unbind(1)
        return (own + self.bias).index_add(0, level.targets, sent.index_select(0, level.sources) * level.is_there)


def _glorot(*shape: int) -> Tensor:
    bound = math.sqrt(6 / (shape[-1] + shape[-2]))
    return torch.empty(shape).uniform_(-bound, bound)


def best_first(scores: Tensor, level: Level) -> Tensor:
    """Nodes graph by graph, of each those of the highest scores first, int64 (N,); equal ones as they come."""
    by_score = scores.argsort(descending=True, stable=True)
    return by_score.index_select(0, level.graph.index_select(0, by_score).argsort(stable=True))


def entropy(scores: Tensor, order: Tensor, level: Level) -> Tensor:
    """Entropy of the softmax of the scores of a graph's nodes over the logarithm of their number, (B,); of one node 1.

    Args:
        scores: (N,).
        order: of ``best_first``.
        level: of the nodes.
    """
    highest = scores.index_select(0, order.index_select(0, level.first_nodes))
    below = scores - highest.index_select(0, level.graph)
    shares = below.exp()
    total, product = level.mean(torch.stack([shares, shares * below], 1)).unbind(1)
    entropies = (total * level.num_nodes).log() - product / total
    return torch.where(level.num_nodes > 1, entropies / level.num_nodes.clamp(min=2).to(scores.dtype).log(), 1)
