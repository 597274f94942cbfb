"""Independent random streams by name, so that no stream depends on what was drawn before (exact resume)."""

from typing import Literal, get_args

import numpy as np

Purpose = Literal[
    "split",
    "label_noise",
    "initialisation",
    "order",
    "augmentation",
    "hessian",
    "monitor_signs",
    "monitor_images",
    "network",
    "subset",
    "duplicates",
    "class_order",
    "perturbation",
    "new_units",
    "new_head",
    "new_network",
    "graph_problem",
    "graph_rules",
    "node_features",
]
# Positions are part of every recipe: append, never reorder.
_PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def generator(seed: int, trial: int, purpose: Purpose, epoch: int = 0) -> np.random.Generator:
    """A NumPy generator that depends on its arguments alone (PCG64 seeded through SeedSequence).

    What monitors and interventions draw belongs to an optimiser step or a task, which takes the place of the epoch.
    """
    entropy = [seed, trial, _PURPOSES.index(purpose), epoch]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def torch_seed(seed: int, trial: int, purpose: Purpose, epoch: int = 0) -> int:
    """A 63-bit seed for ``torch.manual_seed``."""
    return int(generator(seed, trial, purpose, epoch).integers(2**63 - 1))
