"""The exact Hessian of the cross-entropy in the input, image by image, in C-1 backward passes.

For a network that is piecewise linear in its input (ReLU, max-pooling, BatchNorm in eval mode, residual sums) the
logits z(x) are locally linear, so almost everywhere the Hessian of the loss is the generalised Gauss-Newton matrix

    H = J^T (diag p - p p^T) J,     J = dz/dx  (C x D),   p = softmax(z),

whatever the label (Schraudolph 2002, "Fast curvature matrix-vector products", section 3). With the factors of
``dd_core.curvature.softmax``, H = K^T K for the C-1 rows K_c = sqrt(p_c) d_c^T J, so that the small Gram matrix K K^T
has H's non-zero eigenvalues, and the gradient g = J^T (p - e_y) is a combination of the same rows. No probe, no noise,
no second derivative. Where the last layer has fewer features F than C-1, the F rows of d features / dx do.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dd_core.curvature.softmax import SoftmaxHessian, softmax_hessian


class Linearized(Protocol):
    """An affine map at a batch of images, such as ``dd_core.curvature.input_space.linearized.Linearization``."""

    logits: Tensor
    classifier_weight: Tensor | None

    def pull_back(self, cotangents: Tensor) -> Tensor:
        """J^T applied to (B, m, C): (B, m, *image shape)."""

    def pull_back_features(self, cotangents: Tensor) -> Tensor:
        """The same from the input of the last linear layer, (B, m, F)."""


def num_exact_passes(num_classes: int, classifier_weight: Tensor | None) -> int:
    """Backward passes that the exact Hessian takes: min(C-1, features of the last layer)."""
    features = num_classes if classifier_weight is None else classifier_weight.shape[1]
    return min(num_classes - 1, features)


def exact_curvature(linearized: Linearized, labels: Tensor, rows_per_pass: int | None = None) -> dict[str, Tensor]:
    """Every exact column of ``CURVATURE_COLUMNS``, float64 (B,), for images already linearised.

    Args:
        linearized: the network at the images.
        labels: int64 (B,), the given labels.
        rows_per_pass: cotangents of each image that travel together, default all.
    """

    def gram_of(pull_back: Callable[[Tensor], Tensor], cotangents: Tensor) -> Tensor:
        parts = cotangents.split(rows_per_pass or cotangents.shape[1], dim=1)
        return gram_matrix(torch.cat([pull_back(part) for part in parts], dim=1))

    softmax = softmax_hessian(linearized.logits, labels)
    weight, num_rows = linearized.classifier_weight, softmax.roots.shape[1]
    if weight is not None and weight.shape[1] < num_rows:
        units = torch.eye(weight.shape[1], device=weight.device).expand(len(labels), -1, -1)
        to_features = softmax.project(weight.double())
        gram = to_features @ gram_of(linearized.pull_back_features, units) @ to_features.transpose(1, 2)
    else:
        gram = gram_of(linearized.pull_back, softmax.directions)
    return _columns(softmax, gram)


def gram_matrix(rows: Tensor) -> Tensor:
    """Inner products (B, m, m), float64, of rows (B, m, *image shape)."""
    flat = rows.flatten(2)
    # bfloat16 rows hold 8 bits; float32 sums add nothing to their error.
    flat = flat.float() if flat.dtype == torch.bfloat16 else flat.double()
    return (flat @ flat.transpose(1, 2)).double()


def _columns(softmax: SoftmaxHessian, gram: Tensor) -> dict[str, Tensor]:
    """Trace, norms and eigenvalue from the Gram matrix of the rows d_c^T J (B, C-1, C-1)."""
    scaled = softmax.roots[:, :, None] * gram * softmax.roots[:, None, :]
    size = softmax.gradient.abs().amax(-1, keepdim=True)
    unit = softmax.gradient / torch.where(size > 0, size, 1)  # squares of 1e-200 would be 0
    gram_gradient = (gram @ unit[..., None]).squeeze(-1)
    square = (unit * gram_gradient).sum(-1).clamp(min=0)
    along = (softmax.roots * gram_gradient).square().sum(-1)  # ||K g||^2 = g^T H g
    zero = torch.zeros_like(square)
    return {
        "loss": softmax.loss,
        "probability": softmax.probability,
        "gradient_norm": square.sqrt() * size.squeeze(-1),
        "gradient_curvature": torch.where(square > 0, along / square, zero),
        "trace": scaled.diagonal(dim1=1, dim2=2).sum(-1),
        "trace_standard_error": zero,
        "frobenius_norm": scaled.flatten(1).norm(dim=1),
        "frobenius_norm_standard_error": zero,
        "largest_eigenvalue": torch.linalg.eigvalsh(scaled)[:, -1].clamp(min=0),
        "largest_eigenvalue_residual": zero,
    }
