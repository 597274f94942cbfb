"""A network that is piecewise linear in its input, linearised at a batch of images: a backward pass we write ourselves.

Around almost every image such a network is an affine map, so a vector-Jacobian product is a chain of linear layers and
of the masks that the forward pass left behind. Many cotangents per image share the masks: they travel through each
layer together, as one large batch in channels-last memory, where automatic differentiation would make one pass for each
of them, keep a graph alive and lay out small batches anew. On a CPU that runs at the speed of the forward convolutions.

The network is read by torch.fx. What is not known raises ``NotLinearizableError``; autograd then has to do.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from dd_core.curvature.input_space.cotangents import Waiting, dense, in_one_batch
from dd_core.curvature.input_space.linear_rules import (
    ADDITIONS,
    LAYERS,
    UNCHANGED,
    Pull,
    Ruled,
    convolution,
    function_rule,
    layer_pull,
    module_rule,
    relu_rule,
)
from dd_core.models.stacking import Classifier

Visitor = Callable[[str, nn.Module, Tensor, Tensor], None]

# What may be asked of a tensor without depending on its values.
_OF_SHAPES = (getattr, "size", "dim")


class NotLinearizableError(Exception):
    """The network has an operation that ``linear_rules`` does not know."""


class _Tracer(fx.Tracer):
    """Enters the user's modules, but neither layers nor subclasses of layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one node of the graph."""
        return _is_layer(m) or super().is_leaf_module(m, module_qualified_name)


@dataclass
class _Step:
    """One operation that cotangents pass on their way back; an addition hands them to several inputs.

    ``size`` numbers are its value for one image.
    """

    node: fx.Node
    inputs: tuple[fx.Node, ...]
    pull: Pull
    size: int
    layer: nn.Module | None = None
    layer_input: Tensor | None = None


