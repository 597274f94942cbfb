"""Curvature of the loss in each image, by the method of the user's choice: the door to this package's estimators.

===============  =====================================================  ==============================================
method           what it is                                             cost in forward passes (F)
===============  =====================================================  ==============================================
exact            the Hessian of a piecewise linear network, no noise    C for C classes
top_directions   the same for many classes: exact where the energy is,  8 for 5 %, 13 for 1 % (trained, 100 classes)
                 unbiased probes for the rest, with a standard error
double_backward  any twice differentiable network; unbiased probes      about 50
===============  =====================================================  ==============================================

A network that is not piecewise linear, or a loss that does not tell its Hessian in the outputs, gets
``double_backward`` whatever was asked, and the result says so. The published finite difference is another quantity and
has its own function, ``finite_difference_curvature``.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from dd_core.curvature.copies import Output
from dd_core.curvature.evaluation import SMALLEST_PASS, check_data, in_layout_of, logits_of, padded, require_finite
from dd_core.curvature.input_space.affine_maps import Network, affine_maps, rows_per_pass
from dd_core.curvature.input_space.double_backward import double_backward_curvature
from dd_core.curvature.input_space.exact import Linearized, exact_curvature, num_exact_passes
from dd_core.curvature.input_space.piecewise_linear import is_piecewise_linear
from dd_core.curvature.input_space.signs import Stream, rademacher
from dd_core.curvature.input_space.top_directions import Ranking, grouped_curvature, plan_directions
from dd_core.curvature.network import admitted, as_tensors
from dd_core.errors import UserError
from dd_core.machine.memory import in_blocks
from dd_core.study.curvature_names import CURVATURE_COLUMNS
from dd_core.tasks.losses import CROSS_ENTROPY, Loss
from dd_core.tasks.output_hessian import OutputHessian

_LOG = logging.getLogger(__name__)

Method = Literal["exact", "top_directions", "double_backward"]
BlockFunction = Callable[[Linearized, OutputHessian, Tensor, Tensor], dict[str, Tensor]]

_NUM_CHECKED_IMAGES = 2
# Rows that an image usually needs of top_directions: so many images make a pass.
_USUAL_ROWS = 5


@dataclass(frozen=True)
class ImageCurvature:
    """Curvature of N images.

    Attributes:
        columns: float64 (N,) on the CPU, by the names in ``CURVATURE_COLUMNS``. loss: of the given label, nats;
            probability: of the given label, NaN where outputs stand for none; gradient_norm: of the loss in x, nats per
            input unit;
            gradient_curvature: g^T H g / ||g||^2 (0 where g is 0); trace, frobenius_norm, largest_eigenvalue: of the
            Hessian in x, nats per squared input unit; the standard errors and the residual of the eigenvalue (how far
            below the true one it may lie) are 0 where the method is exact.
        method: the one that was used.
        note: why it is not the one asked for, or None.
        num_passes: mean number of backward passes per image, None for double_backward.
    """

    columns: dict[str, Tensor]
    method: Method
    note: str | None
    num_passes: float | None


def per_image_curvature(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    image_ids: Tensor | None = None,
    method: Method = "exact",
    precision: torch.dtype | None = None,
    relative_error: float = 0.01,
    num_probes: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    ranking: Ranking | None = None,
    output: Output = None,
    loss: Loss = CROSS_ENTROPY,
) -> ImageCurvature:
    """Curvature of the loss in each image, for one network.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
        >>> curvature = per_image_curvature(model, torch.ones(5, 3, 2, 2), torch.zeros(5, dtype=torch.int64))
        >>> curvature.method, tuple(curvature.columns["trace"].shape)
        ('exact', (5,))

    Args:
        model: in eval mode, float32 or float64, images (B, ...) to logits (B, C). It is copied, not changed.
        images: (N, ...), in the model's precision and on its device, standardised as in training.
        labels: int64 (N,): the given labels. NumPy arrays will do for both.
        image_ids: int64 (N,), default 0 to N-1; probes belong to them, so any order, shard or batch gives the same.
        method: exact, top_directions or double_backward; this module's docstring compares them.
        precision: of the backward passes of exact and top_directions, default the model's; bfloat16 is exact to about
            1 % and 1.3 to 1.6 times as fast on a CPU that knows it. Forward passes and sums keep theirs.
        relative_error: of top_directions: predicted standard error of the trace over the trace.
        num_probes: random rows or vectors per image; default 1 for top_directions, 10 for double_backward.
        batch_size: images per pass, at least 16, default by device and classes; it changes the memory, not the
            result.
        seed: of the probes.
        ranking: of top_directions, from ``ranking.direction_ranking``: the same error in fewer passes.
        output: which of the model's outputs are the logits, where it gives several: a key, a position or an attribute.
        loss: whose curvature, such as ``dd_core.tasks.losses.MeanSquaredError()``; default cross-entropy.

    Raises:
        UserError: the model is in training mode, is no fixed function of one image or cannot be differentiated twice,
            its output is not finite, or model, images and labels do not fit. See docs/networks.md.
    """
    _check(images, method, relative_error, num_probes)
    images, labels = as_tensors(images, labels, model)
    ids = torch.arange(len(images)) if image_ids is None else image_ids.cpu()
    check_data(model, images, labels, ids.to(images.device))
    with admitted(model, images, output=output) as network:
        images = in_layout_of(network, images)
        hessian = output_hessian(network, images, labels, loss)
        note = None
        if method != "double_backward" and hessian is None:
            note = (
                f"double_backward instead of {method}: {type(loss).__name__} does not tell its Hessian in the outputs"
            )
        elif method != "double_backward":
            assert hessian is not None
            linear, reason = is_piecewise_linear(network, images[:_NUM_CHECKED_IMAGES], labels[:_NUM_CHECKED_IMAGES])
            if linear:
                at_images = affine_maps(network, padded(images[:_NUM_CHECKED_IMAGES], 2), precision or images.dtype)
                work = _Work(at_images, images, labels, ids, loss, hessian.roots.shape[1], batch_size)
                if method == "exact":
                    return work.exact()
                return work.top_directions(relative_error, num_probes or 1, seed, ranking)
            note = f"double_backward instead of {method}: {reason}"
        if note is not None:
            _LOG.warning(note)
        columns = double_backward_curvature(
            network,
            images,
            labels,
            ids.to(images.device),
            num_probes=num_probes or 10,
            batch_size=max(batch_size or 100, 1),
            seed=seed,
            loss=loss,
        )
    return ImageCurvature(columns, "double_backward", note, None)


def _check(images: Tensor, method: str, relative_error: float, num_probes: int | None) -> None:
    """Refuse what no later check names well."""
    if method not in ("exact", "top_directions", "double_backward"):
        raise UserError(f"there is no estimator {method!r}; there are exact, top_directions and double_backward")
    if not len(images):
        raise UserError("there are no images to compute the curvature of")
    if not 0 < relative_error < 1:
        raise UserError(f"relative_error must lie between 0 and 1, not {relative_error}")
    if num_probes is not None and num_probes < 1:
        raise UserError(f"num_probes must be at least 1, not {num_probes}")


def output_hessian(network: nn.Module, images: Tensor, labels: Tensor, loss: Loss) -> OutputHessian | None:
    """The Hessian, in the outputs, of the first image's loss; all labels must fit the classes."""
    with torch.no_grad():
        logits = logits_of(network, images[:1], labels[:1])
    if logits.shape[1] < 2:
        raise UserError("the model has one output; the cross-entropy needs at least two classes")
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise UserError(
            f"labels from {int(labels.min())} to {int(labels.max())} do not fit the model's {logits.shape[1]} classes"
        )
    return loss.output_hessian(logits, labels[:1])


