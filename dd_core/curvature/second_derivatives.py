"""Where a network may be differentiated twice: PyTorch's functions without a right second derivative are replaced.

PyTorch takes its fastest kernels wherever the first derivative exists. Some of them have no second one (the fused
attention kernels, Hardsigmoid), a wrong one (weight norm, whose double backward takes the norms for constants), or none
at all (compiled graphs, the fast path of transformer layers, inference mode). Each has an equal that can be
differentiated as often as one likes.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def second_derivatives() -> Iterator[None]:
    """Within it what networks compute can be differentiated twice, and rightly; values are the same up to rounding.

    Attention is computed by plain products, transformer layers leave their fast path, compiled functions run
    uncompiled, and ``torch.inference_mode`` is suspended. Everything is put back at the end.
    """
    mha = torch.backends.mha
    had_fast_path = mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.callback(mha.set_fastpath_enabled, had_fast_path)
        mha.set_fastpath_enabled(False)
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if "torch._dynamo" in sys.modules:  # nothing is compiled before it is imported, which takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_Replacements())
        yield


class _Replacements(TorchFunctionMode):
    """Computes the functions below by others that have a right second derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a function that is called with tensors; stand-ins of a tracer see the original."""
        replacement = _REPLACED.get(func)
        if replacement is not None and isinstance(args[0], Tensor):
            return replacement(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    return functional.hardtanh(x / 6 + 0.5, 0.0, 1.0)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """The direction of v with the length g; the norm extends over all dimensions but one, or (-1) over all."""
    if dim == -1:
        return v * (g / v.norm())
    others = [other for other in range(v.ndim) if other != dim % v.ndim]
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))


_REPLACED: dict[Any, Callable[..., Tensor]] = {
    functional.hardsigmoid: _hardsigmoid,
    torch._C._nn.hardsigmoid: _hardsigmoid,
    torch._weight_norm: _weight_norm,
}
