"""The largest eigenvalue of every trial's symmetric operator, all trials at once and without waiting for the device."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from dd_core.curvature.parameter_space.twice_differentiable import TwiceDifferentiable
from dd_core.curvature.second_derivatives import second_derivatives

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


def hessian_product(model: nn.Module, losses: Callable[[], Tensor]) -> tuple[Product, int]:
    """The product of every trial's Hessian with a vector, (T, P) to (T, P), and P.

    The sum of the trials' losses has a Hessian of T blocks, as no trial's weights occur in another's loss, so that one
    double backward pass serves them all (Pearlmutter 1994; the graph of the gradient is kept for all products).

    Args:
        model: stacked, in eval mode; its ``.grad`` and buffers are left alone.
        losses: computes those of B examples of each trial with the model, (B, T).
    """
    parameters = list(model.parameters())
    with torch.enable_grad(), second_derivatives(), TwiceDifferentiable():
        by_example = losses()
        num_trials = by_example.shape[1]
        gradients = torch.autograd.grad(by_example.mean(0).sum(), parameters, create_graph=True)

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


def by_trial(tensors: Iterable[Tensor], num_trials: int) -> Tensor:
    """Tensors of the parameters' shapes, (T*n, ...), as vectors (T, P)."""
    return torch.cat([tensor.detach().reshape(num_trials, -1) for tensor in tensors], dim=1)


def shaped(vectors: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Vectors (T, P) as tensors of the parameters' shapes: the reverse of ``by_trial``."""
    parts = vectors.split([tensor.numel() // len(vectors) for tensor in like], dim=1)
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def dots(first: Tensor, second: Tensor) -> Tensor:
    """Each trial's inner product of two vectors (T, P), summed in float64, (T,)."""
    return (first * second).sum(1, dtype=torch.float64)


def mean_and_error(samples: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean of independent samples, (T,) each, and its standard error, which a single one does not tell: NaN."""
    values = torch.stack(list(samples))
    mean = values.mean(0)
    if len(samples) == 1:
        return mean, torch.full_like(mean, torch.nan)
    return mean, values.std(0) / len(samples) ** 0.5
