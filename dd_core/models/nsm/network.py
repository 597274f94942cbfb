"""The network of three levels: up by convolution and pooling (why), down by unpooling and reversed couplings (what)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from dd_core.models.nsm.batch import GraphBatch, NSMOutputs
from dd_core.models.nsm.coupling import Coupling
from dd_core.models.nsm.layers import RelationalConvolution, Scores, best_first, entropy
from dd_core.models.nsm.level import Level, lowest_level
from dd_core.study.graphs import NSM


class Step(nn.Module):
    """Between two levels.

    Up: convolution, LayerNorm, ReLU, dropout, coupling, pooling by scores (each kept node times the tanh of its own),
    and above convolution, LayerNorm, ReLU. Down: a linear map of what is above, zeros for nodes that were not kept, and
    the inverse of a second coupling (research-developer/nsm, hierarchical.py; Lee et al. 2019 for the pooling).

    Upstream leaves out convolution, LayerNorm and ReLU above for a whole batch without any edge there, so that the
    output of a graph depends on others of its batch. Here ``above`` decides for each graph: ``always``, of the messages
    to itself alone where there are no edges, or ``with_edges``, which is upstream's for a graph on its own.
    """

    def __init__(self, below: int, k: int, settings: NSM):
        """From nodes of ``below`` features to nodes of k."""
        super().__init__()
        num_relations = settings.relations + (settings.loops == "own")
        sizes = (num_relations, settings.bases, num_relations - 1)
        self.ratio, self.above = settings.pool_ratio, settings.above
        self.convolution_below = RelationalConvolution(below, k, *sizes)
        self.norm_below = nn.LayerNorm(k)
        self.dropout = nn.Dropout(settings.dropout)
        self.coupling_up = Coupling(k, 2 * k, settings.largest_log_scale)
        self.scores = Scores(k)
        self.convolution_above = RelationalConvolution(k, k, *sizes)
        self.norm_above = nn.LayerNorm(k)
        self.linear_down = nn.Linear(k, below)
        self.coupling_down = Coupling(below, 2 * k, settings.largest_log_scale)

    def up(self, x: Tensor, level: Level) -> tuple[Tensor, Level, Tensor, Tensor]:
        """From (N, below) to (M, k) above, its level, the number there of each node below, the entropy of scores."""
        x = self.dropout(self.norm_below(self.convolution_below(x, level)).relu())
        x = self.coupling_up(x)
        scores = self.scores(x, level)
        order = best_first(scores.detach(), level)
        above, kept, number = level.kept_by(order, self.ratio)
        x = x.index_select(0, kept) * scores.index_select(0, kept).tanh().unsqueeze(1)
        convolved = self.norm_above(self.convolution_above(x, above)).relu()
        x = convolved if self.above == "always" else torch.where(above.has_edges, convolved, x)
        return x, above, number, entropy(scores.detach(), order, level)

    def down(self, x: Tensor) -> Tensor:
        """From (M, k) above to (M + 1, below): the last row is what every node that was not kept becomes."""
        mapped = self.linear_down(x)
        return self.coupling_down.inverse(torch.cat([mapped, mapped.new_zeros(1, mapped.shape[1])]))


def head(inputs: int, k: int, num_classes: int, dropout: float) -> nn.Sequential:
    """From the mean of a graph's nodes to logits."""
    return nn.Sequential(nn.Linear(inputs, k // 2), nn.ReLU(), nn.Dropout(dropout), nn.Linear(k // 2, num_classes))


class Network(nn.Module):
    """Graphs to logits and losses of reconstruction.

    The loss of reconstruction of a level is a mean over the nodes and features of each graph; the mean over graphs is
    the loss. Upstream takes the mean over all nodes of a batch, in which a large graph counts more; of graphs of one
    size both are the same.
    """

    def __init__(self, k: int, num_features: int, num_classes: int, settings: NSM, has_trial_axis: bool):
        """A network of width k."""
        super().__init__()
        self.has_trial_axis = has_trial_axis
        self.fusion = settings.fusion
        self.first_step = Step(num_features, k, settings)
        self.second_step = Step(k, k, settings)
        self.head = head(k, k, num_classes, settings.dropout)
        if self.fusion != "none":
            self.head_down = head(num_features, k, num_classes, settings.dropout)
        if self.fusion == "learned":
            self.weights_of_passes = nn.Sequential(nn.Linear(k + num_features, k), nn.ReLU(), nn.Linear(k, 2))

    def forward(self, batch: GraphBatch) -> NSMOutputs:
        """Outputs for B graphs, every one with at least one node."""
        level_1 = lowest_level(batch)
        x_2, level_2, number_2, scores_entropy = self.first_step.up(batch.features, level_1)
        x_3, level_3, number_3, _ = self.second_step.up(x_2, level_2)
        # Nodes that were not kept are alike on the way down, so it takes one row for all of them at each level.
        down_2 = self.second_step.down(x_3)
        down_1 = self.first_step.down(down_2)
        row_of = torch.cat([number_3, number_3.new_full((1,), len(down_2))])
        again_1 = down_1.index_select(0, row_of.index_select(0, number_2))
        again_2 = down_2.index_select(0, number_3)
        logits, passes = self._logits(level_3.mean(x_3), level_1, again_1)
        cycle_loss = torch.stack([_error(batch.features, again_1, level_1), _error(x_2, again_2, level_2)], 1)
        outputs = NSMOutputs(
            logits=logits,
            cycle_loss=cycle_loss,
            kept_share=level_3.num_nodes.to(cycle_loss.dtype) / level_1.num_nodes,
            pooling_entropy=scores_entropy,
            passes=passes,
        )
        return NSMOutputs(*(value.unsqueeze(1) for value in outputs)) if self.has_trial_axis else outputs

    def _logits(self, up: Tensor, level: Level, again: Tensor) -> tuple[Tensor, Tensor]:
        """Those that count, (B, C), and those of both passes, (B, 2, C) or none."""
        logits = self.head(up)
        if self.fusion == "none":
            return logits, logits.new_zeros(len(logits), 0, logits.shape[1])
        down = level.mean(again)
        passes = torch.stack([logits, self.head_down(down)], 1)
        if self.fusion == "equal":
            return passes.mean(1), passes
        weights = self.weights_of_passes(torch.cat([up, down], 1)).softmax(1)
        return (weights.unsqueeze(2) * passes).sum(1), passes


def _error(wanted: Tensor, found: Tensor, level: Level) -> Tensor:
    """Mean squared error over nodes and features of each graph, (B,)."""
    return level.mean(mse_loss(found, wanted, reduction="none").mean(1))
