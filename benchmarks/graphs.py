"""Epochs of graphs per second: our trainer against the loops of PyTorch Geometric that it replaces.

    python benchmarks/graphs.py [--quick]

Every peer has a list of ``torch_geometric.data.Data``, made before, and ``DataLoader(batch_size=64, shuffle=True)``,
which puts a batch together graph by graph; ``torch.optim.Adam`` as it comes, and clipping. (a) trains the network of
PyG's own layers that has the same sizes (RGCNConv with bases, SAGPooling with a GraphConv, global_mean_pool) and two
perceptrons in each coupling, as the published system does; (b) trains our network, so that it differs from ours in how
examples reach it alone. Ours puts an epoch in order at once and cuts batches out of it.

The losses of (b) are those of ours, step for step in float64 for the same order of the graphs, which is checked before
anything is timed. All run in turn, in one process with one thread; ratios are of processor time, so that others on the
machine hardly count, and of wall time for comparison. Keys: ``planning``, ``causal``, ``knowledge_graph`` over (a), of
which at least 2 is wanted for the two of single triples; with ``_same_network`` over (b), more than 1.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import interleaved, load_average, median_ratio, parse_arguments, write_json
from setups import NSM_OPTIMIZER, nsm_study
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dd_core.data.graphs.load import load_problems
from dd_core.data.randomness import torch_seed
from dd_core.data.trials import trial_data
from dd_core.models.build import network_of
from dd_core.models.nsm.batch import GraphBatch
from dd_core.models.stacking import load_state
from dd_core.study.graphs import DOMAINS, NSM
from dd_core.study.study import Arm, Study
from dd_core.tasks.graphs import GraphExamples
from dd_core.training.trial_stack import TrialStack

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch.jit.script, which it uses
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader
    from torch_geometric.nn import GraphConv, RGCNConv, SAGPooling, global_mean_pool

RATE, DECAY, LARGEST_NORM = (NSM_OPTIMIZER[name] for name in ("learning_rate", "weight_decay", "clip_norm"))


def listed(study: Study, dtype: torch.dtype) -> list[Data]:
    """The training graphs, one by one."""
    settings, own, found = study.variants["plain"].nsm, trial_data(study, "plain", 0), []
    assert settings is not None and study.data.graphs is not None
    problems = load_problems(study.data.graphs, settings.domain, study.seed, study.num_evaluated_images)
    for index, label in zip(own.train_ids, own.train_labels, strict=True):
        nodes = slice(*problems.first_node[index : index + 2])
        edges = slice(*problems.first_edge[index : index + 2])
        found.append(
            Data(
                x=torch.from_numpy(problems.features[problems.nodes[nodes]]).to(dtype),
                edge_index=torch.from_numpy(problems.edges[:, edges]),
                edge_type=torch.from_numpy(problems.relations[edges]),
                confidence=torch.from_numpy(problems.confidences[edges]).to(dtype),
                y=torch.tensor([label]),
            )
        )
    return found


class PlainCoupling(nn.Module):
    """An affine coupling with a perceptron each for scale and shift."""

    def __init__(self, width: int, unchanged: int, hidden: int):
        """The last layers begin at zero."""
        super().__init__()
        self.unchanged = unchanged
        self.scale, self.shift = (_perceptron(unchanged, hidden, width - unchanged) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) to the same."""
        kept, changed = x[:, : self.unchanged], x[:, self.unchanged :]
        return torch.cat([kept, changed * self.scale(kept).exp() + self.shift(kept)], 1)

    def inverse(self, y: Tensor) -> Tensor:
        """What ``forward`` made it of."""
        kept, changed = y[:, : self.unchanged], y[:, self.unchanged :]
        return torch.cat([kept, (changed - self.shift(kept)) * (-self.scale(kept)).exp()], 1)


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)


