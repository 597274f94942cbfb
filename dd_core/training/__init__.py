"""Training all trials of an arm: the loop, optimisers, evaluation, what is recorded when, and exact resume."""

from dd_core.training.parts import train_part
from dd_core.training.train import train_arm

__all__ = ["train_arm", "train_part"]
