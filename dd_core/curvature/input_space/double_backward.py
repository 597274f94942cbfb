"""Per-image curvature of any twice differentiable network, from Hessian-vector products by double backward.

For networks that are not piecewise linear in the image (GELU, softplus, attention), where no formula gives the Hessian
H of the loss. In eval mode images do not interact, so one product serves all images of a batch.

The gradient g, the loss and g^T H g / ||g||^2 are exact. The rest comes from an orthonormal Krylov basis Q of each
image (Lanczos) and random signs r in the space it leaves, s = (I - Q Q^T) r:

    trace H     = trace Q^T H Q  + E s^T H s        (Hutchinson's estimator in the complement; unbiased),
    ||H||_F^2   = ||H Q||_F^2    + E ||H s||^2      (unbiased; its root is low by about (standard error)^2 / (2 norm)),
    lambda_max >= largest eigenvalue of Q^T H Q.

This is Hutch++ (Meyer et al. 2021) with a Krylov basis, as in Chen & Hallman 2023, "Krylov-aware stochastic trace
estimation" (SIAM J. Matrix Anal. Appl. 44). Measured on a trained ResNet10k with GELU (k = 4, 10 classes), 10 steps and
10 probes, median error: largest eigenvalue 2e-15, Frobenius norm 0.4 %, trace 8 % (its many small eigenvalues of both
signs cancel, and no basis of ten holds them: only more probes help, as their standard error says).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dd_core.curvature.copies import Output
from dd_core.curvature.evaluation import (
    SMALLEST_PASS,
    check_data,
    in_layout_of,
    logits_of,
    mean_and_error,
    padded,
)
from dd_core.curvature.guard import require_second_derivative
from dd_core.curvature.input_space.signs import Stream, rademacher
from dd_core.curvature.network import admitted, as_tensors
from dd_core.errors import UserError
from dd_core.machine.memory import in_blocks
from dd_core.study.curvature_names import CURVATURE_COLUMNS
from dd_core.tasks.losses import CROSS_ENTROPY, Loss

Product = Callable[[Tensor], Tensor]


def double_backward_curvature(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    image_ids: Tensor,
    *,
    num_probes: int = 10,
    lanczos_steps: int = 10,
    batch_size: int = 100,
    seed: int = 0,
    output: Output = None,
    loss: Loss = CROSS_ENTROPY,
) -> dict[str, Tensor]:
    """Curvature of the loss in each image.

    Costs 2 + num_probes + lanczos_steps Hessian-vector products, each about two forward passes.

    Args:
        model: one network in eval mode, float32 or float64, (B, *shape) to logits (B, C).
        images: (N, *shape), in the model's precision and on its device; D entries each.
        labels: int64 (N,), the given labels.
        image_ids: int64 (N,), which decide the probes.
        num_probes: in the complement of the Krylov basis.
        lanczos_steps: dimension of the Krylov basis, at most D. With D steps everything is exact.
        batch_size: images per pass, at least 16; it changes the memory, not the result.
        seed: of the probes.
        output: which of the model's outputs are the logits, where it gives several.
        loss: whose curvature.

    Returns:
        Float64 (N,) on the CPU, by the names in ``CURVATURE_COLUMNS``:
        loss (nats) and probability of the given label (NaN where outputs stand for none);
        gradient_norm, nats per input unit;
        gradient_curvature, g^T H g / ||g||^2, and 0 where g is 0 (by convention: there is no direction);
        trace and trace_standard_error, over the probes (NaN with one probe);
        frobenius_norm and its standard error, to first order in that of its square;
        largest_eigenvalue, a lower bound of H's, and largest_eigenvalue_residual: within that distance of the value
        lies an eigenvalue of H (Parlett 1998, theorem 4.5.1), in practice the largest.

    Raises:
        UserError: the model or data are not as above, its second derivative in the images is wrong or missing, or not
            even one image fits into memory.
    """
    images, labels = as_tensors(images, labels, model)
    check_data(model, images, labels, image_ids)
    if lanczos_steps < 1:
        raise UserError(f"lanczos_steps must be 1 or more, not {lanczos_steps}")

    def compute(start: int, stop: int, size: int) -> Tensor:
        ids, shape, smallest = image_ids[start:stop], tuple(images.shape[1:]), min(size, SMALLEST_PASS)
        signs = [
            padded(rademacher(ids, number, shape, seed=seed, stream=stream).to(images.device), smallest)
            for number, stream in ((num_probes, Stream.HUTCHINSON), (1, Stream.LANCZOS_START))
        ]
        x, y = padded(images[start:stop], smallest), padded(labels[start:stop], smallest)
        return _of_images(network, loss, x, y, signs[0], signs[1], lanczos_steps)[:, : stop - start].cpu()

    with admitted(model, images, output=output) as network:
        require_second_derivative(network, images)
        blocks = list(in_blocks(compute, len(images), max(batch_size, SMALLEST_PASS)))
    values = torch.cat([torch.empty(len(CURVATURE_COLUMNS), 0, dtype=torch.float64), *blocks], dim=1)
    return dict(zip(CURVATURE_COLUMNS, values, strict=True))


def _of_images(
    model: nn.Module,
    loss: Loss,
    images: Tensor,
    labels: Tensor,
    signs: Tensor,
    start_signs: Tensor,
    lanczos_steps: int,
) -> Tensor:
    """All columns, float64 (columns, B); signs are int8 (B, P, *shape), those of the start have P = 1."""
    x = in_layout_of(model, images).detach().requires_grad_(True)
    with torch.enable_grad():
        logits = logits_of(model, x, labels)
        residual = loss.gradient(logits, labels)
        # The gradient as a function of x through both its factors, J(x)^T and that of the loss in the logits.
        (slope,) = torch.autograd.grad(logits, x, residual.to(logits.dtype), create_graph=True)

    def product(vectors: Tensor) -> Tensor:
        """H times (B, D) float64, one vector for each image."""
        direction = vectors.view(x.shape).to(x.dtype)
        return torch.autograd.grad(slope, x, direction, retain_graph=True)[0].flatten(1).double()

    gradient = slope.detach().flatten(1).double()
    norm = gradient.norm(dim=-1)
    unit = gradient / torch.where(norm > 0, norm, 1)[:, None]
    gradient_curvature = (unit * product(unit)).sum(-1)
    # The gradient leans towards the steepest curvature; the signs see what is orthogonal to it.
    start = unit + torch.nn.functional.normalize(start_signs.flatten(1).double(), dim=-1)
    krylov = _lanczos(product, start, min(lanczos_steps, start.shape[1]), torch.finfo(x.dtype).eps)
    samples = []
    for probe in signs.flatten(2).double().unbind(1):
        rest = probe - krylov.project(probe)
        moved = product(rest)
        samples.append(torch.stack([(rest * moved).sum(-1), (moved * moved).sum(-1)]))
    average, error = mean_and_error(torch.stack(samples, dim=-1))  # (2, B) each
    frobenius = (krylov.squared_norm + average[1]).sqrt()
    losses, probability = loss.values(logits.detach(), labels)
    columns = {
        "loss": losses,
        "probability": probability,
        "gradient_norm": norm,
        "gradient_curvature": gradient_curvature,
        "trace": krylov.trace + average[0],
        "trace_standard_error": error[0],
        "frobenius_norm": frobenius,
        "frobenius_norm_standard_error": error[1] / (2 * torch.where(frobenius > 0, frobenius, 1)),
        "largest_eigenvalue": krylov.largest,
        "largest_eigenvalue_residual": krylov.residual,
    }
    return torch.stack([columns[name] for name in CURVATURE_COLUMNS])


@dataclass(frozen=True)
class _Krylov:
    """What H is on an orthonormal basis Q of a Krylov space, for each image.

    Attributes:
        basis: (B, m, D); vectors beyond an invariant space are 0.
        trace: of Q^T H Q.
        squared_norm: ||H Q||_F^2.
        largest: eigenvalue of Q^T H Q.
        residual: ||H v - largest v|| of its Ritz vector v.
    """

    basis: Tensor
    trace: Tensor
    squared_norm: Tensor
    largest: Tensor
    residual: Tensor

    def project(self, vectors: Tensor) -> Tensor:
        """Q Q^T times (B, D)."""
        return _project(self.basis, vectors)


def _project(basis: Tensor, vectors: Tensor) -> Tensor:
    """Orthogonal projection of (B, D) on the span of an orthonormal basis (B, m, D)."""
    return (basis.transpose(1, 2) @ (basis @ vectors[:, :, None])).squeeze(-1)


def _lanczos(product: Product, start: Tensor, num_steps: int, precision: float) -> _Krylov:
    """Lanczos with full reorthogonalisation, every image its own; start is (B, D) and not 0.

    An image whose space is exhausted (the next vector is shorter than ``precision`` times the largest entry so far)
    stops there: what it has found is invariant, so its values are final.
    """
    num_images = len(start)
    basis = start.new_zeros(num_images, num_steps, start.shape[1])
    diagonal, beside = start.new_zeros(num_images, num_steps), start.new_zeros(num_images, num_steps)
    squared_norm, trace, scale = (start.new_zeros(num_images) for _ in range(3))
    vector = torch.nn.functional.normalize(start, dim=-1)
    alive = torch.ones_like(scale, dtype=torch.bool)
    for step in range(num_steps):
        basis[:, step] = vector
        moved = product(vector)
        rayleigh = (vector * moved).sum(-1)
        trace += rayleigh
        squared_norm += (moved * moved).sum(-1)
        # A stopped image repeats its first Rayleigh quotient, which lies inside its spectrum and changes no extreme.
        diagonal[:, step] = torch.where(alive, rayleigh, diagonal[:, 0])
        for _ in range(2):  # twice is enough (Parlett 1998, section 6.9)
            moved = moved - _project(basis, moved)
        length = moved.norm(dim=-1)
        scale = torch.maximum(scale, torch.maximum(rayleigh.abs(), length))
        alive = alive & (length > precision * scale)
        beside[:, step] = torch.where(alive, length, 0)
        vector = torch.where(alive[:, None], moved / torch.where(alive, length, 1)[:, None], 0)
    off = torch.diag_embed(beside[:, :-1], offset=1)
    values, vectors = torch.linalg.eigh(torch.diag_embed(diagonal) + off + off.transpose(1, 2))
    residual = beside[:, -1] * vectors[:, -1, -1].abs()
    return _Krylov(basis, trace, squared_norm, values[:, -1], residual)
