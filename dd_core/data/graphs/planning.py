"""The domain planning as published: a robot, its surroundings, actions and a goal; the label follows from the index.

What is counted and drawn is as in research-developer/nsm (``nsm/data/planning_dataset.py`` before its complexity
tiers): 5 locations, 10 objects, 3 to 8 actions of 10 types, a prerequisite with probability .6, one of 5 goals, 2 to
4 of 6 capabilities. The label is 1 where ``index % 100 < 50``, whatever the graph shows: no graph says anything of
its label, but where the number of graphs is no multiple of 100, label 1 is the more frequent one.
"""

import math
from collections.abc import Iterator

from dd_core.data.graphs.sketch import Draws, Sketch

LOCATIONS = tuple(f"location_{number}" for number in range(5))
ACTIONS = ("move_to", "pick_up", "put_down", "stack", "unstack", "push", "pull", "open", "close", "toggle")
# Each goal and the types of action that it takes.
GOALS: dict[str, tuple[str, ...]] = {
    "stack_blocks": ("pick_up", "move_to", "stack"),
    "clear_table": ("pick_up", "put_down", "move_to"),
    "transport": ("pick_up", "move_to", "put_down"),
    "organize": ("move_to", "pick_up", "stack", "put_down"),
    "manipulate": ("open", "pick_up", "close", "move_to"),
}
CAPABILITIES = ("manipulation", "navigation", "perception", "grasping", "planning", "stacking")
KINDS = ("robot", "object", *LOCATIONS, *ACTIONS, *GOALS, *CAPABILITIES)
RELATIONS = ("at_location", "contains", *ACTIONS, "requires", "achieve", "has_capability", "enables")


def published(seed: int, stream: int, number: int) -> Iterator[Sketch]:
    """The first problems, as published."""
    for index in range(number):
        yield _published(Draws(seed, stream, index), index)


def _published(draws: Draws, index: int) -> Sketch:
    sketch = Sketch(label=int(index % 100 < 50), probability=math.nan, what=f"label_{int(index % 100 < 50)}")
    sketch.node("robot", "robot")
    _surroundings(sketch, draws)
    actions = _actions(sketch, draws)
    goal = draws.choice(tuple(GOALS))
    sketch.node("goal", goal)
    sketch.edge("robot", "achieve", "goal", draws.uniform(0.7, 0.85))
    for kind in GOALS[goal]:
        if matching := [action for action in actions if action[1] == kind]:
            name = draws.choice(matching)
            sketch.node(*name)
            sketch.edge("goal", "requires", name[0], draws.uniform(0.75, 0.9))
    for capability in draws.sample(CAPABILITIES, draws.between(2, 4)):
        sketch.node(capability, capability)
        sketch.edge("robot", "has_capability", capability, draws.uniform(0.85, 0.95))
        sketch.edge("goal", "requires", capability, draws.uniform(0.8, 0.92))
        for action in actions[:2]:
            if draws.chance(0.4):
                sketch.node(*action)
                sketch.edge(capability, "enables", action[0], draws.uniform(0.75, 0.88))
    return sketch


def _surroundings(sketch: Sketch, draws: Draws) -> None:
    """Where the robot and ten objects are; locations with nobody there are no nodes."""
    place = draws.choice(LOCATIONS)
    sketch.node(place, place)
    sketch.edge("robot", "at_location", place, draws.uniform(0.95, 1.0))
    for number in range(10):
        name, place = f"object_{number}", draws.choice(LOCATIONS)
        sketch.node(name, "object")
        sketch.node(place, place)
        sketch.edge(name, "at_location", place, draws.uniform(0.9, 1.0))
        sketch.edge(place, "contains", name, draws.uniform(0.9, 0.98))


def _actions(sketch: Sketch, draws: Draws) -> list[tuple[str, str]]:
    """Name and type of each action: an edge from the robot; its node comes with the first edge that names it."""
    targets = (*(f"object_{number}" for number in range(10)), *LOCATIONS)
    actions: list[tuple[str, str]] = []
    for number in range(draws.between(3, 8)):
        kind = draws.choice(ACTIONS)
        actions.append((f"action_{number}", kind))
        target = draws.choice(targets)
        sketch.node(target, target if target in LOCATIONS else "object")
        sketch.edge("robot", kind, target, draws.uniform(0.85, 0.95))
        if number > 0 and draws.chance(0.6):
            sketch.node(*actions[-1])
            sketch.node(*actions[-2])
            sketch.edge(actions[-1][0], "requires", actions[-2][0], draws.uniform(0.8, 0.9))
    return actions
