"""The Hessian of a loss in a network's outputs as a sum of weighted directions, sum_c w_c d_c d_c^T.

That of the cross-entropy, S = diag p - p p^T whatever the label and its smoothing, is factored without cancellation.
With s = sqrt(p), its largest entry s_j and u = (p_i / (1 + s_j) for i != j, s_j for i = j), the C-1 vectors
d_c = e_c - u (c != j) give S = sum_c p_c d_c d_c^T exactly: they are the Householder complement of s, scaled. Each
entry is O(1) however saturated the image, so that float32 carries them well; only the weights p_c become small.

That of the squared error is a multiple of the identity.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutputHessian:
    """S for a batch of images, float64, of M directions: C-1 for the cross-entropy, C for the squared error.

    Attributes:
        roots: (B, M), so that S = sum_c roots_c^2 d_c d_c^T; sqrt(p_c) for the cross-entropy.
        classes: int64 (B, M), which class each c is: for the cross-entropy all but the most probable one.
        common: (B, C), u, so that d_c = e_(class of c) - u.
        gradient: (B, M), coefficients a with sum_c a_c d_c = the gradient of the loss in the outputs.
        loss: (B,), of the given label.
        probability: (B,), of the given label; NaN where outputs stand for no probability.
    """

    roots: Tensor
    classes: Tensor
    common: Tensor
    gradient: Tensor
    loss: Tensor
    probability: Tensor

    def of(self, images: Tensor) -> "OutputHessian":
        """That of some of the images, int64 (n,)."""
        return OutputHessian(*(getattr(self, field.name)[images] for field in fields(self)))

    @property
    def directions(self) -> Tensor:
        """The d_c as rows, (B, M, C)."""
        return torch.nn.functional.one_hot(self.classes, self.common.shape[1]) - self.common[:, None, :]

    def combine(self, coefficients: Tensor) -> Tensor:
        """Combinations sum_c coefficients_c d_c: (B, m, M) to (B, m, C)."""
        own = coefficients.new_zeros(*coefficients.shape[:2], self.common.shape[1])
        own.scatter_(2, self.classes[:, None].expand_as(coefficients), coefficients)
        return own - coefficients.sum(2, keepdim=True) * self.common[:, None]

    def project(self, matrix: Tensor, chosen: Tensor | None = None) -> Tensor:
        """d_c^T matrix for all c, or for those ``chosen`` (B, n): (C, F) to (B, M or n, F)."""
        classes = self.classes if chosen is None else self.classes.gather(1, chosen)
        return matrix[classes] - (self.common @ matrix)[:, None]


def smoothed(residual: Tensor, p: Tensor, smoothing: float) -> Tensor:
    """P - q of smoothed labels q = (1 - s) e_y + s / C, from the residual p - e_y; all (B, C)."""
    return (1 - smoothing) * residual + smoothing * (p - 1 / p.shape[-1]) if smoothing else residual


def softmax_hessian(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> OutputHessian:
    """Factor S of the cross-entropy at each image.

    Args:
        logits: (B, C), any floating dtype.
        labels: int64 (B,), the given labels.
        smoothing: of the labels; it changes gradient and loss.
    """
    log_p = logits.detach().double().log_softmax(-1)
    p, s = log_p.exp(), (log_p / 2).exp()
    largest, pivot = s.max(-1, keepdim=True)
    u = (p / (1 + largest)).scatter(-1, pivot, largest)
    kept = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    kept = kept + (kept >= pivot)  # every class but the pivot
    given = labels[:, None]
    probability, others = p.gather(-1, given), p.scatter(-1, given, 0).sum(-1, keepdim=True)
    # p - e_y, with 1 - p_y as a sum instead of a difference.
    residual = smoothed(p.scatter(-1, given, -others), p, smoothing)
    # The entry of the pivot says what the coefficients sum to: -s_j sum a = residual_j.
    total = -residual.gather(-1, pivot) / largest
    gradient = (residual + u * total).gather(-1, kept)
    # log p_y has lost what 1 - p_y still knows where the image is saturated.
    loss = torch.where(probability > 0.5, -torch.log1p(-others), -log_p.gather(-1, given))
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * log_p.mean(-1, keepdim=True)
    return OutputHessian(s.gather(-1, kept), kept, u, gradient, loss.squeeze(-1), probability.squeeze(-1))


def squared_error_hessian(outputs: Tensor, labels: Tensor) -> OutputHessian:
    """2/C times the identity: of the squared error of one-hot labels, mean over the C classes.

    Args:
        outputs: (B, C), any floating dtype.
        labels: int64 (B,), the given labels.
    """
    z = outputs.detach().double()
    num_images, num_classes = z.shape
    off = z - torch.zeros_like(z).scatter(1, labels[:, None], 1)
    classes = torch.arange(num_classes, device=z.device).expand(num_images, -1)
    roots, loss = torch.full_like(z, (2 / num_classes) ** 0.5), off.square().mean(1)
    unknown = torch.full_like(loss, torch.nan)
    return OutputHessian(roots, classes, torch.zeros_like(z), off * (2 / num_classes), loss, unknown)


def softmax_hessian_factor(log_p: Tensor) -> Tensor:
    """A square root of the softmax Hessian: V (..., C, C-1) with V V^T = diag p - p p^T, in the dtype of ``log_p``.

    Args:
        log_p: log-probabilities (..., C).
    """
    flat = log_p.reshape(-1, log_p.shape[-1])
    parts = softmax_hessian(flat, torch.zeros(len(flat), dtype=torch.int64, device=flat.device))
    factor = (parts.directions * parts.roots[..., None]).transpose(-1, -2)
    return factor.to(log_p.dtype).reshape(*log_p.shape, -1)