class _Work:
    """The images of one call, block by block."""

    def __init__(
        self,
        network: Network,
        images: Tensor,
        labels: Tensor,
        ids: Tensor,
        loss: Loss,
        num_directions: int,
        batch_size: int | None,
    ):
        """Keep what every block needs; ``num_directions`` are those of the loss's Hessian in the outputs."""
        self.network, self.images, self.labels, self.ids = network, images, labels, ids
        self.loss, self.batch_size = loss, batch_size
        first = network.forward(images[:1])
        self.limit, self.weight = rows_per_pass(first, images.device), first.classifier_weight
        self.num_exact = num_exact_passes(num_directions, self.weight)

    def exact(self, chosen: Tensor | None = None) -> ImageCurvature:
        """Every image, or those chosen, by the exact Hessian."""
        chosen = torch.arange(len(self.images)) if chosen is None else chosen
        rows = max(1, self.limit // self._block_size(self.num_exact))
        columns = self._in_blocks(chosen, self.num_exact, lambda at, hessian, *_: exact_curvature(at, hessian, rows))
        return ImageCurvature(columns, "exact", None, float(self.num_exact))

    def top_directions(
        self, relative_error: float, num_probes: int, seed: int, ranking: Ranking | None
    ) -> ImageCurvature:
        """As many passes for each image as it needs, from one forward pass."""
        weight = self.weight
        if weight is None:
            exact = self.exact()
            return replace(exact, note="exact instead of top_directions: the network's last linear layer was not found")

        def of_block(at: Linearized, hessian: OutputHessian, labels: Tensor, ids: Tensor) -> dict[str, Tensor]:
            plan = plan_directions(hessian, labels, weight, ranking)
            shape = (hessian.roots.shape[1],)
            signs = rademacher(ids, num_probes, shape, seed=seed, stream=Stream.OUTPUT_SPACE, dtype=torch.float64)
            rows, order = plan.num_rows(relative_error, num_probes, self.num_exact).cpu().sort(stable=True)
            result = {name: torch.empty(len(labels), dtype=torch.float64) for name in CURVATURE_COLUMNS}
            result["passes"] = torch.empty(len(labels), dtype=torch.float64)
            for part, counts in _passes(rows, self.limit, self.num_exact):
                images, groups = order[part].to(labels.device), []
                if rows[part.start] == self.num_exact:
                    found = exact_curvature(at.of(images), hessian.of(images))
                else:
                    for own, count in zip(images.split(counts), rows[part].unique_consecutive().tolist(), strict=True):
                        groups.append((plan.of(own), count - 1 - num_probes, signs[own.cpu()].to(labels.device)))
                    found = grouped_curvature(at.of(images), groups)
                for name, values in {**found, "passes": rows[part].double()}.items():
                    result[name][order[part]] = values.cpu()
            return result

        columns = self._in_blocks(torch.arange(len(self.images)), _USUAL_ROWS, of_block)
        num_passes = columns.pop("passes").mean().item()
        return ImageCurvature(columns, "top_directions", None, num_passes)

    def _block_size(self, rows: int) -> int:
        """Images in one block of so many cotangents each."""
        return max(SMALLEST_PASS, self.batch_size or self.limit // rows)

    def _in_blocks(self, chosen: Tensor, rows: int, compute: BlockFunction) -> dict[str, Tensor]:
        """Linearise the chosen images block by block, none of them so small that kernels would round differently."""
        size = self._block_size(rows)

        def block(start: int, stop: int, size: int) -> dict[str, Tensor]:
            index = padded(chosen[start:stop], min(size, SMALLEST_PASS))
            linearized = self.network.forward(self.images[index])
            require_finite(linearized.logits)
            labels = self.labels[index]
            hessian = self.loss.output_hessian(linearized.logits, labels)
            assert hessian is not None
            values = compute(linearized, hessian, labels, self.ids[index])
            return {name: value[: stop - start].cpu() for name, value in values.items()}

        parts = list(in_blocks(block, len(chosen), size))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _passes(rows: Tensor, limit: int, num_exact: int) -> Iterator[tuple[slice, list[int]]]:
    """Divide images into passes of about ``limit`` rows, and those that get the exact Hessian from the others.

    Args:
        rows: int64 (B,), ascending, of each image.
        limit: of the rows of a pass.
        num_exact: rows of an image with the exact Hessian.

    Yields:
        The images of a pass, and how many of them need equally many rows, one number after the other.
    """
    border = int((rows < num_exact).sum())
    for first, last in ((0, border), (border, len(rows))):
        total = rows[first:last].cumsum(0)
        if not len(total):
            continue
        number = max(1, round(int(total[-1]) / limit))
        # The middle of an image's rows says to which pass it belongs, so that passes are about equally large.
        belongs = (2 * total - rows[first:last]) * number // (2 * total[-1])
        for length in belongs.unique_consecutive(return_counts=True)[1].tolist():
            part = slice(first, first + length)
            yield part, rows[part].unique_consecutive(return_counts=True)[1].tolist()
            first += length
