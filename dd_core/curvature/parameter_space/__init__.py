"""Curvature of a model: the Hessian of the mean loss in its parameters, over a whole data set."""

from dd_core.curvature.parameter_space.analysis import HessianResult, analyse_hessian
from dd_core.curvature.parameter_space.distributed import process_group
from dd_core.curvature.parameter_space.gauss_newton import ExactTrace, exact_trace, ggn_eigenvalues
from dd_core.curvature.parameter_space.gradient_statistics import GradientSums, diagonal_ggn, gradient_sums
from dd_core.curvature.parameter_space.lanczos import Eigenpairs, KrylovSpace, extreme_eigenpairs, spectral_density
from dd_core.curvature.parameter_space.operator import HessianOperator
from dd_core.curvature.parameter_space.traces import TraceEstimate, hutch_plus_plus, hutchinson

__all__ = [
    "Eigenpairs",
    "ExactTrace",
    "GradientSums",
    "HessianOperator",
    "HessianResult",
    "KrylovSpace",
    "TraceEstimate",
    "analyse_hessian",
    "diagonal_ggn",
    "exact_trace",
    "extreme_eigenpairs",
    "ggn_eigenvalues",
    "gradient_sums",
    "hutch_plus_plus",
    "hutchinson",
    "process_group",
    "spectral_density",
]
