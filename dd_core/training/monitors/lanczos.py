"""The largest eigenvalue of every trial's symmetric operator, all trials at once and without waiting for the device."""

from collections.abc import Callable

import torch
from torch import Tensor

from dd_core.training.monitors.vectors import dots

# Every trial's vector to its product, (T, P) to (T, P).
Product = Callable[[Tensor], Tensor]


def lanczos_largest(product: Product, start: Tensor, num_products: int) -> tuple[Tensor, Tensor]:
    """The largest Ritz value in the Krylov space of a start vector (Lanczos, fully reorthogonalised).

    It is a lower bound of the largest eigenvalue, and approaches it whatever the sign of the others.

    Args:
        product: with each trial's symmetric matrix.
        start: (T, P), not 0.
        num_products: dimension of the space; so many vectors (T, P) are kept.

    Returns:
        Ritz values and their residuals ||Hv - value v||, (T,) float64: an eigenvalue lies at most so far from the value
        (Parlett 1998, theorem 4.5.1). NaN for a trial whose products are not finite.
    """
    num_products = min(num_products, start.shape[1])
    basis = start.new_zeros(len(start), num_products, start.shape[1])
    diagonal, beside = (start.new_zeros(len(start), num_products, dtype=torch.float64) for _ in range(2))
    basis[:, 0] = start / start.norm(dim=1, keepdim=True)
    scale = start.new_zeros(len(start), dtype=torch.float64)
    is_exhausted = torch.zeros_like(scale, dtype=torch.bool)
    for step in range(num_products):
        image = product(basis[:, step])
        rayleigh = dots(image, basis[:, step])
        scale = torch.maximum(scale, dots(image, image).sqrt())
        # An exhausted space is invariant. Its first Rayleigh quotient again changes no extreme Ritz value.
        diagonal[:, step] = torch.where(is_exhausted, diagonal[:, 0], rayleigh)
        rest, length = orthogonal(image, basis[:, : step + 1])
        is_exhausted = is_exhausted | (length <= 10 * torch.finfo(start.dtype).eps * scale)
        beside[:, step] = torch.where(is_exhausted, 0, length)
        if step + 1 < num_products:
            unit = rest / length.to(rest)[:, None]
            basis[:, step + 1] = torch.where(is_exhausted[:, None], 0, unit)
    off = torch.diag_embed(beside[:, :-1], offset=1)
    value, last = _largest_eigenpair(torch.diag_embed(diagonal) + off + off.transpose(1, 2))
    return value, beside[:, -1] * last.sqrt()


def power_iteration(product: Product, start: Tensor, num_products: int) -> tuple[Tensor, Tensor]:
    """The Rayleigh quotient after ``num_products - 1`` power iterations, and its residual, as above.

    It tends, slowly, to the eigenvalue of largest modulus, which may be negative.
    """
    vector = start / start.norm(dim=1, keepdim=True)
    for _ in range(num_products - 1):
        image = product(vector)
        norm = image.norm(dim=1, keepdim=True)
        vector = image / torch.where(norm == 0, 1, norm)
    image = product(vector)
    value = dots(image, vector)
    rest = image - value.to(image)[:, None] * vector
    return value, dots(rest, rest).sqrt()


def orthogonal(vectors: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The part of each trial's vector (T, P) orthogonal to its orthonormal basis (T, m, P), and its length (T,).

    Gram-Schmidt twice is orthogonal to working precision (Parlett 1998, section 6.9). Vectors of the basis may be 0.
    """
    for _ in range(2):
        vectors = vectors - (basis.transpose(1, 2) @ (basis @ vectors[:, :, None])).squeeze(2)
    return vectors, dots(vectors, vectors).sqrt()


def _largest_eigenpair(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues of symmetric (T, m, m), and the squared last components of their eigenvectors, (T,).

    By squaring: the powers of a positive matrix, normalised, tend to the projector on its largest eigenvectors, and
    after 2^48 no other is left but such as are equal in float64. torch.linalg.eigvalsh would wait for a GPU to learn
    whether it converged, and fail for all trials if one has NaN.
    """
    reach = matrices.abs().sum(2)  # Gershgorin: eigenvalues lie within the row sums
    reach = reach.amax(1)[:, None, None]
    unit = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
    power = matrices + 1.5 * torch.where(reach == 0, 1, reach) * unit
    for _ in range(48):
        power = power / _trace(power)[:, None, None]
        power = power @ power
    projector = power / _trace(power)[:, None, None]
    return (projector * matrices).sum((1, 2)), projector[:, -1, -1]


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(1)
