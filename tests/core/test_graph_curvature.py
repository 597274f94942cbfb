"""Curvature in node features against dense float64 Hessians of graphs of different sizes, one by one."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn.functional import cross_entropy

from dd_core.curvature.input_space import graphs as graph_curvatures
from dd_core.curvature.input_space.graphs import chosen_graphs, graph_curvature
from dd_core.data.graphs.load import load_problems
from dd_core.errors import UserError
from dd_core.models.nsm.batch import GraphBatch, NSMOutputs
from dd_core.models.nsm.build import nsm
from dd_core.study.curvature_names import CURVATURE_COLUMNS
from dd_core.study.graphs import NSM, Domain, Graphs
from dd_core.tasks.graph_sequence import GraphSequence
from dd_core.tasks.losses import CROSS_ENTROPY, CrossEntropy, Loss

FEATURES = 3
SIZES = (4, 1, 2, 6, 2)


class SmallNetwork(nn.Module):
    """Messages by relation, LayerNorm, and a gate; means of nodes. Smooth, so that a Hessian is no matter of luck."""

    def __init__(self) -> None:
        """Three features, two relations."""
        super().__init__()
        self.relation = nn.Parameter(torch.randn(2, FEATURES, 5))
        self.own, self.norm, self.head = nn.Linear(FEATURES, 5), nn.LayerNorm(5), nn.Linear(5, 2)
        self.gate = nn.Linear(5, 1)

    def forward(self, graphs: GraphBatch) -> NSMOutputs:
        """Logits are all that counts here."""
        source, target = graphs.edges
        messages = torch.einsum("ef,efk->ek", graphs.features[source], self.relation[graphs.relations])
        messages = messages * graphs.confidences[:, None]
        hidden = self.norm(self.own(graphs.features).index_add(0, target, messages))
        hidden = nn.functional.gelu(hidden) * self.gate(hidden).tanh()
        total = hidden.new_zeros(graphs.num_graphs, 5).index_add(0, graphs.graph, hidden)
        logits = 3 * self.head(total / graphs.num_nodes[:, None])
        return NSMOutputs(logits, logits.square(), logits[:, 0], logits[:, 0], logits[:, None][:, :0])


def batch_of(sizes: tuple[int, ...] = SIZES) -> GraphBatch:
    random = np.random.default_rng(1)
    first = np.cumsum(sizes) - sizes
    pairs = [(n, random.integers(0, size, 2)) for n, size in enumerate(sizes) for _ in range(size)]
    pairs = [pairs[place] for place in random.permutation(len(pairs))]  # edges in no order
    return GraphBatch(
        torch.from_numpy(random.standard_normal((sum(sizes), FEATURES))),
        torch.from_numpy(np.array([first[n] + pair for n, pair in pairs]).T.copy()),
        torch.from_numpy(random.integers(0, 2, len(pairs))),
        torch.from_numpy(random.uniform(0.2, 1, len(pairs))),
        torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
        torch.tensor(sizes),
        tuple(sizes),
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return SmallNetwork().double().eval()


def dense(model: nn.Module, graphs: GraphBatch, labels: Tensor, smoothing: float = 0.0) -> dict[str, Tensor]:
    """All columns, graph by graph, each as a batch of its own."""
    rows = []
    for number in range(graphs.num_graphs):
        own = chosen_graphs(graphs, np.array([number]))
        rest = (own.edges, own.relations, own.confidences, own.graph, own.num_nodes, own.sizes)

        def of(x: Tensor, own: GraphBatch = own, rest: tuple = rest, label: Tensor = labels[number]) -> Tensor:
            logits = model(GraphBatch(x.view_as(own.features), *rest)).logits
            return cross_entropy(logits, label.view(1), label_smoothing=smoothing)

        x = own.features.flatten().clone().requires_grad_(True)
        loss = of(x)
        (gradient,) = torch.autograd.grad(loss, x)
        matrix = hessian(of, x.detach())
        zero = torch.zeros((), dtype=torch.float64)
        rows.append(
            {
                "loss": loss.detach(),
                "probability": model(own).logits.softmax(1)[0, labels[number]].detach(),
                "gradient_norm": gradient.norm(),
                "gradient_curvature": gradient @ matrix @ gradient / gradient.square().sum(),
                "trace": matrix.trace(),
                "trace_standard_error": zero,
                "frobenius_norm": matrix.norm(),
                "frobenius_norm_standard_error": zero,
                "largest_eigenvalue": torch.linalg.eigvalsh(matrix)[-1],
                "largest_eigenvalue_residual": zero,
            }
        )
    return {name: torch.stack([row[name] for row in rows]) for name in CURVATURE_COLUMNS}


LABELS = torch.tensor([0, 1, 1, 0, 0])


def nsm_network(domain: Domain, fusion: Literal["none", "learned"]) -> nn.Module:
    """As after some training: all weights away from their initialisation, that of couplings being the identity."""
    torch.manual_seed(0)
    model = nsm(4, 2, 2, None, NSM(domain=domain, fusion=fusion)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    ("domain", "fusion"), [("planning", "none"), ("causal", "learned"), ("knowledge_graph", "none")]
)
def test_so_it_is_of_the_networks_and_graphs_of_each_domain(domain: Domain, fusion: Literal["none", "learned"]) -> None:
    settings = Graphs(labels="grounded", num_test=0, num_features=2)
    problems = load_problems(settings, domain, 0, 3)
    sequence = GraphSequence.of(problems, torch.device("cpu"), torch.float64)
    graphs, labels = sequence.with_labels(torch.from_numpy(problems.labels)).cut(0, 3)
    model = nsm_network(domain, fusion)
    expected = dense(model, graphs, labels[:, 0])
    assert (expected["frobenius_norm"] > 0).all()
    torch.testing.assert_close(graph_curvature(model, graphs, labels[:, 0]), expected, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("nodes_per_pass", [1, 5, 1000])
def test_every_column_is_that_of_the_dense_hessian(
    smoothing: float, nodes_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(graph_curvatures._NODES_PER_PASS, "cpu", nodes_per_pass)
    model, graphs = network(), batch_of()
    loss: Loss = CrossEntropy(smoothing) if smoothing else CROSS_ENTROPY
    torch.testing.assert_close(
        graph_curvature(model, graphs, LABELS, loss=loss),
        dense(model, graphs, LABELS, smoothing),
        rtol=1e-9,
        atol=1e-12,
    )
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_largest_eigenvalue_of_a_large_graph_is_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_curvatures, "_FEW_DIMENSIONS", 4)
    model, graphs = network(), batch_of()
    found = graph_curvature(model, graphs, LABELS)["largest_eigenvalue"]
    torch.testing.assert_close(found, dense(model, graphs, LABELS)["largest_eigenvalue"], rtol=1e-9, atol=1e-12)


def test_a_network_without_any_curvature_has_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_curvatures, "_FEW_DIMENSIONS", 4)
    model, graphs = network(), batch_of()
    model.get_parameter("head.weight").data.zero_()
    found = graph_curvature(model, graphs, LABELS)
    for name in ("trace", "frobenius_norm", "largest_eigenvalue", "gradient_norm", "gradient_curvature"):
        assert not found[name].any(), name


def test_float32_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graphs = network(), batch_of()
    expected = graph_curvature(model, graphs, LABELS)
    found = graph_curvature(model.float(), graphs.to(torch.float32), LABELS)
    for name in CURVATURE_COLUMNS:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)


def test_chosen_graphs_are_those_graphs() -> None:
    model, graphs = network(), batch_of()
    chosen = np.array([3, 0, 1])
    some = chosen_graphs(graphs, chosen)
    assert some.sizes == (6, 4, 1)
    torch.testing.assert_close(model(some).logits, model(graphs).logits[chosen])


def test_what_has_no_curvature_is_refused() -> None:
    model, graphs = network(), batch_of()
    for wrong in (LABELS[:3], LABELS.int()):
        with pytest.raises(UserError, match="one for each graph"):
            graph_curvature(model, graphs, wrong)
    with pytest.raises(UserError, match="labels from 0 to 4 do not fit the model's 2 classes"):
        graph_curvature(model, graphs, torch.arange(5))
    with pytest.raises(UserError, match="there are no graphs"):
        graph_curvature(model, chosen_graphs(graphs, np.zeros(0, np.int64)), LABELS[:0])
    with pytest.raises(UserError, match="in training mode"):
        graph_curvature(network().train(), graphs, LABELS)
    graphs.features[0] = torch.nan
    with pytest.raises(UserError, match="node features have NaN"):
        graph_curvature(model, graphs, LABELS)
    model.get_parameter("head.bias").data[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        graph_curvature(model, batch_of(), LABELS)
