"""Per-image curvature for many classes: the directions that carry it exactly, unbiased probes for the rest.

H = K^T K with M rows K = L J_f (M = C-1 and w = p for the cross-entropy, see ``exact``), where J_f = d features / dx,
and L = diag(sqrt w) d W is known without any backward pass. For every orthonormal Q (M, m) the trace splits into an
exact and a random part,

    trace H = ||Q^T K||_F^2 + E ||K^T (I - Q Q^T) r||^2,     r Rademacher in R^M,

each row one backward pass. Q holds the direction whose row is the gradient, and the top eigenvectors of L L^T (the
energy of the last layer) among the classes that have most of it. On a trained network a handful holds nearly
everything. How many an image needs is read off its discarded energy, so that the predicted error of its trace stays
below the one asked for; an image that would need as many passes as the exact Hessian gets the exact Hessian. Whatever Q
is, the estimate is unbiased and comes with its standard error (Hutchinson 1990; deflation as in Meyer et al. 2021,
"Hutch++").
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dd_core.curvature.input_space.exact import Linearized, gram_matrix
from dd_core.tasks.output_hessian import OutputHessian

# Classes among which eigenvectors are sought. Those beyond are left to the probes.
MAX_CANDIDATES = 32


@dataclass(frozen=True)
class Ranking:
    """What a network's Jacobians are like on the average: by it directions are chosen and probes corrected.

    Attributes:
        root: float64 R, (F, F), with R R^T the mean of J_f J_f^T over some images, each scaled to the trace F.
        known: float64 (33,), after m directions: the share of the mean's off-diagonal part that is taken off a probe.
        left: (33,), which share of the variance predicted from the mean alone a probe then has.
    """

    root: Tensor
    known: Tensor
    left: Tensor

    def to(self, device: torch.device) -> "Ranking":
        """The same on a device."""
        return Ranking(*(getattr(self, field.name).to(device) for field in fields(self)))


def plain_ranking(weight: Tensor) -> Ranking:
    """By the energy of the last layer, (C, F): as if features were all alike; probes stay as they are."""
    ones = torch.ones(MAX_CANDIDATES + 1, dtype=torch.float64, device=weight.device)
    unit = torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device)
    return Ranking(unit, torch.zeros_like(ones), ones)


def traces(matrices: Tensor) -> Tensor:
    """Those of (B, m, m)."""
    return matrices.diagonal(dim1=1, dim2=2).sum(1)


@dataclass(frozen=True)
class Plan:
    """What the backward passes of some images should be, known from their logits alone.

    Attributes:
        hessian: of the loss in the outputs of these images.
        gradient_direction: (B, M), unit vectors whose rows of K are the gradients over ``gradient_scale``.
        gradient_scale: (B,).
        candidates: int64 (B, n), the rows of K that the eigenvectors combine.
        top: (B, n, r), their coefficients, orthonormal, orthogonal to ``gradient_direction``, by falling energy.
        energy: (B,), ||L||_F^2.
        left: (B, r+1), the energy outside the gradient's direction and the first m = 0, 1, ..., r of ``top``.
        variance: (B, r+1), predicted for one probe of what is left, in units of energy squared.
        ranking: what the energies are counted by.
        weight: W R, (C, F).
    """

    hessian: OutputHessian
    gradient_direction: Tensor
    gradient_scale: Tensor
    candidates: Tensor
    top: Tensor
    energy: Tensor
    left: Tensor
    variance: Tensor
    ranking: Ranking
    weight: Tensor

    def of(self, images: Tensor) -> "Plan":
        """That of some of the images, int64 (n,)."""
        of_images = [field.name for field in fields(self) if field.name not in ("hessian", "ranking", "weight")]
        return replace(
            self, hessian=self.hessian.of(images), **{name: getattr(self, name)[images] for name in of_images}
        )

    def num_rows(self, relative_error: float, num_probes: int, num_exact: int) -> Tensor:
        """How many rows each image needs, int64 (B,): the gradient's, those of ``top``, and the probes'.

        Args:
            relative_error: predicted standard error of the trace over the trace.
            num_probes: random rows per image.
            num_exact: rows of the exact Hessian, which an image gets if nothing less will do.
        """
        shares = self.ranking.left[: self.variance.shape[1]]
        enough = (self.variance * shares / num_probes).sqrt() <= relative_error * self.energy[:, None]
        rows = enough.to(torch.int8).argmax(1) + 1 + num_probes
        return torch.where(enough.any(1), rows, num_exact).clamp(max=num_exact)

    def basis(self, num_top: int) -> Tensor:
        """The gradient's direction and the first of ``top`` as orthonormal rows, (B, 1+m, C-1)."""
        first = self.top[..., :num_top].transpose(1, 2)
        rows = first.new_zeros(len(first), num_top, self.gradient_direction.shape[1])
        rows.scatter_(2, self.candidates[:, None].expand_as(first), first)
        return torch.cat([self.gradient_direction[:, None], rows], dim=1)


