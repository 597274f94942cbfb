"""Eigenvalues at both ends of the spectrum, and its density, from Lanczos' three-term recurrence.

hessian-eigenthings 1.0.0a5 has the same algorithms, but
- beyond 50 steps it leaves out the reorthogonalisation unless told otherwise: on diag(100, 50, 20, 10, 5, ...) it
  reports 100.0 as all of the eight largest eigenvalues;
- in float32 it goes on after the space is exhausted (a rank below the number of steps, as late in training): on a
  matrix of rank 5 it reports an eigenvalue 53 between 100 and 10, its residual given as 1e-15, truly 47;
- its residual is the recurrence's estimate, not ||Hv - lambda v||; it has no stopping rule; the two ends of the
  spectrum take a run each; and its quadrature makes one pass over the images for every single vector.
So the recurrence is written here: orthogonal to working precision, several spaces grown by one pass over the images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dd_core.curvature.parameter_space.operator import HessianOperator

_TINY = 1e-30


class KrylovSpace:
    """An orthonormal basis of span(v, Hv, H^2 v, ...), in which H is the tridiagonal matrix T.

    Attributes:
        num_steps: vectors that have been multiplied, the order of T.
    """

    def __init__(self, start: Tensor, max_steps: int, generator: torch.Generator):
        """Begin with a vector (P,); at most min(max_steps, P) steps."""
        self._basis = start.new_empty(min(max_steps, len(start)), len(start))
        self._basis[0] = start / start.norm()
        self._diagonal: list[float] = []
        self._off_diagonal: list[float] = []  # one more than inside T: the last couples to the vector to come
        self._generator = generator
        self._scale = 0.0

    @property
    def num_steps(self) -> int:  # noqa: D102
        return len(self._diagonal)

    @property
    def is_full(self) -> bool:
        """Whether no further step is possible."""
        return self.num_steps == len(self._basis)

    @property
    def front(self) -> Tensor:
        """The vector (P,) whose product with H is wanted next."""
        return self._basis[self.num_steps]

    def absorb(self, product: Tensor) -> None:
        """Take H times the front, and set the next front."""
        self._diagonal.append(float(product @ self.front))
        self._scale = max(self._scale, float(product.norm()))
        direction, length = self._orthogonal(product.clone())
        # Below rounding the space is exhausted: go on anywhere else, uncoupled (Golub & Van Loan, section 10.3.1).
        is_exhausted = length <= 10 * torch.finfo(product.dtype).eps * self._scale
        self._off_diagonal.append(0.0 if is_exhausted else length)
        if self.is_full:
            return
        if is_exhausted:
            direction, length = self._orthogonal(torch.randn(len(product), generator=self._generator).to(product))
        self._basis[self.num_steps] = direction / length

    def _orthogonal(self, vector: Tensor) -> tuple[Tensor, float]:
        """The part orthogonal to the basis, and its length.

        Gram-Schmidt repeated while much is taken away (Daniel, Gragg, Kaufman & Stewart 1976): orthogonal to working
        precision, however little is left.
        """
        basis = self._basis[: self.num_steps]
        length = float(vector.norm())
        for _ in range(4):
            before = length
            vector -= basis.T @ (basis @ vector)
            length = float(vector.norm())
            if length > 0.7 * before or length < _TINY:
                break
        return vector, length

    def quadrature(self, steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Nodes (m,) and weights (m,), of sum 1: Gauss quadrature of the spectrum as the start vector sees it."""
        values, vectors = np.linalg.eigh(self._tridiagonal(steps or self.num_steps))
        return values, vectors[0] ** 2

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values (m,) ascending, their residuals as the recurrence estimates them, coordinates (m, m)."""
        values, vectors = np.linalg.eigh(self._tridiagonal(self.num_steps))
        return values, abs(self._off_diagonal[-1] * vectors[-1]), vectors

    def vectors(self, coordinates: np.ndarray) -> Tensor:
        """Vectors (n, P) of the space with the given coordinates (m, n)."""
        own = torch.from_numpy(np.ascontiguousarray(coordinates.T)).to(self._basis)
        return own @ self._basis[: self.num_steps]

    def _tridiagonal(self, steps: int) -> np.ndarray:
        off = self._off_diagonal[: steps - 1]
        return np.diag(self._diagonal[:steps]) + np.diag(off, 1) + np.diag(off, -1)


def random_signs(num_vectors: int, size: int, generator: torch.Generator) -> Tensor:
    """Rademacher vectors (num_vectors, size) in float32, drawn on the CPU so that every device gets the same."""
    return torch.randint(0, 2, (num_vectors, size), generator=generator).float().mul_(2).sub_(1)


def grow(operator: HessianOperator, spaces: list[KrylovSpace]) -> None:
    """One step for each space that is not full, all in one product."""
    growing = [space for space in spaces if not space.is_full]
    if growing:
        products = operator.matmat(torch.stack([space.front for space in growing]))
        for space, product in zip(growing, products, strict=True):
            space.absorb(product)


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues and eigenvectors of the symmetric H, sorted by value.

    Attributes:
        largest: float64 (k,), descending; fewer than wanted only if there are fewer parameters.
        residuals: ||Hv - lambda v|| of each for its unit vector v: an eigenvalue lies at most so far from it.
        vectors: (k, P), orthonormal.
        smallest: the smallest eigenvalue (usually negative), None if not wanted.
        smallest_residual: its residual.
    """

    largest: np.ndarray
    residuals: np.ndarray
    vectors: Tensor
    smallest: float | None
    smallest_residual: float | None


