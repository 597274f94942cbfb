"""One graph while it is made: nodes by name and kind, edges, its label; its random numbers; and features of kinds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dd_core.data.randomness import generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

Item = TypeVar("Item")


class Draws:
    """Random choices of one problem, which depend on their seed, stream and index alone.

    All come from uniform doubles, drawn many at once: as fast as Python's own generator and the same with every version
    of it.
    """

    def __init__(self, seed: int, stream: int, index: int) -> None:
        """Begin a problem's random choices.

        Args:
            seed: of the study.
            stream: a number for the domain and way of labelling.
            index: of the problem.
        """
        self._random = generator(seed, stream, "graph_problem", index)
        self._values: list[float] = []

    def random(self) -> float:
        """Uniform in [0, 1)."""
        if not self._values:
            self._values = self._random.random(128).tolist()[::-1]
        return self._values.pop()

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.random()

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.random() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self.random() * (high - low + 1))

    def choice(self, items: Sequence[Item]) -> Item:
        """One of some items."""
        return items[int(self.random() * len(items))]

    def sample(self, items: Sequence[Item], number: int) -> list[Item]:
        """Some of the items, in random order."""
        left = list(items)
        return [left.pop(int(self.random() * len(left))) for _ in range(number)]


@dataclass
class Sketch:
    """One graph while it is made.

    Attributes:
        label: 0 or 1.
        probability: of label 1, given all that the graph shows with the kinds of its nodes; NaN: whatever it shows, the
            label follows from its index, so that label 1 is as probable as it is frequent.
        group: graphs of one group have one label and come one after the other; None: this one is alone.
        hidden: the same, given all but the kinds of nodes, computed when asked; None: kinds make no difference.
        what: what was done to it, such as the kind of corruption, for who counts how often that is.
        nodes: number and kind by name.
        edges: from, to, relation, confidence.
    """

    label: int = 0
    probability: float = 0.5
    what: str = ""
    hidden: Callable[[], float] | None = None
    group: int | None = None
    nodes: dict[str, tuple[int, str]] = field(default_factory=dict)
    edges: list[tuple[int, int, str, float]] = field(default_factory=list)

    def probability_without_kinds(self) -> float:
        """Probability of label 1 where features are noise, so that the kinds of nodes cannot be seen."""
        return self.hidden() if self.hidden else self.probability

    def node(self, name: str, kind: str) -> int:
        """The number of a node, which is new unless it is there."""
        return self.nodes.setdefault(name, (len(self.nodes), kind))[0]

    def edge(self, source: str, relation: str, target: str, confidence: float) -> None:
        """An edge between two nodes that are there."""
        self.edges.append((self.nodes[source][0], self.nodes[target][0], relation, confidence))


def feature_table(kinds: Sequence[str], num_features: int, random: np.random.Generator) -> "NDArray[np.float32]":
    """What networks see of each kind of node: normal numbers of unit variance, float32 (kinds, num_features).

    A kind whose name has slashes, as person/region_1/7, is the sum of what it shares with others (person, region_1) and
    a quarter as much of its own, so that its like is known and it can still be told from them.
    """
    shared: dict[str, NDArray[np.float64]] = {}
    rows = []
    for kind in kinds:
        *parts, _ = kind.split("/")
        for part in (*parts, kind):
            if part not in shared:
                shared[part] = random.standard_normal(num_features)
        own = shared[kind] * (0.25 if parts else 1.0)
        rows.append((own + sum(shared[part] for part in parts)) / np.sqrt(len(parts) + (0.0625 if parts else 1.0)))
    return np.array(rows, np.float32)
