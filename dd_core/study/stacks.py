"""Which trials share a network, of one arm or of several, and which arms have a GPU alone: without torch."""

import itertools
import json
from collections.abc import Iterable

from dd_core.study.architectures import architecture_called
from dd_core.study.interventions import Interventions
from dd_core.study.study import Arm, Study

# Beyond this width, or with more values than these in the first stage per image (k channels of 32x32 at k = 8, after
# which a batch of several networks no longer fits a processor's cache), one network fills the machine and grouped
# convolutions bring nothing; more than eight at a time bring nothing at any width (benchmarks/training.py).
_WIDEST_STACK = 16
_MOST_VALUES = 8 * 32 * 32
_LARGEST_STACK = 8
# Nor do more than have so many of these values together: at 32x32 four networks of k = 8 take longer than one after the
# other without AVX-512 (0.87 times as fast), two do not (1.01; with AVX-512 1.11), and of k = 4 four do best.
_MOST_VALUES_OF_STACK = 16 * 32 * 32

# On a GPU, where a step is one CUDA graph, a stack of five is 1.4 to 2.7 times as fast as one network after the other
# up to this width at 32x32 (bfloat16; float32 1.2 to 2.6 times), and slower at 64 (docs/gpu.md).
_WIDEST_STACK_ON_GPU = 32

# Arms that share a network have at most so many trials together: more bring little at any width. They have fewer where
# there would be more values than these in the first stage per image, and beyond this width only arms of one trial share
# one: there it takes as long, or longer (benchmarks/together.py).
_MOST_TRIALS_TOGETHER = 12
_MOST_VALUES_TOGETHER = 20 * 32 * 32
_WIDEST_OF_SEVERAL_TRIALS = 8

# What the optimiser can have for each trial (dd_core.training.per_trial).
_RATES = ("learning_rate", "weight_decay", "momentum")


def stacking(study: Study, arm: Arm, on_gpu: bool = False) -> list[list[int]]:
    """The trials that share a network, by their numbers.

    Args:
        study: what the arm belongs to.
        arm: which arm.
        on_gpu: for an arm that begins as a whole on a GPU. Otherwise as on a CPU, which is also how an arm is divided
            into parts.
    """
    if not _is_narrow(study, arm, on_gpu):
        return _groups(study, 1)
    height, width, _ = study.data.record.image_shape
    most = _LARGEST_STACK if on_gpu else _MOST_VALUES_OF_STACK // (arm.k * height * width)
    return _groups(study, min(_LARGEST_STACK, most))


def stacking_unsaid(study: Study, arm: Arm) -> list[list[int]]:
    """The same where a resume point does not say it: earlier versions had only one size."""
    return _groups(study, _LARGEST_STACK if _is_narrow(study, arm) else 1)


def _groups(study: Study, size: int) -> list[list[int]]:
    trials = list(study.trial_numbers)
    return [trials[start : start + size] for start in range(0, len(trials), size)]


def _is_narrow(study: Study, arm: Arm, on_gpu: bool = False) -> bool:
    height, width, _ = study.data.record.image_shape
    widest = _WIDEST_STACK_ON_GPU if on_gpu else _WIDEST_STACK
    most_values = _WIDEST_STACK_ON_GPU * 32 * 32 if on_gpu else _MOST_VALUES
    is_wide = arm.k > widest or arm.k * height * width > most_values
    return study.variants[arm.variant].is_stackable and not is_wide


def kind(study: Study, arm: Arm) -> str:
    """Arms of the same kind differ in learning rate, weight decay and momentum alone, and may share a network.

    Not where it would not be faster, nor where what belongs to a trial cannot be told from what belongs to others:
    random numbers of the network itself, and what interventions and monitors of the user's own remember.

    Returns:
        A text that is the same for all of a kind, empty for an arm that trains apart.
    """
    variant = study.variants[arm.variant]
    draws = architecture_called(variant.architecture).draws_random_numbers
    if _most_arms(study, arm) < 2 or draws or study.monitors.custom or variant.interventions != Interventions():
        return ""
    recipe = study.recipe(arm)
    optimizer = {name: value for name, value in recipe["variant"]["optimizer"].items() if name not in _RATES}
    return json.dumps({**recipe, "variant": {**recipe["variant"], "optimizer": optimizer}}, sort_keys=True)


def _most_arms(study: Study, arm: Arm) -> int:
    """How many arms like this one may share a network; below two: none."""
    height, width, _ = study.data.record.image_shape
    if not _is_narrow(study, arm) or (arm.k > _WIDEST_OF_SEVERAL_TRIALS and study.trials > 1):
        return 0
    return min(_MOST_TRIALS_TOGETHER, _MOST_VALUES_TOGETHER // (arm.k * height * width)) // study.trials


def together(study: Study, arms: Iterable[Arm], num_networks: int) -> list[list[Arm]]:
    """Which arms should share a network, as evenly as possible, the others alone.

    Args:
        study: what they belong to.
        arms: to be trained, none of them begun.
        num_networks: that can be trained at the same time; arms share none that could train beside each other.
    """
    kinds: dict[str, list[Arm]] = {}
    for arm in arms:
        kinds.setdefault(kind(study, arm) or arm.key, []).append(arm)
    total = sum(map(len, kinds.values()))
    networks = []
    for alike in kinds.values():
        most = max(1, _most_arms(study, alike[0]))
        count = min(len(alike), max(-(-len(alike) // most), -(-len(alike) * num_networks // total)))
        edges = [len(alike) * i // count for i in range(count + 1)]
        networks += [alike[start:stop] for start, stop in itertools.pairwise(edges)]
    return networks


def fills_a_gpu(arm: Arm) -> bool:
    """Whether it should have a GPU alone, where nothing has been measured."""
    return arm.k > _WIDEST_STACK
