"""The domain planning, grounded: a plan is valid or not by four rules, and the graph shows which.

A plan is valid if and only if

1. each action that needs another type of action before it (``NEEDS``) requires one of that type;
2. there is an order of the actions in which whatever is required, or enables, comes first;
3. the robot has every capability that its goal requires;
4. each action takes place where its target is.

Half of the plans are broken, each in one of these four ways, at one place or several. Breaking moves edges and never
adds or takes any: neither nodes nor edges nor relations can be counted to tell.
"""

from collections.abc import Callable, Iterator

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
# Actions whose target is a location; that of all others is an object.
TO_LOCATIONS = ("move_to", "put_down")
FLAWS = ("prerequisite", "order", "capability", "location")


class Plan:
    """A plan of 4 to 8 actions with what each requires, where it takes place, and the robot's capabilities."""

    def __init__(self, draws: Draws) -> None:
        """Draw a valid plan."""
        self.draws = draws
        self.goal = draws.choice(tuple(GOALS))
        self.objects = [draws.choice(LOCATIONS) for _ in range(draws.between(3, 6))]
        self.types = self._types()
        self.targets = [
            draws.choice(LOCATIONS) if kind in TO_LOCATIONS else draws.between(0, len(self.objects) - 1)
            for kind in self.types
        ]
        self.places = [where if isinstance(where, str) else self.objects[where] for where in self.targets]
        self.required: dict[int, int] = {}
        for number, kind in enumerate(self.types):
            if kind in NEEDS:
                self.required[number] = draws.choice(self._earlier(number, NEEDS[kind]))
            elif number > 0 and draws.chance(0.6):
                self.required[number] = draws.between(0, number - 1)
        self.reversed: set[int] = set()
        needed = GOALS[self.goal][1]
        self.capabilities = [*needed, draws.choice([name for name in CAPABILITIES if name not in needed])]

    def _types(self) -> list[str]:
        """Types of the goal's actions in their order, after a first move, with others between them."""
        types = ["move_to", *GOALS[self.goal][0]]
        if types[1] == "move_to":
            types.pop(0)
        for _ in range(self.draws.between(0, 8 - len(types))):
            place = self.draws.between(1, len(types))
            possible = [kind for kind in ACTIONS if NEEDS.get(kind, types[0]) in types[:place]]
            types.insert(place, self.draws.choice(possible))
        return types

    def _earlier(self, number: int, kind: str) -> list[int]:
        return [other for other in range(number) if self.types[other] == kind]

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
        """Let the robot have other capabilities than required ones."""
        free = [name for name in CAPABILITIES if name not in self.capabilities]
        for missing in self._some(list(GOALS[self.goal][1]))[: len(free)]:
            self.capabilities[self.capabilities.index(missing)] = free.pop()

    def break_location(self) -> None:
        """Let actions take place where their target is not."""
        for number in self._some(list(range(len(self.types)))):
            self.places[number] = self.draws.choice([name for name in LOCATIONS if name != self.places[number]])

    def draw(self, sketch: Sketch) -> None:
        """Put it into a graph."""
        sure = self.draws.uniform
        sketch.node("robot", "robot")
        for name in (*LOCATIONS, *CAPABILITIES):
            sketch.node(name, name)
        sketch.edge("robot", "at_location", self.draws.choice(LOCATIONS), sure(0.95, 1.0))
        for number, place in enumerate(self.objects):
            sketch.node(f"object_{number}", "object")
            sketch.edge(f"object_{number}", "at_location", place, sure(0.9, 1.0))
            sketch.edge(place, "contains", f"object_{number}", sure(0.9, 0.98))
        self._draw_actions(sketch)
        sketch.node("goal", self.goal)
        sketch.edge("robot", "achieve", "goal", sure(0.7, 0.85))
        for kind in GOALS[self.goal][0]:
            action = self.draws.choice([number for number, other in enumerate(self.types) if other == kind])
            sketch.edge("goal", "requires", f"action_{action}", sure(0.75, 0.9))
        for name in GOALS[self.goal][1]:
            sketch.edge("goal", "requires", name, sure(0.8, 0.92))
        for name in self.capabilities:
            sketch.edge("robot", "has_capability", name, sure(0.85, 0.95))

    def _draw_actions(self, sketch: Sketch) -> None:
        sure = self.draws.uniform
        for number, (kind, target) in enumerate(zip(self.types, self.targets, strict=True)):
            action = f"action_{number}"
            sketch.node(action, kind)
            sketch.edge(action, kind, target if isinstance(target, str) else f"object_{target}", sure(0.85, 0.95))
            # Where it takes place, and where its target is.
            sketch.edge(self.places[number], "contains", action, sure(0.9, 0.98))
            there = target if isinstance(target, str) else self.objects[target]
            sketch.edge(there, "enables", action, sure(0.75, 0.88))
        for number, other in self.required.items():
            sketch.edge(f"action_{number}", "requires", f"action_{other}", sure(0.8, 0.9))
            first, then = (number, other) if number in self.reversed else (other, number)
            sketch.edge(f"action_{first}", "enables", f"action_{then}", sure(0.75, 0.88))


_BREAKS: dict[str, Callable[[Plan], None]] = {
    "prerequisite": Plan.break_prerequisite,
    "order": Plan.break_order,
    "capability": Plan.break_capability,
    "location": Plan.break_location,
}


def grounded(seed: int, stream: int, number: int) -> Iterator[Sketch]:
    """The first problems: of each eight four are valid and one is broken in each way, in an order drawn anew."""
    for index in range(number):
        block = Draws(seed, stream + 100, index // 8).sample((*FLAWS, *("valid",) * 4), 8)
        flaw = block[index % 8]
        draws = Draws(seed, stream, index)
        plan = Plan(draws)
        if flaw != "valid":
            _BREAKS[flaw](plan)
        label = int(flaw == "valid")
        sketch = Sketch(label=label, probability=float(label), what=flaw)
        plan.draw(sketch)
        yield sketch
