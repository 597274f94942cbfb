"""How large graphs and their networks are, by domain: what costs are told from. Needs nothing but Python."""

# Matrices that the relations' weights are made of, as published.
NUM_BASES: dict[str, int] = {"planning": 8, "causal": 5, "knowledge_graph": 12}
# Kinds of edges that the generators have; of causal inference the published network knows five more.
USED_RELATIONS: dict[str, int] = {"planning": 16, "causal": 15, "knowledge_graph": 66}
# Nodes and edges of a graph: means over 500 graphs of either way of labelling, which differ by 20 %.
MEAN_SIZES: dict[str, tuple[float, float]] = {"planning": (24, 44), "causal": (2.2, 1.2), "knowledge_graph": (2, 1)}
