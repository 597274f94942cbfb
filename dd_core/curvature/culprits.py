"""Which layer is it? A network that was found wanting runs once more, with every layer's inputs and outputs noted."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from dd_core.curvature.derivative_check import derivative_trouble

_TRIES = 20


@dataclass(frozen=True)
class _Call:
    """One layer's work in one forward pass: copies of what it got and gave."""

    name: str
    module: nn.Module
    arguments: Any
    result: Any

    def __str__(self) -> str:
        """For the beginning of a sentence."""
        kind = type(self.module).__name__
        return f"layer {self.name!r} ({kind})" if self.name else f"the model's own forward pass ({kind})"


def deviating_layer(network: nn.Module, images: Tensor, others: Tensor) -> str:
    """The first layer, innermost first, that gives other things for the same inputs in a second pass.

    Args:
        network: a private copy.
        images: of the first pass, (B, ...).
        others: of the second, as many or only the first of them.
    """
    with torch.no_grad():
        for _ in range(_TRIES):  # what is random does not always differ
            for one, two in zip(_calls(network, images), _calls(network, others), strict=False):
                if one.name == two.name and _agree(one.arguments, two.arguments) and not _agree(one.result, two.result):
                    return str(one)
    return f"the model ({type(network).__name__})"


def failing_layer(network: nn.Module, images: Tensor) -> str:
    """The innermost layer whose forward pass raises an error for these images."""
    entered: list[_Call] = []
    with torch.no_grad(), contextlib.suppress(Exception):
        _calls(network, images, entered)
    return str(entered[-1]) if entered else f"the model ({type(network).__name__})"


def layer_in_trouble(network: nn.Module, images: Tensor, variables: Sequence[Tensor]) -> tuple[str, str | None]:
    """The first layer, innermost first, whose own second derivative is wrong, and what is wrong with it.

    Args:
        network: a private copy.
        images: (B, ...).
        variables: in which derivatives are taken, beside those in each layer's inputs.
    """
    with torch.no_grad():
        calls = _calls(network, images)
    wanted = {id(variable) for variable in variables}
    for call in calls:
        leaves, structure = tree_flatten(call.arguments)
        inputs = [leaf.requires_grad_(True) for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        chosen = [p for p in call.module.parameters() if id(p) in wanted]

        def evaluate(call: _Call = call, leaves: list[Any] = leaves, structure: Any = structure) -> list[Tensor]:
            # Layers that change their input in place get another tensor than the leaf.
            given = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            arguments, keywords = tree_unflatten(given, structure)
            return [y for y in _tensors(call.module(*arguments, **keywords)) if y.is_floating_point()]

        if (trouble := derivative_trouble(evaluate, [*inputs, *chosen])) is not None:
            return str(call), trouble
    return f"the model ({type(network).__name__})", None


def _calls(network: nn.Module, images: Tensor, waiting: list[_Call] | None = None) -> list[_Call]:
    """Every layer's work in the order in which they ended; those that have not ended yet are ``waiting``."""
    names = {id(module): name for name, module in network.named_modules()}
    calls: list[_Call] = []
    waiting = [] if waiting is None else waiting

    def before(module: nn.Module, arguments: Any, keywords: Any) -> None:
        given = tree_map_only(Tensor, _copied, (arguments, keywords))
        waiting.append(_Call(names[id(module)], module, given, None))

    def after(module: nn.Module, arguments: Any, keywords: Any, result: Any) -> None:
        calls.append(replace(waiting.pop(), result=tree_map_only(Tensor, _copied, result)))

    handles = []
    for module in network.modules():
        handles.append(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(after, prepend=True, with_kwargs=True))
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _agree(one: Any, two: Any) -> bool:
    """Whether two trees hold the same numbers; where one has more images, the first of them are compared."""
    pairs = list(zip(_tensors(one), _tensors(two), strict=False))
    return all(_same(a, b) for a, b in pairs)


def _same(one: Tensor, two: Tensor) -> bool:
    if one.ndim != two.ndim:
        return False
    for dimension, size in enumerate(two.shape):
        one = one.narrow(dimension, 0, min(size, one.shape[dimension]))
    if one.shape != two.shape:
        return False
    allowed = 1e-6 if one.dtype == torch.float64 else 1e-3
    difference = (one - two).abs().double()
    return not one.numel() or bool(difference.max() <= allowed * one.abs().max())