def plan_directions(
    hessian: OutputHessian, labels: Tensor, classifier_weight: Tensor, ranking: Ranking | None = None
) -> Plan:
    """Find each image's directions.

    Args:
        hessian: of the loss in the outputs.
        labels: int64 (B,).
        classifier_weight: W of the last layer, (C, F).
        ranking: by what; default the energy of the last layer alone.
    """
    weight = classifier_weight.double()
    if ranking is None:
        ranking = plain_ranking(weight)
    weight = weight @ ranking.root
    unit, scale = _gradient_direction(hessian)
    energy = _energy(hessian, weight)
    # The given class is always among them: of a mislabelled image it has no energy but nearly all of the gradient's
    # direction, and what is orthogonal to the little of it that others have would miss the largest energies.
    score = energy.masked_fill(hessian.classes == labels[:, None], torch.inf)
    candidates = score.topk(min(MAX_CANDIDATES, energy.shape[1]), dim=1).indices
    factor = hessian.project(weight, candidates) * hessian.roots.gather(1, candidates)[..., None]
    complement = _complement(unit.gather(1, candidates))  # (B, n, n-1), orthogonal to the gradient's direction
    reduced = complement.transpose(1, 2) @ factor
    values, vectors = torch.linalg.eigh(reduced @ reduced.transpose(1, 2))
    values, vectors = values.flip(-1).clamp(min=0), vectors.flip(-1)
    total = energy.sum(1)
    residual = hessian.combine(hessian.gradient[:, None]).squeeze(1)
    along_gradient = ((residual @ weight) / scale[:, None]).square().sum(1)
    left = (total - along_gradient)[:, None] - torch.nn.functional.pad(values.cumsum(1), (1, 0))
    left = left.clamp(min=0)
    top = complement @ vectors
    return Plan(hessian, unit, scale, candidates, top, total, left, _predicted_variance(values, left), ranking, weight)


def _energy(hessian: OutputHessian, weight: Tensor) -> Tensor:
    """||L_c||^2 = w_c ||W^T d_c||^2, (B, M), from the classifier's own Gram matrix, (C, C) whatever the images."""
    gram = weight @ weight.T
    common = hessian.common @ gram
    own = gram.diagonal() - 2 * common + (common * hessian.common).sum(1, keepdim=True)
    return hessian.roots.square() * own.gather(1, hessian.classes).clamp(min=0)


def _gradient_direction(hessian: OutputHessian) -> tuple[Tensor, Tensor]:
    """The unit vector v and scale with v^T K = g^T / scale, from g = sum_c (a_c / sqrt w_c) K_c."""
    coefficients = hessian.gradient / hessian.roots.clamp(min=1e-140)
    scale = coefficients.norm(dim=1).clamp(min=1e-300)
    return coefficients / scale[:, None], scale