class PygStep(nn.Module):
    """Up and down between two levels, of PyG's layers."""

    def __init__(self, below: int, k: int, settings: NSM):
        """From nodes of ``below`` features to nodes of k."""
        super().__init__()
        self.below = RGCNConv(below, k, settings.relations, num_bases=settings.bases)
        self.above = RGCNConv(k, k, settings.relations, num_bases=settings.bases)
        self.norm_below, self.norm_above = nn.LayerNorm(k), nn.LayerNorm(k)
        self.dropout = nn.Dropout(settings.dropout)
        self.pool = SAGPooling(k, settings.pool_ratio, GNN=GraphConv, nonlinearity="tanh")
        self.couplings_up = nn.ModuleList(PlainCoupling(k, part, 2 * k) for part in (k // 2, k // 3, k // 2))
        parts = below // 2, below // 3, below // 2
        self.couplings_down = nn.ModuleList(PlainCoupling(below, part, 2 * k) for part in parts)
        self.linear_down = nn.Linear(k, below)

    def up(self, x: Tensor, edges: Tensor, kinds: Tensor, graph: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Nodes, edges and graphs above, and which nodes were kept."""
        x = self.dropout(self.norm_below(self.below(x, edges, kinds)).relu())
        for coupling in self.couplings_up:
            x = coupling(x)
        x, edges, _, graph, kept, _ = self.pool(x, edges, None, graph)
        return self.norm_above(self.above(x, edges, edges.new_zeros(edges.shape[1]))).relu(), edges, graph, kept

    def down(self, x: Tensor, kept: Tensor, num_nodes: int) -> Tensor:
        """Nodes below again."""
        mapped = self.linear_down(x)
        x = mapped.new_zeros(num_nodes, mapped.shape[1]).index_copy(0, kept, mapped)
        for coupling in reversed(self.couplings_down):
            x = coupling.inverse(x)
        return x


class PygNetwork(nn.Module):
    """The network of three levels."""

    def __init__(self, k: int, num_features: int, settings: NSM):
        """Two classes."""
        super().__init__()
        self.steps = nn.ModuleList([PygStep(num_features, k, settings), PygStep(k, k, settings)])
        dropout = nn.Dropout(settings.dropout)
        self.head = nn.Sequential(nn.Linear(k, k // 2), nn.ReLU(), dropout, nn.Linear(k // 2, 2))

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits (B, 2), and the loss of reconstruction."""
        first, second = self.steps
        x_2, edges, graph, kept_1 = first.up(batch.x, batch.edge_index, batch.edge_type, batch.batch)
        x_3, _, graph, kept_2 = second.up(x_2, edges, edges.new_zeros(edges.shape[1]), graph)
        again_2 = second.down(x_3, kept_2, len(x_2))
        again_1 = first.down(again_2, kept_1, len(batch.x))
        cycle = 0.7 * (again_1 - batch.x).square().mean() + 0.3 * (again_2 - x_2).square().mean()
        return self.head(global_mean_pool(x_3, graph, batch.num_graphs)), cycle


class Loop:
    """A plain training of an epoch at a time."""

    def __init__(self, study: Study, network: nn.Module, losses: Callable[[Any], Tensor], **options: Any):
        """``losses``: of a batch; ``options``: of the loader."""
        self.network, self.loss = network.train(), losses
        dtype = next(network.parameters()).dtype
        self.loader = DataLoader(listed(study, dtype), **(options or {"batch_size": 64, "shuffle": True}))
        self.optimizer = torch.optim.Adam(network.parameters(), lr=RATE, weight_decay=DECAY)

    def __call__(self, before_step: Callable[[int], object] = lambda step: None) -> list[float]:
        """An epoch; the loss of every step."""
        found = []
        for step, batch in enumerate(self.loader):
            before_step(step)
            loss = self.loss(batch)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_NORM)
            self.optimizer.step()
            found.append(loss.item())
        return found


def with_our_network(study: Study, arm: Arm, state: dict[str, Tensor], **options: Any) -> Loop:
    """(b)."""
    settings = study.variants["plain"].nsm
    assert settings is not None
    network = network_of(study, arm).to(next(iter(state.values())).dtype)
    load_state(network, state)

    def loss(batch: Any) -> Tensor:
        sizes = batch.ptr.diff()
        parts = (batch.x, batch.edge_index, batch.edge_type, batch.confidence, batch.batch)
        outputs = network(GraphBatch(*parts, sizes, tuple(sizes.tolist())))
        first, second = outputs.cycle_loss.mean(0)
        return cross_entropy(outputs.logits, batch.y) + settings.cycle_weight * (0.7 * first + 0.3 * second)

    return Loop(study, network, loss, **options)


def with_pygs_network(study: Study, arm: Arm) -> Loop:
    """(a)."""
    settings, graphs = study.variants["plain"].nsm, study.data.graphs
    assert settings is not None and graphs is not None
    network = PygNetwork(arm.k, graphs.num_features, settings)

    def loss(batch: Any) -> Tensor:
        logits, cycle = network(batch)
        return cross_entropy(logits, batch.y) + settings.cycle_weight * cycle

    return Loop(study, network, loss)


def largest_difference(study: Study, arm: Arm) -> float:
    """Largest relative difference of losses, ours against (b), over an epoch in float64 and one order of graphs."""
    stack = TrialStack(study, arm, [0], torch.device("cpu"), torch.float64)
    order = np.random.default_rng(0).permutation(stack.num_train)
    state = {name: tensor.clone() for name, tensor in stack.weights_of(0).items()}
    examples = stack.examples
    assert isinstance(examples, GraphExamples)
    ordered = examples._evaluated.pick(order)
    plain = with_our_network(study, arm, state, batch_size=64, sampler=order.tolist())
    losses = plain(lambda step: torch.manual_seed(torch_seed(study.seed, 0, "network", step)))
    with mock.patch.object(examples, "plan", lambda epoch: ordered):
        ours = stack.train_epoch(1).loss[:, 0]
    return float(np.abs(ours / losses - 1).max())


def measure(domain: str, num_train: int, repeats: int) -> dict[str, float]:
    """Check, time and print a domain; its ratios by key."""
    study, arm = nsm_study(domain, num_train), Arm("plain", 64)
    difference = largest_difference(study, arm)
    assert difference < 1e-9, f"the losses of {domain} differ by {difference:.1e}"
    stack = TrialStack(study, arm, [0], torch.device("cpu"), torch.float32)
    candidates: dict[str, Callable[[], object]] = {
        "ours": lambda: stack.train_epoch(1),
        "a": with_pygs_network(study, arm),
        "b": with_our_network(study, arm, stack.weights_of(0)),
    }
    ratios = {}
    for clock, kind in ((time.process_time, "CPU"), (time.perf_counter, "wall")):
        seconds = interleaved(candidates, repeats, clock=clock)
        own = {name: statistics.median(values) for name, values in seconds.items()}
        line = [f"{num_train / own[name]:12,.0f}" for name in ("a", "b", "ours")]
        for key, peer in ((domain, "a"), (f"{domain}_same_network", "b")):
            ratio, low, high = median_ratio(seconds[peer], seconds["ours"])
            line.append(f"{ratio:8.2f} ({low:.2f} to {high:.2f})")
            if kind == "CPU":
                ratios[key] = ratio
        print(
            f"{domain:16s}{kind:>5s}{''.join(line)}   losses alike to {difference:.0e}   {load_average()}", flush=True
        )
    return ratios


def main() -> None:
    """Run and print."""
    from dd_assets.compute.local import this_machine  # needs Dagster, which a machine that imports this may lack

    arguments = parse_arguments(__doc__)
    torch.set_num_threads(1)
    num_train, repeats = (640, 3) if arguments.quick else (2000, 7)
    print(f"{this_machine().describe()}, one thread; {num_train} graphs in batches of 64, k = 64. Graphs per second of")
    print(f"{'':16s}{'':5s}{'(a) PyG':>12s}{'(b) same net':>12s}{'ours':>12s}{'over (a)':>23s}{'over (b)':>23s}")
    ratios: dict[str, float] = {}
    for domain in DOMAINS:
        ratios |= measure(domain, num_train, arguments.repeats or repeats)
    write_json(arguments.json, ratios)


if __name__ == "__main__":
    main()
