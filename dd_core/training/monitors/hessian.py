"""Curvature in the weights while training: the largest eigenvalue and the trace of every trial's Hessian."""

from typing import Literal

import torch

from dd_core.curvature.parameter_space.by_trial import (
    hessian_product,
    hutch_plus_plus,
    hutchinson,
    lanczos_largest,
    power_iteration,
)
from dd_core.study.monitors import HessianMonitor
from dd_core.training.monitors.base import Measurement, Moment, Monitor, Watched
from dd_core.training.monitors.vectors import random_signs


class Hessian(Monitor):
    """``lambda_max`` with ``lambda_max_residual``, and ``hutch_trace`` with its standard error.

    Of the Hessian, in all weights of a trial, of the mean loss that is trained of the trial's first ``num_images``
    training images with their given labels: not augmented, BatchNorm in eval mode, in the precision of the weights.
    Where classes come one group after the other, of as many images of those seen, equally many of each class.

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
        self._num_images = num_images
        self._largest = {"lanczos": lanczos_largest, "power_iteration": power_iteration}[lambda_max]
        self._trace = {"hutchinson": hutchinson, "hutch_plus_plus": hutch_plus_plus}[hutch_trace]
        self._iterations, self._num_probes = iterations, num_probes

    def measure(self, moment: Moment) -> Measurement:
        """The metrics above, (T,) float64."""
        stack = self.stack
        positions = self._positions(moment.epoch)[:, None].expand(-1, len(stack.trials))
        inputs, targets = stack.training_examples(positions)
        with stack.evaluating():
            # The loss in float64 keeps saturated examples exact; it is small work.
            product, size = hessian_product(stack.model, lambda: stack.losses(inputs, targets, torch.float64))
            dtype = next(stack.model.parameters()).dtype
            signs = random_signs(stack, moment.step, 1 + self._num_probes, size, dtype)
            value, residual = self._largest(product, next(signs), self._iterations)
            trace = self._trace(product, signs, self._num_probes)
        return {"lambda_max": value, "lambda_max_residual": residual, "hutch_trace": trace}

    def _positions(self, epoch: int) -> torch.Tensor:
        """The first images; or evenly spaced ones where these stand class by class."""
        there = self.stack.calendar.examples_of(epoch)
        number = min(self._num_images, there)
        first = torch.arange(number, device=self.stack.device)
        return first if self.stack.data[0].order is None else first * there // number
