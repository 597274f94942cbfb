"""The published network from PyTorch Geometric's layers and plain perceptrons, as a reference: slow and simple."""

import warnings
from itertools import pairwise

import torch
from torch import Tensor, nn

from dd_core.models.nsm.batch import GraphBatch
from dd_core.models.nsm.coupling import AffineCoupling, Coupling
from dd_core.models.nsm.layers import RelationalConvolution, Scores

with warnings.catch_warnings():
    # It scripts functions as it is imported, which PyTorch advises against.
    warnings.simplefilter("ignore")
    from torch_geometric.nn import RGCNConv, SAGPooling, global_mean_pool
    from torch_geometric.utils import degree


def perceptron(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class PlainCoupling(nn.Module):
    """Three affine couplings with a perceptron each for scale and shift; ``largest`` bounds scales, not upstream's."""

    largest: float | None = None

    def __init__(self, width: int, hidden: int):
        """For (N, width)."""
        super().__init__()
        self.unchanged = [width // 2, width // 3, width // 2]
        sizes = [(kept, hidden, hidden, width - kept) for kept in self.unchanged]
        self.scales = nn.ModuleList(perceptron(*own) for own in sizes)
        self.shifts = nn.ModuleList(perceptron(*own) for own in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Forth."""
        for kept, scale, shift in zip(self.unchanged, self.scales, self.shifts, strict=True):
            same, other = x[:, :kept], x[:, kept:]
            x = torch.cat([same, other * self.bounded(scale(same)).exp() + shift(same)], 1)
        return x

    def inverse(self, x: Tensor) -> Tensor:
        """Back."""
        for kept, scale, shift in reversed(list(zip(self.unchanged, self.scales, self.shifts, strict=True))):
            same, other = x[:, :kept], x[:, kept:]
            x = torch.cat([same, (other - shift(same)) / self.bounded(scale(same)).exp()], 1)
        return x

    def bounded(self, scale: Tensor) -> Tensor:
        """Within +-largest."""
        return scale if self.largest is None else self.largest * (scale / self.largest).tanh()

    def take(self, ours: Coupling) -> None:
        """Copy its weights."""
        for number, layer in enumerate(ours.layers):
            assert isinstance(layer, AffineCoupling)
            self.largest = layer.largest
            for part, net in enumerate((self.scales[number], self.shifts[number])):
                first, second, last = (m for m in net.children() if isinstance(m, nn.Linear))
                first.weight.copy_(layer.first.weight.chunk(2)[part])
                first.bias.copy_(layer.first.bias.chunk(2)[part])
                second.weight.copy_(layer.weight[part].T)
                second.bias.copy_(layer.bias[part, 0])
                last.weight.copy_(layer.last_weight[part].T)
                last.bias.copy_(layer.last_bias[part, 0])


class MeanOfAll(nn.Module):
    """PyG's sum over the messages of all relations, over their number; loops are edges of the last relation."""

    def __init__(self, inputs: int, outputs: int, num_relations: int, num_bases: int):
        """The last relation is that of loops."""
        super().__init__()
        self.messages = RGCNConv(inputs, outputs, num_relations, num_bases, aggr="add", root_weight=False, bias=False)
        self.root, self.bias = nn.Parameter(torch.empty(inputs, outputs)), nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor, edges: Tensor, relations: Tensor) -> Tensor:
        """With confidences of one."""
        loops = torch.arange(len(x)).expand(2, -1)
        edges = torch.cat([edges, loops], 1)
        relations = torch.cat([relations, relations.new_full((len(x),), self.messages.num_relations - 1)])
        number = degree(edges[1], len(x), x.dtype)
        return self.messages(x, edges, relations) / number.unsqueeze(1) + x @ self.root + self.bias

    def take(self, ours: RelationalConvolution) -> None:
        """Copy its weights."""
        self.messages.weight.copy_(ours.bases)
        self.messages.comp.copy_(ours.coefficients)
        self.root.copy_(ours.root)
        self.bias.copy_(ours.bias)


def take_scores(pooling: SAGPooling, ours: Scores) -> None:
    """Weights of GraphConv; SelectTopK has one of its own, of which only the sign counts."""
    pooling.gnn.lin_root.weight.copy_(ours.weight[:1])
    pooling.gnn.lin_rel.weight.copy_(ours.weight[1:])
    pooling.gnn.lin_rel.bias.copy_(ours.bias)
    pooling.select.weight.fill_(1)


class PlainStep(nn.Module):
    """Upstream's SymmetricHierarchicalLayer without its dropout; ``is_always_above`` is not upstream's."""

    is_always_above = True

    def __init__(self, below: int, k: int, num_relations: int, num_bases: int, ratio: float):
        """Between nodes of ``below`` features and nodes of k."""
        super().__init__()
        self.convolution_below = MeanOfAll(below, k, num_relations, num_bases)
        self.norm_below = nn.LayerNorm(k)
        self.coupling_up = PlainCoupling(k, 2 * k)
        self.pooling = SAGPooling(k, ratio)
        self.convolution_above = MeanOfAll(k, k, num_relations, num_bases)
        self.norm_above = nn.LayerNorm(k)
        self.linear_down = nn.Linear(k, below)
        self.coupling_down = PlainCoupling(below, 2 * k)

    def up(self, x: Tensor, edges: Tensor, relations: Tensor, graph: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Nodes, edges and graphs above, and the nodes that were kept."""
        x = self.coupling_up(self.norm_below(self.convolution_below(x, edges, relations)).relu())
        x, edges, _, graph, kept, _ = self.pooling(x, edges, None, graph)
        if self.is_always_above or edges.numel():
            x = self.norm_above(self.convolution_above(x, edges, torch.zeros_like(edges[0]))).relu()
        return x, edges, graph, kept

    def down(self, x: Tensor, kept: Tensor, number: int) -> Tensor:
        """All nodes below again."""
        mapped = self.linear_down(x)
        return self.coupling_down.inverse(mapped.new_zeros(number, mapped.shape[1]).index_copy(0, kept, mapped))


class PlainNetwork(nn.Module):
    """Upstream's NSMModel of three levels; the heads of both passes where it has them."""

    def __init__(
        self, k: int, num_features: int, num_relations: int, num_bases: int, ratio: float, fusion: str = "none"
    ):
        """The last relation is that of loops."""
        super().__init__()
        self.fusion = fusion
        self.first_step = PlainStep(num_features, k, num_relations, num_bases, ratio)
        self.second_step = PlainStep(k, k, num_relations, num_bases, ratio)
        self.head = perceptron(k, k // 2, 2)
        if fusion != "none":
            self.head_down = perceptron(num_features, k // 2, 2)
        if fusion == "learned":
            self.weights_of_passes = perceptron(k + num_features, k, 2)

    def forward(self, batch: GraphBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, those of passes, and squared errors of the nodes of both levels as means over features."""
        x_1 = batch.features
        x_2, edges, graph, kept_2 = self.first_step.up(x_1, batch.edges, batch.relations, batch.graph)
        x_3, _, graph_3, kept_3 = self.second_step.up(x_2, edges, torch.zeros_like(edges[0]), graph)
        again_2 = self.second_step.down(x_3, kept_3, len(x_2))
        again_1 = self.first_step.down(again_2, kept_2, len(x_1))
        up, down = global_mean_pool(x_3, graph_3), global_mean_pool(again_1, batch.graph)
        logits = self.head(up)
        passes = [logits]
        if self.fusion != "none":
            passes.append(self.head_down(down))
            shares = logits.new_full((len(logits), 2), 0.5)
            if self.fusion == "learned":
                shares = self.weights_of_passes(torch.cat([up, down], 1)).softmax(1)
            logits = shares[:, :1] * passes[0] + shares[:, 1:] * passes[1]
        error_1, error_2 = (again_1 - x_1).square().mean(1), (again_2 - x_2).square().mean(1)
        return logits, torch.stack(passes, 1), error_1, error_2

    def take(self, ours: nn.Module) -> "PlainNetwork":
        """The weights of ours, every one of them."""
        taken = 0
        with torch.no_grad():
            for name, module in ours.named_modules():
                if isinstance(module, Scores):
                    take_scores(self.get_submodule(name.replace("scores", "pooling")), module)
                elif isinstance(module, RelationalConvolution | Coupling):
                    self.get_submodule(name).take(module)
                elif isinstance(module, nn.LayerNorm) or (isinstance(module, nn.Linear) and "coupling" not in name):
                    # Perceptrons here have no dropout between.
                    name = name.replace(".3", ".2") if "head" in name else name
                    self.get_submodule(name).load_state_dict(module.state_dict())
                else:
                    continue
                taken += sum(parameter.numel() for parameter in module.parameters())
        assert taken == sum(parameter.numel() for parameter in ours.parameters())
        return self
