"""Everything about one network's Hessian in its parameters, in one call."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dd_core.curvature.copies import Output
from dd_core.curvature.parameter_space.distributed import Group, gather_over, sum_over
from dd_core.curvature.parameter_space.gauss_newton import exact_trace
from dd_core.curvature.parameter_space.gradient_statistics import gradient_sums
from dd_core.curvature.parameter_space.lanczos import (
    Eigenpairs,
    KrylovSpace,
    SpectralDensity,
    extreme_eigenpairs,
    grow,
    random_signs,
    spectral_density,
)
from dd_core.curvature.parameter_space.operator import HessianOperator
from dd_core.curvature.parameter_space.traces import hutch_plus_plus, hutchinson
from dd_core.study.hessian import HessianSettings
from dd_core.tasks.losses import CROSS_ENTROPY, Loss


@dataclass(frozen=True)
class HessianResult:
    """What was asked for of the Hessian H of the mean loss in the chosen layers' parameters theta; None: not asked for.

    Loss in nats, so eigenvalues and traces are in nats per squared parameter unit. Arrays are float64.

    Attributes:
        num_images, num_parameters, layers: what the loss and the Hessian extend over.
        loss: mean over the images.
        eigenvalues: the largest, descending; eigenvalue_residuals: ||Hv - lambda v|| of each.
        smallest_eigenvalue, smallest_eigenvalue_residual: at the other end.
        density_grid, density, log10_density: smoothed density of the eigenvalues, (points,), integral 1.
        density_nodes, density_weights: the quadrature behind it, (probes, steps).
        trace_exact: of piecewise linear networks; trace_by_layer: its parts.
        trace_hutchinson, trace_hutch_plus_plus: estimates; with the suffix _error their standard errors.
        gradient_norm: of the mean loss.
        gradient_sharpness: g^T H g / ||g||^2, 0 where the gradient is.
        gradient_overlap: share of ||g||^2 in the span of the eigenvectors of ``eigenvalues``, 0 to 1.
        gradient_variance: (1/N) sum of ||g_n - g||^2 over the images.
        image_gradient_norm_mean, image_gradient_norm_median, image_gradient_norm_max: of ||g_n|| over the images.
    """

    num_images: int
    num_parameters: int
    layers: tuple[str, ...]
    loss: float
    gradient_norm: float
    eigenvalues: np.ndarray | None = None
    eigenvalue_residuals: np.ndarray | None = None
    smallest_eigenvalue: float | None = None
    smallest_eigenvalue_residual: float | None = None
    density_grid: np.ndarray | None = None
    density: np.ndarray | None = None
    log10_density: np.ndarray | None = None
    density_nodes: np.ndarray | None = None
    density_weights: np.ndarray | None = None
    trace_exact: float | None = None
    trace_by_layer: dict[str, float] | None = None
    trace_hutchinson: float | None = None
    trace_hutchinson_error: float | None = None
    trace_hutch_plus_plus: float | None = None
    trace_hutch_plus_plus_error: float | None = None
    gradient_sharpness: float | None = None
    gradient_overlap: float | None = None
    gradient_variance: float | None = None
    image_gradient_norm_mean: float | None = None
    image_gradient_norm_median: float | None = None
    image_gradient_norm_max: float | None = None


def analyse_hessian(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: HessianSettings,
    *,
    seed: int = 0,
    group: Group | None = None,
    output: Output = None,
    loss: Loss = CROSS_ENTROPY,
) -> HessianResult:
    """Compute what the settings ask for.

    Args:
        model: one plain network in eval mode, (B, ...) to logits (B, classes), on the device where the work is done. It
            is copied, not changed.
        images: (N, ...), standardised as in training; with a group this rank's share, at least one image.
        labels: int64 (N,), the given labels.
        settings: what and how carefully; ``epochs`` and ``num_images`` are the caller's to obey.
        seed: of the random vectors.
        group: processes that share the images, see ``distributed.process_group``; each gets the same result.
        output: which of the model's outputs are the logits, where it gives several.
        loss: that is averaged over the images, as in training.

    Raises:
        UserError: as of ``HessianOperator``, or the model does not have a quantity that is asked for.
    """
    dtype = {"float32": torch.float32, "float64": torch.float64}[settings.precision]
    operator = HessianOperator(
        model,
        images,
        labels,
        layers=settings.layers,
        batch_size=settings.batch_size,
        block_size=settings.block_size,
        dtype=dtype,
        group=group,
        output=output,
        loss=loss,
    )
    images, labels = operator.batches.images, operator.batches.labels
    # The cheap parts first: they refuse what cannot be had before hours go into the rest.
    exact = _exact(operator, images, settings) if "exact_trace" in settings.quantities else {}
    mean_loss, gradient = operator.loss_and_gradient()
    variance = _variance(operator, images, labels, gradient, settings)
    generator = torch.Generator().manual_seed(seed)
    pairs, density = _spectrum(operator, settings, generator)
    return HessianResult(
        num_images=operator.num_images,
        num_parameters=operator.size,
        layers=operator.layers.names,
        loss=mean_loss,
        gradient_norm=float(gradient.double().norm()),
        **exact,
        **variance,
        **_of_pairs(pairs),
        **_of_density(density),
        **_estimates(operator, settings, generator),
        **_along_gradient(operator, gradient, pairs, settings),
    )


def _exact(operator: HessianOperator, images: Tensor, settings: HessianSettings) -> dict[str, Any]:
    trace = exact_trace(
        operator.network,
        images,
        layers=settings.layers,
        batch_size=settings.batch_size,
        dtype=operator.dtype,
        loss=operator.loss,
    )
    own = torch.tensor(list(trace.per_layer.values()), dtype=torch.float64, device=operator.device) * len(images)
    by_layer = sum_over(operator.group, own) / operator.num_images
    return {
        "trace_exact": float(by_layer.sum()),
        "trace_by_layer": dict(zip(trace.per_layer, by_layer.tolist(), strict=True)),
    }


def _variance(
    operator: HessianOperator, images: Tensor, labels: Tensor, gradient: Tensor, settings: HessianSettings
) -> dict[str, Any]:
    if "gradient_variance" not in settings.quantities:
        return {}
    sums = gradient_sums(
        operator.network,
        images,
        labels,
        layers=settings.layers,
        batch_size=settings.batch_size,
        loss=operator.loss,
    )
    squared = gather_over(operator.group, sums.squared_norms)
    norms = squared.sqrt()
    return {
        "gradient_variance": max(0.0, float(squared.mean() - gradient.double().square().sum())),
        "image_gradient_norm_mean": float(norms.mean()),
        "image_gradient_norm_median": float(np.median(norms.cpu().numpy())),
        "image_gradient_norm_max": float(norms.max()),
    }


def _spectrum(
    operator: HessianOperator, settings: HessianSettings, generator: torch.Generator
) -> tuple[Eigenpairs | None, SpectralDensity | None]:
    """The density's first Krylov space goes on as that of the eigenvalues."""
    wants_density, wants_pairs = "density" in settings.quantities, "eigenvalues" in settings.quantities
    if not wants_density and not wants_pairs:
        return None, None
    num_spaces = settings.density_probes if wants_density else 1
    starts = random_signs(num_spaces, operator.size, generator).to(operator.device, operator.dtype)
    most_steps = [settings.density_steps if wants_density else 0] * num_spaces
    if wants_pairs:
        most_steps[0] = max(most_steps[0], settings.lanczos_steps)
    first = KrylovSpace(starts[0], most_steps[0], generator)
    density = _density(operator, settings, starts, first, generator) if wants_density else None
    if not wants_pairs:
        return None, density
    return extreme_eigenpairs(operator, first, settings.num_eigenvalues, settings.lanczos_tolerance), density


