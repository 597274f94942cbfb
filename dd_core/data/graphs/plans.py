"""The domain planning, grounded: a plan is valid or not by four rules, and the graph shows which.

A plan is valid if and only if

1. each action that needs a type of action before it (``NEEDS``) requires one of that type;
2. there is an order of the actions in which whatever is required, or enables, comes first;
3. each action is enabled by the capability that its type takes (``CAPABILITY_OF``);
4. each action takes place at a location that its type is possible at (``PLACES_OF``).

Half of the plans are broken, each in one of these four ways, at one place or several. Breaking moves edges and never
adds or takes any: neither nodes nor edges nor relations can be counted to tell.
"""

from collections.abc import Callable, Iterator
from itertools import permutations

import numpy as np

from dd_core.data.graphs.planning import ACTIONS, CAPABILITIES, GOALS, LOCATIONS
from dd_core.data.graphs.sketch import Draws, Item, Sketch

# The type of action that must come before another.
NEEDS = {
    "put_down": "pick_up",
    "stack": "pick_up",
    "close": "open",
    "toggle": "open",
    "unstack": "move_to",
    "push": "move_to",
    "pull": "move_to",
}
CAPABILITY_OF = {
    "move_to": "navigation",
    "pick_up": "grasping",
    "put_down": "planning",
    "stack": "stacking",
    "unstack": "stacking",
    "push": "manipulation",
    "pull": "manipulation",
    "open": "perception",
    "close": "perception",
    "toggle": "planning",
}
# Half of the pairs of action and location or so: three of the five locations for some types, two for others.
PLACES_OF = {
    kind: tuple(LOCATIONS[(number + step) % 5] for step in range(2 + number % 2)) for number, kind in enumerate(ACTIONS)
}
# Actions whose target is a location; that of all others is an object.
TO_LOCATIONS = ("move_to", "put_down")
FLAWS = ("prerequisite", "order", "capability", "location")
_LOCATION_ORDERS = np.array(list(permutations(range(len(LOCATIONS)))))
_CAPABILITY_ORDERS = np.array(list(permutations(range(len(CAPABILITIES)))))


