"""Is a network piecewise linear in its input? Then its Hessian there is J^T (diag p - p p^T) J, exactly.

Two independent answers: by what it is made of (its layers, and by torch.fx the functions between them), and by numbers
(double backward of the loss against that formula, in float64, on a few images). A network that torch.fx cannot trace is
judged by the numbers alone.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from dd_core.curvature.copies import private_copy
from dd_core.curvature.evaluation import check_data, first_line, logits_of, refuse_training_mode
from dd_core.curvature.second_derivatives import second_derivatives
from dd_core.machine.memory import is_out_of_memory
from dd_core.models.stacking import Classifier

# Relative; rounding in float64 gives 1e-12, a GELU network 1e-2 and more.
TOLERANCE = 1e-6
_NUM_IMAGES = 4

# Layers of torch.nn by name; averages and bicubic interpolation are linear, maxima piecewise.
_LAYERS = re.compile(
    r"""Linear|Conv(Transpose)?[123]d|(Batch|SyncBatch)Norm([123]d)?
    |ReLU|ReLU6|LeakyReLU|PReLU|RReLU|Hardtanh|Hardsigmoid|Threshold|Hardshrink|Softshrink
    |(Adaptive)?(Max|Avg)Pool[123]d|(Zero|Constant|Reflection|Replication|Circular)Pad[123]d
    |Identity|Flatten|Unflatten|Upsample|Pixel(Uns|S)huffle|ChannelShuffle|(Alpha)?Dropout([123]d)?""",
    re.VERBOSE,
)
# Functions and methods by name: piecewise linear in all their tensors together, ...
_IN_ALL = re.compile(
    r"""i?add|i?sub|neg|pos|sum|mean|cat|concat|stack|abs|max|min|amax|amin|maximum|minimum|where
    |(leaky_)?relu_?|relu6|hardtanh_?|threshold_?|clamp(_min|_max)?_?|(adaptive_)?(max|avg)_pool[123]d
    |flatten|unflatten|view|reshape|permute|transpose|(un)?squeeze|contiguous|clone|expand|repeat|getitem|chunk|split
    |narrow|pad|interpolate|flip|roll|to|float|double|pixel_shuffle|dropout[123]?d?""",
    re.VERBOSE,
)
# ... in one of them while the others are constants (a quotient: in the first), ...
_IN_ONE = re.compile(
    r"i?mul|matmul|mm|bmm|addmm|baddbmm|addcmul|linear|conv(_transpose)?[123]d|einsum|batch_norm|prelu|(true|itrue)?div"
)
# ... or constant almost everywhere.
_CONSTANT = re.compile(r"size|dim|numel|gt|ge|lt|le|eq|ne|sign|floor|ceil|round|argmax|argmin")
_CONSTANT_ATTRIBUTES = ("shape", "dtype", "device", "ndim")


class _Tracer(fx.Tracer):
    """Enters a user's modules; a layer that keeps its class's own forward pass is one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one node of the graph."""
        return _known_layer(m) or super().is_leaf_module(m, module_qualified_name)


def why_not_piecewise_linear(model: nn.Module) -> str | None:
    """The first operation that is not known to be piecewise linear in the input, or None.

    For a model that torch.fx cannot trace only its layers of torch.nn are looked at: None then means "nothing found".

    Args:
        model: in eval mode; plain or stacked.

    Returns:
        For example "layer 'blocks.0.act' is GELU" or "layer 'head' applies softplus".

    Raises:
        UserError: the model or a layer of it is in training mode.
    """
    refuse_training_mode(model)
    graph = _trace(model)
    return next(_objections_of_layers(model) if graph is None else _objections_of_graph(model, graph), None)


def is_piecewise_linear(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[bool, str]:
    """Judge by layers and functions, then by numbers on the first few images.

    Args:
        model: one network in eval mode.
        images: (N, *shape), N at least 1.
        labels: int64 (N,).

    Returns:
        Whether it is, and why in words.

    Raises:
        UserError: the model is in training mode, or the data do not fit it.
    """
    reason = why_not_piecewise_linear(model)
    if reason is not None:
        return False, reason
    try:
        found = disagreement(model, images[:_NUM_IMAGES], labels[:_NUM_IMAGES])
    except (RuntimeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        return False, f"PyTorch has no second derivative of it to compare with ({first_line(error)})"
    compared = f"double backward and the Gauss-Newton formula differ by {found:.1e} of their size"
    if _trace(model) is None:
        compared += " (torch.fx cannot trace this model: this comparison alone decides)"
    elif found <= TOLERANCE:
        compared = f"all layers are piecewise linear, and {compared}"
    return found <= TOLERANCE, compared


def disagreement(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """How far the Hessian of the loss is from the Gauss-Newton formula along one random direction v of each image.

    v^T H v by double backward of the cross-entropy against v^T J^T S J v with S = diag p - p p^T, on a float64
    copy of the model. The logits are divided by their spread over the classes: a saturated image, whose H and S are
    both 0, would hide any difference, and the formula holds for a multiple of the logits as it does for the logits.

    Args:
        model: one network in eval mode, (N, *shape) to logits (N, C).
        images: (N, *shape), N at least 1.
        labels: int64 (N,).

    Returns:
        The largest |v^T H v - v^T J^T S J v| / v^T J^T S J v over the images; 0 where both are 0.

    Raises:
        UserError: the model is in training mode, its output is not finite, or the data do not fit it.
    """
    refuse_training_mode(model)
    check_data(model, images, labels)
    exact = private_copy(model, dtype=torch.float64).requires_grad_(False)
    x = images.detach().double().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    with torch.enable_grad(), second_derivatives():
        logits = logits_of(exact, x, labels)
        spread = logits.detach().std(-1, keepdim=True)
        scaled = logits / torch.where(spread > 0, spread, 1)
        loss = nn.functional.cross_entropy(scaled, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        (product,) = torch.autograd.grad(gradient, x, v, retain_graph=True)
        # J v as the derivative of J^T u in u: reverse mode twice, for every operation has that.
        u = torch.zeros_like(scaled, requires_grad=True)
        (pulled,) = torch.autograd.grad(scaled, x, u, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, u, v)
    p = scaled.detach().softmax(-1)
    # The variance of J v under p, which is v^T J^T S J v, summed without a difference of large numbers.
    formula = (p * (pushed - (p * pushed).sum(-1, keepdim=True)).square()).sum(-1)
    difference = ((v * product).flatten(1).sum(-1) - formula).abs()
    return (difference / torch.where(difference > 0, formula, 1)).max().item()


def _known_layer(module: nn.Module) -> bool:
    """Whether the module is a layer of the list, or a subclass that changes nothing of its forward pass."""
    return any(
        base is Classifier or (base.__module__.startswith("torch.nn.modules.") and _LAYERS.fullmatch(base.__name__))
        for base in type(module).__mro__
        if getattr(base, "forward", None) is type(module).forward
    )


def _objection_of_layer(name: str, module: nn.Module) -> str | None:
    """Why a layer is not piecewise linear in its input."""
    if not _known_layer(module):
        return f"layer {name!r} is {type(module).__name__}"
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return f"layer {name!r} is {type(module).__name__} without running statistics, which normalises by the batch"
    return None


def _trace(model: nn.Module) -> fx.Graph | None:
    """The graph of the model, or None where its forward pass depends on values."""
    try:
        return _Tracer().trace(model)
    except Exception:  # a user's forward pass runs here with stand-ins for tensors; it may fail in any way
        return None


def _objections_of_layers(model: nn.Module) -> Iterator[str]:
    """Layers of torch.nn that are not piecewise linear, whether used or not."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    for name, module in model.named_modules():
        is_layer = type(module).__module__.startswith("torch.nn.modules.") and not isinstance(module, containers)
        if is_layer and (reason := _objection_of_layer(name, module)):
            yield reason


