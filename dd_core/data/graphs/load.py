"""The first problems of a domain as flat arrays, made once."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from dd_core.data.graphs import causal, facts, knowledge_graph, planning, plans
from dd_core.data.graphs.problems import Problems
from dd_core.data.graphs.sketch import Sketch
from dd_core.data.randomness import generator
from dd_core.study.graphs import DOMAINS, Graphs

_Generator = Callable[[int, int, int], Iterator[Sketch]]
# For each domain and way of labelling: what makes the problems, the kinds of nodes, and the relations in their order.
GENERATORS: dict[tuple[str, str], tuple[_Generator, tuple[str, ...], tuple[str, ...]]] = {
    ("planning", "as_published"): (planning.published, planning.KINDS, planning.RELATIONS),
    ("planning", "grounded"): (plans.grounded, planning.KINDS, planning.RELATIONS),
    ("causal", "as_published"): (causal.published, causal.KINDS, causal.RELATIONS),
    ("causal", "grounded"): (causal.grounded, causal.KINDS, causal.RELATIONS),
    ("knowledge_graph", "as_published"): (knowledge_graph.published, knowledge_graph.KINDS, knowledge_graph.RELATIONS),
    ("knowledge_graph", "grounded"): (facts.grounded, facts.KINDS, knowledge_graph.RELATIONS),
}


def load_problems(graphs: Graphs, domain: str, seed: int, num_problems: int) -> Problems:
    """The first problems of a domain.

    Each is a function of seed, domain and index alone: more problems never change the first ones.

    Args:
        graphs: how labels come about, and how many features nodes have.
        domain: planning, causal or knowledge_graph.
        seed: of the study.
        num_problems: how many.
    """
    return _load(graphs.labels, graphs.features, graphs.num_features, domain, seed, num_problems)


@lru_cache(maxsize=8)
def _load(labels: str, features: str, num_features: int, domain: str, seed: int, num_problems: int) -> Problems:
    make, kinds, relations = GENERATORS[domain, labels]
    stream = 2 * list(DOMAINS).index(domain) + (labels == "grounded")
    sketches = list(make(seed, stream, num_problems))
    table = generator(seed, stream, "graph_rules", 1).standard_normal((len(kinds), num_features), np.float32)
    number_of = {name: number for number, name in enumerate(kinds)}
    relation_of = {name: number for number, name in enumerate(relations)}
    edges = [edge for sketch in sketches for edge in sketch.edges]
    best = [
        sketch.probability if features == "fixed" or sketch.structural is None else sketch.structural
        for sketch in sketches
    ]
    return Problems(
        domain=domain,
        labels_kind=labels,
        labels=np.array([sketch.label for sketch in sketches], np.int64),
        first_node=np.cumsum([0, *(len(sketch.nodes) for sketch in sketches)]),
        first_edge=np.cumsum([0, *(len(sketch.edges) for sketch in sketches)]),
        nodes=np.array([number_of[kind] for sketch in sketches for _, kind in sketch.nodes.values()], np.int64),
        edges=np.array([[edge[0] for edge in edges], [edge[1] for edge in edges]], np.int64),
        relations=np.array([relation_of[edge[2]] for edge in edges], np.int64),
        confidences=np.array([edge[3] for edge in edges], np.float32),
        features=table,
        best_probability=np.array(best),
        about=_about(sketches, num_problems),
    )


def _about(sketches: list[Sketch], num_problems: int) -> dict[str, float]:
    """Shares of what was done to the graphs, and of the more frequent label."""
    share = float(np.mean([sketch.label for sketch in sketches]))
    counts = Counter(sketch.what for sketch in sketches)
    shares = {f"share_{what}": number / num_problems for what, number in sorted(counts.items())}
    return {"majority_share": max(share, 1 - share), **shares}
