"""By what ``top_directions`` ranks directions, measured at a few images that stand for all: fewer rows for each.

Without it features count as if the network stretched all alike. With it they count by the mean Gram matrix of their
Jacobians, which also explains part of what a probe says. Any ranking leaves the estimates unbiased.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from dd_core.curvature.copies import Output
from dd_core.curvature.evaluation import check_data, in_layout_of, padded, require_finite
from dd_core.curvature.input_space.affine_maps import affine_maps
from dd_core.curvature.input_space.exact import Linearized, gram_matrix, num_exact_passes
from dd_core.curvature.input_space.per_image import output_hessian
from dd_core.curvature.input_space.piecewise_linear import is_piecewise_linear
from dd_core.curvature.input_space.top_directions import Ranking, plain_ranking, plan_directions, traces
from dd_core.curvature.network import admitted, as_tensors
from dd_core.tasks.losses import CROSS_ENTROPY, Loss
from dd_core.tasks.output_hessian import OutputHessian

_ROWS_PER_PASS = 256
# Which share of the rows a ranking saves, about.
_SAVED = 0.3
# The few images by which a ranking is measured have their part in the mean that is to predict them.
_SAFETY = 1.5


def direction_ranking(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    num_images: int,
    relative_error: float = 0.01,
    num_probes: int = 1,
    output: Output = None,
    loss: Loss = CROSS_ENTROPY,
) -> Ranking | None:
    """What ``top_directions`` may know of a network beforehand, if that saves more rows than it costs.

    It belongs to the network: parts of one data set that shall fit each other must have the same. Its cost is that of
    the exact Hessian in features, a row for each feature of the last layer and each of the few images.

    Args:
        model: as for ``per_image_curvature``, as all others.
        images: (n, ...), such as 16 of the training images.
        labels: int64 (n,).
        num_images: how many there will be in all.
        relative_error: of ``top_directions``, as it will be called.
        num_probes: likewise.
        output: of the model's.
        loss: whose curvature.

    Returns:
        None where it does not pay, or where ``top_directions`` is not to be had. Where it was measured and saves
        nothing after all: the energy of the last layer, by which directions are ranked without it.

    Raises:
        UserError: as ``per_image_curvature``.
    """
    images, labels = as_tensors(images, labels, model)
    check_data(model, images, labels)
    with admitted(model, images, output=output) as network:
        images = in_layout_of(network, images)
        first = output_hessian(network, images, labels, loss)
        if first is None or not is_piecewise_linear(network, images[:2], labels[:2])[0]:
            return None
        at = affine_maps(network, padded(images[:2], 2), images.dtype).forward(images)
        require_finite(at.logits)
        hessian, weight = loss.output_hessian(at.logits, labels), at.classifier_weight
        if weight is None or hessian is None:
            return None
        wanted = (relative_error, num_probes, num_exact_passes(hessian.roots.shape[1], weight))
        rows = plan_directions(hessian, labels, weight).num_rows(*wanted).double().mean()
        if _SAVED * rows * num_images <= len(images) * weight.shape[1]:
            return None
        ranking = _measured(at, hessian, labels)
        ranked = plan_directions(hessian, labels, weight, ranking).num_rows(*wanted).double().mean()
        return ranking if ranked < rows else plain_ranking(weight)


def _measured(linearized: Linearized, hessian: OutputHessian, labels: Tensor) -> Ranking:
    """From F backward passes for each of a few images that stand for all; any ranking leaves estimates unbiased.

    At these images everything is known. So it can be counted how much of a probe's deviation the mean explains
    (a control variate whose coefficient is the regression's), and what variance is left, for every number m of
    directions.

    Args:
        linearized: the network at them, with its last linear layer.
        hessian: of the loss in the outputs there.
        labels: int64 (B,).
    """
    assert linearized.classifier_weight is not None
    weight = linearized.classifier_weight.double()
    num_features = weight.shape[1]
    units = torch.eye(num_features, device=weight.device)[None]
    each = []
    for image in torch.arange(len(labels), device=labels.device).split(1):  # all at once would fill the memory
        parts = [linearized.of(image).pull_back_features(part) for part in units.split(_ROWS_PER_PASS, dim=1)]
        each.append(gram_matrix(torch.cat(parts, dim=1)))
    grams = torch.cat(each)
    mean = (grams * (num_features / traces(grams).clamp(min=1e-300))[:, None, None]).mean(0)
    values, vectors = torch.linalg.eigh(mean)
    root = vectors * values.clamp(min=1e-6 * num_features).sqrt()
    plan = plan_directions(hessian, labels, weight, replace(plain_ranking(weight), root=root))
    factor = hessian.project(weight) * hessian.roots[..., None]
    known, left = torch.zeros_like(plan.ranking.known), torch.ones_like(plan.ranking.left)
    for num_top in range(plan.left.shape[1]):
        basis = plan.basis(num_top)
        taken = traces(basis @ factor @ grams @ (basis @ factor).transpose(1, 2))
        stretch = taken / (plan.energy - plan.left[:, num_top]).clamp(min=1e-300)
        rest = factor - basis.transpose(1, 2) @ (basis @ factor)
        # In units of the predicted trace, so that every image counts alike.
        rest = rest / plan.energy.clamp(min=1e-300).sqrt()[:, None, None]
        actual = _off_diagonal(rest, grams / stretch.clamp(min=1e-300)[:, None, None])
        model = _off_diagonal(rest, (root @ root.T).expand_as(grams))
        share = (actual * model).sum() / model.square().sum().clamp(min=1e-300)
        predicted = (plan.variance[:, num_top] / plan.energy.clamp(min=1e-300).square()).sum()
        known[num_top] = share.clamp(0, 1)
        remaining = 2 * (actual - known[num_top] * model).square().sum()
        left[num_top] = (_SAFETY * remaining / predicted.clamp(min=1e-300)).clamp(max=1)
    return Ranking(root, known, left)


def _off_diagonal(rows: Tensor, middle: Tensor) -> Tensor:
    """Rows (B, M, F) times (B, F, F) times the rows, without the diagonals: (B, M, M)."""
    product = rows @ middle @ rows.transpose(1, 2)
    return product - torch.diag_embed(product.diagonal(dim1=1, dim2=2))