def _density(
    operator: HessianOperator,
    settings: HessianSettings,
    starts: Tensor,
    first: KrylovSpace,
    generator: torch.Generator,
) -> SpectralDensity:
    """Blocks of spaces one after the other, so that no more than ``block_size`` bases are in memory."""
    quadratures = []
    for begin in range(0, len(starts), operator.block_size):
        block = starts[begin : begin + operator.block_size]
        spaces = [
            first if begin + index == 0 else KrylovSpace(start, settings.density_steps, generator)
            for index, start in enumerate(block)
        ]
        while spaces[0].num_steps < settings.density_steps and not spaces[0].is_full:
            grow(operator, spaces)
        quadratures += [space.quadrature(min(settings.density_steps, space.num_steps)) for space in spaces]
    return spectral_density(quadratures, settings.density_points, settings.density_width)


def _of_pairs(pairs: Eigenpairs | None) -> dict[str, Any]:
    if pairs is None:
        return {}
    return {
        "eigenvalues": pairs.largest,
        "eigenvalue_residuals": pairs.residuals,
        "smallest_eigenvalue": pairs.smallest,
        "smallest_eigenvalue_residual": pairs.smallest_residual,
    }


def _of_density(density: SpectralDensity | None) -> dict[str, Any]:
    if density is None:
        return {}
    return {
        "density_grid": density.grid,
        "density": density.density,
        "log10_density": density.log10_density,
        "density_nodes": density.nodes,
        "density_weights": density.weights,
    }


def _estimates(operator: HessianOperator, settings: HessianSettings, generator: torch.Generator) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "hutchinson" in settings.quantities:
        estimate = hutchinson(operator, settings.hutchinson_probes, generator)
        found["trace_hutchinson"] = estimate.estimate
        found["trace_hutchinson_error"] = estimate.standard_error
    if "hutch_plus_plus" in settings.quantities:
        estimate = hutch_plus_plus(operator, settings.hutch_plus_plus_products, generator)
        found["trace_hutch_plus_plus"] = estimate.estimate
        found["trace_hutch_plus_plus_error"] = estimate.standard_error
    return found


def _along_gradient(
    operator: HessianOperator, gradient: Tensor, pairs: Eigenpairs | None, settings: HessianSettings
) -> dict[str, Any]:
    """How the gradient lies to the Hessian (Gur-Ari, Roberts & Dyer 2018)."""
    if "gradient" not in settings.quantities:
        return {}
    length = gradient.norm()
    direction = gradient / length if length > 0 else gradient
    found: dict[str, Any] = {
        "gradient_sharpness": float((direction * operator.matvec(direction)).sum(dtype=torch.float64))
    }
    if pairs is not None:
        found["gradient_overlap"] = float((pairs.vectors @ direction).square().sum(dtype=torch.float64))
    return found
