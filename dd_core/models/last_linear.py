"""The layer that gives the logits, of any network, and what it reads: the penultimate features."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dd_core.models.stacking import Classifier, StackedLinear

LINEAR = (nn.Linear, StackedLinear, Classifier)


class Calls:
    """What was seen of the linear layers since watching began.

    Attributes:
        name: of the one that was called last, as in ``named_modules``; empty: none was.
        features: its input.
        outputs: what it made of it.
    """

    name: str = ""
    features: Tensor
    outputs: Tensor


@contextlib.contextmanager
def watching_linears(model: nn.Module) -> Iterator[Calls]:
    """Inside, what a forward pass does last with a linear layer is seen."""
    calls, handles = Calls(), []

    def note(name: str, features: Tensor, outputs: Tensor) -> None:
        calls.name, calls.features, calls.outputs = name, features, outputs

    for name, module in model.named_modules():
        if isinstance(module, LINEAR):
            handles.append(
                module.register_forward_hook(lambda _, inputs, outputs, name=name: note(name, inputs[0], outputs))
            )
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def last_linear(model: nn.Module, inputs: Tensor) -> str:
    """The name of the linear layer whose outputs are the logits; empty where none has as many outputs as these.

    Args:
        model: in eval mode, so that nothing but the answer is left of it.
        inputs: any that it takes.
    """
    with watching_linears(model) as calls:
        logits = model(inputs)
    return calls.name if calls.name and calls.outputs.numel() == logits.numel() else ""
