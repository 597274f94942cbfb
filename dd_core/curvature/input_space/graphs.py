"""Curvature of the loss in the node features of graphs: exact, by double backward, of any differentiable network.

Graph networks normalise and gate (LayerNorm, tanh), so no formula gives the Hessian of the loss in their input as
``exact.py`` does. Graphs of a batch do not interact: one Hessian-vector product with the i-th basis vector of every
graph gives the i-th row of every Hessian. A graph of n nodes with F features has d = n F of them, so graphs of about
the same size share a batch. No number is an estimate.

What a pooling keeps is a choice, not a function: the derivatives are those of the network with the nodes that it keeps.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, eigsh
from torch import Tensor, nn

from dd_core.curvature.evaluation import frozen
from dd_core.curvature.second_derivatives import second_derivatives
from dd_core.errors import UserError
from dd_core.machine.memory import in_blocks
from dd_core.models.nsm.batch import GraphBatch
from dd_core.study.curvature_names import CURVATURE_COLUMNS
from dd_core.tasks.losses import CROSS_ENTROPY, Loss

# Nodes that share a pass: enough to fill the products, few enough for the caches of a CPU.
_NODES_PER_PASS = {"cpu": 1024, "cuda": 65_536}
# Numbers of all Hessians that are held at a time, 256 MiB of float32.
_MOST_ENTRIES = 2**26
# From here on the largest eigenvalue alone is looked for: all of them take 2.7 s for d = 1,600, one 0.1 s.
_FEW_DIMENSIONS = 256


def graph_curvature(
    model: nn.Module, graphs: GraphBatch, labels: Tensor, *, loss: Loss = CROSS_ENTROPY
) -> dict[str, Tensor]:
    """Curvature of the loss in the node features of each graph.

    Costs as many Hessian-vector products as the largest graph of a batch has features in all, each about four forward
    passes.

    Args:
        model: in eval mode, float32 or float64, a ``GraphBatch`` to logits (B, C), or to outputs that have ``logits``.
        graphs: B graphs, in the model's precision and on its device.
        labels: int64 (B,), the given labels.
        loss: whose curvature, of the logits alone: what a network reconstructs beside them is no part of it.

    Returns:
        Float64 (B,) on the CPU, by the names in ``CURVATURE_COLUMNS``: loss (nats) and probability of the given label;
        gradient_norm, nats per unit of a feature; gradient_curvature, g^T H g / ||g||^2, and 0 where g is 0; trace,
        frobenius_norm and largest_eigenvalue of the Hessian H (d, d) in all features of a graph, nats per squared unit.
        Standard errors and the eigenvalue's residual are 0.

    Raises:
        UserError: the model is in training mode, its output is not finite, labels do not fit, or there is not memory
            for one graph.
    """
    _check(graphs, labels)
    order = np.argsort(graphs.sizes, kind="stable")
    values = torch.empty(len(CURVATURE_COLUMNS), graphs.num_graphs, dtype=torch.float64)
    with second_derivatives(), frozen(model):
        for block in _blocks(np.array(graphs.sizes)[order], graphs.features.shape[1], graphs.features.device):
            chosen = order[block]

            def compute(start: int, stop: int, size: int, chosen: Any = chosen) -> Tensor:
                own = torch.from_numpy(chosen[start:stop]).to(labels.device)
                return _of_graphs(model, loss, chosen_graphs(graphs, chosen[start:stop]), labels[own]).cpu()

            values[:, torch.from_numpy(chosen)] = torch.cat(list(in_blocks(compute, len(chosen), len(chosen))), dim=1)
    return dict(zip(CURVATURE_COLUMNS, values, strict=True))


def chosen_graphs(graphs: GraphBatch, chosen: np.ndarray) -> GraphBatch:
    """Some graphs of a batch as a batch, in the order of ``chosen``, int64 (n,), each at most once.

    Edges of a graph keep their order.
    """
    device, sizes = graphs.features.device, np.array(graphs.sizes, np.int64)
    first, own = np.cumsum(sizes) - sizes, sizes[chosen]
    new_first = np.cumsum(own) - own
    nodes = np.repeat(first[chosen] - new_first, own) + np.arange(own.sum())
    place = np.full(len(sizes), -1)
    place[chosen] = np.arange(len(chosen))
    place_of = torch.from_numpy(place).to(device)[graphs.graph[graphs.edges[0]]]
    kept = torch.nonzero(place_of >= 0).squeeze(1)
    kept = kept[torch.argsort(place_of[kept], stable=True)]
    moved = torch.from_numpy(new_first - first[chosen]).to(device)[place_of[kept]]
    return GraphBatch(
        graphs.features[torch.from_numpy(nodes).to(device)],
        graphs.edges[:, kept] + moved,
        graphs.relations[kept],
        graphs.confidences[kept],
        torch.from_numpy(np.repeat(np.arange(len(chosen)), own)).to(device),
        torch.from_numpy(own).to(device),
        tuple(own.tolist()),
    )


def _check(graphs: GraphBatch, labels: Tensor) -> None:
    if not graphs.num_graphs:
        raise UserError("there are no graphs to compute the curvature of")
    if labels.shape != (graphs.num_graphs,) or labels.dtype != torch.int64:
        raise UserError(
            f"labels must be int64 of shape ({graphs.num_graphs},), one for each graph, not {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    if not torch.isfinite(graphs.features).all():
        raise UserError("node features have NaN or infinite values, where no curvature exists; clean the graphs")


def _blocks(sizes: np.ndarray, num_features: int, device: torch.device) -> Iterator[slice]:
    """Ranges of graphs of ascending size that share a pass and the memory for their Hessians."""
    limit, start = _NODES_PER_PASS.get(device.type, 8192), 0
    for stop in range(1, len(sizes) + 1):
        if stop < len(sizes):
            count, largest = stop + 1 - start, int(sizes[stop])
            if count * largest <= limit and count * (largest * num_features) ** 2 <= _MOST_ENTRIES:
                continue
        yield slice(start, stop)
        start = stop


def _of_graphs(model: Callable[[GraphBatch], Any], loss: Loss, graphs: GraphBatch, labels: Tensor) -> Tensor:
    """All columns, float64 (columns, B), of graphs of ascending size."""
    x = graphs.features.detach().requires_grad_(True)
    rest = (graphs.edges, graphs.relations, graphs.confidences, graphs.graph, graphs.num_nodes, graphs.sizes)
    with torch.enable_grad():
        outputs = model(GraphBatch(x, *rest))
        logits = getattr(outputs, "logits", outputs)
        _check_logits(logits, labels)
        residual = loss.gradient(logits, labels)
        # The gradient as a function of x through both its factors, J(x)^T and that of the loss in the logits.
        (slope,) = torch.autograd.grad(logits, x, residual.to(logits.dtype), create_graph=True, materialize_grads=True)
    gradient = _by_graph(slope.detach().flatten(), graphs, x.shape[1])
    hessians = _hessians(slope, x, graphs)
    flat = gradient.double()
    norm = flat.norm(dim=1)
    unit = flat / torch.where(norm > 0, norm, 1)[:, None]
    along = torch.stack([u @ h.double() @ u for u, h in zip(unit, hessians, strict=True)])
    losses, probability = loss.values(logits.detach(), labels)
    zero = torch.zeros_like(norm)
    columns = {
        "loss": losses,
        "probability": probability,
        "gradient_norm": norm,
        "gradient_curvature": along,
        "trace": hessians.diagonal(dim1=1, dim2=2).double().sum(1),
        "trace_standard_error": zero,
        "frobenius_norm": torch.stack([torch.linalg.matrix_norm(h.double()) for h in hessians]),
        "frobenius_norm_standard_error": zero,
        "largest_eigenvalue": _largest_eigenvalues(hessians, graphs, x.shape[1]),
        "largest_eigenvalue_residual": zero,
    }
    return torch.stack([columns[name] for name in CURVATURE_COLUMNS])


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise UserError("the model's output is not finite (NaN or infinite weights?); its curvature does not exist")
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise UserError(
            f"labels from {int(labels.min())} to {int(labels.max())} do not fit the model's {logits.shape[1]} classes"
        )


def _by_graph(flat: Tensor, graphs: GraphBatch, num_features: int) -> Tensor:
    """Values of all features (N F,) as (B, D) with the D of the largest graph; smaller ones end in zeros."""
    sizes, largest = graphs.num_nodes * num_features, max(graphs.sizes) * num_features
    is_own = torch.arange(largest, device=flat.device) < sizes[:, None]
    return flat.new_zeros(len(sizes), largest).masked_scatter_(is_own, flat)


def _hessians(slope: Tensor, x: Tensor, graphs: GraphBatch) -> Tensor:
    """Every graph's Hessian (B, D, D) in the precision of x; those of smaller graphs have zeros beyond."""
    num_features, dimensions = x.shape[1], np.array(graphs.sizes) * x.shape[1]
    first = torch.from_numpy(np.cumsum(dimensions) - dimensions).to(x.device)
    largest = int(dimensions[-1])
    found = x.new_zeros(len(dimensions), largest, largest)
    if not slope.requires_grad:  # as of a network that is linear in x under a loss that is linear, too
        return found
    for i in range(largest):
        has = int(np.searchsorted(dimensions, i, side="right"))  # graphs before have no i-th feature
        direction = torch.zeros_like(x)
        direction.view(-1)[first[has:] + i] = 1
        (row,) = torch.autograd.grad(slope, x, direction, retain_graph=i + 1 < largest, materialize_grads=True)
        found[:, i] = _by_graph(row.flatten(), graphs, num_features)
    return found


def _largest_eigenvalues(hessians: Tensor, graphs: GraphBatch, num_features: int) -> Tensor:
    """Largest eigenvalue of each graph's own block, float64 (B,); the zeros beyond are no eigenvalues of it."""
    found = []
    for matrix, size in zip(hessians, graphs.sizes, strict=True):
        own = matrix[: size * num_features, : size * num_features].double()
        found.append(_largest_eigenvalue((own + own.T) / 2))
    return torch.stack(found)


def _largest_eigenvalue(matrix: Tensor) -> Tensor:
    """Largest eigenvalue of a symmetric matrix (d, d) in float64, to its precision."""
    if len(matrix) > _FEW_DIMENSIONS:
        start = np.random.default_rng(0).standard_normal(len(matrix))  # the same whoever asks
        try:
            values = eigsh(matrix.cpu().numpy(), k=1, which="LA", v0=start, return_eigenvectors=False)
            return torch.as_tensor(values[0], dtype=matrix.dtype, device=matrix.device)
        except ArpackError:  # as of zeros
            pass
    return torch.linalg.eigvalsh(matrix)[-1]