@dataclass
class Linearization:
    """The affine map at a batch of images.

    Attributes:
        logits: (B, C), in the network's dtype.
        classifier_weight: of the last linear layer (C, F), or None where the network does not end in one.
    """

    logits: Tensor
    classifier_weight: Tensor | None
    _dtype: torch.dtype
    _input: fx.Node
    _output: fx.Node
    _steps: list[_Step] = field(repr=False)
    _images: Tensor | None = None

    def of(self, images: Tensor) -> "Linearization":
        """The map at some of the images, int64 (n,), in that order."""
        chosen = images if self._images is None else self._images[images]
        return replace(self, logits=self.logits[images], _images=chosen)

    def pull_back(self, cotangents: Tensor, visit: Visitor | None = None) -> Tensor:
        """J^T applied to every cotangent, J = d logits / d image.

        Args:
            cotangents: (B, m, C).
            visit: called for every convolution, linear layer and BatchNorm on the way with its name, the module, its
                input (B, ...) and the cotangents of its output (B, m, ...); needs ``forward(..., keep_inputs=True)``.

        Returns:
            (B, m, *image shape) in the dtype of the pull-back.
        """
        return self._pull([cotangents], self._steps, self._output, visit)[0]

    def pull_back_groups(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """The same in one pass for consecutive groups of the images, each with its own number m of cotangents."""
        return self._pull(cotangents, self._steps, self._output, None)

    def pull_back_features(self, cotangents: Tensor) -> Tensor:
        """The same from the input of the last linear layer: (B, m, F) to (B, m, *image shape)."""
        assert self.classifier_weight is not None
        return self._pull([cotangents], self._steps[:-1], self._steps[-1].inputs[0], None)[0]

    @property
    def largest_map(self) -> int:
        """Numbers in the largest tensor that one cotangent is on its way back."""
        return max(step.size for step in self._steps)

    def _pull(
        self, cotangents: Sequence[Tensor], steps: list[_Step], start: fx.Node, visit: Visitor | None
    ) -> list[Tensor]:
        """Walk back through the steps.

        Before the first mask on the way all images share the network's weights and nothing else, so one set of unit
        cotangents is carried, (C, ...), and combined into those of the images only where they part.
        """
        rows, whose = in_one_batch(cotangents, self._images)
        rows = rows.to(self._dtype)
        waiting = Waiting(rows)
        if visit is None:
            waiting.share(start, torch.eye(rows.shape[1], dtype=self._dtype, device=rows.device))
        else:
            waiting.add(start, rows, fresh=False)
        with torch.no_grad():
            for step in reversed(steps):
                if step.pull.is_shared and (units := waiting.take_shared(step.node)) is not None:
                    for source in step.inputs:
                        waiting.share(source, dense(step.pull.apply(units, whose), step.pull.grid))
                    continue
                arrived, is_fresh = waiting.take(step.node)
                if arrived is None:
                    continue  # nothing uses its result
                if visit is not None and step.layer is not None:
                    if step.layer_input is None:
                        raise ValueError("a visitor needs forward(images, keep_inputs=True)")
                    visit(str(step.node.target), step.layer, step.layer_input, whose.split(arrived)[0])
                if is_fresh and step.pull.scale is not None:
                    back = whose.multiply(arrived, step.pull.scale, in_place=True)
                else:
                    back = step.pull.apply(arrived, whose)
                    is_fresh = is_fresh or not step.pull.is_view
                for source in step.inputs:
                    waiting.add(source, back, is_fresh and len(step.inputs) == 1, step.pull.grid)
            result, _ = waiting.take(self._input)
        assert result is not None
        return whose.split(result)


class LinearizedNetwork:
    """A piecewise linear network in eval mode, read once, to be linearised at many images."""

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32):
        """Read the network; its weights are copied where the dtype differs, so later changes of them are not seen.

        Args:
            model: in eval mode, images (B, ...) to logits (B, C).
            dtype: of the pull-back; bfloat16 is exact to about 1 % and twice as fast where the processor knows it.

        Raises:
            NotLinearizableError: it cannot be traced, or has an operation that is not known here.
        """
        self.model = model
        self.dtype = dtype
        try:
            self._nodes = list(_Tracer().trace(model).nodes)
        except Exception as error:  # fx raises many kinds for control flow that depends on values
            raise NotLinearizableError(f"torch.fx cannot trace the network: {error}") from error
        self._modules = dict(model.named_modules())
        self._weights: dict[str, Tensor] = {}
        self._scales: dict[str, Tensor] = {}
        self._pulls: dict[tuple[str, bool, tuple[int, ...]], Pull] = {}
        self._convolutions: dict[tuple[str, tuple[int, ...]], Callable[[Tensor], Tensor]] = {}
        with torch.no_grad():
            for node in self._nodes:
                module = self._modules.get(node.target) if node.op == "call_module" else None
                if module is not None and _is_layer(module):
                    self._read(node.target, module)

    def _read(self, name: str, layer: nn.Module) -> None:
        """Keep a layer's weight, or a BatchNorm's scale, in the dtype of the pull-back."""
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            if layer.running_var is None:
                raise NotLinearizableError(f"layer {name!r} normalises by the batch even in eval mode")
            gain = layer.weight if layer.affine else torch.ones_like(layer.running_var)
            self._scales[name] = (gain.double() / (layer.running_var.double() + layer.eps).sqrt()).to(self.dtype)
            return
        if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            raise NotLinearizableError(f"layer {name!r} pads by other than a number of zeros")
        if isinstance(layer, Classifier) and layer.trials is not None:
            raise NotLinearizableError(f"layer {name!r} belongs to a stack of several networks")
        weight = layer.weight.detach().to(self.dtype)  # type: ignore[operator]
        is_image = weight.ndim == 4
        self._weights[name] = weight.contiguous(memory_format=torch.channels_last) if is_image else weight

    def forward(self, images: Tensor, keep_inputs: bool = False) -> Linearization:
        """Run the network and keep what the way back needs.

        Args:
            images: (B, ...) in the network's dtype; channels-last images are faster.
            keep_inputs: also keep every layer's input, for a visitor.

        Raises:
            NotLinearizableError: it has an operation that is not known here.
        """
        values: dict[fx.Node, Any] = {}
        steps: dict[fx.Node, _Step] = {}
        source = self._nodes[0]
        with torch.no_grad():
            for node in self._nodes[:-1]:
                if node.op == "placeholder":
                    if node is not source and not node.args:
                        raise NotLinearizableError("the network takes more than one argument")
                    values[node] = images if node is source else node.args[0]
                    continue
                if node.op == "get_attr":
                    values[node] = operator.attrgetter(str(node.target))(self.model)
                    continue
                inputs = tuple(n for n in node.all_input_nodes if n in steps or n is source)
                arguments = fx.map_arg(node.args, values.__getitem__)
                keywords = fx.map_arg(node.kwargs, values.__getitem__)
                step = self._step(node, inputs, values, arguments, keywords, keep_inputs)
                if step is not None:
                    steps[node] = step
        output = self._nodes[-1].args[0]
        if not isinstance(output, fx.Node) or output not in steps or values[output].ndim != 2:
            raise NotLinearizableError("the network's output is not one tensor of logits (B, C)")
        last = steps[output]
        weight = None
        if isinstance(last.layer, nn.Linear | Classifier) and list(steps)[-1] is output:
            weight = last.layer.weight.detach()
        return Linearization(values[output], weight, self.dtype, source, output, list(steps.values()))

    def _step(
        self,
        node: fx.Node,
        inputs: tuple[fx.Node, ...],
        values: dict[fx.Node, Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        keep_inputs: bool,
    ) -> _Step | None:
        """Evaluate a node; a step if its value is a tensor that depends on the images."""
        module = self._modules[str(node.target)] if node.op == "call_module" else None
        ruled: Ruled | None = None
        if module is not None and inputs == node.args and _is_layer(module):
            name = str(node.target)
            # A BatchNorm whose only reader is a ReLU leaves its scale to the ReLU's mask: one pass over memory less.
            scale = None if self._scaled_by_relu(node) and not keep_inputs else self._scales.get(name)
            values[node] = self._value(name, module, arguments[0])
            pull = self._layer_pull(name, module, arguments[0].shape, scale)
            return _Step(node, inputs, pull, values[node][0].numel(), module, arguments[0] if keep_inputs else None)
        if module is not None and inputs == node.args:
            (before,) = inputs
            scale = self._scales.get(str(before.target)) if self._scaled_by_relu(before) and not keep_inputs else None
            is_relu = isinstance(module, nn.ReLU)
            ruled = (
                relu_rule(arguments[0], scale, self.dtype) if is_relu else module_rule(module, arguments[0], self.dtype)
            )
        elif node.op in ("call_function", "call_method"):
            if not inputs or node.target in _OF_SHAPES:
                values[node] = _evaluate(node, arguments, keywords)
                if not inputs or not isinstance(values[node], Tensor):
                    return None
            elif node.target in ADDITIONS and not keywords and _adds_equal_shapes(node, arguments):
                ruled = arguments[0] + arguments[1], UNCHANGED
            elif inputs == node.args[:1]:
                ruled = function_rule(node.target, arguments, keywords, self.dtype)
        if ruled is None:
            what = f"layer {node.target!r} ({type(module).__name__})" if module else f"operation {node.target}"
            raise NotLinearizableError(f"{what} is not known to be piecewise linear")
        values[node], pull = ruled
        return _Step(node, inputs, pull, values[node][0].numel())

    def _layer_pull(self, name: str, layer: nn.Module, shape: torch.Size, scale: Tensor | None) -> Pull:
        """How cotangents go back through a layer, made once for all batches."""
        key = name, scale is None, tuple(shape[1:])
        if key not in self._pulls:
            self._pulls[key] = layer_pull(layer, shape, self._weights.get(name), scale)
        return self._pulls[key]

    def _value(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        """What a layer makes of its input."""
        if not isinstance(layer, nn.Conv2d):
            value: Tensor = layer(x)
            return value
        key = name, tuple(x.shape[1:])
        if key not in self._convolutions:
            self._convolutions[key] = convolution(layer, x.shape)
        return self._convolutions[key](x)

    def _scaled_by_relu(self, node: fx.Node) -> bool:
        """Whether the node is a BatchNorm that only a ReLU module reads."""
        if str(node.target) not in self._scales or len(node.users) != 1:
            return False
        (reader,) = node.users
        return reader.op == "call_module" and isinstance(self._modules[str(reader.target)], nn.ReLU)


def _evaluate(node: fx.Node, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
    assert callable(node.target)
    return node.target(*arguments, **keywords)


def _adds_equal_shapes(node: fx.Node, arguments: tuple[Any, ...]) -> bool:
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    return len(set(node.args)) == len(node.args) == 2 and len({tensor.shape for tensor in tensors}) == 1


def _is_layer(module: nn.Module) -> bool:
    """Whether it is of ``LAYERS``, and not a subclass that computes something else."""
    return any(isinstance(module, layer) and type(module).forward is layer.forward for layer in LAYERS)
