"""An equivalent network of stock PyTorch layers, for libraries that recognise layers by their exact class.

BackPACK 1.7.1 looks a layer's class up in a table: a subclass of nn.Conv2d, a custom last layer, a mean over positions
or a functional max-pooling is unknown to it. Here the same function is written with nn.Conv2d, nn.BatchNorm2d,
nn.Linear, nn.AvgPool2d, nn.MaxPool2d and nn.Flatten, module names and parameters unchanged.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from dd_core.curvature.copies import private_copy
from dd_core.curvature.evaluation import first_line
from dd_core.errors import UserError
from dd_core.models.stacking import Classifier

_STOCK = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)


class _Tracer(fx.Tracer):
    """Takes subclasses of stock layers, and our classifier, as one node each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*_STOCK, Classifier)) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Runs the network once and keeps what every node gave."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module, garbage_collect_values=False)
        self.given: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.given[n] = super().run_node(n)
        return self.given[n]


def stock_network(model: nn.Module, images: Tensor, *, own_parameters: bool = False) -> fx.GraphModule:
    """The same function of the same parameters, made of stock layers only.

    Args:
        model: a plain network in eval mode.
        images: (B, C, H, W) of the size it will be used with; pooling over all positions becomes pooling of that size.
        own_parameters: copy the parameters and buffers, so that hooks and gradients never reach the model.

    Returns:
        A network in eval mode that shares the model's parameters and buffers unless they were to be copied.

    Raises:
        UserError: its forward method depends on values, so it cannot be written as a fixed sequence of layers.
    """
    shell = _with_stock_modules(model, own_parameters)
    try:
        traced = fx.GraphModule(shell, _Tracer().trace(shell))
    except Exception as error:  # a user's forward pass runs here with stand-ins for tensors; it may fail in any way
        raise UserError(
            f"{type(model).__name__} cannot be rewritten with stock layers for BackPACK ({first_line(error)}); "
            "leave gradient_variance out of the quantities"
        ) from error
    _refuse_repeated_weights(traced)
    shapes = _Shapes(traced)
    with torch.no_grad():
        logits, expected = shapes.run(images), model(images)
    if not isinstance(logits, Tensor) or not torch.allclose(logits, expected, rtol=1e-3, atol=1e-6):
        raise UserError(
            f"{type(model).__name__} does more than its graph shows, such as a hook or a choice among its outputs, so "
            "it cannot be rewritten with stock layers for BackPACK; leave gradient_variance out of the quantities"
        )
    for node in list(traced.graph.nodes):
        layers = _pooling(node, shapes.given)
        if layers is not None:
            _replace(traced, node, layers)
    traced.graph.eliminate_dead_code()
    traced.graph.lint()
    traced.recompile()
    return traced.eval()


def _refuse_repeated_weights(traced: fx.GraphModule) -> None:
    """Refuse networks in which a weight is used more than once: BackPACK would keep what its last use gives.

    Raises:
        UserError: it names the weight.
    """
    used: set[int] = set()
    for node in traced.graph.nodes:
        parameters: list[tuple[str, nn.Parameter]] = []
        if node.op == "call_module":
            parameters = list(traced.get_submodule(node.target).named_parameters(node.target))
        elif node.op == "get_attr" and isinstance(found := operator.attrgetter(node.target)(traced), nn.Parameter):
            parameters = [(node.target, found)]
        for name, parameter in parameters:
            if id(parameter) in used:
                raise UserError(
                    f"the weight {name!r} is used more than once, for which BackPACK gives wrong norms of gradients; "
                    "leave gradient_variance out of the quantities"
                )
            used.add(id(parameter))


def _with_stock_modules(model: nn.Module, own_parameters: bool) -> nn.Module:
    """A copy of the module tree in which subclasses of stock layers are stock layers."""
    tensors = [] if own_parameters else [*model.parameters(), *model.buffers()]
    shell = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}) if tensors else private_copy(model)
    for name, module in list(shell.named_modules()):
        stock = _stock(module)
        if stock is not module:
            if not name:
                return stock
            parent, _, own = name.rpartition(".")
            setattr(shell.get_submodule(parent), own, stock)
    return shell


def _stock(module: nn.Module) -> nn.Module:
    """The stock layer of the same class family with the same tensors, or the module itself."""
    if isinstance(module, Classifier) and module.trials is None:
        linear = nn.Linear(module.weight.shape[1], module.weight.shape[0], device="meta")
        linear.weight, linear.bias = module.weight, module.bias
        return linear
    for stock in _STOCK:
        is_own = type(module) is stock or is_parametrized(module)
        if isinstance(module, stock) and not is_own and type(module).forward is stock.forward:
            plain: nn.Module = stock.__new__(stock)
            plain.__dict__ = dict(module.__dict__)
            return plain
    return module


def _pooling(node: fx.Node, given: dict[fx.Node, Any]) -> list[nn.Module] | None:
    """The layers for a mean over positions or a functional max-pooling; None for any other node."""
    function: str | Callable[..., Any] = node.target
    is_mean = function in ("mean", torch.mean) and not node.kwargs and len(node.args) == 2
    if is_mean and node.args[1] in ((2, 3), [2, 3], (-2, -1), [-2, -1]):
        return [nn.AvgPool2d(tuple(given[node.args[0]].shape[2:])), nn.Flatten()]  # type: ignore[index]
    if function is functional.max_pool2d and len(node.args) == 2:
        size: Any = fx.node.map_arg(node.args[1], lambda argument: given[argument])
        return [nn.MaxPool2d(size if isinstance(size, int) else tuple(size))]
    return None


def _replace(traced: fx.GraphModule, node: fx.Node, layers: list[nn.Module]) -> None:
    current = node.args[0]
    assert isinstance(current, fx.Node)
    with traced.graph.inserting_before(node):
        for index, layer in enumerate(layers):
            traced.add_module(f"{node.name}_{index}", layer)
            current = traced.graph.call_module(f"{node.name}_{index}", (current,))
    node.replace_all_uses_with(current)
    traced.graph.erase_node(node)
