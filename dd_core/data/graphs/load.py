"""The first problems of a domain as flat arrays, made once."""

import json
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from dd_core.data.graphs import causal, facts, knowledge_graph, planning, plans
from dd_core.data.graphs.check import check_problems
from dd_core.data.graphs.kept import keep_problems, kept_problems
from dd_core.data.graphs.problems import Problems
from dd_core.data.graphs.sketch import Sketch, feature_table
from dd_core.data.randomness import generator
from dd_core.study.graphs import DOMAINS, NUM_RELATIONS, Graphs

# Fewer are made as fast as they are read.
_WORTH_KEEPING = 500
_Generator = Callable[[int, int, int], Iterator[Sketch]]
# For each domain and way of labelling: what makes the problems, the kinds of nodes, and the relations in their order.
GENERATORS: dict[tuple[str, str], tuple[_Generator, tuple[str, ...], tuple[str, ...]]] = {
    ("planning", "as_published"): (planning.published, planning.KINDS, planning.RELATIONS),
    ("planning", "grounded"): (plans.grounded, planning.KINDS, planning.RELATIONS),
    ("causal", "as_published"): (causal.published, causal.KINDS, causal.RELATIONS),
    ("causal", "grounded"): (causal.grounded, causal.GROUNDED_KINDS, causal.RELATIONS),
    ("knowledge_graph", "as_published"): (knowledge_graph.published, knowledge_graph.KINDS, knowledge_graph.RELATIONS),
    ("knowledge_graph", "grounded"): (facts.grounded, facts.KINDS, knowledge_graph.RELATIONS),
}


def load_problems(graphs: Graphs, domain: str, seed: int, num_problems: int) -> Problems:
    """The first problems of a domain.

    Each is a function of seed, domain and index alone: more problems never change the first ones, but where labels
    follow from the index, ``best_probability`` is their share among all.

    Args:
        graphs: how labels come about, and how many features nodes have.
        domain: planning, causal or knowledge_graph.
        seed: of the study.
        num_problems: how many.

    Raises:
        UserError: nothing could be learned from these.
    """
    settings = {**graphs.model_dump(exclude={"num_test"}), "domain": domain, "seed": seed, "num_problems": num_problems}
    problems = _load(json.dumps(settings))
    check_problems(problems, NUM_RELATIONS[domain])
    return problems


@lru_cache(maxsize=8)
def _load(settings: str) -> Problems:
    asked = json.loads(settings)
    is_worth_keeping = asked["num_problems"] >= _WORTH_KEEPING
    problems = kept_problems(asked) if is_worth_keeping else None
    if problems is None:
        problems = make_problems(**asked)
        if is_worth_keeping:
            keep_problems(asked, problems)
    return problems


def make_problems(labels: str, features: str, num_features: int, domain: str, seed: int, num_problems: int) -> Problems:
    """Make problems, whether or not they are kept anywhere, as ``load_problems`` gives them, unchecked."""
    make, kinds, relations = GENERATORS[domain, labels]
    stream = 2 * list(DOMAINS).index(domain) + (labels == "grounded")
    sketches = list(make(seed, stream, num_problems))
    number_of = {name: number for number, name in enumerate(kinds)}
    relation_of = {name: number for number, name in enumerate(relations)}
    edges = [edge for sketch in sketches for edge in sketch.edges]
    is_fixed = features == "fixed"
    given = np.array([sketch.label for sketch in sketches], np.int64)
    best = np.array([s.probability if is_fixed else s.probability_without_kinds() for s in sketches])
    return Problems(
        domain=domain,
        labels_kind=labels,
        labels=given,
        group=np.array([i if sketch.group is None else sketch.group for i, sketch in enumerate(sketches)], np.int64),
        first_node=np.cumsum([0, *(len(sketch.nodes) for sketch in sketches)]),
        first_edge=np.cumsum([0, *(len(sketch.edges) for sketch in sketches)]),
        nodes=np.array([number_of[kind] for sketch in sketches for _, kind in sketch.nodes.values()], np.int64),
        edges=np.array([[edge[0] for edge in edges], [edge[1] for edge in edges]], np.int64),
        relations=np.array([relation_of[edge[2]] for edge in edges], np.int64),
        confidences=np.array([edge[3] for edge in edges], np.float32),
        features=feature_table(kinds, num_features, generator(seed, stream, "graph_rules", 1)),
        best_probability=np.where(np.isnan(best), given.mean(), best),
    )
