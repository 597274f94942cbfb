"""A network with some of its outputs alone, as class-incremental training sees it before all classes are there."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dd_core.models.stacking import Classifier


class Outputs(nn.Module):
    """Some outputs of a network, in an order of their own."""

    def __init__(self, network: nn.Module, outputs: Sequence[int]):
        """``outputs`` count from 0."""
        super().__init__()
        self.network = network
        self.register_buffer("outputs", torch.tensor(outputs), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, len(outputs))."""
        logits: Tensor = self.network(images)
        assert isinstance(self.outputs, Tensor)
        return logits[:, self.outputs]


def with_outputs(network: nn.Module, outputs: Sequence[int], images: Tensor) -> nn.Module:
    """A plain network with these outputs alone; the one that was passed is used up.

    Where the outputs are those of a last linear layer, its rows are taken. All other layers keep their names, nothing
    is computed that is not used, and estimators meet no layer that they do not know.

    Args:
        network: images (B, channels, H, W) to logits (B, C), in eval mode.
        outputs: which, in the order wanted.
        images: one or more, of any values, to see which layer comes last.
    """
    layer = _last(network, images)
    if layer is None:
        return Outputs(network, outputs).train(network.training)
    kept = torch.tensor(outputs, device=layer.weight.device)
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(parameter.detach()[kept], parameter.requires_grad))
    if isinstance(layer, nn.Linear):
        layer.out_features = len(outputs)
    return network


def _last(network: nn.Module, images: Tensor) -> nn.Linear | Classifier | None:
    """The linear layer whose outputs are those of the network and whose weights nothing else has; None: none is."""
    made: dict[int, nn.Module] = {}
    layers = [module for module in network.modules() if type(module) in (nn.Linear, Classifier)]
    handles = [m.register_forward_hook(lambda module, _, result: made.update({id(result): module})) for m in layers]
    try:
        with torch.no_grad():
            result = network(images)
            last = made.get(id(result))
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(last, nn.Linear | Classifier):
        return None
    names = [name for name, own in network.named_parameters(remove_duplicate=False) if own is last.weight]
    return last if len(names) == 1 else None
