"""The domain knowledge graph as published: single triples, labels without regard to them.

The published data set (research-developer/nsm, ``nsm/data/knowledge_graph_dataset.py``, with 200 entities and 2,500
triples as in its training runs) makes facts by category, fills up with random triples, shuffles all, and calls the
first half true and the second corrupted without having corrupted any. Here each triple is drawn on its own,
categories with the shares that they are expected to have there, and every other one is called true: so the first
triples stay what they are when more are asked for, and what can be learned is the same: nothing.
"""

import math
from collections.abc import Iterator

from dd_core.data.graphs.sketch import Draws, Sketch

# Kinds of entities and how many there are of each, of 200.
ENTITIES = {
    "person": 43,
    "place": 46,
    "organization": 39,
    "concept": 40,
    "award": 30,
    "date": 225,
    "won_award": 13,
    "work": 21,
}
TYPES = tuple(f"type_{kind}" for kind in ENTITIES)
FACTS = (
    *("born_in", "died_in", "born_on", "died_on", "parent_of", "child_of", "sibling_of", "spouse_of", "nationality"),
    *("citizenship", "ethnicity", "located_in", "capital_of", "borders", "part_of", "adjacent_to", "near", "contains"),
    *("works_at", "employed_by", "founded", "leads", "member_of", "collaborates_with", "reports_to", "studied_at"),
    *("graduated_from", "degree_from", "advisor_of", "student_of", "taught_at", "created", "authored", "composed"),
    *("painted", "designed", "invented", "discovered", "produced", "won", "received", "awarded", "nominated_for"),
    *("achieved", "accomplished", "occurred_in", "started_on", "ended_on", "during", "before", "after"),
    *("has_property", "characterized_by", "known_for", "famous_for", "associated_with"),
)
CATEGORIES = (
    *("instance_of", "subclass_of", "typically_has", "usually_in", "commonly_has", "often_associated_with"),
    *("related_to", "similar_to", "requires", "enables"),
)
RELATIONS = (*FACTS, *CATEGORIES)
KINDS = (*ENTITIES, *TYPES, "supertype", "typical_property")
_POOL = tuple(kind for kind, number in ENTITIES.items() for _ in range(number))
# Expected numbers of triples, of 2,500: relations one of which is drawn, kinds of head and tail, bounds of confidence.
_Kinds = tuple[str, ...]
_SHARES: tuple[tuple[float, _Kinds, _Kinds, _Kinds, tuple[float, float]], ...] = (
    (30.1, ("born_in",), ("person",), ("place",), (0.85, 1.0)),
    (25.8, ("born_on",), ("person",), ("date",), (0.8, 0.99)),
    (21.5, ("studied_at",), ("person",), ("organization",), (0.75, 0.98)),
    (25.8, ("works_at",), ("person",), ("organization",), (0.7, 0.95)),
    (12.9, ("won",), ("person",), ("won_award",), (0.9, 1.0)),
    (21.5, ("known_for",), ("person",), ("concept",), (0.75, 0.95)),
    (15.0, ("located_in", "capital_of", "part_of"), ("place",), ("place",), (0.99, 1.0)),
    (90.0, ("near", "adjacent_to", "borders"), ("place",), ("place",), (0.6, 0.9)),
    (21.5, ("created", "authored", "composed", "designed"), ("person",), ("work",), (0.8, 1.0)),
    (21.5, ("related_to",), ("work",), ("concept",), (0.7, 0.95)),
    (160.0, ("instance_of",), _POOL, (), (0.85, 0.99)),
    (12.0, ("subclass_of",), TYPES, ("supertype",), (0.9, 1.0)),
    (
        6.0,
        ("typically_has", "usually_in", "commonly_has", "often_associated_with"),
        TYPES,
        ("typical_property",),
        (0.85, 0.99),
    ),
    (117.0, ("related_to", "similar_to", "requires", "enables"), ("concept",), ("concept",), (0.5, 0.85)),
)
_NUM_TRIPLES = 2500


def published(seed: int, stream: int, number: int) -> Iterator[Sketch]:
    """The first triples."""
    for index in range(number):
        head, relation, tail, confidence = _triple(Draws(seed, stream, index))
        sketch = Sketch(
            label=1 - index % 2, probability=math.nan, what="called_corrupted" if index % 2 else "called_true"
        )
        sketch.node("head", head)
        sketch.node("tail", tail)
        sketch.edge("head", relation, "tail", confidence)
        yield sketch


def _triple(draws: Draws) -> tuple[str, str, str, float]:
    place = draws.random() * _NUM_TRIPLES
    for share, relations, heads, tails, bounds in _SHARES:
        if place < share:
            head = draws.choice(heads)
            tail = draws.choice(tails) if tails else f"type_{head}"
            return head, draws.choice(relations), tail, draws.uniform(*bounds)
        place -= share
    return draws.choice(_POOL), draws.choice(FACTS), draws.choice(_POOL), draws.uniform(0.6, 0.9)
