"""Arms that share a network from now on: those that began together go on together. Needs no torch.

The last bits of a result depend on how many arms share its network and which place it has there, so a resume point says
it. ``dd_core.training.shared_stack`` trains them.
"""

import json
from collections.abc import Collection, Mapping
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
    kinds = {arm: name for arm in until if (name := kind(study, arm))}
    begun = {arm: resume_metadata(store, study, arm) for arm in kinds}
    places = {arm: own for arm, said in begun.items() if (own := _places(said))}  # of the others only if need be
    others = _of_others(store, study, {kinds[arm] for arm, said in begun.items() if not said}, begun)
    found: dict[tuple[int, tuple[str, ...], int], list[Arm]] = {}
    fresh: dict[int, list[Arm]] = {}
    for arm, last in until.items():
        own = places.get(arm)
        if own is None and begun.get(arm) == {}:  # perhaps killed before its first resume point, after another's
            own = others.get((kinds[arm], arm.variant))
            if own is None:
                fresh.setdefault(last, []).append(arm)
                continue
        found.setdefault((arm.k, own or (arm.variant,), last), []).append(arm)
    result = [Network(tuple(arms), last, own) for (_, own, last), arms in found.items()]
    for last, arms_ in fresh.items():
        beside = num_networks * len(arms_) // len(until)
        result += [Network(tuple(g), last, tuple(arm.variant for arm in g)) for g in together(study, arms_, beside)]
    return result


def _places(said: Mapping[str, str]) -> tuple[str, ...] | None:
    """The places of the network, as the head of a resume point says; None: it was not shared."""
    return tuple(json.loads(said["together"])) if "together" in said else None


def _of_others(
    store: Store, study: Study, wanted: Collection[str], begun: Mapping[Arm, dict[str, str]]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """By kind and variant, the places of the first arm in the study's order whose network has one for the variant.

    Args:
        store: of the resume points.
        study: what the arms belong to.
        wanted: kinds whose arms are looked at, all of them.
        begun: what heads of resume points say that have been read already.
    """
    result: dict[tuple[str, str], tuple[str, ...]] = {}
    for arm in study.arms.values() if wanted else ():
        if (name := kind(study, arm)) in wanted:
            own = _places(begun[arm] if arm in begun else resume_metadata(store, study, arm)) or ()
            for variant in own:
                result.setdefault((name, variant), own)
    return result
