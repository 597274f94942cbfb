"""Arms that share a network from now on: those that began together go on together. Needs no torch.

The last bits of a result depend on how many arms share its network and which place it has there, so a resume point says
it. ``dd_core.training.shared_stack`` trains them.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from dd_core.store.resume_points import resume_metadata
from dd_core.store.store import Store
from dd_core.study.stacks import kind, together
from dd_core.study.study import Arm, Study


@dataclass(frozen=True)
class Network:
    """What is trained as one.

    Attributes:
        arms: to be trained.
        until: their last epoch.
        places: the variant of each place, of arms that are not to be trained, too; one: the arm is alone.
    """

    arms: tuple[Arm, ...]
    until: int
    places: tuple[str, ...]


def networks(store: Store, study: Study, until: Mapping[Arm, int], num_networks: int) -> list[Network]:
    """Which of the arms train in one network.

    Args:
        store: says what has begun.
        study: what they belong to.
        until: of each arm that is to be trained the last epoch.
        num_networks: that can be trained at the same time.
    """
    kinds = {arm: kind(study, arm) for arm in study.arms.values()}
    shared = {name for name, count in Counter(kinds.values()).items() if name and count > 1}
    wanted = {kinds[arm] for arm in until} & shared
    begun = {arm: resume_metadata(store, study, arm) for arm, name in kinds.items() if name in wanted}
    places = {arm: tuple(json.loads(said["together"])) for arm, said in begun.items() if "together" in said}
    found: dict[tuple[int, tuple[str, ...], int], list[Arm]] = {}
    fresh: dict[int, list[Arm]] = {}
    for arm, last in until.items():
        own = places.get(arm)
        if own is None and begun.get(arm) == {}:  # perhaps killed before its first resume point, after that of another
            of_others = (p for other, p in places.items() if kinds[other] == kinds[arm] and arm.variant in p)
            own = next(of_others, None)
            if own is None:
                fresh.setdefault(last, []).append(arm)
                continue
        found.setdefault((arm.k, own or (arm.variant,), last), []).append(arm)
    result = [Network(tuple(arms), last, own) for (_, own, last), arms in found.items()]
    for last, arms_ in fresh.items():
        beside = num_networks * len(arms_) // len(until)
        result += [Network(tuple(g), last, tuple(arm.variant for arm in g)) for g in together(study, arms_, beside)]
    return result
