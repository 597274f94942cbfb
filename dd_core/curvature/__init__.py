"""Curvature of the loss: per image in ``input_space``, and per model in ``parameter_space``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dd_core.curvature.input_space.double_backward import double_backward_curvature
    from dd_core.curvature.input_space.finite_difference import finite_difference_curvature
    from dd_core.curvature.input_space.per_image import ImageCurvature, per_image_curvature
    from dd_core.curvature.input_space.piecewise_linear import is_piecewise_linear
    from dd_core.tasks.output_hessian import softmax_hessian, softmax_hessian_factor

__all__ = [
    "ImageCurvature",
    "double_backward_curvature",
    "finite_difference_curvature",
    "is_piecewise_linear",
    "per_image_curvature",
    "softmax_hessian",
    "softmax_hessian_factor",
]
# Loaded when asked for: importing PyTorch takes a second, and the command line needs only names.
_PLACES = {
    "double_backward_curvature": "dd_core.curvature.input_space.double_backward",
    "finite_difference_curvature": "dd_core.curvature.input_space.finite_difference",
    "ImageCurvature": "dd_core.curvature.input_space.per_image",
    "per_image_curvature": "dd_core.curvature.input_space.per_image",
    "is_piecewise_linear": "dd_core.curvature.input_space.piecewise_linear",
    "softmax_hessian": "dd_core.tasks.output_hessian",
    "softmax_hessian_factor": "dd_core.tasks.output_hessian",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
