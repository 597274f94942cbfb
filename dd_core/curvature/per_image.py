"""The exact Hessian of the cross-entropy in the input, image by image, in C backward passes.

For a network that is piecewise linear in its input (ReLU, max-pooling, BatchNorm in eval mode, residual sums) the
logits z(x) are locally linear, so almost everywhere the Hessian of the loss is the generalised Gauss-Newton matrix

    H = J^T (diag p - p p^T) J,     J = dz/dx  (C x D),   p = softmax(z),

whatever the label (Schraudolph 2002, "Fast curvature matrix-vector products", section 3). With a square root V V^T =
diag p - p p^T, V of shape C x (C-1), and K = V^T J, the small Gram matrix A = K K^T has H's non-zero eigenvalues:
trace H = tr A, the Frobenius norm of H is that of A, the largest eigenvalue of H that of A. K takes C-1 backward
passes, the gradient J^T (p - e_y) one more. No probe, no noise, no second derivative.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dd_core.errors import UserError


@dataclass(frozen=True)
class CurvatureColumns:
    """Values per image (B, T), float64 on the CPU; T networks of a stacked model.

    Attributes:
        loss: cross-entropy of the given label, nats.
        probability: of the given label.
        gradient_norm: Euclidean norm of the loss gradient in x, nats per input unit.
        trace, frobenius_norm, largest_eigenvalue: of the Hessian in x, nats per squared input unit.
    """

    loss: Tensor
    probability: Tensor
    gradient_norm: Tensor
    trace: Tensor
    frobenius_norm: Tensor
    largest_eigenvalue: Tensor


def softmax_hessian_factor(log_p: Tensor) -> Tensor:
    """A square root of the softmax Hessian without cancellation, however saturated.

    With s = sqrt(p) and its largest entry s_j, the Householder reflection of w = s + e_j maps s to -e_j; its columns
    other than j are an orthonormal basis of the complement of s, so that V = diag(s) Q has V V^T = diag p - p p^T.
    Written out, V_jc = -s_j s_c and V_ic = s_i (delta_ic - s_i s_c / (1 + s_j)): nothing in it cancels.

    Args:
        log_p: log-probabilities (..., C).

    Returns:
        V, (..., C, C-1), of the same dtype.
    """
    classes = log_p.shape[-1]
    s = (log_p / 2).exp()
    largest, pivot = s.max(-1, keepdim=True)
    kept = torch.arange(classes - 1, device=s.device).expand(*s.shape[:-1], -1)
    kept = kept + (kept >= pivot)  # every column but the pivot's
    s_kept = s.gather(-1, kept)
    identity = torch.nn.functional.one_hot(kept, classes).to(s.dtype).transpose(-1, -2)
    generic = s[..., :, None] * (identity - s[..., :, None] * s_kept[..., None, :] / (1 + largest)[..., None])
    at_pivot = -largest[..., None] * s_kept[..., None, :]
    is_pivot = torch.nn.functional.one_hot(pivot.squeeze(-1), classes).bool()[..., None]
    return torch.where(is_pivot, at_pivot, generic)


def per_image_curvature(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 100) -> CurvatureColumns:
    """Exact curvature of the loss in each image, for all networks of a stacked model at once.

    Args:
        model: in eval mode, piecewise linear in its input; (B, T*channels, H, W) to (B, T, C), or to (B, C).
        images: (N, T*channels, H, W), float32 or float64, standardised as in training.
        labels: int64 (N, T), or (N,) for a plain model: the given labels.
        batch_size: images per pass; it changes the memory, not the result.

    Returns:
        One value per image and network, (N, T).

    Raises:
        UserError: the model is in training mode, or its output is not finite or does not fit the labels.
    """
    if model.training:
        raise UserError("the model is in training mode, where images influence each other; call model.eval() first")
    required = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    try:
        labels = labels[:, None] if labels.ndim == 1 else labels
        parts = [
            _one_batch(model, images[start : start + batch_size], labels[start : start + batch_size])
            for start in range(0, len(images), batch_size)
        ]
    finally:
        for parameter, flag in zip(model.parameters(), required, strict=True):
            parameter.requires_grad_(flag)
    names = CurvatureColumns.__dataclass_fields__
    return CurvatureColumns(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _one_batch(model: nn.Module, images: Tensor, labels: Tensor) -> CurvatureColumns:
    """Forward once, then one backward pass per column of the factor and one for the gradient."""
    x = images.detach().requires_grad_(True)
    output = model(x)
    logits = output[:, None] if output.ndim == 2 else output
    batch, trials, classes = logits.shape
    if not torch.isfinite(logits).all():
        raise UserError("the model's output is not finite (NaN or infinite weights?); its curvature does not exist")
    if labels.shape != (batch, trials) or int(labels.max()) >= classes:
        raise UserError(f"labels do not fit an output of {trials} networks and {classes} classes")
    # The softmax is small work: float64 keeps saturated images exact.
    log_p = logits.detach().double().log_softmax(-1)
    factor = softmax_hessian_factor(log_p)
    chosen = log_p.gather(-1, labels[..., None])
    # p - e_y, with 1 - p_y from expm1 instead of a difference.
    residual = log_p.exp().scatter(-1, labels[..., None], chosen.expm1())

    def pull_back(cotangent: Tensor, keep: bool) -> Tensor:
        """J^T times a cotangent (B, T, C), as (B, T, D) in float64."""
        seed = cotangent.to(logits.dtype)
        (gradient,) = torch.autograd.grad(logits, x, seed, retain_graph=keep)
        # Channels-last gradients hold the trials interleaved; a trial's own pixels are its slice of the channels.
        return gradient.unflatten(1, (trials, -1)).flatten(2).double()

    rows = torch.stack([pull_back(factor[..., column], True) for column in range(classes - 1)], dim=2)
    gram = rows @ rows.transpose(-1, -2)  # (B, T, C-1, C-1)
    gradient = pull_back(residual, False)
    return CurvatureColumns(
        loss=-chosen.squeeze(-1).cpu(),
        probability=chosen.squeeze(-1).exp().cpu(),
        gradient_norm=gradient.norm(dim=-1).cpu(),
        trace=gram.diagonal(dim1=-2, dim2=-1).sum(-1).cpu(),
        frobenius_norm=gram.flatten(-2).norm(dim=-1).cpu(),
        largest_eigenvalue=torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).cpu(),
    )
