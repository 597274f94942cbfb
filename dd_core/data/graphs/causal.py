"""The domain causal inference: patients who take a treatment, some of whom have a condition that confounds its effect.

As published (research-developer/nsm, ``nsm/data/causal_dataset.py``, with the 8 treatments and 8 symptoms of its
training runs) a scenario has 6 triples, or 8 to 9 with a confounder, and each triple is a graph of its own. The label
of all of them is whether the treatment was effective: base effectiveness uniform in [.2, .9], confounders
(probability .3) add uniform [-.2, .2], effective above .6. What a graph shows of its label: the relations of outcome
and response say it, all others say nothing, since the confounder's strength is symmetric and .6 +- .2 lies within
[.2, .9]. So P(1) = .3 / .7 = 3/7, 2 triples of 6.75 show the label, and the best accuracy is (2 + 4.75 * 4/7) / 6.75
= .6984.

Grounded, a graph shows a treatment, its patient and, for every other patient, a confounder. The formula is the
published one, but base effectiveness belongs to the treatment and the shift to the confounder (drawn from the seed,
both as often above as below by as much), so that the label follows from both. A confounder changes the label of a
third of its graphs.
"""

from collections.abc import Iterator

import numpy as np

from dd_core.data.graphs.sketch import Draws, Sketch
from dd_core.data.randomness import generator

TREATMENTS = tuple(f"treatment_{number}" for number in range(8))
SYMPTOMS = tuple(f"symptom_{number}" for number in range(8))
EFFECTS = tuple(f"effect_{number}" for number in range(8))
CONFOUNDERS = tuple(f"confounder_{number}" for number in range(12))
KINDS = ("patient", "response", *TREATMENTS, *SYMPTOMS, *EFFECTS, *CONFOUNDERS)
# Of patients there are many, who can be told from each other, or wrong labels could not be memorised.
PATIENTS = tuple(f"patient/{number}" for number in range(200))
GROUNDED_KINDS = (*TREATMENTS, *CONFOUNDERS, *PATIENTS)
RELATIONS = (
    *("taken_by", "has_symptom", "symptom_reduced", "symptom_persists", "has_condition", "developed_condition"),
    *("recovered_from", "causes", "treats", "responds_to", "resistant_to", "confounds", "mediates", "moderates"),
    "interacts_with",
)
THRESHOLD = 0.6
PRIOR = 3 / 7


def published(seed: int, stream: int, number: int) -> Iterator[Sketch]:
    """The first triples of the first scenarios, each a graph."""
    made = 0
    for scenario in range(number):
        triples = _scenario(Draws(seed, stream, scenario), scenario)
        yield from triples[: number - made]
        made += len(triples)
        if made >= number:
            return


def _scenario(draws: Draws, number: int) -> list[Sketch]:
    treatment = draws.between(0, len(TREATMENTS) - 1)
    symptom, taken, effect = SYMPTOMS[number % len(SYMPTOMS)], TREATMENTS[treatment], EFFECTS[treatment]
    confounder = draws.choice(CONFOUNDERS) if draws.chance(0.3) else None
    observed, shift = 0.2 + 0.7 * draws.random(), 0.0
    if confounder:
        shift = (draws.random() - 0.5) * 0.4
        observed = max(0.1, min(0.95, observed + shift))
    effective = observed > THRESHOLD
    outcome = "symptom_reduced" if effective else "symptom_persists"
    triples = [
        (taken, "taken_by", "patient", draws.uniform(0.85, 1.0)),
        ("patient", "has_symptom", symptom, draws.uniform(0.9, 1.0)),
        ("patient", outcome, symptom, observed if effective else 1 - observed),
    ]
    if confounder:
        triples.append(("patient", "has_condition", confounder, 1.0))
    triples.append((taken, "causes", effect, draws.uniform(0.75, 0.95)))
    triples.append((effect, "treats", symptom, draws.uniform(0.8, 0.95)))
    triples.append(("patient", "responds_to" if effective else "resistant_to", taken, abs(observed - 0.5) * 2))
    if confounder:
        triples.append((confounder, "confounds", "response", abs(shift) / 0.2))
        if draws.chance(0.5):
            triples.append((confounder, "mediates", effect, draws.uniform(0.5, 0.8)))
    return [_triple(*triple, int(effective), number) for triple in triples]


def _triple(source: str, relation: str, target: str, confidence: float, label: int, scenario: int) -> Sketch:
    shows = relation in ("symptom_reduced", "symptom_persists", "responds_to", "resistant_to")
    what = "label_shows" if shows else "label_hidden"
    sketch = Sketch(label, float(label) if shows else PRIOR, what, group=scenario)
    sketch.node(source, source)
    sketch.node(target, target)
    sketch.edge(source, relation, target, confidence)
    return sketch


def effectiveness(seed: int, stream: int) -> np.ndarray:
    """How effective each treatment is without a confounder (column 0) and with each, float64 (8, 13), in (.2, .95)."""
    random = generator(seed, stream, "graph_rules")
    halves = np.array([0.03, 0.07, 0.11, 0.15]), np.array([0.05, 0.08, 0.12, 0.14, 0.17, 0.2])
    base, shift = (random.permutation(np.concatenate([half, -half])) for half in halves)
    return THRESHOLD + base[:, None] + np.concatenate([[0.0], shift])


def grounded(seed: int, stream: int, number: int) -> Iterator[Sketch]:
    """The first patients."""
    table = effectiveness(seed, stream)
    for index in range(number):
        draws = Draws(seed, stream, index)
        treatment = draws.between(0, len(TREATMENTS) - 1)
        confounder = draws.between(1, len(CONFOUNDERS)) if draws.chance(0.5) else 0
        label = int(table[treatment, confounder] > THRESHOLD)
        sketch = Sketch(label, float(label), "confounded" if confounder else "unconfounded", lambda: 0.5)
        sketch.node(TREATMENTS[treatment], TREATMENTS[treatment])
        sketch.node("patient", draws.choice(PATIENTS))
        sketch.edge(TREATMENTS[treatment], "taken_by", "patient", draws.uniform(0.85, 1.0))
        if confounder:
            kind = CONFOUNDERS[confounder - 1]
            sketch.node(kind, kind)
            sketch.edge(kind, "confounds", "patient", draws.uniform(0.85, 1.0))
        yield sketch