def _complement(direction: Tensor) -> Tensor:
    """Orthonormal columns (B, n, n-1) orthogonal to vectors (B, n), by a Householder reflection."""
    norm = direction.norm(dim=1, keepdim=True)
    unit = torch.where(
        norm > 0,
        direction / norm.clamp(min=1e-300),
        torch.nn.functional.one_hot(
            torch.zeros(len(direction), dtype=torch.int64, device=direction.device), direction.shape[1]
        ).double(),
    )
    # The reflection sends the unit vector to -+ e_0; the sign keeps the sum from cancelling.
    normal = unit.clone()
    normal[:, 0] += torch.where(unit[:, 0] < 0, -1.0, 1.0)
    identity = torch.eye(direction.shape[1], dtype=torch.float64, device=direction.device)
    reflection = identity - 2 * normal[:, :, None] * normal[:, None, :] / normal.square().sum(1)[:, None, None]
    return reflection[:, :, 1:]


def _mean_square_of_pairs(products: Tensor) -> Tensor:
    """The mean square of the products (B, q, q) of different rows, (B,)."""
    q = products.shape[1]
    return (products.square().sum((1, 2)) - products.diagonal(dim1=1, dim2=2).square().sum(1)) / (q * (q - 1))


def _predicted_variance(values: Tensor, left: Tensor) -> Tensor:
    """Variance of one probe after m = 0, 1, ..., r eigenvalues, as if the features' Jacobian stretched all alike.

    A probe of a rest B has variance 2 (||B||_F^2 - sum B_ii^2) <= 2 lambda_max(B) trace B. The next eigenvalue of the
    candidates bounds the rest's, unless the classes beyond them have more.
    """
    beyond = (left - _remaining(values)).clamp(min=0)
    following = torch.maximum(torch.nn.functional.pad(values, (0, 1)), beyond)
    return 2 * following.minimum(left) * left


def _remaining(values: Tensor) -> Tensor:
    """Sums of all but the first m = 0, 1, ..., r eigenvalues."""
    return torch.nn.functional.pad(values.flip(1).cumsum(1).flip(1), (0, 1))


def top_directions_curvature(linearized: Linearized, plan: Plan, num_top: int, signs: Tensor) -> dict[str, Tensor]:
    """Every column of ``CURVATURE_COLUMNS``, float64 (B,), for images of one plan.

    The largest eigenvalue is that of the exact part, a lower bound; the trace of the rest bounds what is missing.

    Args:
        linearized: the network at the images.
        plan: for the same images.
        num_top: eigenvectors used, for all of them.
        signs: (B, q, M), Rademacher.
    """
    rows = _Rows(plan, num_top, signs.double())
    return rows.columns(linearized.pull_back(rows.unit_cotangents))


