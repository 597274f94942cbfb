"""What problems must be before anything trains on them: each mistake is one sentence."""

import numpy as np

from dd_core.data.graphs.problems import Problems
from dd_core.errors import UserError


def check_problems(problems: Problems, num_relations: int) -> None:
    """Refuse problems that nothing can be learned from, or that no graph network takes.

    Args:
        problems: of one domain.
        num_relations: kinds of edges that the network knows.

    Raises:
        UserError: all labels are the same, a graph has no edges or one node alone, an edge leads out of its graph, a
            relation is unknown, or a feature or a confidence is no usable number.
    """
    name, labels = problems.domain, np.unique(problems.labels)
    if len(labels) < 2:
        raise UserError(
            f"{name}: all {problems.num_problems} graphs have the label {', '.join(map(str, labels))}, so there is "
            "nothing to learn; ask for more graphs (data.num_train, data.graphs.num_test)"
        )
    if not np.isin(labels, (0, 1)).all():
        raise UserError(f"{name}: labels must be 0 or 1, not {', '.join(map(str, labels))}")
    num_edges = np.diff(problems.first_edge)
    unknown = (problems.nodes < 0) | (problems.nodes >= len(problems.features))
    if unknown.any():
        graph = np.repeat(np.arange(problems.num_problems), problems.num_nodes)[unknown][0]
        raise UserError(f"{name}: graph {graph} has a node of kind {problems.nodes[unknown][0]}, which has no features")
    _refuse(name, problems.num_nodes < 2, "has fewer than two nodes, so that no edge can say anything")
    _refuse(name, num_edges < 1, "has no edges")
    graph = np.repeat(np.arange(problems.num_problems), num_edges)
    outside = (problems.edges < 0) | (problems.edges >= problems.num_nodes[graph])
    _refuse(name, _any_of(problems, outside.any(axis=0)), "has an edge to a node that it has not")
    unknown = (problems.relations < 0) | (problems.relations >= num_relations)
    if unknown.any():
        raise UserError(
            f"{name}: graph {graph[unknown][0]} has an edge of relation {problems.relations[unknown][0]}, but the "
            f"network knows the relations 0 to {num_relations - 1}; raise nsm.num_relations"
        )
    unusable = ~((problems.confidences > 0) & (problems.confidences <= 1))
    _refuse(name, _any_of(problems, unusable), "has an edge whose confidence is not above 0 and at most 1")
    if not np.isfinite(problems.features).all():
        row = int(np.flatnonzero(~np.isfinite(problems.features).all(axis=1))[0])
        raise UserError(f"{name}: features of the kind of node {row} are not finite numbers")


def _any_of(problems: Problems, edges: np.ndarray) -> np.ndarray:
    """Which graphs have one of some edges, bool (N,)."""
    return np.add.reduceat(edges, problems.first_edge[:-1]) > 0


def _refuse(domain: str, graphs: np.ndarray, what: str) -> None:
    if graphs.any():
        raise UserError(f"{domain}: graph {int(np.flatnonzero(graphs)[0])} {what}")
