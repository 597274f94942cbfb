"""The builder of the architecture ``nsm``."""

from torch import nn

from dd_core.errors import UserError
from dd_core.models.nsm.network import Network
from dd_core.study.graphs import NSM


def nsm(k: int, num_features: int, num_classes: int, trials: int | None, settings: NSM) -> nn.Module:
    """An untrained network, GraphBatch to NSMOutputs.

    Args:
        k: hidden width, even; 64 with 64 features is the published network.
        num_features: of a node, even.
        num_classes: of a graph.
        trials: None for a plain network; 1 adds the axis of trials to its outputs. Its weights have the same names.
        settings: as a variant says them.

    Raises:
        UserError: an odd width, or a stack of several trials.
    """
    if trials not in (None, 1):
        raise UserError(f"nsm: a graph network is not stacked, so there is no stack of {trials}")
    return Network(k, num_features, num_classes, settings, has_trial_axis=trials is not None)
