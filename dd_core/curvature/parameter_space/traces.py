"""Unbiased estimates of trace H from products with random vectors, each with its standard error.

For networks that are not piecewise linear, and as a check of the exact trace where they are. The estimators are those
of hessian-eigenthings 1.0.0a5 (the tests compare them probe by probe); here all probes of a block share one pass over
the images, which multiplies 1.3 to 1.5 times as many vectors per second.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dd_core.curvature.parameter_space.lanczos import random_signs
from dd_core.curvature.parameter_space.operator import HessianOperator


@dataclass(frozen=True)
class TraceEstimate:
    """An estimate of a trace and the standard deviation of the estimate, itself estimated from the probes."""

    estimate: float
    standard_error: float


def hutchinson(operator: HessianOperator, num_probes: int, generator: torch.Generator) -> TraceEstimate:
    """The mean of r^T H r over Rademacher vectors r (Hutchinson 1990); num_probes >= 2 products."""
    return _mean(torch.cat([_forms(operator, probes) for probes in _probes(operator, num_probes, generator)]))


def hutch_plus_plus(operator: HessianOperator, num_products: int, generator: torch.Generator) -> TraceEstimate:
    """Exact on the range of a random sketch, Hutchinson in its complement (Meyer et al. 2021, algorithm 1).

    A third of the products each for the sketch, the trace on its range Q, and probes of the complement. Given Q the
    last part is an unbiased mean of independent values, so its standard error is that of the whole estimate.

    Args:
        operator: the Hessian.
        num_products: at least 6; rounded down to a multiple of 3. A third of them, times the number of parameters, is
            kept in memory.
        generator: of the random vectors.
    """
    third = num_products // 3
    sketch = torch.cat([operator.matmat(probes) for probes in _probes(operator, third, generator)])
    basis = torch.linalg.qr(sketch.T).Q.T.contiguous()  # (min(third, P), P), rows orthonormal
    inside = float(_forms(operator, basis).sum())
    outside = _mean(
        torch.cat(
            [_forms(operator, probes - (probes @ basis.T) @ basis) for probes in _probes(operator, third, generator)]
        )
    )
    return TraceEstimate(inside + outside.estimate, outside.standard_error)


def _probes(operator: HessianOperator, number: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rademacher vectors (b, P), as many at a time as share a pass."""
    for start in range(0, number, operator.block_size):
        signs = random_signs(min(operator.block_size, number - start), operator.size, generator)
        yield signs.to(operator.device, operator.dtype)


def _forms(operator: HessianOperator, vectors: Tensor) -> Tensor:
    """v^T H v of every row, float64 (m,)."""
    return (vectors * operator.matmat(vectors)).sum(1, dtype=torch.float64)


def _mean(samples: Tensor) -> TraceEstimate:
    return TraceEstimate(float(samples.mean()), float(samples.std()) / math.sqrt(len(samples)))
