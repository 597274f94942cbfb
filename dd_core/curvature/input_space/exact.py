"""The exact Hessian of the loss in the input, image by image, in C-1 backward passes (C for the squared error).

For a network that is piecewise linear in its input (ReLU, max-pooling, BatchNorm in eval mode, residual sums) the
logits z(x) are locally linear, so almost everywhere the Hessian of the loss is the generalised Gauss-Newton matrix

    H = J^T S J,   J = dz/dx  (C x D),   S = diag p - p p^T  (cross-entropy, p = softmax(z))  or  2/C  (squared error),

whatever the label (Schraudolph 2002, "Fast curvature matrix-vector products", section 3). With the factors of
``dd_core.tasks.output_hessian``, H = K^T K for the M rows K_c = sqrt(w_c) d_c^T J (M = C-1 and w = p for the
cross-entropy), so that the small Gram matrix K K^T has H's non-zero eigenvalues, and the gradient g is a combination of
the same rows. No probe, no noise, no second derivative. Where the last layer has fewer features F than M, the F rows of
d features / dx do.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dd_core.tasks.output_hessian import OutputHessian


class Linearized(Protocol):
    """An affine map at a batch of images, such as ``dd_core.curvature.input_space.linearized.Linearization``."""

    logits: Tensor
    classifier_weight: Tensor | None

    def pull_back(self, cotangents: Tensor) -> Tensor:
        """J^T applied to (B, m, C): (B, m, *image shape)."""

    def pull_back_groups(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """The same for consecutive groups of the images, each with its own m."""

    def pull_back_features(self, cotangents: Tensor) -> Tensor:
        """The same from the input of the last linear layer, (B, m, F)."""

    def of(self, images: Tensor) -> "Linearized":
        """The map at some of the images, int64 (n,), in that order."""


def num_exact_passes(num_directions: int, classifier_weight: Tensor | None) -> int:
    """Backward passes that the exact Hessian takes: the directions of S, or the last layer's features if fewer."""
    return num_directions if classifier_weight is None else min(num_directions, classifier_weight.shape[1])


def exact_curvature(
    linearized: Linearized, hessian: OutputHessian, rows_per_pass: int | None = None
) -> dict[str, Tensor]:
    """Every exact column of ``CURVATURE_COLUMNS``, float64 (B,), for images already linearised.

    Args:
        linearized: the network at the images.
        hessian: of the loss in the network's outputs there.
        rows_per_pass: cotangents of each image that travel together, default all.
    """

    def gram_of(pull_back: Callable[[Tensor], Tensor], cotangents: Tensor) -> Tensor:
        parts = cotangents.split(rows_per_pass or cotangents.shape[1], dim=1)
        return gram_matrix(torch.cat([pull_back(part) for part in parts], dim=1))

    weight, num_rows = linearized.classifier_weight, hessian.roots.shape[1]
    if weight is not None and weight.shape[1] < num_rows:
        units = torch.eye(weight.shape[1], device=weight.device).expand(len(hessian.roots), -1, -1)
        to_features = hessian.project(weight.double())
        gram = to_features @ gram_of(linearized.pull_back_features, units) @ to_features.transpose(1, 2)
    else:
        gram = gram_of(linearized.pull_back, hessian.directions)
    return _columns(hessian, gram)


def gram_matrix(rows: Tensor) -> Tensor:
    """Inner products (B, m, m), float64, of rows (B, m, *image shape)."""
    flat = rows.flatten(2)
    # bfloat16 rows hold 8 bits; float32 sums add nothing to their error.
    flat = flat.float() if flat.dtype == torch.bfloat16 else flat.double()
    return (flat @ flat.transpose(1, 2)).double()


def _columns(hessian: OutputHessian, gram: Tensor) -> dict[str, Tensor]:
    """Trace, norms and eigenvalue from the Gram matrix of the rows d_c^T J (B, M, M)."""
    scaled = hessian.roots[:, :, None] * gram * hessian.roots[:, None, :]
    size = hessian.gradient.abs().amax(-1, keepdim=True)
    unit = hessian.gradient / torch.where(size > 0, size, 1)  # squares of 1e-200 would be 0
    gram_gradient = (gram @ unit[..., None]).squeeze(-1)
    square = (unit * gram_gradient).sum(-1).clamp(min=0)
    along = (hessian.roots * gram_gradient).square().sum(-1)  # ||K g||^2 = g^T H g
    zero = torch.zeros_like(square)
    return {
        "loss": hessian.loss,
        "probability": hessian.probability,
        "gradient_norm": square.sqrt() * size.squeeze(-1),
        "gradient_curvature": torch.where(square > 0, along / square, zero),
        "trace": scaled.diagonal(dim1=1, dim2=2).sum(-1),
        "trace_standard_error": zero,
        "frobenius_norm": scaled.flatten(1).norm(dim=1),
        "frobenius_norm_standard_error": zero,
        "largest_eigenvalue": torch.linalg.eigvalsh(scaled)[:, -1].clamp(min=0),
        "largest_eigenvalue_residual": zero,
    }
