"""Which trials of an arm share a network, and which arms have a GPU alone: by the study alone, without torch."""

from dd_core.study.study import Arm, Study

# Beyond this width, or with more values than these in the first stage per image (k channels of 32x32 at k = 8, after
# which a batch of several networks no longer fits a processor's cache), one network fills the machine and grouped
# convolutions bring nothing; more than eight at a time bring nothing at any width (benchmarks/training.py).
_WIDEST_STACK = 16


_MOST_VALUES = 8 * 32 * 32


_LARGEST_STACK = 8


def stacking(study: Study, arm: Arm) -> list[list[int]]:
    """The trials that share a network, by their numbers."""
    height, width, _ = study.data.record.image_shape
    is_wide = arm.k > _WIDEST_STACK or arm.k * height * width > _MOST_VALUES
    size = 1 if is_wide or not study.variants[arm.variant].is_stackable else _LARGEST_STACK
    trials = list(study.trial_numbers)
    return [trials[start : start + size] for start in range(0, len(trials), size)]


def fills_a_gpu(arm: Arm) -> bool:
    """Whether it should have a GPU alone, where nothing has been measured."""
    return arm.k > _WIDEST_STACK
