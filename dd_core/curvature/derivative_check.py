"""Is PyTorch's second derivative of a function right? Asked by numbers, without knowing the function.

Two questions, in directions scaled to each tensor's size: is <u, Hv> = <v, Hu>, and is Hv the difference quotient of
the gradient along v? The first is exact up to rounding and finds most mistakes; the second also finds those that leave
the product symmetric, such as a custom backward pass that takes for constants what depends on its input.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dd_core.curvature.evaluation import first_line
from dd_core.machine.memory import is_out_of_memory

Evaluate = Callable[[], Sequence[Tensor]]

# Relative. Rounding gives 1e-12 in float64, but a network may round to float32 inside.
_ASYMMETRY, _ASYMMETRY_OF_FLOAT32 = 1e-6, 3e-2
_DIFFERENCE = 1e-2
# Of the difference quotient, relative to each tensor's size: the first costs no digits, the last cross no kink even
# of networks with a hundred million ReLUs. One that agrees is enough.
_STEPS = (1e-6, 1e-8, 1e-9, 1e-10)


def derivative_trouble(evaluate: Evaluate, variables: Sequence[Tensor]) -> str | None:
    """What is wrong with the second derivative, as the predicate of a sentence; None: nothing.

    Args:
        evaluate: computes tensors from the present values of the variables, always the same for the same values.
        variables: leaves that require gradients. Their values are moved, and put back at the end.
    """
    try:
        return _Check(evaluate, variables).trouble()
    except Exception as error:  # whatever PyTorch or a user's backward pass says
        if is_out_of_memory(error):
            raise
        return f"has no second derivative in PyTorch ({first_line(error)})"


class _Check:
    """A scalar function of the variables: quadratic in the outputs, each of which gets another weight."""

    def __init__(self, evaluate: Evaluate, variables: Sequence[Tensor]):
        """Take the outputs' sizes and two random directions."""
        self.evaluate, self.variables = evaluate, list(variables)
        with torch.no_grad(), Precisions() as precisions:
            outputs = evaluate()
        generator = torch.Generator().manual_seed(0)
        self.weights = [random_like(output, generator) for output in outputs]
        self.sizes = [root_mean_square(output) for output in outputs]
        self.scales = [root_mean_square(variable) for variable in variables]
        self.u, self.v = ([random_like(variable, generator) for variable in variables] for _ in range(2))
        seen = precisions.seen | {tensor.dtype for tensor in (*outputs, *variables)}
        self.is_double = seen <= {torch.float64}

    def trouble(self) -> str | None:
        """See ``derivative_trouble``."""
        gradient = self._gradient(create_graph=True)
        if gradient is None:
            return None
        along_u, along_v = self._product(gradient, self.u), self._product(gradient, self.v)
        size = _norm(along_u) + _norm(along_v)
        asymmetry = abs(_dot(self.u, along_v) - _dot(self.v, along_u)) / (size or 1)
        slope = _norm(gradient)
        del gradient
        off = self._off_difference_quotients(along_v, slope) if self.is_double else 0.0
        if asymmetry > (_ASYMMETRY if self.is_double else _ASYMMETRY_OF_FLOAT32):
            return f"has a wrong second derivative in PyTorch: <u, Hv> and <v, Hu> differ by {asymmetry:.0%} of ||Hv||"
        if off > _DIFFERENCE:
            return (
                f"has a gradient whose derivative in PyTorch is off its difference quotient by {off:.0%} (a custom "
                "backward pass, detach() or torch.no_grad() in a forward pass?)"
            )
        return None

    def _gradient(self, create_graph: bool) -> list[Tensor] | None:
        """In units of each variable's size; None where nothing depends on the variables."""
        with torch.enable_grad():
            outputs = self.evaluate()
            scaled = [output / size for output, size in zip(outputs, self.sizes, strict=True)]
            terms = [(w * y + y * y / 2).sum() for w, y in zip(self.weights, scaled, strict=True) if y.requires_grad]
            if not terms:
                return None
            total = torch.stack([term.double() for term in terms]).sum()
            found = torch.autograd.grad(total, self.variables, create_graph=create_graph, materialize_grads=True)
            return [part * scale for part, scale in zip(found, self.scales, strict=True)]

    def _product(self, gradient: list[Tensor], direction: list[Tensor]) -> list[Tensor]:
        varying = [(g, d) for g, d in zip(gradient, direction, strict=True) if g.requires_grad]
        if not varying:
            return [torch.zeros_like(variable) for variable in self.variables]
        parts, directions = zip(*varying, strict=True)
        found = torch.autograd.grad(parts, self.variables, directions, retain_graph=True, materialize_grads=True)
        return [part * scale for part, scale in zip(found, self.scales, strict=True)]

    def _off_difference_quotients(self, product: list[Tensor], slope: float) -> float:
        """How far, relatively, the nearest of the difference quotients along v is from the product."""
        size = max(_norm(product), 1e-6 * slope)
        nearest = float("inf") if size else 0.0
        for step in _STEPS:
            if nearest > _DIFFERENCE:
                quotient = [change / (2 * step) for change in self._change(step)]
                off = _norm([q - p for q, p in zip(quotient, product, strict=True)]) / size
                nearest = min(nearest, off)
        return nearest

    def _change(self, step: float) -> list[Tensor]:
        """Gradient ahead minus gradient behind."""
        before = [variable.detach().clone() for variable in self.variables]
        sides = []
        try:
            for sign in (1, -1):
                for variable, value, scale, v in zip(self.variables, before, self.scales, self.v, strict=True):
                    variable.data = value + sign * step * scale * v
                sides.append(self._gradient(create_graph=False) or [])
        finally:
            for variable, value in zip(self.variables, before, strict=True):
                variable.data = value
        return [ahead - behind for ahead, behind in zip(*sides, strict=True)]


class Precisions(TorchFunctionMode):
    """Notes the floating types of all tensors that are computed inside."""

    def __init__(self) -> None:
        """Nothing is seen yet."""
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and look at the result."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.seen.add(result.dtype)
        return result


def random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in -1 to 1, the same on every device."""
    values = torch.empty(tensor.shape, dtype=tensor.dtype).uniform_(-1, 1, generator=generator)
    return values.to(tensor.device)


def root_mean_square(tensor: Tensor) -> float:
    """Root mean square, and 1 where that is 0 or nothing."""
    size = float(tensor.detach().double().square().mean().sqrt()) if tensor.numel() else 0.0
    return size if 0 < size < float("inf") else 1.0


def _norm(tensors: Sequence[Tensor]) -> float:
    return sum(float(tensor.detach().double().square().sum()) for tensor in tensors) ** 0.5


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return sum(float((a.double() * b.detach().double()).sum()) for a, b in zip(left, right, strict=True))