def extreme_eigenpairs(
    operator: HessianOperator,
    space: KrylovSpace,
    num_eigenvalues: int,
    tolerance: float,
    *,
    both_ends: bool = True,
) -> Eigenpairs:
    """Grow the space until what is wanted has converged or it is full; then measure residuals by one more product each.

    Args:
        operator: the Hessian.
        space: begun by the caller, perhaps already grown; with room for more steps than eigenvalues.
        num_eigenvalues: k, largest by value.
        tolerance: of the residuals, as a share of the largest absolute eigenvalue.
        both_ends: the smallest eigenvalue as well.
    """
    while not space.is_full and not _is_converged(space, num_eigenvalues, tolerance, both_ends):
        grow(operator, [space])
    _, _, coordinates = space.ritz()
    count = min(num_eigenvalues, space.num_steps)
    chosen = np.concatenate([coordinates[:, -count:][:, ::-1], coordinates[:, : int(both_ends)]], axis=1)
    vectors = space.vectors(chosen)
    vectors /= vectors.norm(dim=1, keepdim=True)
    products = operator.matmat(vectors)
    values = (vectors * products).sum(1, dtype=torch.float64)
    residuals = (products - values[:, None] * vectors).norm(dim=1)
    numbers, errors = values.cpu().numpy(), residuals.double().cpu().numpy()
    order = np.argsort(-numbers[:count], kind="stable")
    return Eigenpairs(
        largest=numbers[order],
        residuals=errors[order],
        vectors=vectors[torch.from_numpy(order).to(vectors.device)],
        smallest=float(numbers[-1]) if both_ends else None,
        smallest_residual=float(errors[-1]) if both_ends else None,
    )


def _is_converged(space: KrylovSpace, num_eigenvalues: int, tolerance: float, both_ends: bool) -> bool:
    if space.num_steps < num_eigenvalues + 1:
        return False
    values, residuals, _ = space.ritz()
    wanted = [*residuals[-num_eigenvalues:], *residuals[: int(both_ends)]]
    return bool(max(wanted) <= tolerance * np.abs(values).max())


@dataclass(frozen=True)
class SpectralDensity:
    """Density of H's eigenvalues, normalised to 1.

    Attributes:
        nodes, weights: float64 (probes, steps): quadrature per probe; the weights of a probe add up to 1.
        grid: float64 (points,), eigenvalues.
        density: (points,), per unit of eigenvalue.
        log10_density: its decimal logarithm, finite where the density underflows.
    """

    nodes: np.ndarray
    weights: np.ndarray
    grid: np.ndarray
    density: np.ndarray
    log10_density: np.ndarray


def spectral_density(
    quadratures: list[tuple[np.ndarray, np.ndarray]], num_points: int, width: float
) -> SpectralDensity:
    """Stochastic Lanczos quadrature, smoothed with Gaussians (Ubaru, Chen & Saad 2017; Ghorbani et al. 2019).

    Args:
        quadratures: nodes and weights, equally many, of spaces with independent random starts.
        num_points: of the grid.
        width: standard deviation of the Gaussians as a share of the range of the nodes.
    """
    nodes, weights = (np.stack(part) for part in zip(*quadratures, strict=True))
    spread = float(nodes.max() - nodes.min())
    sigma = width * (spread or abs(float(nodes.max())) or 1.0)
    grid = np.linspace(nodes.min() - 5 * sigma, nodes.max() + 5 * sigma, num_points)
    with np.errstate(divide="ignore"):  # the logarithm of a weight that is zero is minus infinity, as it should be
        log_weights = np.log(weights.ravel() / len(quadratures))
    exponents = log_weights - ((grid[:, None] - nodes.ravel()) / sigma) ** 2 / 2
    log_density = np.logaddexp.reduce(exponents, axis=1) - np.log(sigma * np.sqrt(2 * np.pi))
    return SpectralDensity(nodes, weights, grid, np.exp(log_density), log_density / np.log(10))
