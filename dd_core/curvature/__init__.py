"""Curvature of the loss: per image in input space (here), and later per model in parameter space."""

from dd_core.curvature.checkpoint import curve_checkpoint
from dd_core.curvature.per_image import CurvatureColumns, per_image_curvature, softmax_hessian_factor

__all__ = ["CurvatureColumns", "curve_checkpoint", "per_image_curvature", "softmax_hessian_factor"]
