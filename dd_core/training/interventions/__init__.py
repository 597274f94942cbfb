"""Interventions: what is done to weights beside the optimiser's steps. See ``base`` first; settings are the study's."""

from dd_core.training.interventions.base import Intervention, Interventions, Trained
from dd_core.training.interventions.best_weights import BestWeights
from dd_core.training.interventions.continual_backprop import ContinualBackprop
from dd_core.training.interventions.head_reset import HeadReset
from dd_core.training.interventions.l2_init import L2Init
from dd_core.training.interventions.new_network import NewNetwork
from dd_core.training.interventions.shrink_and_perturb import ShrinkAndPerturb

__all__ = ["Intervention", "Interventions", "Trained", "make_interventions"]


def make_interventions(stack: Trained) -> Interventions:
    """What the stack's variant asks for, in the order in which published code does it (Dohare et al. 2024).

    At the end of a task the best weights come back first; the head begins anew before noise is added; after a step
    units are replaced before noise is added.
    """
    wanted = stack.variant.interventions
    entries: dict[str, Intervention] = {}
    if wanted.best_weights:
        entries["best_weights"] = BestWeights(stack)
    if wanted.l2_init:
        entries["l2_init"] = L2Init(stack, wanted.l2_init)
    if wanted.new_network:
        entries["new_network"] = NewNetwork(stack)
    if wanted.head_reset:
        entries["head_reset"] = HeadReset(stack)
    if wanted.continual_backprop is not None:
        entries["continual_backprop"] = ContinualBackprop(stack, **wanted.continual_backprop.model_dump())
    if wanted.shrink_and_perturb is not None:
        entries["shrink_and_perturb"] = ShrinkAndPerturb(stack, **wanted.shrink_and_perturb.model_dump())
    return Interventions(entries)
