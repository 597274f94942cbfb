"""The affine maps of a network at images: by the fast backward pass where it knows the network, else by autograd."""

import logging

import torch
from torch import Tensor, nn

from dd_core.curvature.input_space.autograd_backward import AutogradLinearization, AutogradNetwork, differs
from dd_core.curvature.input_space.linearized import Linearization, LinearizedNetwork, NotLinearizableError

_LOG = logging.getLogger(__name__)

Network = LinearizedNetwork | AutogradNetwork

# Cotangents in one pass: enough to fill the convolutions of a CPU, few enough for its caches. GPUs want many more.
_ROWS_PER_PASS = {"cpu": 288, "cuda": 8192}
# Small maps leave room in the caches for more of them, which spread what an operation costs by itself.
_NUMBERS_IN_CACHE, _MOST_ROWS = 1 << 20, 4608


def affine_maps(model: nn.Module, images: Tensor, precision: torch.dtype) -> Network:
    """The fast backward pass, or autograd's where the network holds something it does not know or does not see.

    Args:
        model: in eval mode, its parameters frozen.
        images: a few, at which the fast one is compared with autograd's.
        precision: of the fast one's backward passes.
    """
    try:
        network = LinearizedNetwork(model, precision)
        if differs(network.forward(images), model, images):
            raise NotLinearizableError("the network does more than its graph shows, such as changes in place")
    except NotLinearizableError as error:
        _LOG.info("curvature by autograd: %s", error)
        return AutogradNetwork(model)
    return network


def rows_per_pass(at: Linearization | AutogradLinearization, device: torch.device) -> int:
    """Cotangents that best travel together through the network that gave this map."""
    usual = _ROWS_PER_PASS.get(device.type, 1024)
    if device.type != "cpu" or isinstance(at, AutogradLinearization):
        return usual
    return min(max(usual, _NUMBERS_IN_CACHE // at.largest_map), _MOST_ROWS)