class Plan:
    """A plan of 4 to 8 actions: what each requires, by which capability, and where it takes place."""

    def __init__(self, draws: Draws) -> None:
        """Draw a valid plan."""
        self.draws = draws
        self.goal = draws.choice(tuple(GOALS))
        self.types = self._types()
        self.places = [draws.choice(PLACES_OF[kind]) for kind in self.types]
        self.capabilities = [CAPABILITY_OF[kind] for kind in self.types]
        self.required: dict[int, int] = {}
        for number, kind in enumerate(self.types):
            if kind in NEEDS:
                self.required[number] = draws.choice([i for i in range(number) if self.types[i] == NEEDS[kind]])
            elif number > 0 and draws.chance(0.6):
                self.required[number] = draws.between(0, number - 1)
        self.reversed: set[int] = set()

    def _types(self) -> list[str]:
        """Types of the goal's actions in their order, after a first move, with others between them."""
        types = ["move_to", *GOALS[self.goal]]
        if types[1] == "move_to":
            types.pop(0)
        for _ in range(self.draws.between(0, 8 - len(types))):
            place = self.draws.between(1, len(types))
            possible = [kind for kind in ACTIONS if NEEDS.get(kind, types[0]) in types[:place]]
            types.insert(place, self.draws.choice(possible))
        return types

    def _some(self, sites: list[Item]) -> list[Item]:
        """At least one of some places, each of the others with probability one half."""
        first = self.draws.choice(sites)
        return [site for site in sites if site == first or self.draws.chance(0.5)]

    def break_prerequisite(self) -> None:
        """Let actions require one of the wrong type."""
        wrong = {
            number: [other for other in range(number) if self.types[other] != NEEDS[kind]]
            for number, kind in enumerate(self.types)
            if kind in NEEDS
        }
        for number in self._some([number for number, others in wrong.items() if others]):
            self.required[number] = self.draws.choice(wrong[number])

    def break_order(self) -> None:
        """Let actions come before what they require."""
        self.reversed.update(self._some([number for number in self.required if self.types[number] in NEEDS]))

    def break_capability(self) -> None:
        """Let actions be enabled by a capability that is of no use to them."""
        for number in self._some(list(range(len(self.types)))):
            wrong = [name for name in CAPABILITIES if name != self.capabilities[number]]
            self.capabilities[number] = self.draws.choice(wrong)

    def break_location(self) -> None:
        """Let actions take place where they are not possible."""
        for number in self._some(list(range(len(self.types)))):
            possible = PLACES_OF[self.types[number]]
            self.places[number] = self.draws.choice([name for name in LOCATIONS if name not in possible])

    def probability_without_kinds(self) -> float:
        """Probability of being valid, where relations are seen but no kinds of nodes.

        Types of actions show in the relations to their targets, and with them what is required and its order. Locations
        and capabilities do not say which they are: the likelihood of each way to be broken is the mean over all ways of
        naming them. Of n actions m are broken with probability m / n * .5 ** (n - 1), as ``_some`` does.
        """
        if self.reversed or any(
            self.types[self.required[i]] != NEEDS[kind] for i, kind in enumerate(self.types) if kind in NEEDS
        ):
            return 0.0
        places = np.array([LOCATIONS.index(name) for name in self.places])
        is_possible = np.array([[name in PLACES_OF[kind] for name in LOCATIONS] for kind in self.types])
        valid_places, broken_places = _likelihoods(_LOCATION_ORDERS[:, places], is_possible)
        taken = np.array([CAPABILITIES.index(name) for name in self.capabilities])
        is_of_use = np.array([[name == CAPABILITY_OF[kind] for name in CAPABILITIES] for kind in self.types])
        valid_capabilities, broken_capabilities = _likelihoods(_CAPABILITY_ORDERS[:, taken], is_of_use)
        valid = 4 * valid_places * valid_capabilities
        return valid / (valid + broken_places * valid_capabilities + valid_places * broken_capabilities)

    def draw(self, sketch: Sketch) -> None:
        """Put it into a graph."""
        sure = self.draws.uniform
        for name in ("robot", *LOCATIONS, *CAPABILITIES):
            sketch.node(name, name)
        sketch.edge("robot", "at_location", self.draws.choice(LOCATIONS), sure(0.95, 1.0))
        objects = [f"object_{number}" for number in range(self.draws.between(2, 4))]
        for name in objects:
            sketch.node(name, "object")
            sketch.edge(self.draws.choice(LOCATIONS), "contains", name, sure(0.9, 0.98))
        self._draw_actions(sketch, objects)
        sketch.node("goal", self.goal)
        sketch.edge("robot", "achieve", "goal", sure(0.7, 0.85))
        for kind in GOALS[self.goal]:
            action = self.draws.choice([number for number, other in enumerate(self.types) if other == kind])
            sketch.edge("goal", "requires", f"action_{action}", sure(0.75, 0.9))
        for name in CAPABILITIES:
            sketch.edge("robot", "has_capability", name, sure(0.85, 0.95))

    def _draw_actions(self, sketch: Sketch, objects: list[str]) -> None:
        sure = self.draws.uniform
        for number, kind in enumerate(self.types):
            action = f"action_{number}"
            sketch.node(action, kind)
            target = self.draws.choice(LOCATIONS if kind in TO_LOCATIONS else objects)
            sketch.edge(action, kind, target, sure(0.85, 0.95))
            sketch.edge(self.places[number], "contains", action, sure(0.9, 0.98))
            sketch.edge(self.capabilities[number], "enables", action, sure(0.75, 0.88))
        for number, other in self.required.items():
            sketch.edge(f"action_{number}", "requires", f"action_{other}", sure(0.8, 0.9))
            first, then = (number, other) if number in self.reversed else (other, number)
            sketch.edge(f"action_{first}", "enables", f"action_{then}", sure(0.75, 0.88))


def _likelihoods(named: np.ndarray, is_right: np.ndarray) -> tuple[float, float]:
    """How likely neighbours of n actions are if all are right, and if they are broken.

    Args:
        named: int64 (ways, n), the neighbour of each action in each way of naming them.
        is_right: bool (n, neighbours), which ones are right for each action.
    """
    number = len(is_right)
    right = is_right[np.arange(number), named]
    num_right = is_right.sum(axis=1)
    each = np.where(right, 1 / num_right, 1 / (is_right.shape[1] - num_right)).prod(axis=1)
    num_wrong = number - right.sum(axis=1)
    broken = each * num_wrong / number * 0.5 ** (number - 1)
    return float(np.where(num_wrong == 0, each, 0.0).mean()), float(broken.mean())


_BREAKS: dict[str, Callable[[Plan], None]] = {
    "prerequisite": Plan.break_prerequisite,
    "order": Plan.break_order,
    "capability": Plan.break_capability,
    "location": Plan.break_location,
}


def grounded(seed: int, stream: int, number: int) -> Iterator[Sketch]:
    """The first problems: of each eight four are valid and one is broken in each way, in an order drawn anew."""
    for index in range(number):
        flaw = Draws(seed, stream + 100, index // 8).sample((*FLAWS, *("valid",) * 4), 8)[index % 8]
        plan = Plan(Draws(seed, stream, index))
        if flaw != "valid":
            _BREAKS[flaw](plan)
        label = int(flaw == "valid")
        sketch = Sketch(label, float(label), flaw, plan.probability_without_kinds)
        plan.draw(sketch)
        yield sketch
