"""The losses by the name that a study gives them: values, gradient and Hessian in the outputs of one network.

A loss of your own is a subclass of ``Loss`` with ``losses`` alone (docs/extending.md). The rest follows from it by
automatic differentiation; what a loss knows of itself beyond that makes curvature faster or more exact.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from dd_core.errors import UserError
from dd_core.study import recipe
from dd_core.study.own_code import load_own_code
from dd_core.tasks.output_hessian import OutputHessian, smoothed, softmax_hessian, squared_error_hessian


class Loss:
    """One network's loss of every example: outputs (B, C) and labels, int64 (B,), to (B,).

    It is not negative, depends on no other example of the batch, and waits for nothing that the device does.
    """

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """What training minimises, (B,), in the precision of the outputs."""
        raise NotImplementedError

    def total(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The sum of ``losses``."""
        return self.losses(outputs, labels).sum()

    def scores(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """What evaluations record as loss, (B,)."""
        return self.losses(outputs, labels)

    def gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The gradient of each loss in its outputs, (B, C) float64; differentiable where the outputs are."""
        with torch.enable_grad():
            z = outputs.double() if outputs.requires_grad else outputs.double().detach().requires_grad_(True)
            total = self.total(z, labels)
            (found,) = torch.autograd.grad(total, z, create_graph=outputs.requires_grad, materialize_grads=True)
        return found

    def output_hessian(self, outputs: Tensor, labels: Tensor) -> OutputHessian | None:
        """The Hessian of each loss in its outputs, factored; None: curvature differentiates the loss twice instead."""
        return None

    def values(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Each loss and the probability of its label, float64 (B,); NaN where outputs stand for no probability."""
        losses = self.losses(outputs.detach().double(), labels)
        return losses, torch.full_like(losses, torch.nan)


class CrossEntropy(Loss):
    """- sum_c q_c log p_c, nats, p = softmax of the outputs, q = one-hot or smoothed: (1 - s) e_y + s / C.

    As ``torch.nn.CrossEntropyLoss(label_smoothing=s)`` (Szegedy et al. 2016, section 7). Scores are those of the given
    label, without smoothing, so that differently trained networks compare.
    """

    def __init__(self, label_smoothing: float = 0.0):
        """``label_smoothing``: s, from 0 to below 1."""
        self._smoothing = label_smoothing

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Nats."""
        return cross_entropy(outputs, labels, reduction="none", label_smoothing=self._smoothing)

    def total(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """In one kernel."""
        return cross_entropy(outputs, labels, reduction="sum", label_smoothing=self._smoothing)

    def scores(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Nats of the given label."""
        return cross_entropy(outputs, labels, reduction="none")

    def gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """P - q; nothing cancels where p is almost one-hot."""
        gradient: Tensor = _Residual.apply(outputs.double(), labels, self._smoothing)
        return gradient

    def output_hessian(self, outputs: Tensor, labels: Tensor) -> OutputHessian:
        """Diag p - p p^T, whatever the label and its smoothing."""
        return softmax_hessian(outputs, labels, self._smoothing)

    def values(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Nats, and p_y."""
        residual, log_p = residual_of(outputs, labels)
        wrong = -residual.gather(-1, labels[:, None]).squeeze(-1)  # 1 - p of the given label
        log_p_given = log_p.gather(-1, labels[:, None]).squeeze(-1)
        log_p_given = torch.where(wrong < 0.5, (-wrong).log1p(), log_p_given)
        losses = -log_p_given
        if self._smoothing:
            losses = (1 - self._smoothing) * losses - self._smoothing * log_p.mean(-1)
        return losses, log_p_given.exp()


class MeanSquaredError(Loss):
    """(1/C) sum_c (z_c - [c = y])^2: outputs against the one-hot label, mean over the C classes.

    As ``torch.nn.MSELoss`` on one-hot labels, and as in Hui & Belkin 2021, "Evaluation of neural architectures trained
    with square loss vs cross-entropy", without their rescaling. Up to a constant it is minus a log-likelihood in nats:
    that of the one-hot label under a normal distribution of variance C / 2 about the outputs.
    """

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """In squared output units."""
        return _off_target(outputs, labels).square().mean(1)

    def gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """2 (z - e_y) / C."""
        return _off_target(outputs.double(), labels) * (2 / outputs.shape[1])

    def output_hessian(self, outputs: Tensor, labels: Tensor) -> OutputHessian:
        """2 / C times the identity."""
        return squared_error_hessian(outputs, labels)


def _off_target(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs - torch.zeros_like(outputs).scatter(1, labels[:, None], 1)


def residual_of(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy's gradient in the logits, p - e_y, and log p, both float64 (B, C).

    1 - p_y is the sum of the other probabilities: a difference would lose every digit of a saturated image, and so does
    expm1(log p_y), for log p_y itself is rounded to 1e-16.
    """
    log_p = logits.detach().double().log_softmax(-1)
    others = log_p.exp().scatter(-1, labels[:, None], 0)
    return others.scatter(-1, labels[:, None], -others.sum(-1, keepdim=True)), log_p


class _Residual(torch.autograd.Function):
    """p - q of logits, with S = diag p - p p^T as its derivative; nothing cancels where p is almost one-hot."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """(B, C) float64."""
        residual, log_p = residual_of(logits, labels)
        p = log_p.exp()
        ctx.save_for_backward(p)
        return smoothed(residual, p, smoothing)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vector: Tensor) -> tuple[Tensor, None, None]:
        """S times a vector. S maps constants to 0, so the likeliest class's entry may be made 0 first."""
        (p,) = ctx.saved_tensors
        shifted = vector - vector.gather(-1, p.argmax(-1, keepdim=True))
        return p * (shifted - (p * shifted).sum(-1, keepdim=True)), None, None


CROSS_ENTROPY = CrossEntropy()


def make_loss(settings: recipe.Loss) -> Loss:
    """The loss that a variant names.

    Raises:
        UserError: a loss of the user's own cannot be imported or made.
    """
    if settings.name == "cross_entropy":
        return CrossEntropy(settings.label_smoothing) if settings.label_smoothing else CROSS_ENTROPY
    if settings.name == "mean_squared_error":
        return MeanSquaredError()
    found = load_own_code(settings.name, "loss.name", settings.sha256)
    if not (isinstance(found, type) and issubclass(found, Loss)):
        raise UserError(f"loss.name: {settings.name} is no subclass of dd_core.tasks.losses.Loss")
    try:
        return found(**settings.options)
    except TypeError as error:
        raise UserError(f"loss.options: {settings.name} cannot be made with these options ({error})") from error
