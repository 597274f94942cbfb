"""The domain knowledge graph, grounded: true triples against corrupted ones.

Entities have a type and belong to one of two regions. Eight relations hold between types, two between the same pair of
types, of which one keeps to the region of its head and the other goes to the other region (which is which is drawn from
the seed). A triple is true if and only if types and regions fit. Half of the triples are corrupted: head, tail or
relation is replaced, with types still fitting or not, all six equally often.
"""

from collections.abc import Iterator

from dd_core.data.graphs.sketch import Draws, Sketch
from dd_core.data.randomness import generator

TYPES = ("person", "place", "organization", "concept")
NUM_REGIONS = 2
# Of each type in each region; so there are 6,400 facts, few of which are asked for twice.
NUM_ALIKE = 20
KINDS = tuple(
    f"{kind}/region_{region}/{number}" for kind in TYPES for region in range(NUM_REGIONS) for number in range(NUM_ALIKE)
)
# The types of head and tail and the two relations between them.
PAIRS = {
    ("person", "place"): ("born_in", "died_in"),
    ("person", "organization"): ("works_at", "studied_at"),
    ("person", "concept"): ("known_for", "discovered"),
    ("organization", "place"): ("located_in", "near"),
}
TYPES_OF = {relation: pair for pair, relations in PAIRS.items() for relation in relations}
CORRUPTIONS = ("head_typed", "head_untyped", "tail_typed", "tail_untyped", "relation_typed", "relation_untyped")
_Entity = tuple[str, int]


def shifts(seed: int, stream: int) -> dict[str, int]:
    """Whether each relation goes to another region than its head's (1) or not (0)."""
    random = generator(seed, stream, "graph_rules")
    drawn = {relations: random.permutation(NUM_REGIONS) for relations in PAIRS.values()}
    return {relation: int(number) for pair, both in drawn.items() for relation, number in zip(pair, both, strict=True)}


def grounded(seed: int, stream: int, number: int) -> Iterator[Sketch]:
    """The first triples: of each twelve six are true and one is corrupted in each way, in an order drawn anew."""
    moved = shifts(seed, stream)
    for index in range(number):
        block = Draws(seed, stream + 100, index // 12).sample((*CORRUPTIONS, *("true",) * 6), 12)
        what = block[index % 12]
        draws = Draws(seed, stream, index)
        head, relation, tail = _fact(draws, moved)
        if what != "true":
            head, relation, tail = _corrupt(draws, what, head, relation, tail)
        label = int(what == "true")
        sketch = Sketch(label, float(label), what, lambda: 0.5)
        for name, (kind, region) in (("head", head), ("tail", tail)):
            sketch.node(name, f"{kind}/region_{region}/{draws.between(0, NUM_ALIKE - 1)}")
        sketch.edge("head", relation, "tail", draws.uniform(0.6, 1.0))
        yield sketch


def _fact(draws: Draws, moved: dict[str, int]) -> tuple[_Entity, str, _Entity]:
    relation, region = draws.choice(tuple(TYPES_OF)), draws.between(0, NUM_REGIONS - 1)
    head, tail = TYPES_OF[relation]
    return (head, region), relation, (tail, (region + moved[relation]) % NUM_REGIONS)


def _corrupt(draws: Draws, what: str, head: _Entity, relation: str, tail: _Entity) -> tuple[_Entity, str, _Entity]:
    """Replace head, tail or relation, so that the triple is no fact."""
    part, _, typed = what.partition("_")
    if part == "relation":
        other = next(name for name in PAIRS[TYPES_OF[relation]] if name != relation)
        wrong = [name for name, types in TYPES_OF.items() if types != TYPES_OF[relation]]
        return head, other if typed == "typed" else draws.choice(wrong), tail
    old = head if part == "head" else tail
    if typed == "typed":
        new = (old[0], (old[1] + draws.between(1, NUM_REGIONS - 1)) % NUM_REGIONS)
    else:
        new = (draws.choice([kind for kind in TYPES if kind != old[0]]), draws.between(0, NUM_REGIONS - 1))
    return (new, relation, tail) if part == "head" else (head, relation, new)
