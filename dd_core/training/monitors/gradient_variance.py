"""``grad_var``: how much the gradient of a training batch varies from batch to batch, at the weights of the moment.

The mean over the P weights of the variance of a gradient's entry, that is tr(Sigma) / (P B) for batches of B images,
where Sigma is the covariance of the gradients of single images (McCandlish et al. 2018, "An Empirical Model of
Large-Batch Training", section 2.2). ``BatchVariance`` estimates that; ``MovingVariance`` is what the loss-slope
campaign logs instead.
"""

import torch
from torch import Tensor

from dd_core.curvature.parameter_space.by_trial import by_trial, mean_and_error
from dd_core.training.monitors.base import Watched
from dd_core.training.monitors.vectors import drawn


class BatchVariance:
    """Unbiased, with a standard error, from batches drawn for the purpose and independent of the training's.

    At fixed weights, not augmented, BatchNorm in eval mode (so that images do not interact), given labels. Costs
    ``num_batches`` gradients of a batch, or one pass over the training images where they are fewer: then the batches
    are smaller, and the estimate is scaled, as the variance of a mean of b images is S^2 / b.

    Batches are disjoint. For such batches, drawn from N images without replacement, the sample variance has the
    expectation S^2 / b exactly, with S^2 the variance of the images' gradients with the divisor N - 1 (Cochran 1977,
    "Sampling Techniques", theorem 2.2): nothing need be known of N.
    """

    def __init__(self, stack: Watched, num_batches: int):
        """At least two batches."""
        self._stack, self._num_batches = stack, num_batches
        self._wanted = stack.variant.batch_size

    def observe(self) -> None:
        """Nothing of a training step is kept."""

    def measure(self, step: int) -> tuple[Tensor, Tensor]:
        """The estimates and their standard errors, (T,) float64."""
        calendar = self._stack.calendar
        count = calendar.examples_of(calendar.epoch_of(step))
        num_batches = min(self._num_batches, count)
        size = min(self._wanted, count // num_batches)
        total = num_batches * size
        chosen = drawn(self._stack, "monitor_images", step, lambda random: random.permutation(count)[:total])
        batches = chosen.T.split(size)
        samples: list[Tensor] = []
        with self._stack.evaluating():
            mean = self._gradient(batches[0])
            for index, positions in enumerate(batches[1:], start=1):
                difference = self._gradient(positions) - mean
                # Welford 1962: these add up to the sum of squares about the mean. Each alone is an unbiased estimate
                # of the variance, and they are uncorrelated.
                samples.append(difference.square().mean(1, dtype=torch.float64) * (index / (index + 1)))
                mean = mean + difference / (index + 1)
        value, error = mean_and_error(samples)
        scale = size / self._wanted
        return value * scale, error * scale

    def _gradient(self, positions: Tensor) -> Tensor:
        """The gradient (T, P) of the mean loss of each trial's examples at ``positions`` (B, T)."""
        inputs, targets = self._stack.training_examples(positions)
        parameters = list(self._stack.model.parameters())
        with torch.enable_grad():
            loss = self._stack.losses(inputs, targets).mean(0).sum()
            return by_trial(torch.autograd.grad(loss, parameters), positions.shape[1])

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Nothing."""


class MovingVariance:
    """Exponentially weighted variance of the gradients of the steps, as they reach the optimiser (after clipping).

    With d = g - m: m += decay d, then v = (1 - decay) (v + decay d^2) (Finch 2009, "Incremental calculation of weighted
    mean and variance"), from m = g and v = 0 at the first gradient. The weights move meanwhile, so that the drift of
    the gradient counts as variance too, and the estimate has no standard error. A gradient that is not finite, as when
    float16 overflows, is left out. Costs about ten passes over the weights in every step, and two vectors of memory.
    """

    def __init__(self, stack: Watched, decay: float):
        """``decay``: weight of the newest gradient."""
        self._stack = stack
        self._parameters = list(stack.model.parameters())
        vectors = by_trial(self._parameters, len(stack.trials))
        self._decay, self._one = vectors.new_tensor(decay), vectors.new_tensor(1)
        self._shape = vectors.shape
        self.load_state({})

    @torch.no_grad()
    def observe(self) -> None:
        """Take in the gradients that the step has left."""
        gradient = by_trial([p.grad for p in self._parameters if p.grad is not None], len(self._stack.trials))
        is_finite = gradient.sum(1).isfinite()
        weight = torch.where(self._is_first, self._one, self._decay)[:, None]
        difference = torch.where(is_finite[:, None], gradient - self._mean, 0)
        self._mean += weight * difference
        self._variance += weight * difference.square_()
        self._variance *= torch.where(is_finite[:, None], 1 - weight, 1)
        self._is_first &= ~is_finite

    def measure(self, step: int) -> Tensor:
        """The mean over the weights, (T,) float64; NaN before the first finite gradient."""
        return torch.where(self._is_first, torch.nan, self._variance.mean(1, dtype=torch.float64))

    def state(self) -> dict[str, Tensor]:
        """Mean and variance of the gradient, and which trials are still to have their first."""
        return {
            "gradient_mean": self._mean,
            "gradient_variance": self._variance,
            "is_first_gradient": self._is_first,
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        zeros = self._decay.new_zeros(self._shape)
        start = {
            "gradient_mean": zeros,
            "gradient_variance": zeros,
            "is_first_gradient": torch.ones(len(zeros), dtype=torch.bool),
        }
        self._mean, self._variance, self._is_first = (
            tensors.get(name, default).to(self._stack.device, copy=True) for name, default in start.items()
        )