def _objections_of_graph(model: nn.Module, graph: fx.Graph) -> Iterator[str]:
    """Operations on what depends on the input that are not known to be piecewise linear."""
    layers = dict(model.named_modules())
    moving: set[fx.Node] = set()  # what depends on the input
    for node in graph.nodes:
        if node.op == "placeholder":
            moving.add(node)
        if node.op == "output" or not any(argument in moving for argument in node.all_input_nodes):
            continue
        if node.op == "call_module":
            reason = _objection_of_layer(node.target, layers[node.target])
        elif _is_constant(node):
            continue
        else:
            reason = _objection_of_function(node, moving)
        if reason:
            yield reason
        moving.add(node)


def _name_of(node: fx.Node) -> str:
    """The name of a function or method without its module."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _is_constant(node: fx.Node) -> bool:
    """Whether the result does not change with small changes of the input, almost everywhere."""
    if node.target is getattr:
        return node.args[1] in _CONSTANT_ATTRIBUTES
    return _CONSTANT.fullmatch(_name_of(node)) is not None


def _objection_of_function(node: fx.Node, moving: set[fx.Node]) -> str | None:
    """Why a function or method is not piecewise linear in its moving arguments together."""
    name = _name_of(node)
    uses: list[fx.Node] = []  # an argument given twice counts twice: x * x is no linear function
    fx.node.map_arg((node.args, node.kwargs), uses.append)
    num_moving = sum(used in moving for used in uses)
    in_training = name.startswith("dropout") and node.kwargs.get("training", True)
    in_training = in_training or (name == "batch_norm" and node.kwargs.get("training", False))
    by_constant = _IN_ONE.fullmatch(name) and num_moving == 1 and (not name.endswith("div") or node.args[0] in moving)
    if (_IN_ALL.fullmatch(name) or by_constant) and not in_training:
        return None
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    where = f"layer {path!r}" if path else "the model's forward pass"
    return f"{where} applies {name}"
