"""Curvature in the weights while training: the largest eigenvalue and the trace of every trial's Hessian."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from dd_core.monitor_settings import HessianMonitor
from dd_core.training.monitors.base import Measurement, Moment, Monitor, Watched
from dd_core.training.monitors.lanczos import Product, lanczos_largest, orthogonal, power_iteration
from dd_core.training.monitors.twice_differentiable import TwiceDifferentiable
from dd_core.training.monitors.vectors import by_trial, dots, mean_and_error, random_signs, shaped
from dd_core.training.step import losses_of


class Hessian(Monitor):
    """``lambda_max`` with ``lambda_max_residual``, and ``hutch_trace`` with its standard error.

    Of the Hessian, in all weights of a trial, of the mean cross-entropy (nats) of the trial's first ``num_images``
    training images with their given labels: not augmented, BatchNorm in eval mode, in the precision of the weights.

    - ``lambda_max``: within ``lambda_max_residual`` of it lies an eigenvalue. By Lanczos it is a lower bound of the
      largest one; by power iteration it may be that of largest modulus, or anything on the way there.
    - ``hutch_trace`` is unbiased. Its error is sqrt(2 sum of squared off-diagonal entries / num_probes) for
      ``hutchinson``; ``hutch_plus_plus`` is exact on the range of a sketch, where a few large eigenvalues lie.

    Costs ``iterations + num_probes`` Hessian-vector products, each 1.5 to 2 training steps of as many images, and a
    gradient. Memory: the graph of the gradient, about three times that of a training step, and ``iterations`` vectors.
    """

    metrics = tuple(HessianMonitor.first_steps)

    def __init__(
        self,
        stack: Watched,
        num_images: int,
        lambda_max: Literal["lanczos", "power_iteration"],
        iterations: int,
        hutch_trace: Literal["hutchinson", "hutch_plus_plus"],
        num_probes: int,
    ):
        """Options are those of ``HessianMonitor``."""
        super().__init__(stack)
        self._num_images = min(num_images, stack.num_train)
        self._largest = {"lanczos": lanczos_largest, "power_iteration": power_iteration}[lambda_max]
        self._trace = {"hutchinson": hutchinson, "hutch_plus_plus": hutch_plus_plus}[hutch_trace]
        self._iterations, self._num_probes = iterations, num_probes

    def measure(self, moment: Moment) -> Measurement:
        """The metrics above, (T,) float64."""
        stack = self.stack
        positions = torch.arange(self._num_images, device=stack.device)[:, None].expand(-1, len(stack.trials))
        images, labels = stack.training_images(positions)
        with stack.evaluating():
            product, size = hessian_product(stack.model, images, labels)
            signs = random_signs(stack, moment.step, 1 + self._num_probes, size, images.dtype)
            value, residual = self._largest(product, next(signs), self._iterations)
            trace = self._trace(product, signs, self._num_probes)
        return {"lambda_max": value, "lambda_max_residual": residual, "hutch_trace": trace}


def hessian_product(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Product, int]:
    """The product of every trial's Hessian with a vector, (T, P) to (T, P), and P.

    The sum of the trials' losses has a Hessian of T blocks, as no trial's weights occur in another's loss, so that one
    double backward pass serves them all (Pearlmutter 1994; the graph of the gradient is kept for all products).

    Args:
        model: stacked, in eval mode; its ``.grad`` and buffers are left alone.
        images: (B, T*channels, H, W).
        labels: int64 (B, T).
    """
    parameters, num_trials = list(model.parameters()), labels.shape[1]
    with torch.enable_grad(), TwiceDifferentiable():
        # The softmax in float64 keeps saturated images exact; it is small work.
        loss = losses_of(model(images).double(), labels).mean(0).sum()
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)

    def product(vectors: Tensor) -> Tensor:
        directions = shaped(vectors, parameters)
        return by_trial(torch.autograd.grad(gradients, parameters, directions, retain_graph=True), num_trials)

    return product, sum(parameter.numel() for parameter in parameters) // num_trials


def hutchinson(product: Product, signs: Iterator[Tensor], num_products: int) -> tuple[Tensor, Tensor]:
    """Estimates of the traces and their standard errors, (T,): the mean of r^T H r (Hutchinson 1990)."""
    return mean_and_error([dots(r, product(r)) for r in _take(signs, num_products)])


def hutch_plus_plus(product: Product, signs: Iterator[Tensor], num_products: int) -> tuple[Tensor, Tensor]:
    """The same, exact on the range of a random sketch, Hutchinson in its complement (Meyer et al. 2021, algorithm 1).

    A third of the products each for the sketch and the trace on its range Q, what is left for the complement. Given Q
    that last part is an unbiased mean of independent values, so its standard error is that of the whole.
    """
    third = num_products // 3
    basis: list[Tensor] = []
    for r in _take(signs, third):
        image = product(r)
        scale = dots(image, image).sqrt()
        rest, length = orthogonal(image, torch.stack(basis, 1)) if basis else (image, scale)
        # What a sketch of lower rank has no more directions for is left to the complement.
        is_new = length > 10 * torch.finfo(image.dtype).eps * scale
        basis.append(torch.where(is_new[:, None], rest / length.to(rest)[:, None], 0))
    inside = torch.stack([dots(q, product(q)) for q in basis]).sum(0)
    space = torch.stack(basis, 1)
    samples = []
    for r in _take(signs, num_products - 2 * third):
        outside = orthogonal(r, space)[0]
        samples.append(dots(outside, product(outside)))
    mean, error = mean_and_error(samples)
    return inside + mean, error


def _take(signs: Iterator[Tensor], number: int) -> Iterator[Tensor]:
    return (next(signs) for _ in range(number))
