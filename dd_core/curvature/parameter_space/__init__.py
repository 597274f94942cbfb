"""Curvature of a model: the Hessian of the mean loss in its parameters, over a whole data set."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
# Loaded when asked for: importing PyTorch takes a second, and the command line needs only names.
_PLACES = {
    "HessianResult": "analysis",
    "analyse_hessian": "analysis",
    "process_group": "distributed",
    "ExactTrace": "gauss_newton",
    "exact_trace": "gauss_newton",
    "ggn_eigenvalues": "gauss_newton",
    "GradientSums": "gradient_statistics",
    "diagonal_ggn": "gradient_statistics",
    "gradient_sums": "gradient_statistics",
    "Eigenpairs": "lanczos",
    "KrylovSpace": "lanczos",
    "extreme_eigenpairs": "lanczos",
    "spectral_density": "lanczos",
    "HessianOperator": "operator",
    "TraceEstimate": "traces",
    "hutch_plus_plus": "traces",
    "hutchinson": "traces",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
