"""Curvature of the loss: per image in input space, and per model in parameter space (``parameter_space``)."""

from dd_core.curvature.checkpoint import curve_checkpoint
from dd_core.curvature.double_backward import double_backward_curvature
from dd_core.curvature.finite_difference import finite_difference_curvature
from dd_core.curvature.per_image import ImageCurvature, per_image_curvature
from dd_core.curvature.piecewise_linear import is_piecewise_linear
from dd_core.curvature.softmax import softmax_hessian, softmax_hessian_factor

__all__ = [
    "ImageCurvature",
    "curve_checkpoint",
    "double_backward_curvature",
    "finite_difference_curvature",
    "is_piecewise_linear",
    "per_image_curvature",
    "softmax_hessian",
    "softmax_hessian_factor",
]