def grouped_curvature(linearized: Linearized, groups: Sequence[tuple[Plan, int, Tensor]]) -> dict[str, Tensor]:
    """The same for consecutive groups of the images, (plan, num_top, signs) of each, in one pass."""
    rows = [_Rows(plan, num_top, signs.double()) for plan, num_top, signs in groups]
    pulled = linearized.pull_back_groups([own.unit_cotangents for own in rows])
    parts = [own.columns(part) for own, part in zip(rows, pulled, strict=True)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class _Rows:
    """The rows of K that some images ask for: 1 + m exact ones and q random ones of each."""

    def __init__(self, plan: Plan, num_top: int, signs: Tensor):
        """``signs`` are float64 (B, q, M)."""
        self.plan, self.num_top = plan, num_top
        basis = plan.basis(num_top)
        rest = signs - (signs @ basis.transpose(1, 2)) @ basis
        # Combinations of the rows sqrt(w_c) d_c, each scaled to unit length for the pass and back in the Gram matrix.
        cotangents = plan.hessian.combine(torch.cat([basis, rest], dim=1) * plan.hessian.roots[:, None])
        # That of the gradient is the loss's own (p - e_y): where p_y is too small for a number, sqrt(p_y) has lost it.
        cotangents[:, :1] = plan.hessian.combine(plan.hessian.gradient[:, None]) / plan.gradient_scale[:, None, None]
        self.lengths = cotangents.norm(dim=2, keepdim=True).clamp(min=1e-300)
        self.random, self.unit_cotangents = cotangents[:, 1 + num_top :], cotangents / self.lengths

    def columns(self, pulled: Tensor) -> dict[str, Tensor]:
        """From the rows of the images, (B, 1+m+q, *image shape)."""
        plan, num_top = self.plan, self.num_top
        gram = gram_matrix(pulled) * self.lengths * self.lengths.transpose(1, 2)
        exact, cross = gram[:, : 1 + num_top, : 1 + num_top], gram[:, : 1 + num_top, 1 + num_top :]
        stretch = traces(exact) / (plan.energy - plan.left[:, num_top]).clamp(min=1e-300)
        return _columns(self, exact, cross, gram[:, 1 + num_top :, 1 + num_top :], stretch)

    def explained(self, stretch: Tensor) -> Tensor:
        """What the mean Jacobian says of the random rows' inner products, (B, q, q), less what it expects: mean 0."""
        seen = self.random @ self.plan.weight
        products = seen @ seen.transpose(1, 2)
        expected = self.plan.left[:, self.num_top, None].expand(-1, seen.shape[1])
        scale = self.plan.ranking.known[self.num_top] * stretch
        return (products - torch.diag_embed(expected)) * scale[:, None, None]


def _columns(rows: _Rows, exact: Tensor, cross: Tensor, random: Tensor, stretch: Tensor) -> dict[str, Tensor]:
    """Trace, norms and eigenvalue from the inner products of exact rows, and of them with the q random rows.

    Two probes say little of their own variance: by chance both may be close to each other, or to 0. So it is averaged
    with the one predicted from the energies and the stretch that the exact rows have shown.
    """
    q, plan, num_top = random.shape[1], rows.plan, rows.num_top
    predicted = plan.variance[:, num_top] * stretch.square()
    corrected = random - rows.explained(stretch)
    squares = corrected.diagonal(dim1=1, dim2=2)
    rest, crossed = traces(random) / q, cross.square().sum(1)
    trace = traces(exact) + squares.mean(1)
    # Var ||K^T s||^2 <= 2 ||B||_F^2, and the product of two different random rows has the mean square ||B||_F^2.
    pairs, variance = predicted / 2, predicted * plan.ranking.left[num_top]
    if q > 1:
        pairs = _mean_square_of_pairs(random)
        variance = (squares.var(1) / 2 + _mean_square_of_pairs(corrected) + variance) / 2
    frobenius = (exact.square().sum((1, 2)) + 2 * crossed.mean(1) + pairs).clamp(min=0).sqrt()
    # To first order; a sum of many terms is nearly normal, and a normal's square has twice its square as variance.
    spread = 2 * crossed.mean(1).square()
    if q > 1:
        spread = (spread + crossed.var(1)) / 2
    square_variance = 4 * spread / q + 2 * ((pairs + predicted / 2) / 2).square()
    frobenius_variance = square_variance / (4 * frobenius.square() + 1e-300)
    square = exact[:, 0, 0] * plan.gradient_scale.square()  # ||g||^2
    products = torch.cat([exact[:, 0].square().sum(1, keepdim=True), cross[:, 0].square().mean(1, keepdim=True)], 1)
    zero = torch.zeros_like(trace)
    safe = exact[:, 0, 0].clamp(min=1e-300)
    return {
        "loss": plan.hessian.loss,
        "probability": plan.hessian.probability,
        "gradient_norm": square.sqrt(),
        "gradient_curvature": torch.where(square > 0, products.sum(1) / safe, zero),
        "trace": trace,
        "trace_standard_error": (variance / q).sqrt(),
        "frobenius_norm": frobenius,
        "frobenius_norm_standard_error": frobenius_variance.sqrt(),
        "largest_eigenvalue": torch.linalg.eigvalsh(exact)[:, -1].clamp(min=0),
        "largest_eigenvalue_residual": rest,
    }
